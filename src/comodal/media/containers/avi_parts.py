"""Where the parts of a concatenation of AVI files begin, and where the last one ends.

AVI has no timestamps: each frame and each block of audio follows the one before it. FFmpeg reads the parts of a
concatenation as one file, so the streams drift apart by the difference of their lengths in each part. OpenDML files
have several RIFF chunks too, but only the first is of the type `AVI `.
"""

import struct
from pathlib import Path

from comodal.media.storage.open_media import open_media

MAX_PARTS = 100_000
MAX_EMPTY_CHUNKS = 100_000  # behind the last packet
INDEX_CHUNK = b"idx1"


def find_avi_parts(path: Path) -> list[int]:
    """The positions of the further AVI files behind the first one, in bytes.

    Raises:
        OSError: The file cannot be read.
    """
    starts: list[int] = []
    with open_media(path) as file:
        position, end = 0, file.seek(0, 2)
        while position + 12 <= end and len(starts) < MAX_PARTS:
            file.seek(position)
            name, size, kind = struct.unpack("<4sI4s", file.read(12))
            if name != b"RIFF":
                break
            if position and kind == b"AVI ":
                starts.append(position)
            position += 8 + size + size % 2
    return starts


def find_avi_end(path: Path, position: int) -> int:
    """The end of the empty chunks and the index that follow the last packet of an AVI file.

    Args:
        path: The file.
        position: The end of its last packet, in bytes.
    """
    with open_media(path) as file:
        position += position % 2  # chunks begin at even positions
        for _ in range(MAX_EMPTY_CHUNKS):
            file.seek(position)
            head = file.read(8)
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if len(head) < 8 or (name != INDEX_CHUNK and (size > 0 or not name[:2].isdigit())):
                break
            position += 8 + size
            if name == INDEX_CHUNK:
                break
    return position
