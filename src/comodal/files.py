"""Files that are either whole or not there: written under a temporary name, synced, renamed.

A temporary name says whose it is: `.NAME.PID-HOST.part`. What a killed process left is removed by the next one that
writes into the same folder. Modes follow the umask.
"""

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAMP_BYTES = 1 << 12  # of each end of a file
NAME_BYTES = 255  # of a file's name, on every usual file system
TEMPORARY = re.compile(r"\..*\.(\d+)-([0-9a-f]{4})\.part", re.DOTALL)
FULL = {
    errno.ENOSPC: "the disk is full; make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up; make room and run the same command again",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size",
}
_swept: set[Path] = set()  # folders in which this process has looked for what others left


def shortened(name: str, spare: int = 0) -> str:
    """A file name that leaves `spare` of the 255 bytes: of a longer one its beginning, a hash of it, and its suffix."""
    most = NAME_BYTES - spare
    if len(os.fsencode(name)) <= most:
        return name
    suffix = Path(name).suffix if len(os.fsencode(Path(name).suffix)) <= 16 else ""
    ending = f"-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}{suffix}"
    return os.fsencode(name)[: most - len(os.fsencode(ending))].decode("utf-8", "ignore") + ending


def stamp_of(path: Path) -> str:
    """Size and both ends of a file, to recognize one that was replaced under its name; "" without a file.

    It is the same for a copy, and costs two reads.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.blake2b(file.read(STAMP_BYTES), digest_size=8)
            file.seek(max(size - STAMP_BYTES, 0))
            digest.update(file.read(STAMP_BYTES))
    except OSError:
        return ""
    return f"{size}-{digest.hexdigest()}"


def stamp_of_all(paths: Iterable[Path]) -> str:
    """One stamp of many files in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(f"{stamp_of(path)}\n".encode())
    return digest.hexdigest()


def host_mark() -> str:
    """Four digits of the machine's name: on a shared disk, process ids of other machines say nothing."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=2).hexdigest()


def temporary_name(path: Path) -> Path:
    """Of this process alone: a worker that outlives a killed command cannot write into the file of its successor."""
    ending = f".{os.getpid()}-{host_mark()}.part"
    return path.with_name(f".{shortened(path.name, spare=1 + len(ending))}{ending}")


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files of processes of this machine that have ended, once for each process and folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    with os.scandir(folder) as entries:
        left = [(entry.path, found) for entry in entries if (found := TEMPORARY.fullmatch(entry.name))]
    for name, found in left:
        if found[2] == host_mark() and not is_running(int(found[1])):
            Path(name).unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` when the block ends well, and is removed when it does not.

    Raises:
        OSError: It cannot be written, or something of that name is no file: a folder, or a device, which a superuser
            could replace. It names `path`.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "there is something of that name which is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent)
    temporary = temporary_name(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # as the umask has it; some libraries make files for their owner alone
        yield temporary
        with temporary.open("rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), os.fsencode(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file at once, or leaves what was there."""
    with whole(path) as temporary:
        temporary.write_bytes(data)


def json_line(value: Any) -> bytes:
    """A value as a line of JSON. Names of files that are not UTF-8 are written as escapes, and read as they were."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def reason_of(error: OSError) -> str:
    """What the system says with a number, in a sentence with the name of the file."""
    reason = FULL.get(error.errno or 0) or error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
