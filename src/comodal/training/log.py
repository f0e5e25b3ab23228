"""What a run says while it works: lines of JSON, TensorBoard events, and a line of progress."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from comodal.console import is_terminal, new_bar, say
from comodal.text_files import read_log

LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


class Log:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: The run's.
        step: Where the run goes on; what was written after that step, before the run was killed, is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        temporary = folder / ".metrics.jsonl.part"
        with temporary.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self.file = self.path.open("a", buffering=1)
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """One line, and one event for each metric."""
        self.file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.events.close()


class ProgressLine:
    """A bar on a terminal, a line every half minute elsewhere, nothing in the processes that do not speak."""

    def __init__(self, steps: int, done: int, speaks: bool) -> None:
        self.steps = steps
        self.speaks = speaks
        self.bar = new_bar(left=False, disable=not (speaks and is_terminal()))
        self.task = self.bar.add_task("training", total=steps, completed=done)
        self.last_line = time.monotonic()

    def show(self, step: int, metrics: dict[str, float], steps_per_second: float) -> None:
        """The metrics of the last line of the log, and the time left."""
        left = f"{timedelta(seconds=round((self.steps - step) / steps_per_second))} left"
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items() if shown(name))
        self.bar.update(self.task, completed=step, description=f"{text}, {left}")
        due = time.monotonic() - self.last_line > LINE_SECONDS or step == self.steps
        if self.speaks and due and not is_terminal():
            self.last_line = time.monotonic()
            say(f"step {step:,} of {self.steps:,}: {text}, {left}", stderr=True)

    def say(self, sentence: str) -> None:
        """A sentence above the bar."""
        if self.speaks:
            say(sentence, stderr=True)

    def __enter__(self) -> "ProgressLine":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


def shown(name: str) -> bool:
    return name in {"loss", "accuracy", "pairs_per_second"}
