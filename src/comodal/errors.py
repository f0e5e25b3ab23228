"""What goes wrong for reasons outside the library: a file, a setting, a machine. Each says what to do in one sentence.

The command line prints these without a stack trace. A mistake of a caller of the Python functions is a ValueError.
"""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNEXPECTED_ERROR = "unexpected error"  # the reason of a MediaError for what no reader foresees
MAX_DETAIL_CHARACTERS = 300
MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class ComodalError(Exception):
    """A fault of a file or a setting, told in one sentence."""


class MediaError(ComodalError):
    """A video, sound or picture that cannot be used; `reason` is one of a few words that a report can count."""

    def __init__(self, path: Path | str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {reason}: {detail}")
        self.path = str(path)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str, str]]:
        return type(self), (self.path, self.reason, self.detail)


class MediaWarning(UserWarning):
    """What a file of audio was taken in spite of: it ends before its header says, or a part of it is damaged."""

    def __init__(self, path: Path | str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = str(path)
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaWarning"], tuple[str, str]]:
        return type(self), (self.path, self.detail)


class DataError(ComodalError):
    """A list, shard folder or data set that is missing, damaged or of another layout."""


class CheckpointError(ComodalError):
    """A model or run folder that cannot be loaded."""


class RecipeError(ComodalError):
    """Settings of a recipe that cannot work together."""


@contextmanager
def wrap_item_errors(path: Path | str) -> Iterator[None]:
    """The boundary around the work on one of many files: whatever it raises becomes a MediaError with the file's name,
    for a line of the report, since a decoder may raise anything.

    Passed on is what is not the file's fault: our own errors, a full disk, no memory, Ctrl-C. With COMODAL_DEBUG=1
    everything is passed on.

    Args:
        path: The file, as the report names it.

    Raises:
        MediaError: The work failed.
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
    """Collects what is said of damaged media meanwhile; all other warnings are given as always."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        yield notes
    for warning in caught:
        if isinstance(warning.message, MediaWarning):
            notes.append(warning.message.detail)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
