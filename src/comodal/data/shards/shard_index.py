"""The index of a tar shard: the offset of each member of each sample, and its checksum.

One flat little-endian file: a header, `firsts` (the first member of each sample, and one more), one row per member, the
keys, the groups and the member names as lines of text, and a CRC-32 of all that. A sample of a 10 s clip has 52
members, so 500,000 clips have 26 million rows: rows stay in the file and are read for one sample at a time. Such a set
opens in a second and needs about 50 MB per process. Nothing in it is pickled.
"""

import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comodal.errors import DataError

INDEX_MAGIC = b"comodal index 1\n"
INDEX_HEADER = struct.Struct("<16sQIIIII")  # magic, bytes of the tar, samples, members, bytes of keys, groups and names
INDEX_CHECKSUM = struct.Struct("<I")
SHARD_BLOCK_BYTES = 512  # tar places every header and every member on a multiple of this
MEMBER_DTYPE = np.dtype([("block", "<u4"), ("size", "<u4"), ("checksum", "<u4"), ("name", "<u4")])


@dataclass(frozen=True)
class ShardIndex:
    """The part of one shard's index file that is kept in memory."""

    path: Path
    tar_bytes: int
    keys: bytes  # one a line: a third of the memory of a list of strings
    key_ends: np.ndarray  # (samples,) uint32: where the line of each key ends
    groups: bytes
    firsts: np.ndarray  # (samples + 1,) uint32
    names: tuple[str, ...]
    rows_start: int  # where the member rows begin in the file
    checksum: int

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def get_key(self, sample: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[sample - 1]) + 1 if sample else 0
        return self.keys[start : int(self.key_ends[sample])].decode()

    def get_row_range(self, sample: int) -> tuple[int, int]:
        """The position of a sample's member rows in the index file: the first byte, and the number of rows."""
        first, last = int(self.firsts[sample]), int(self.firsts[sample + 1])
        return self.rows_start + first * MEMBER_DTYPE.itemsize, (last - first) * MEMBER_DTYPE.itemsize


def format_index_damage(path: Path, problem: str) -> str:
    return (
        f"{path} is damaged: {problem}. Delete {path.stem}.tar, {path.stem}.index and {path.stem}.report.jsonl in "
        f"{path.parent} and run the same prepare command again, or copy the three from their source again"
    )


def pack_shard_index(
    tar_bytes: int, samples: list[tuple[str, str, int]], members: list[tuple[int, int, int, str]]
) -> bytes:
    """The bytes of an index file.

    Args:
        tar_bytes: Size of the tar file.
        samples: (key, group, first member) of each sample.
        members: (block, size, checksum, name) of each member.
    """
    names = list(dict.fromkeys(name for *_, name in members))
    name_index = {name: n for n, name in enumerate(names)}
    rows = np.array(
        [(block, size, checksum, name_index[name]) for block, size, checksum, name in members], MEMBER_DTYPE
    )
    firsts = np.array([first for *_, first in samples] + [len(members)], "<u4")
    lines = [[key for key, _, _ in samples], [group for _, group, _ in samples], names]
    texts = ["\n".join(column).encode() for column in lines]
    header = INDEX_HEADER.pack(INDEX_MAGIC, tar_bytes, len(samples), len(members), *map(len, texts))
    body = b"".join([header, firsts.tobytes(), rows.tobytes(), *texts])
    return body + INDEX_CHECKSUM.pack(zlib.crc32(body))


def read_shard_index(path: Path) -> ShardIndex:
    """Read and check an index file.

    Raises:
        DataError: It is missing, truncated, of another format, or corrupted.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if len(data) < INDEX_HEADER.size + INDEX_CHECKSUM.size or not data.startswith(INDEX_MAGIC):
        raise DataError(format_index_damage(path, "it is not an index, or cut short"))
    _, tar_bytes, samples, members, *texts = INDEX_HEADER.unpack_from(data)
    ends = np.cumsum([INDEX_HEADER.size, 4 * (samples + 1), MEMBER_DTYPE.itemsize * members, *texts])
    if ends[-1] + INDEX_CHECKSUM.size != len(data):
        raise DataError(
            format_index_damage(path, f"it has {len(data):,} bytes instead of {ends[-1] + INDEX_CHECKSUM.size:,}")
        )
    (checksum,) = INDEX_CHECKSUM.unpack_from(data, len(data) - INDEX_CHECKSUM.size)
    if zlib.crc32(memoryview(data)[: -INDEX_CHECKSUM.size]) != checksum:
        raise DataError(format_index_damage(path, "its checksum does not match"))
    keys = data[ends[2] : ends[3]]
    return ShardIndex(
        path,
        tar_bytes,
        keys=keys,
        key_ends=find_line_ends(keys),
        groups=data[ends[3] : ends[4]],
        firsts=np.frombuffer(data[ends[0] : ends[1]], "<u4"),
        names=tuple(map(sys.intern, data[ends[4] : ends[5]].decode().split("\n"))),
        rows_start=int(ends[1]),
        checksum=checksum,
    )


def find_line_ends(lines: bytes) -> np.ndarray:
    """Where each line ends, the last one at the end of the bytes. In UTF-8 no other character contains a line break."""
    return np.append(np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")), len(lines)).astype(np.uint32)
