"""Worker processes: where they run, that they end with the command that started them, and what is done when one dies.

A decoder that crashes ends its process. The file that it read is found by reading those that were being read once more,
one by one in a process beside, and costs nothing but itself.
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
from pathlib import Path
from typing import Any, Literal, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from comodal.errors import DataError
from comodal.text_files import read_text

Backend = Literal["loky", "ray", "dask", "sequential"]
MAX_CRASHES = 3  # how often in a row workers may die without a file to blame
CRASH_REASON = ("crashed the decoder", "the process that read it died")
ORPHAN_SECONDS = 0.5

A = TypeVar("A")
T = TypeVar("T")


def watch_parent_process(command: int) -> None:
    """End this worker when the command that started it has ended, also by a kill."""

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def collect_start_settings() -> dict[str, Any]:
    """What every worker process of this command is started with."""
    return {"initializer": watch_parent_process, "initargs": (os.getpid(),)}


@contextlib.contextmanager
def select_backend(backend: Backend) -> Iterator[None]:
    """Make joblib's workers those of the backend: of Ray or Dask the cluster that their own settings name.

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
    """Run something for each item in a process beside this one, and in another after each that it ended with: what each
    gave or raised, or a BrokenProcessPool for the item that ended the process."""
    left = deque(items)
    while left:
        with ProcessPoolExecutor(max_workers=1, **collect_start_settings()) as alone:
            while left:
                future = alone.submit(work, left.popleft())
                ended = isinstance(future.exception(), BrokenProcessPool)
                yield future
                if ended:
                    break


def run_in_parallel(work: Callable[[A], T], items: Sequence[A], processes: int) -> Iterator[tuple[A, T | None]]:
    """Run something for each item in worker processes.

    Args:
        work: What to run; it is sent to the workers.
        items: All of them.
        processes: Workers; where they are several, items come back in the order in which they are done.

    Yields:
        Each item with what came of it, or with None where it ended the process that worked on it.

    Raises:
        DataError: Workers die, and no item ends a process by itself.
    """
    if processes == 1:
        yield from zip(items, map(get_result_or_none, run_one_by_one(work, items)), strict=True)
        return
    left, failures = dict(enumerate(items)), 0
    with tempfile.TemporaryDirectory(prefix="comodal-workers-") as folder, select_backend("loky"):
        journal = Path(folder)
        while left:
            pool = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
            calls = (joblib.delayed(run_with_journal)(work, item, place, journal) for place, item in list(left.items()))
            try:
                for place, result in pool(calls):
                    yield left.pop(place), result
            except BrokenProcessPool as error:
                suspects = [place for place in read_journal(journal) if place in left]
                found = [
                    get_result_or_none(future) for future in run_one_by_one(work, [left[place] for place in suspects])
                ]
                yield from ((left.pop(place), result) for place, result in zip(suspects, found, strict=True))
                failures = 0 if None in found else failures + 1
                if failures == MAX_CRASHES:
                    raise DataError(
                        "workers keep dying, perhaps for want of memory; what is written stays, and the same command "
                        f"goes on: take fewer --workers than {processes}"
                    ) from error


def get_result_or_none(future: "Future[T]") -> T | None:
    """What a call gave, or None where it ended its process."""
    return None if isinstance(future.exception(), BrokenProcessPool) else future.result()


def run_with_journal(work: Callable[[A], T], item: A, place: int, journal: Path) -> tuple[int, T]:
    """In a worker: runs something for an item, and writes down before which one it is."""
    (journal / str(os.getpid())).write_text(str(place))
    return place, work(item)


def read_journal(journal: Path) -> list[int]:
    """The items that the workers had begun last."""
    texts = [read_text(path) for path in journal.iterdir()]
    return sorted(int(text) for text in texts if text)
