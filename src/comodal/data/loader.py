"""Batches in an order that depends only on the seed: the same for any number of workers and processes.

Sample indices grow without end; sample n is index n % N of epoch n // N, for an epoch of N samples. The state of a
loader is the number of samples done, so training resumes at the exact sample even on another number of machines.
"""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from comodal import distributed
from comodal.data.batch import Batch
from comodal.errors import MAX_BATCH_SIZE, MAX_WORKERS, ComodalError, DataError, MediaError, check_number
from comodal.hardware import resolve_loader_workers

GRACE_SECONDS = 60  # that a worker keeps running after a SIGTERM
WORKER_DIED_PATTERN = re.compile(r"^DataLoader worker .* (is killed by signal|exited unexpectedly)")
Workers: TypeAlias = int | Literal["auto"]
CPU = torch.device("cpu")
PREFETCHED_BATCHES = 2  # batches that each worker prepares while the model computes


@runtime_checkable
class Samples(Protocol):
    """The interface of a data set for the loader: any samples of any epoch as one batch."""

    def __len__(self) -> int: ...

    def batch(self, positions: Sequence[tuple[int, int]], /) -> Batch: ...


@runtime_checkable
class FileSamples(Samples, Protocol):
    """Samples that are read from files. A file that cannot be read is replaced by another one."""

    @property
    def problems(self) -> Mapping[int, MediaError]: ...


class Loader:
    """Batches of samples, of which each process gets its part.

    Args:
        samples: The data set.
        batch_size: Samples of one step, over all processes.
        workers: Worker processes that prepare batches; 0 prepares them in this process, on demand; auto chooses by the
            device and the number of cores.
        length: End after this many samples, a multiple of batch_size; None never ends.

    Attributes:
        problems: The files that could not be read for the batches so far, by their paths.
    """

    def __init__(self, samples: Samples, batch_size: int, workers: Workers, length: int | None = None) -> None:
        check_number("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        if workers != "auto":
            check_number("workers", workers, 0, MAX_WORKERS)
        if length is not None and length % batch_size:
            raise ValueError(f"length ({length}) must be a multiple of batch_size ({batch_size})")
        self.samples = samples
        self.batch_size = batch_size
        self.workers = workers
        self.length = length
        self.problems: dict[str, MediaError] = {}

    def iterate_batches(self, samples_done: int = 0, parts: int = 1, device: torch.device = CPU) -> Iterator[Batch]:
        """The batches after the first `samples_done` samples.

        Args:
            samples_done: Where to resume.
            parts: Split this process's part of each step into this many batches, for gradient accumulation.
            device: The device of the model: batches for a GPU are pinned, so that they are copied asynchronously.

        Raises:
            DataError: A sample cannot be read, or a worker died.
        """
        workers = resolve_loader_workers(self.workers, device)
        loader = DataLoader(
            _Fetch(self.samples),
            batch_size=None,
            sampler=_Order(self.batch_size, samples_done, self.length, parts),
            num_workers=workers,
            collate_fn=_return_batch,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_stop_signals,
            prefetch_factor=PREFETCHED_BATCHES if workers else None,
            generator=torch.Generator(),  # else making a loader would draw from torch's global random state
        )
        fetched = iter(loader)
        try:
            while (part := next(fetched, None)) is not None:
                if isinstance(part, ComodalError):
                    raise part
                batch, problems = part
                self.problems |= {problem.path: problem for problem in problems}
                yield batch
        except RuntimeError as error:
            if not WORKER_DIED_PATTERN.search(str(error)):
                raise
            raise DataError(f"a data worker died ({error}); fewer --workers need less memory") from error
        finally:
            del fetched  # ends the workers, even while a traceback holds this frame


def round_up_to_batches(samples: int, batch_size: int) -> int:
    """The number of samples of the fewest whole batches that hold this many samples.

    Raises:
        ValueError: batch_size is no size of a batch.
    """
    check_number("batch_size", batch_size, 1, MAX_BATCH_SIZE)
    return -(-samples // batch_size) * batch_size


@dataclass(frozen=True)
class _Order:
    """The sample indices of each batch of this process: contiguous parts of every step's samples, in rank order."""

    batch_size: int
    samples_done: int
    length: int | None
    parts: int

    def __iter__(self) -> Iterator[range]:
        num_parts = distributed.count_processes() * self.parts
        if self.batch_size % num_parts:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of processes x parts ({num_parts})")
        part_size = self.batch_size // num_parts
        for start in count(self.samples_done, self.batch_size):
            if start == self.length:
                return
            for part in range(self.parts):
                first = start + (distributed.get_process_rank() * self.parts + part) * part_size
                yield range(first, first + part_size)


class _Fetched(NamedTuple):
    """A batch, and the unreadable files that were found since the previous one."""

    batch: Batch
    problems: tuple[MediaError, ...]


class _Fetch(Dataset):
    """Batches by sample ids. An error is returned as a value: torch would wrap it in a stack trace."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.num_reported = 0

    def __getitem__(self, sample_indices: range) -> _Fetched | ComodalError:
        try:
            batch = self.samples.batch([divmod(index, len(self.samples)) for index in sample_indices])
        except ComodalError as error:
            return error
        problems = tuple(self.samples.problems.values()) if isinstance(self.samples, FileSamples) else ()
        first, self.num_reported = self.num_reported, len(problems)
        return _Fetched(batch, problems[first:])


def _return_batch(batch: Any) -> Any:
    return batch


def _ignore_stop_signals(_worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a worker. Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM
    every process of a job. The trainer then saves a checkpoint, and needs its workers until this is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
