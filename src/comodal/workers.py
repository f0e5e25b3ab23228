"""Worker processes: backends, termination with the parent process, and recovery from crashes.

A decoder that crashes ends its worker process. The file that caused it is found by reading the files in progress again,
one by one in a separate process; only that file is lost.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from comodal.errors import DataError
from comodal.text_files import read_text

Backend = Literal["loky", "ray", "dask", "sequential"]
MAX_CRASHES = 3  # maximum of successive crashes for which no file is found
CRASH_REASON = ("crashed the decoder", "the process that read it died")
ORPHAN_SECONDS = 0.5

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerOptions:
    """How many worker processes there are, and where they run.

    Args:
        workers: Worker processes; -1 is one per core.
        backend: Where the processes run: loky (this machine), ray or dask (many machines; extras), sequential (this
            process).
    """

    workers: int = -1
    backend: Backend = "loky"

    def check(self) -> None:
        """Raises ValueError if the number of workers is out of range."""
        if self.workers != -1 and self.workers < 1:
            raise ValueError(f"workers is a number of processes, or -1 for one per core; got {self.workers}")


def watch_parent_process(command: int) -> None:
    """Ends this worker when its parent process has ended, even if it was killed."""

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def collect_start_settings() -> dict[str, Any]:
    """Settings with which worker processes are started."""
    return {"initializer": watch_parent_process, "initargs": (os.getpid(),)}


@contextlib.contextmanager
def select_backend(backend: Backend) -> Iterator[None]:
    """Context manager that sets joblib's backend; Ray and Dask use the cluster of their own settings.

    Raises:
        DataError: The backend's package is not installed.
    """
    with contextlib.ExitStack() as stack:
        try:
            if backend == "ray":
                from ray.util.joblib import register_ray

                register_ray()
            if backend == "dask":
                from distributed import Client

                stack.enter_context(Client())
        except ImportError as error:
            raise DataError(f"backend {backend} needs the extra: pip install 'comodal[{backend}]'") from error
        start = collect_start_settings() if backend == "loky" else {}
        stack.enter_context(joblib.parallel_config(backend, **start))
        yield


def run_one_by_one(work: Callable[[A], T], items: Iterable[A]) -> Iterator["Future[T]"]:
    """Runs a function on each item in a separate process, which is restarted after a crash.

    Yields the future of each item; its exception is a BrokenProcessPool if the item crashed the process.
    """
    pending = deque(items)
    while pending:
        with ProcessPoolExecutor(max_workers=1, **collect_start_settings()) as executor:
            while pending:
                future = executor.submit(work, pending.popleft())
                ended = isinstance(future.exception(), BrokenProcessPool)
                yield future
                if ended:
                    break


def run_in_parallel(work: Callable[[A], T], items: Sequence[A], processes: int) -> Iterator[tuple[A, T | None]]:
    """Runs a function on each item in worker processes.

    Args:
        work: Function to run; it is sent to the workers.
        items: All items.
        processes: Number of workers; with several, items are returned in the order of completion.

    Yields:
        Each item with its result, or with None if it crashed its process.

    Raises:
        DataError: Workers crash repeatedly, and no single item crashes a process.
    """
    if processes == 1:
        yield from zip(items, map(get_result_or_none, run_one_by_one(work, items)), strict=True)
        return
    pending, failures = dict(enumerate(items)), 0
    with tempfile.TemporaryDirectory(prefix="comodal-workers-") as folder, select_backend("loky"):
        journal = Path(folder)
        while pending:
            pool = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
            calls = (
                joblib.delayed(run_with_journal)(work, item, index, journal) for index, item in list(pending.items())
            )
            try:
                for index, result in pool(calls):
                    yield pending.pop(index), result
            except BrokenProcessPool as error:
                suspects = [index for index in read_journal(journal) if index in pending]
                results = [
                    get_result_or_none(future)
                    for future in run_one_by_one(work, [pending[index] for index in suspects])
                ]
                yield from ((pending.pop(index), result) for index, result in zip(suspects, results, strict=True))
                failures = 0 if None in results else failures + 1
                if failures == MAX_CRASHES:
                    raise DataError(
                        "workers keep crashing, possibly for lack of memory; results are kept: run the same command "
                        f"again with fewer --workers than {processes}"
                    ) from error


def get_result_or_none(future: "Future[T]") -> T | None:
    """The result of a call, or None if it crashed its process."""
    return None if isinstance(future.exception(), BrokenProcessPool) else future.result()


def run_with_journal(work: Callable[[A], T], item: A, index: int, journal: Path) -> tuple[int, T]:
    """Runs the function in a worker, and first writes the item's index to the journal."""
    (journal / str(os.getpid())).write_text(str(index))
    return index, work(item)


def read_journal(journal: Path) -> list[int]:
    """Indices of the items that the workers started last."""
    texts = [read_text(path) for path in journal.iterdir()]
    return sorted(int(text) for text in texts if text)
