"""The headers of a tar archive, read past damage (POSIX.1-2017, pax; GNU's long names).

Python's `tarfile` ends silently at a damaged header and reads extended headers of any size. Here each header is parsed
by itself. Bytes that are not a valid header are skipped up to the next valid one, and everything skipped is reported.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TAR_BLOCK_BYTES = 512
ZERO_BLOCK = bytes(TAR_BLOCK_BYTES)
READ_AHEAD_BYTES = 16 * TAR_BLOCK_BYTES  # header, text and the next header often lie in one
MAX_EXTENDED_BYTES = 1 << 20  # of a long name or a pax header
SKIP_BYTES = 1 << 20  # of the zeros after the end, at a time
FILES, FOLDERS = (b"0", b"\0", b"7"), b"5"  # kinds of members
LINKS, SPARSE, WITHOUT_DATA = b"12", b"S", b"123456"
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL = b"L", b"K", (b"x", b"X"), b"g"
USTAR_MAGIC = b"ustar\0"
COMPRESSION_SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarHeader(NamedTuple):
    """A member: its name in the archive, its location, and why it cannot be read."""

    name: str
    start: int
    size: int
    error_message: str = ""
    truncated: bool = False


class TarDamage(NamedTuple):
    """Bytes that are part of no member, or an invalid end of the archive."""

    reason: str
    detail: str


class HeaderFields(NamedTuple):
    """The fields of a header block that are used."""

    name: str
    size: int
    kind: bytes


@contextmanager
def open_tar(path: Path) -> Iterator["TarReader"]:
    """An archive, to read its headers and its small members in the order of the file.

    Raises:
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield TarReader(descriptor)
    finally:
        os.close(descriptor)


class TarReader:
    """One pass over the blocks of an archive."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.end = os.fstat(descriptor).st_size
        self.ahead, self.ahead_at = b"", 0
        self.at = 0
        self.extended: dict[str, str] = {}  # of the next member
        self.lost_from: int | None = None
        self.ended = False  # after the zeros that end an archive

    def read(self, at: int, size: int) -> bytes:
        """Bytes of the archive; fewer at its end."""
        first = at - self.ahead_at
        if not 0 <= first <= first + size <= len(self.ahead):
            self.ahead, self.ahead_at, first = os.pread(self.descriptor, max(size, READ_AHEAD_BYTES), at), at, 0
        return self.ahead[first : first + size]

    def iterate_members(self) -> Iterator[TarHeader | TarDamage]:
        """The members that are files or links, in the order of the archive, and the damage between them."""
        packed = next(
            (name for magic, name in COMPRESSION_SIGNATURES.items() if self.read(0, 8).startswith(magic)), None
        )
        if packed:
            yield TarDamage("compressed", f"it is compressed with {packed}; decompress it first")
            return
        has_members = False
        while self.at + TAR_BLOCK_BYTES <= self.end:
            block = self.read(self.at, TAR_BLOCK_BYTES)
            if block == ZERO_BLOCK:
                self.ended = True
                self.skip_zeros()
                continue
            header = parse_header(block)
            if header is None:
                self.lost_from = self.at if self.lost_from is None else self.lost_from
                self.at += TAR_BLOCK_BYTES
                continue
            yield from self.report_lost_bytes(self.at)
            has_members, self.ended = True, False
            yield from self.read_member(header)
        yield from self.report_lost_bytes(self.end)
        if not has_members:
            yield TarDamage("no members", "it is empty, or not a tar archive")
        elif not self.ended and self.at == self.end:
            yield TarDamage("truncated", "it has no end-of-archive marker: members may be missing")
        elif not self.ended and self.at < self.end:
            yield TarDamage("truncated", f"it ends at byte {self.end:,}, inside a header: members are missing")

    def skip_zeros(self) -> None:
        """Go to the first block that is not all zeros."""
        while self.at + TAR_BLOCK_BYTES <= self.end:
            part = self.read(self.at, SKIP_BYTES)
            filled = len(part) - len(part.lstrip(b"\0"))
            self.at += filled // TAR_BLOCK_BYTES * TAR_BLOCK_BYTES
            if filled < len(part) or not part:
                return
        self.at = self.end

    def report_lost_bytes(self, until: int) -> Iterator[TarDamage]:
        """The bytes that were skipped because they are not a header."""
        if self.lost_from is not None and (self.lost_from or until < self.end):
            yield TarDamage("damaged", f"bytes {self.lost_from:,} to {until:,} have no header: members there are lost")
            self.ended = True
        self.lost_from = None

    def read_member(self, header: HeaderFields) -> Iterator[TarHeader | TarDamage]:
        """Read one header with its extended headers, and move past the member."""
        kind, start, size = header.kind, self.at + TAR_BLOCK_BYTES, self.get_member_size(header)
        self.at = start if kind in WITHOUT_DATA else start + -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        if kind in (LONG_NAME, LONG_LINK, PAX_OF_ALL, *PAX):
            yield from self.read_extended_header(kind, start, size)
            return
        name = self.extended.get("path", header.name)
        sparse = kind == SPARSE or any(one.startswith("GNU.sparse") for one in self.extended)
        self.extended = {}
        if sparse:
            yield TarHeader(name, start, size, "a sparse file, whose bytes are not contiguous")
        elif kind in LINKS:
            yield TarHeader(name, start, 0, "a link, not a file")
        elif kind in FILES and start + size > self.end:
            yield TarHeader(
                name, start, size, f"the archive ends at byte {self.end:,}, inside this member", truncated=True
            )
        elif kind in FILES:
            yield TarHeader(name, start, size)

    def get_member_size(self, header: HeaderFields) -> int:
        """The size of a member; a pax header's size takes precedence where the number is too large for the header."""
        text = self.extended.get("size", "")
        return int(text) if text.isdecimal() and len(text) < 20 else header.size

    def read_extended_header(self, kind: bytes, start: int, size: int) -> Iterator[TarDamage]:
        """Read the fields of an extended header for the next member."""
        if size > MAX_EXTENDED_BYTES or start + size > self.end:
            self.at = start  # the size is not valid
            yield TarDamage("damaged", f"an extended header of {size:,} bytes at byte {start:,}")
            return
        data = self.read(start, size)
        if kind == LONG_NAME:
            self.extended["path"] = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind in PAX:
            self.extended |= parse_pax(data)


def parse_header(block: bytes) -> HeaderFields | None:
    """The header in a block, or None if its checksum or an integer in it is invalid (POSIX.1-2017, ustar)."""
    checksum = decode_header_integer(block[148:156])
    if checksum is None:
        return None
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if checksum != total and checksum != total - 256 * sum(byte > 127 for byte in block):  # old ones sum signed bytes
        return None
    size = decode_header_integer(block[124:136])
    if size is None:
        return None
    name, kind = decode_header_text(block[:100]), block[156:157]
    if block[257:263] == USTAR_MAGIC and block[345]:
        name = f"{decode_header_text(block[345:500])}/{name}"
    return HeaderFields(name, size, FOLDERS if kind == b"\0" and name.endswith("/") else kind)


def decode_header_text(field: bytes) -> str:
    """A text up to its first null byte."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def decode_header_integer(field: bytes) -> int | None:
    """Octal digits, or GNU's binary integers; None if it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def parse_pax(data: bytes) -> dict[str, str]:
    """The records `LENGTH NAME=VALUE` of a pax header, up to the first that is damaged."""
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at : at + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data) - at:
            return records
        record = data[at + len(length) + 1 : at + int(length) - 1]
        name, _, value = record.partition(b"=")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return records
