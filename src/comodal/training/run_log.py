"""The log of a run: JSON Lines, TensorBoard events, and a note for the progress bar."""

from pathlib import Path

from comodal.files import encode_json_line, open_to_write, write_bytes_atomically
from comodal.registry import import_object
from comodal.text_files import read_metrics

PROGRESS_METRICS = ("loss", "accuracy", "samples_per_second", "mfu")


class RunLog:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: Run folder.
        step: Step at which the run resumes; entries after that step, written before the run was killed, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept_lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_bytes_atomically(self.path, b"".join(encode_json_line(line) for line in kept_lines))
        self.file = open_to_write(self.path, "a")
        writer = import_object("torch.utils.tensorboard:SummaryWriter")
        self.events = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """Writes one line, and one event for each metric."""
        self.file.write(encode_json_line({"step": step, "split": split, **metrics}))
        self.file.flush()
        for name, value in metrics.items():
            self.events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.events.close()


def format_metrics_note(metrics: dict[str, float]) -> str:
    """Formats metrics for the progress bar."""
    shown = {name: metrics[name] for name in PROGRESS_METRICS if name in metrics}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
