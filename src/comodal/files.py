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

FINGERPRINT_BYTES = 1 << 12  # of each end of a file
MAX_NAME_BYTES = 255  # of a file's name, on every usual file system
TEMPORARY_NAME = re.compile(r"\..*\.(\d+)-([0-9a-f]{4})\.part", re.DOTALL)
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up; make room and run the same command again",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size",
}
_cleaned_folders: set[Path] = set()  # folders in which this process has looked for what others left


def shorten_file_name(name: str, spare: int = 0) -> str:
    """A file name that leaves `spare` of the 255 bytes: of a longer one its beginning, a hash of it, and its suffix."""
    most = MAX_NAME_BYTES - spare
    if len(os.fsencode(name)) <= most:
        return name
    suffix = Path(name).suffix if len(os.fsencode(Path(name).suffix)) <= 16 else ""
    ending = f"-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}{suffix}"
    return os.fsencode(name)[: most - len(os.fsencode(ending))].decode("utf-8", "ignore") + ending


def fingerprint_file(path: Path) -> str:
    """Size and both ends of a file, to recognize one that was replaced under its name; "" without a file.

    It is the same for a copy, and costs two reads.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.blake2b(file.read(FINGERPRINT_BYTES), digest_size=8)
            file.seek(max(size - FINGERPRINT_BYTES, 0))
            digest.update(file.read(FINGERPRINT_BYTES))
    except OSError:
        return ""
    return f"{size}-{digest.hexdigest()}"


def fingerprint_files(paths: Iterable[Path]) -> str:
    """One stamp of many files in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(f"{fingerprint_file(path)}\n".encode())
    return digest.hexdigest()


def hash_host_name() -> str:
    """Four digits of the machine's name: on a shared disk, process ids of other machines say nothing."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=2).hexdigest()


def make_temporary_path(path: Path) -> Path:
    """Of this process alone: a worker that outlives a killed command cannot write into the file of its successor."""
    ending = f".{os.getpid()}-{hash_host_name()}.part"
    return path.with_name(f".{shorten_file_name(path.name, spare=1 + len(ending))}{ending}")


def remove_stale_files(folder: Path) -> None:
    """Remove the temporary files of processes of this machine that have ended, once for each process and folder."""
    if folder in _cleaned_folders:
        return
    _cleaned_folders.add(folder)
    with os.scandir(folder) as entries:
        left = [(entry.path, found) for entry in entries if (found := TEMPORARY_NAME.fullmatch(entry.name))]
    for name, found in left:
        if found[2] == hash_host_name() and not is_process_running(int(found[1])):
            Path(name).unlink(missing_ok=True)


def is_process_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path` when the block ends well, and is removed when it does not.

    Raises:
        OSError: It cannot be written, or something of that name is no file: a folder, or a device, which a superuser
            could replace. It names `path`.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "there is something of that name which is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_files(path.parent)
    temporary = make_temporary_path(path)
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


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Writes a file at once, or leaves what was there."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def encode_json_line(value: Any) -> bytes:
    """A value as a line of JSON. Names of files that are not UTF-8 are written as escapes, and read as they were."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def describe_os_error(error: OSError) -> str:
    """What the system says with a number, in a sentence with the name of the file."""
    reason = DISK_ERRORS.get(error.errno or 0) or error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
