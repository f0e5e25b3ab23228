"""Lost pages of Ogg files (RFC 3533), which FFmpeg skips without a word: a truncated file, or a damaged middle.

Each page has a checksum, and a number in its stream. The last page of a stream has a mark of its end.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from comodal.media.storage.archive_samples import OpenFile
from comodal.media.storage.open_media import open_media

CAPTURE_PATTERN = b"OggS"
HEADER_BYTES, MAX_PAGE_BYTES = 27, 27 + 255 + 255 * 255
IS_FIRST, IS_LAST = 2, 4  # flags of a page
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass
class OggStream:
    """The pages of one logical stream: the number of the next one, and how many are missing."""

    next_number: int = 0
    lost: int = 0
    has_end: bool = False


@dataclass
class OggPages:
    """What a file has lost: pages in the middle, and the ends of streams."""

    lost: int = 0
    is_cut: bool = False


def check_ogg_pages(path: Path) -> OggPages:
    """Count the pages that are missing or damaged in an Ogg file.

    Raises:
        OSError: The file cannot be read.
    """
    streams: dict[int, OggStream] = {}
    finished = OggPages()
    with open_media(path) as file:
        offset, end = 0, file.seek(0, 2)
        while offset < end:
            page = _read_page(file, offset)
            if page is None:
                offset = _find_page(file, offset + 1, end)
                continue
            flags, serial, number = page[5], *struct.unpack_from("<II", page, 14)
            if flags & IS_FIRST or serial not in streams:
                finished.lost += streams[serial].lost if serial in streams else 0
                streams[serial] = OggStream(next_number=number if flags & IS_FIRST else 0)
            stream = streams[serial]
            stream.lost += max(number - stream.next_number, 0)
            stream.next_number = number + 1
            stream.has_end = bool(flags & IS_LAST)
            offset += len(page)
    lost = finished.lost + sum(stream.lost for stream in streams.values())
    return OggPages(lost, any(not stream.has_end for stream in streams.values()))


def compute_ogg_checksum(page: bytes) -> int:
    """The checksum of a page whose own checksum is zero (RFC 3533, section 6): CRC-32 with other bit order and start.

    `zlib.crc32` takes the lowest bit of each byte first, and inverts its start and result.
    """
    reverse = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reverse.to_bytes(4, "little").translate(REVERSED_BITS), "big")


def _read_page(file: OpenFile, offset: int) -> bytes | None:
    """The page at an offset in the file; None if there is none, or it is damaged."""
    file.seek(offset)
    data = file.read(MAX_PAGE_BYTES)
    if not data.startswith(CAPTURE_PATTERN) or len(data) < HEADER_BYTES:
        return None
    segments = data[HEADER_BYTES : HEADER_BYTES + data[26]]
    size = HEADER_BYTES + len(segments) + sum(segments)
    if len(segments) < data[26] or size > len(data):
        return None
    page = data[:size]
    is_intact = compute_ogg_checksum(page[:22] + bytes(4) + page[26:]) == struct.unpack_from("<I", page, 22)[0]
    return page if is_intact else None


def _find_page(file: OpenFile, offset: int, end: int) -> int:
    """Where the next page begins."""
    while offset < end:
        file.seek(offset)
        data = file.read(MAX_PAGE_BYTES)
        found = data.find(CAPTURE_PATTERN)
        if found >= 0:
            return offset + found
        offset += max(len(data) - len(CAPTURE_PATTERN) + 1, 1)
    return end
