"""Files that are either whole or not there: written under a temporary name, synced, renamed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """Of this process alone: a worker that outlives a killed command cannot write into the file of its successor."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` when the block ends well, and is removed when it does not.

    Raises:
        OSError: Something of that name is no file: a folder, or a device, which a superuser could replace.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "there is something of that name which is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file at once, or leaves what was there."""
    with whole(path) as temporary:
        temporary.write_bytes(data)
