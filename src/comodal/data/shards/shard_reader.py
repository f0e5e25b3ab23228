"""Tar shards in the WebDataset convention, each with an index file for verified random access.

A sample is several members whose names share a key: `key.0000.jpg`, `key.flac`, `key.json`. The webdataset library and
`tar` read the shards sequentially; `ShardReader` reads any member of any sample with one `pread`, in any order, from
forked or spawned workers, and verifies its checksum.
"""

import hashlib
import json
import os
import tarfile
import zlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from comodal.data.shards.shard_index import (
    MEMBER_DTYPE,
    SHARD_BLOCK_BYTES,
    ShardIndex,
    format_index_damage,
    pack_shard_index,
    read_shard_index,
)
from comodal.errors import DataError
from comodal.files import make_temporary_path, open_to_write, write_bytes_atomically
from comodal.text_files import read_json_object

MAX_OPEN_HANDLES = 128  # open files per process; the usual limit is 1024
MAX_SHARD_MEMBER_BYTES = 2**32 - 1  # the index keeps sizes in 32 bits


class ShardWriter:
    """Writes one shard; the tar and its index are renamed to their final names when both are complete.

    The same samples give the same bytes: times, owners and modes in the tar are fixed. Without samples, no file is
    written.

    Examples:
        >>> with ShardWriter(Path("train/000000.tar")) as shard:
        ...     shard.write("a", {"flac": b"fLaC"}, {"label": "bell"})
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".tar":
            raise ValueError(f"a shard is a .tar file, got {path}")
        self.path = path
        self.samples: list[tuple[str, str, int]] = []
        self.members: list[tuple[int, int, int, str]] = []
        self.keys: set[str] = set()
        self.temporary = make_temporary_path(path)
        self.file = open_to_write(self.temporary, "w", self.path)

    def write(self, key: str, members: dict[str, bytes], record: dict[str, Any]) -> None:
        """Append a sample; the record becomes its member `json`, and its `group` is in the index as well (there a
        line break in it is written `\\n`)."""
        text = self.encode_record(key, members, record)
        group = str(record.get("group", key)).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
        self.keys.add(key)
        self.samples.append((key, group, len(self.members)))
        for name, data in (members | {"json": text}).items():
            self._append(key, name, data)

    def encode_record(self, key: str, members: dict[str, bytes], record: dict[str, Any]) -> bytes:
        """The record as JSON.

        Raises:
            ValueError: The sample cannot be in this shard.
        """
        if not key or key in self.keys or set(key) & set("./\n"):
            raise ValueError(f"a key is unique in its shard and has no dot, slash or line break; got {key!r}")
        for name, data in members.items():
            if len(data) > MAX_SHARD_MEMBER_BYTES:
                raise ValueError(f"{key}.{name} has {len(data):,} bytes; the maximum is {MAX_SHARD_MEMBER_BYTES:,}")
        text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        return text.encode("utf-8", "backslashreplace")

    def _append(self, key: str, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(f"{key}.{name}")
        header.size = len(data)
        self.file.write(header.tobuf(tarfile.PAX_FORMAT))
        self.members.append((self.file.tell() // SHARD_BLOCK_BYTES, len(data), zlib.crc32(data), name))
        self.file.write(data)
        self.file.write(bytes(-len(data) % SHARD_BLOCK_BYTES))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.samples:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        self.file.write(bytes(2 * SHARD_BLOCK_BYTES))  # the end of a tar is two empty blocks
        self.file.flush()
        os.fsync(self.file.fileno())
        index = pack_shard_index(self.file.tell(), self.samples, self.members)
        self.file.close()
        self.temporary.replace(self.path)
        write_bytes_atomically(self.path.with_suffix(".index"), index)

    def _discard(self) -> None:
        self.temporary.unlink(missing_ok=True)
        self.file.close()


class _Handle:
    """An open file, closed when nobody refers to it, so that one thread may read while another opens files."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.descriptor = -1
            raise DataError(f"{path}: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class ShardReader:
    """All samples of a folder of shards, in the order of the shards' names.

    May be pickled, forked and read from several threads.

    Args:
        folder: For example OUT/train of `comodal prepare`.

    Raises:
        DataError: The folder has no shards, a tar is missing or truncated, an index is damaged, or the preparation of
            the folder has not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _check_finished_folder(folder)
        self.indexes: list[ShardIndex] = []
        for path in sorted(folder.glob("[!.]*.index")):
            self.indexes.append(read_shard_index(path))
            _check_tar_size(self.indexes[-1])
        if not self.indexes:
            raise DataError(f"{folder} has no shards (000000.tar with 000000.index, as `comodal prepare` writes them)")
        self.starts = list(accumulate((len(index) for index in self.indexes), initial=0))
        self._handles: dict[Path, _Handle] = {}
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "_cached": None}

    @property
    def keys(self) -> list[str]:
        return [key for index in self.indexes for key in index.keys.decode().split("\n")]

    @property
    def groups(self) -> list[str]:
        """The source video of each sample, without reading the samples."""
        return [group for index in self.indexes for group in index.groups.decode().split("\n")]

    @property
    def fingerprint(self) -> str:
        """A hash that changes when any byte of any sample does; it covers the indexes, which hold the members'
        checksums.
        """
        text = "".join(f"{index.path.name} {index.checksum:08x}\n" for index in self.indexes)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def get_key(self, i: int) -> str:
        index, sample = self._locate(i)
        return index.get_key(sample)

    def list_members(self, i: int) -> list[str]:
        index, _ = self._locate(i)
        return [index.names[name] for name in self._rows(i)["name"]]

    def read_record(self, i: int) -> dict[str, Any]:
        return json.loads(self.read_member(i, "json"))

    def read_member(self, i: int, member: str) -> bytes:
        """One member of one sample.

        Raises:
            DataError: The checksum does not match, or the sample has no such member.
        """
        index, _ = self._locate(i)
        rows = self._rows(i)
        tar = index.path.with_suffix(".tar")
        try:
            row = rows[rows["name"] == index.names.index(member)][0]
        except (ValueError, IndexError):
            raise DataError(
                f"{tar}: {self.get_key(i)} has no {member}, only {', '.join(self.list_members(i))}"
            ) from None
        data = self._pread(tar, int(row["block"]) * SHARD_BLOCK_BYTES, int(row["size"]))
        if len(data) != row["size"] or zlib.crc32(data) != row["checksum"]:
            raise DataError(format_index_damage(tar, f"{member} of {self.get_key(i)} does not match its checksum"))
        return data

    def _locate(self, i: int) -> tuple[ShardIndex, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.folder}")
        shard = bisect_right(self.starts, i) - 1
        return self.indexes[shard], i - self.starts[shard]

    def _rows(self, i: int) -> np.ndarray:
        cached = self._cached
        if cached is None or cached[0] != i:
            index, sample = self._locate(i)
            start, size = index.get_row_range(sample)
            data = self._pread(index.path, start, size)
            if len(data) != size:
                raise DataError(format_index_damage(index.path, "it is shorter than when it was opened"))
            cached = self._cached = (i, np.frombuffer(data, MEMBER_DTYPE))
        return cached[1]

    def _pread(self, path: Path, start: int, size: int) -> bytes:
        handle = self._handles.get(path)
        if handle is None:
            if len(self._handles) >= MAX_OPEN_HANDLES:
                self._handles.pop(next(iter(self._handles)), None)
            handle = self._handles[path] = _Handle(path)
        return os.pread(handle.descriptor, size, start)


def _check_finished_folder(folder: Path) -> None:
    about = folder.parent / "about.json"
    if about.is_file() and not read_json_object(about).get("finished", True):
        raise DataError(f"{folder.parent} is not finished: run the same `comodal prepare` command again to resume")


def _check_tar_size(index: ShardIndex) -> None:
    tar = index.path.with_suffix(".tar")
    try:
        size = tar.stat().st_size
    except OSError as error:
        raise DataError(format_index_damage(tar, f"{error.strerror}")) from error
    if size != index.tar_bytes:
        raise DataError(format_index_damage(tar, f"it has {size:,} bytes instead of {index.tar_bytes:,}"))
