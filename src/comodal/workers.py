"""Worker processes: where they run, and that they end with the command that started them."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from comodal.errors import DataError

Backend = Literal["loky", "ray", "dask", "sequential"]
ORPHAN_SECONDS = 0.5

T = TypeVar("T")


def end_with(command: int) -> None:
    """End this worker when the command that started it has ended, also by a kill."""

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def at_the_start() -> dict[str, Any]:
    """What every worker process of this command is started with."""
    return {"initializer": end_with, "initargs": (os.getpid(),)}


@contextlib.contextmanager
def running_on(backend: Backend) -> Iterator[None]:
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
        start = at_the_start() if backend == "loky" else {}
        stack.enter_context(joblib.parallel_config(backend, **start))
        yield


def run_alone(work: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run something in a process of its own, and wait for it: what it gave or raised, or a BrokenProcessPool where it
    ended the process."""
    with ProcessPoolExecutor(max_workers=1, **at_the_start()) as alone:
        return alone.submit(work, *arguments)
