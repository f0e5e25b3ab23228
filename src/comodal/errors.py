"""Exceptions for causes outside the library: files, settings, hardware. Each message says what to do in one sentence.

The command line prints these without a stack trace. Invalid arguments of the Python functions raise a ValueError.
"""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNEXPECTED_ERROR = "unexpected error"  # the reason of a MediaError for unexpected exceptions
MAX_DETAIL_CHARACTERS = 300
MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


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


@contextmanager
def wrap_item_errors(path: Path | str) -> Iterator[None]:
    """Context manager that turns any exception from processing one file into a MediaError with the file's name.

    A decoder may raise anything. Exceptions that the file did not cause are passed on: comodal's own errors, a full
    disk, out of memory, Ctrl-C. With COMODAL_DEBUG=1 all exceptions are passed on.

    Args:
        path: The file, as named in the report.

    Raises:
        MediaError: Processing the file failed.
    """
    try:
        yield
    except (ComodalError, MemoryError):
        raise
    except Exception as error:
        machine = isinstance(error, OSError) and error.errno in MACHINE_ERRNOS
        if machine or os.environ.get("COMODAL_DEBUG"):
            raise
        detail = " ".join(str(error).split())[:MAX_DETAIL_CHARACTERS]
        raise MediaError(path, UNEXPECTED_ERROR, f"{type(error).__name__}: {detail}") from error


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
