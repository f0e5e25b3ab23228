"""Exceptions for causes outside the library: files, settings, hardware. Each message states the cause and what to do.

The command line prints these without a stack trace. Invalid arguments of the Python functions raise a ValueError.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TypeVar

UNEXPECTED_ERROR = "unexpected error"  # the reason of a MediaError for unexpected exceptions
MAX_DETAIL_CHARACTERS = 300
TORCH_MEMORY_ERROR, TORCH_DEVICE_ERROR = "OutOfMemoryError", "AcceleratorError"  # PyTorch is not imported here
MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
MAX_BATCH_SIZE = 1 << 16  # samples of a step over all processes; contrastive models are trained with up to 32,768
MAX_WORKERS = MAX_THREADS = 1024
OUT_OF_MEMORY_TEXTS = ("DefaultCPUAllocator: ", "out of memory")  # of the RuntimeErrors of PyTorch's allocators

A = TypeVar("A")
T = TypeVar("T")


class ComodalError(Exception):
    """Base class: a problem with a file or a setting, described in one sentence."""


class MediaError(ComodalError):
    """A video, audio file or image that cannot be used; `reason` is a short code for counts in reports."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}")
        self.path = str(path)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str, str]]:
        return type(self), (self.path, self.reason, self.detail)


class MediaWarning(UserWarning):
    """An audio file was read despite a problem: it is truncated, or a part of it is damaged."""

    def __init__(self, path: Path | str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = str(path)
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaWarning"], tuple[str, str]]:
        return type(self), (self.path, self.detail)


class DataError(ComodalError):
    """A list, shard folder or data set is missing, damaged or of another layout."""


class CheckpointError(ComodalError):
    """A model or run folder cannot be loaded."""


class RecipeError(ComodalError):
    """Settings of a recipe are incompatible."""


def check_number(name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Checks that a setting is a number within its limits; NaN, booleans and texts are not.

    Raises:
        ValueError: It is not; the message names it with its value.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        shown = value if is_number else repr(value)
        raise ValueError(f"{name} is a number from {low:,} to {high:,}, got {shown}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory is used up. PyTorch raises a RuntimeError, numpy a MemoryError."""
    if isinstance(error, RuntimeError):
        is_torch_error = type(error).__name__ == TORCH_MEMORY_ERROR
        return is_torch_error or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return isinstance(error, MemoryError)


@contextmanager
def wrap_item_errors(path: Path | str) -> Iterator[None]:
    """Context manager that turns any exception from processing one file into a MediaError with the file's name.

    A decoder may raise anything. Exceptions that the file did not cause are passed on: comodal's own errors, a full
    disk, out of memory, a failed GPU, Ctrl-C. With COMODAL_DEBUG=1 all exceptions are passed on.

    Args:
        path: The file, as named in the report.

    Raises:
        MediaError: Processing the file failed.
        MemoryError: The GPU is out of memory.
    """
    try:
        yield
    except ComodalError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        if is_machine_error(error) or os.environ.get("COMODAL_DEBUG"):
            raise
        detail = " ".join(str(error).split())[:MAX_DETAIL_CHARACTERS]
        raise MediaError(path, UNEXPECTED_ERROR, f"{type(error).__name__}: {detail}") from error


def is_machine_error(error: Exception) -> bool:
    """Whether the machine caused an error and not the file: a full disk, no more memory, a GPU that failed."""
    is_system_error = isinstance(error, OSError) and error.errno in MACHINE_ERRNOS
    return is_system_error or is_out_of_memory(error) or type(error).__name__ == TORCH_DEVICE_ERROR


def run_batch_or_singly(
    run: Callable[[Sequence[A]], Sequence[T]], items: Sequence[A], paths: Sequence[Path]
) -> list[T | MediaError]:
    """Runs a function on the contents of several files at once, or if that fails on each alone: only a file that fails
    by itself is lost.

    Args:
        run: Function that returns a result for each item.
        items: Contents of the files.
        paths: The files, as named in the report.

    Returns:
        The result of each item, or its error.
    """
    if not items:
        return []
    try:
        with wrap_item_errors(paths[0]):
            return [*run(items)]
    except MediaError as error:
        if len(items) == 1:
            return [error]
    return [run_batch_or_singly(run, [item], [path])[0] for item, path in zip(items, paths, strict=True)]


@contextmanager
def collect_media_warnings() -> Iterator[list[str]]:
    """Collects MediaWarnings in the block; other warnings are emitted as usual."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        yield notes
    for warning in caught:
        if isinstance(warning.message, MediaWarning):
            notes.append(warning.message.detail)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
