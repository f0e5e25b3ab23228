"""Checkpoints of a run: the full training state in one file each; the last two are kept.

A checkpoint is written under a temporary name, synced to disk and renamed, so that a file of the final name is
complete. Loading a checkpoint runs no code: `weights_only` only unpickles tensors, numbers and strings.
"""

import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from comodal.console import print_line
from comodal.errors import CheckpointError
from comodal.files import write_atomically

MAX_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainingState:
    """The training state after `step` steps."""

    step: int
    samples: int  # samples so far over all processes: the position in the data
    seconds: float  # training time, including earlier sessions
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    rng_states: dict[str, torch.Tensor]  # states of the random generators, by device type
    fingerprint: str  # of the data
    sums: dict[str, float]  # sums of the metrics since the last line of the log


class Checkpoints:
    """The folder of a run's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_files(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint, and then deletes the oldest.

        Raises:
            CheckpointError: It cannot be written; the earlier checkpoints are unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{state.step:09d}.pt"
        try:
            with write_atomically(path) as temporary, temporary.open("wb") as file:
                torch.save(asdict(state), file)
        except (OSError, RuntimeError) as error:  # torch turns some failures to write into RuntimeError
            reason = error.strerror if isinstance(error, OSError) else error.__cause__ or error.__context__ or error
            last = (
                f"the checkpoint of step {int(self.list_files()[-1].stem)} is complete"
                if self.list_files()
                else "there is none yet"
            )
            raise CheckpointError(
                f"{path} cannot be written ({reason}); {last}: free disk space, then continue with --resume"
            ) from error
        files = self.list_files()
        later = [old for old in files if int(old.stem) > state.step]  # damaged: the run was resumed from an older one
        for old in [*files[: -MAX_KEPT_CHECKPOINTS - len(later)], *later]:
            old.unlink()

    def load(self) -> TrainingState | None:
        """Returns the last valid checkpoint, on the CPU, or None if there is none. A damaged one is skipped with a
        warning.

        Raises:
            CheckpointError: All checkpoints are damaged, or were not written by comodal.
        """
        for leftover in self.folder.glob(".*.part"):  # temporary files of a killed process
            leftover.unlink(missing_ok=True)
        files = self.list_files()
        for path in reversed(files):
            try:
                return read_training_state(path)
            except CheckpointError as error:
                if path == files[0]:
                    raise
                print_line(f"warning: {error}; continuing from the previous one", stderr=True)
        return None


def read_training_state(path: Path) -> TrainingState:
    """Reads one checkpoint.

    Raises:
        CheckpointError: It is damaged, or was not written by comodal.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums but does not verify them
            if archive.testzip():
                raise zipfile.BadZipFile("checksum mismatch")
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except (
        OSError,
        RuntimeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        NotImplementedError,
    ) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint") from error
