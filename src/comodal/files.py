"""Atomic file writes: written under a temporary name, synced, renamed.

The temporary name `.NAME.PID-HOST.part` identifies the process. Temporary files of killed processes are removed by the
next process that writes into the same folder. Modes follow the umask.
"""

import errno
import hashlib
import io
import json
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FINGERPRINT_BYTES = 1 << 12  # of each part of a file that its fingerprint covers
FINGERPRINT_PARTS = 8  # from its beginning to its end; two recordings of one length may both begin and end in silence
MAX_NAME_BYTES = 255  # of a file's name, on every usual file system
TEMPORARY_NAME = re.compile(r"\..*\.(\d+)-([0-9a-f]{4})\.part", re.DOTALL)
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again (a training with --resume)",
    errno.EDQUOT: "the quota is used up; free some space and run the same command again (a training with --resume)",
    errno.EFBIG: "the file system or `ulimit -f` allows no file of this size",
}
_cleaned_folders: set[Path] = set()  # folders that this process has checked for stale files


def shorten_file_name(name: str, spare: int = 0) -> str:
    """Shortens a file name to 255 bytes less `spare`: its beginning, a hash, and its suffix."""
    max_bytes = MAX_NAME_BYTES - spare
    if len(os.fsencode(name)) <= max_bytes:
        return name
    suffix = Path(name).suffix if len(os.fsencode(Path(name).suffix)) <= 16 else ""
    ending = f"-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}{suffix}"
    return os.fsencode(name)[: max_bytes - len(os.fsencode(ending))].decode("utf-8", "ignore") + ending


def open_regular_file(path: Path) -> io.BufferedReader:
    """Opens a file to read its bytes. A FIFO would block, and a device never ends.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def fingerprint_file(path: Path) -> str:
    """A fingerprint of size and eight parts of a file, to detect a replaced file; "" if there is no file.

    It is the same for a copy, and requires few reads.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open_regular_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            last = max(size - FINGERPRINT_BYTES, 0)
            for start in dict.fromkeys(last * part // (FINGERPRINT_PARTS - 1) for part in range(FINGERPRINT_PARTS)):
                file.seek(start)
                digest.update(file.read(FINGERPRINT_BYTES))
    except OSError:
        return ""
    return f"{size}-{digest.hexdigest()}"


def fingerprint_files(paths: Iterable[Path]) -> str:
    """One fingerprint of many files in order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(f"{fingerprint_file(path)}\n".encode())
    return digest.hexdigest()


def encode_for_hash(text: str) -> bytes:
    """The UTF-8 of a text, also of file names that are not UTF-8 and of halves of surrogate pairs in broken JSON."""
    return text.encode("utf-8", "surrogatepass")


def hash_host_name() -> str:
    """Four digits of the host name's hash: on a shared disk, process ids of other machines are meaningless."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=2).hexdigest()


def make_temporary_path(path: Path) -> Path:
    """A temporary path unique to this process, so that an orphaned worker cannot write into another's file."""
    ending = f".{os.getpid()}-{hash_host_name()}.part"
    return path.with_name(f".{shorten_file_name(path.name, spare=1 + len(ending))}{ending}")


def remove_stale_files(folder: Path) -> None:
    """Removes temporary files of ended processes of this machine, once per process and folder."""
    if folder in _cleaned_folders:
        return
    _cleaned_folders.add(folder)
    with os.scandir(folder) as entries:
        temporary_files = [(entry.path, match) for entry in entries if (match := TEMPORARY_NAME.fullmatch(entry.name))]
    for name, match in temporary_files:
        if match[2] == hash_host_name() and not is_process_running(int(match[1])):
            Path(name).unlink(missing_ok=True)


def is_process_running(process: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` if the block succeeds, and removed otherwise.

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
        mode = temporary.stat().st_mode & 0o777  # umask; some libraries make files private
        yield temporary
        with temporary.open("rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        named = {error.filename, error.filename2} - {None}  # a copy names both of its files
        if error.errno is not None and (not named or named & {temporary, str(temporary), os.fsencode(temporary)}):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def name_written_file(path: Path) -> Iterator[None]:
    """Adds the name of the file that is written to an OSError without one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


class _NamedFile(io.FileIO):
    """A raw file whose errors name another path."""

    def __init__(self, path: Path, mode: str, described_as: Path) -> None:
        super().__init__(path, mode)
        self.described_as = described_as

    def write(self, data: Any, /) -> int:
        with name_written_file(self.described_as):
            return super().write(data)

    def truncate(self, size: int | None = None, /) -> int:
        with name_written_file(self.described_as):
            return super().truncate(size)


def open_to_write(path: Path, mode: str, described_as: Path | None = None) -> io.BufferedWriter:
    """Opens a binary file to write ("w", "a" or "r+"). Errors, such as a full disk, name it.

    Args:
        path: The file.
        mode: As in `open`, without "b".
        described_as: The path that errors name, if `path` is a temporary name.

    Raises:
        OSError: It cannot be opened.
    """
    return io.BufferedWriter(_NamedFile(path, mode, described_as or path))


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def encode_json_line(value: Any) -> bytes:
    """Encodes a value as a line of JSON. File names that are not UTF-8 are escaped, and read back unchanged."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def describe_os_error(error: OSError) -> str:
    """Describes an OSError in a sentence with the name of the file."""
    reason = DISK_ERRORS.get(error.errno or 0) or error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
