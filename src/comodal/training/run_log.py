"""What a run says while it works: lines of JSON, TensorBoard events, and a note for the progress."""

import json
from pathlib import Path

from comodal.files import encode_json_line, write_bytes_atomically
from comodal.lazy_import import import_object
from comodal.text_files import read_log

PROGRESS_METRICS = ("loss", "accuracy", "samples_per_second", "mfu")


class RunLog:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: The run's.
        step: Where the run goes on; what was written after that step, before the run was killed, is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_bytes_atomically(self.path, b"".join(encode_json_line(line) for line in kept))
        self.file = self.path.open("a", buffering=1)
        writer = import_object("torch.utils.tensorboard:SummaryWriter")
        self.events = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """One line, and one event for each metric."""
        self.file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.events.close()


def format_metrics_note(metrics: dict[str, float]) -> str:
    """The metrics that the progress shows."""
    shown = {name: metrics[name] for name in PROGRESS_METRICS if name in metrics}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
