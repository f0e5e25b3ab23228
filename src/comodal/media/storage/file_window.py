"""A byte range of a file, readable as a file of its own."""

import io
import os
from pathlib import Path
from typing import Any


class FileWindow(io.RawIOBase):
    """The bytes `start` to `start + size` of a file; reads never leave this range."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek within the range."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot go to byte {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the range, up to its end."""
        count = min(len(buffer), max(self._size - self._at, 0))
        self._file.seek(self._start + self._at)
        read = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def open_file_window(path: Path, start: int, size: int) -> io.BufferedReader:
    """A buffered byte range of a file."""
    return io.BufferedReader(FileWindow(path, start, size))
