"""The headers of a tar archive, read past damage (POSIX.1-2017, pax; GNU's long names).

Python's `tarfile` ends silently at a damaged header and reads extended headers of any size. Here each header is parsed
by itself, what cannot be one is skipped up to the next that can, and all that was skipped is told.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
MAX_EXTENDED_BYTES = 1 << 20  # of a long name or a pax header
SKIP_BYTES = 1 << 20  # of the zeros behind the end, at a time
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Header(NamedTuple):
    """A member: its name as the archive has it, where its bytes lie, and why it cannot be read."""

    name: str
    start: int
    size: int
    problem: str = ""


class Damage(NamedTuple):
    """Bytes that no member accounts for, or an end that is not one."""

    reason: str
    detail: str


def read_headers(path: Path) -> Iterator[Header | Damage]:
    """The members of an archive that are files or links, in its order, and what is damaged between them.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        head = file.read(8)
        packed = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
        if packed:
            yield Damage("compressed", f"it is packed with {packed}; unpack it first, members are read where they lie")
            return
        yield from _Scan(file, end).members()


class _Scan:
    """One pass over the blocks of an archive."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file = file
        self.end = end
        self.at = 0
        self.extended: dict[str, str] = {}  # of the next member
        self.lost_from: int | None = None
        self.ended = False  # behind the zeros that end an archive

    def members(self) -> Iterator[Header | Damage]:
        found = False
        while self.at + BLOCK <= self.end:
            block = self.read(self.at, BLOCK)
            if block == ZEROS:
                self.ended = True
                self.skip_zeros()
                continue
            header = parse_header(block)
            if header is None:
                self.lost_from = self.at if self.lost_from is None else self.lost_from
                self.at += BLOCK
                continue
            yield from self.lost(self.at)
            found, self.ended = True, False
            yield from self.member(header)
        yield from self.lost(self.end)
        if not found:
            yield Damage("no members", "it is empty, or no tar archive")
        elif not self.ended and self.at == self.end:
            yield Damage("truncated", "it ends without the mark that ends a tar archive: members may be missing")
        elif not self.ended and self.at < self.end:
            yield Damage("truncated", f"it ends at byte {self.end:,}, inside a header: members are missing")

    def read(self, at: int, size: int) -> bytes:
        self.file.seek(at)
        return self.file.read(size)

    def skip_zeros(self) -> None:
        """Go to the first block with something in it."""
        while self.at + BLOCK <= self.end:
            part = self.read(self.at, SKIP_BYTES)
            filled = len(part) - len(part.lstrip(b"\0"))
            self.at += filled // BLOCK * BLOCK
            if filled < len(part) or not part:
                return
        self.at = self.end

    def lost(self, until: int) -> Iterator[Damage]:
        """What was skipped because it is no header."""
        if self.lost_from is not None and (self.lost_from or until < self.end):
            yield Damage("damaged", f"bytes {self.lost_from:,} to {until:,} hold no header: members there are lost")
            self.ended = True
        self.lost_from = None

    def member(self, header: tarfile.TarInfo) -> Iterator[Header | Damage]:
        """Take one header with what belongs to it, and go behind it."""
        start = self.at + BLOCK
        size = self.size_of(header)
        has_data = header.type in FILES or header.type not in tarfile.SUPPORTED_TYPES
        has_data |= header.type in (*PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        has_data |= header.type == tarfile.GNUTYPE_SPARSE
        self.at = start + (-(-size // BLOCK) * BLOCK if has_data else 0)
        name = self.extended.get("path", header.name)
        if header.type in (*PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            yield from self.extend(header.type, start, size)
            return
        sparse = header.type == tarfile.GNUTYPE_SPARSE or any(one.startswith("GNU.sparse") for one in self.extended)
        self.extended = {}
        if sparse:
            yield Header(name, start, size, "a sparse file, whose bytes do not lie together")
        elif header.islnk() or header.issym():
            yield Header(name, start, 0, "a link, not a file")
        elif header.type in FILES and start + size > self.end:
            yield Header(name, start, size, f"the archive ends at byte {self.end:,}, inside this member")
        elif header.type in FILES:
            yield Header(name, start, size)

    def size_of(self, header: tarfile.TarInfo) -> int:
        """A pax header's size counts where the number is too large for the header."""
        text = self.extended.get("size", "")
        return int(text) if text.isdecimal() and len(text) < 20 else header.size

    def extend(self, kind: bytes, start: int, size: int) -> Iterator[Damage]:
        """Read what an extended header says of the next member."""
        if size > MAX_EXTENDED_BYTES or start + size > self.end:
            yield Damage("damaged", f"an extended header of {size:,} bytes at byte {start:,}")
            return
        data = self.read(start, size)
        if kind == tarfile.GNUTYPE_LONGNAME:
            self.extended["path"] = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind in PAX:
            self.extended |= parse_pax(data)


def parse_header(block: bytes) -> tarfile.TarInfo | None:
    """The header in a block, or None if its checksum or a number in it is wrong."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def parse_pax(data: bytes) -> dict[str, str]:
    """The records `LENGTH NAME=VALUE` of a pax header, up to the first that is damaged."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at : at + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data) - at:
            return found
        record = data[at + len(length) + 1 : at + int(length) - 1]
        name, _, value = record.partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return found
