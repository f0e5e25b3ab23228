"""Edit lists of mp4 and mov files: which part of a track is presented, and from when (ISO/IEC 14496-12, 8.6.6).

FFmpeg moves the start of an edit that begins inside a frame to the next frame, and so shifts the video against the
audio by up to one frame. Where each track has one edit, the usual case, timestamps are exact if only the offset is
applied (`advanced_editlist=0`); then only the end of the edit has to be applied here.
"""

import os
import struct
from collections.abc import Iterator, Set
from pathlib import Path

from comodal.errors import MediaError
from comodal.media.storage.archive_samples import OpenFile
from comodal.media.storage.open_media import open_media
from comodal.media.storage.refused_formats import RefusalReason

MP4_FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name
MP4_CONTAINER_BOXES = {b"moov", b"trak", b"edts"}
MAX_MP4_BOXES = 10_000
FIRST_BYTES, MAX_BOX_BYTES = 64, 1 << 24
MAX_EDITS = 3  # of a track; FFmpeg handles more than an empty edit and another one
NORMAL_PLAYBACK_RATE = 1 << 16


def read_edit_ends(path: Path) -> dict[int, float] | None:
    """Track ids with the seconds at which their presentation ends, where it has an end.

    Returns None where a track has several edits, or a still one, or the boxes are damaged. FFmpeg then applies the
    edits, and may show a frame up to one frame too early where an edit begins inside a frame.

    Raises:
        MediaError: unreadable, for an edit at another speed, which FFmpeg ignores, and for several concatenated files,
            whose fragments cannot be distinguished.
    """
    ends: dict[int, float] = {}
    scale = track = movies = 0
    try:
        with open_media(path) as file:
            for kind, body in iterate_boxes(file, 0, file.seek(0, os.SEEK_END), MP4_CONTAINER_BOXES):
                wide = body[:1] == b"\1"
                movies += kind == b"moov"
                if movies > 1:
                    raise MediaError(path, RefusalReason.UNREADABLE, "it is a concatenation of several mp4 files")
                if kind == b"mvhd":
                    scale = struct.unpack_from(">I", body, 20 if wide else 12)[0]
                elif kind == b"tkhd":
                    track = struct.unpack_from(">I", body, 20 if wide else 12)[0]
                elif kind == b"elst":
                    seconds = _parse_edit_end(path, body, wide, scale)
                    if seconds is None:
                        return None
                    if seconds:
                        ends[track] = seconds
    except (struct.error, OSError, ZeroDivisionError):
        return None
    return ends


def _parse_edit_end(path: Path, body: bytes, wide: bool, scale: int) -> float | None:
    """Where the one edit of a track ends, 0 for an open end; None where there are several."""
    count = struct.unpack_from(">I", body, 4)[0]
    if count > MAX_EDITS:
        return None
    entry = ">Qqi" if wide else ">Iii"
    edits = [struct.unpack_from(entry, body, 8 + index * struct.calcsize(entry)) for index in range(count)]
    empty = edits.pop(0)[0] if edits and edits[0][1] == -1 else 0
    speeds = [
        playback_rate / NORMAL_PLAYBACK_RATE
        for _, _, playback_rate in edits
        if playback_rate not in (0, NORMAL_PLAYBACK_RATE)
    ]
    if speeds:
        raise MediaError(path, RefusalReason.UNREADABLE, f"its edit list has a part at {speeds[0]:g} times the speed")
    if len(edits) > 1 or any(start < 0 or playback_rate != NORMAL_PLAYBACK_RATE for _, start, playback_rate in edits):
        return None
    return (empty + edits[0][0]) / scale if edits and edits[0][0] else 0.0


def iterate_boxes(
    file: OpenFile, start: int, end: int, parents: Set[bytes], whole: Set[bytes] = frozenset()
) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the first bytes of each box, and of those inside boxes of the kinds `parents`.

    Boxes of the kinds `whole` are read to their end.

    Raises:
        struct.error: A box is cut off.
        OSError: The file cannot be read.
    """
    for _ in range(MAX_MP4_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", file.read(8))[0], start + 16
        size = end - start if size == 0 else size
        if size < body - start:
            return
        yield kind, file.read(min(MAX_BOX_BYTES if kind in whole else FIRST_BYTES, start + size - body))
        if kind in parents:
            yield from iterate_boxes(file, body, min(start + size, end), parents, whole)
        start += size
