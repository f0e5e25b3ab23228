"""The log of a run: JSON Lines, TensorBoard events, a note for the progress bar, and the unreadable media files."""

from collections.abc import Collection
from pathlib import Path

from comodal import distributed
from comodal.console import Table, print_line
from comodal.data.loader import Loader
from comodal.errors import DataError, MediaError
from comodal.files import encode_json_line, open_to_write, write_bytes_atomically
from comodal.registry import import_object
from comodal.text_files import read_log, read_metrics

REASON_UNREADABLE = "cannot be read"  # in counts of excluded items
UNREADABLE_FILE = "unreadable.jsonl"  # in a run folder
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


def report_unreadable(problems: Collection[MediaError], consequence: str = "are excluded") -> None:
    """Prints a table of the files and their errors."""
    if not problems:
        return
    print_line(f"files that cannot be read and {consequence}: {len(problems)}")
    table = Table("file", "reason")
    for problem in sorted(problems, key=lambda problem: problem.path):
        table.add_row(problem.path, f"{problem.reason}: {problem.detail}")
    table.show()


class SkippedMedia:
    """The unreadable files of a run's loaders, and of the sessions before it was resumed.

    Args:
        folder: The run folder. `unreadable.jsonl` has a line with `path`, `reason` and `detail` for each file.
        loaders: The loaders of the run; None for one that the run does not have.
    """

    def __init__(self, folder: Path, *loaders: Loader | None) -> None:
        self.path = folder / UNREADABLE_FILE
        self.loaders = [loader for loader in loaders if loader is not None]
        self.problems: dict[str, MediaError] = {}

    def record(self) -> None:
        """Adds the files of this process to the record; only in the main process.

        Raises:
            DataError: The existing record is damaged.
        """
        self.problems |= {problem.path: problem for problem in self.read_record()}
        for loader in self.loaders:
            self.problems |= loader.problems
        if not self.problems:
            return
        lines = [
            {"path": problem.path, "reason": problem.reason, "detail": problem.detail}
            for _, problem in sorted(self.problems.items())
        ]
        write_bytes_atomically(self.path, b"".join(encode_json_line(line) for line in lines))

    def record_all(self) -> None:
        """Adds the files of all processes to the record."""
        own = tuple(problem for loader in self.loaders for problem in loader.problems.values())
        self.problems |= {problem.path: problem for problem in distributed.all_gather_items(own)}
        if distributed.is_main_process():
            self.record()

    def read_record(self) -> list[MediaError]:
        """The files on record; none where there is no record.

        Raises:
            DataError: The record is damaged.
        """
        try:
            return [MediaError(line["path"], line["reason"], line["detail"]) for line in read_log(self.path)]
        except KeyError as error:
            raise DataError(f"{self.path}: not a list of files with reasons") from error

    def count(self) -> dict[str, int]:
        """The number of files, as a count of excluded items."""
        return {REASON_UNREADABLE: len(self.problems)} if self.problems else {}

    def report(self) -> None:
        """Prints a table of the files and their errors."""
        report_unreadable(self.problems.values(), "were replaced by others in training")
