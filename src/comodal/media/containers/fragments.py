"""Fragmented mp4 files: missing fragments, and composition offsets (ISO/IEC 14496-12, 8.8.5 and 8.8.8).

Fragments are numbered consecutively, so a jump in their numbers shows that some are missing.

FFmpeg adds up composition offsets wrongly.

A frame is presented at its decoding time plus its offset, which may be negative, as in CMAF. FFmpeg adds the largest
negative offset of the track to all of them, so that none is negative, and takes it off the decoding times. In fragments
that have decoding times of their own (`tfdt`) it does not take it off, and all frames are late by it: one frame or two.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.media.containers.edit_lists import MP4_CONTAINER_BOXES, iterate_boxes
from comodal.media.storage.open_media import open_media

FRAGMENT_BOXES = MP4_CONTAINER_BOXES | {b"mdia", b"moof", b"traf"}
MAX_FRAGMENT_BOXES = 1_000_000
NUMBER_OFFSET = 20  # of the number of a fragment in its `moof` box, whose first box is `mfhd`
HAS_DATA_OFFSET, HAS_FIRST_FLAGS, HAS_OFFSETS = 0x1, 0x4, 0x800  # flags of a `trun` box
SAMPLE_FIELDS = (0x100, 0x200, 0x400, 0x800)  # duration, size, flags, composition offset


@dataclass
class FragmentedTrack:
    """The fragments of a track, in ticks: where its first sample is presented, without edits, by how much
    FFmpeg is late in each fragment, and whether their decoding times start again.
    """

    ticks_per_second: int = 0
    edit_start: int = 0
    edit_delay_seconds: float = 0.0
    first: int | None = None
    delays: list[int] = field(default_factory=list)
    decoding_time: int = 0
    restarts: bool = False

    def first_seconds(self) -> float:
        return ((self.first or 0) - self.edit_start) / self.ticks_per_second + self.edit_delay_seconds

    def delay_seconds(self) -> float:
        return self.delays[0] / self.ticks_per_second

    def has_constant_delay(self) -> bool:
        return self.delays[0] == max(self.delays)


def read_fragmented_tracks(path: Path) -> dict[int, FragmentedTrack]:
    """The fragmented tracks of a file by their ids; none where boxes are damaged."""
    tracks: dict[int, FragmentedTrack] = {}
    track, decoding_time, movie_ticks = FragmentedTrack(), 0, 1
    try:
        with open_media(path) as file:
            end = file.seek(0, os.SEEK_END)
            for kind, body in iterate_boxes(file, 0, end, FRAGMENT_BOXES, {b"trun"}):
                wide = body[:1] == b"\1"
                if kind in (b"tkhd", b"tfhd"):
                    at = 4 if kind == b"tfhd" else 20 if wide else 12
                    track, decoding_time = tracks.setdefault(_unpack(">I", body, at), FragmentedTrack()), 0
                elif kind == b"mdhd":
                    track.ticks_per_second = _unpack(">I", body, 20 if wide else 12)
                elif kind == b"mvhd":
                    movie_ticks = _unpack(">I", body, 20 if wide else 12)
                elif kind == b"elst":
                    _read_edits(track, body, wide, movie_ticks)
                elif kind == b"tfdt":
                    decoding_time = _unpack(">Q" if wide else ">I", body, 4)
                    track.restarts |= decoding_time < track.decoding_time
                    track.decoding_time = decoding_time
                elif kind == b"trun":
                    offsets = _read_offsets(body)
                    track.delays.append(max(-int(offsets.min(initial=0)), 0))
                    if track.first is None and len(offsets):
                        track.first = decoding_time + int(offsets[0])
    except (struct.error, OSError, ValueError, ZeroDivisionError):
        return {}
    return {number: track for number, track in tracks.items() if track.ticks_per_second and track.delays}


def find_damaged_box(path: Path) -> int | None:
    """Where the boxes of a fragmented file stop being boxes, in bytes; FFmpeg reads nothing behind that.

    None for a file without fragments, which has an index of its samples.
    """
    has_fragments = False
    for box in _iterate_top_boxes(path):
        has_fragments |= box.kind == b"moof"
        if not box.is_valid:
            return box.start if has_fragments else None
    return None


def find_lost_fragments(path: Path) -> list[int]:
    """Where the fragments begin before which others are missing according to their numbers, in bytes."""
    starts: list[int] = []
    previous: int | None = None
    for box in _iterate_top_boxes(path):
        if box.is_valid and box.kind == b"moof" and box.head[12:16] == b"mfhd" and len(box.head) == NUMBER_OFFSET + 4:
            number = _unpack(">I", box.head, NUMBER_OFFSET)
            if previous is not None and number > previous + 1:
                starts.append(box.start)
            previous = number
    return starts


class _TopBox(NamedTuple):
    """A box that is in no other one; `is_valid` is False where there is no box, which ends the list."""

    start: int
    kind: bytes
    head: bytes
    is_valid: bool


def _iterate_top_boxes(path: Path) -> Iterator[_TopBox]:
    with open_media(path) as file:
        start, end = 0, file.seek(0, os.SEEK_END)
        for _ in range(MAX_FRAGMENT_BOXES):
            file.seek(start)
            head = file.read(NUMBER_OFFSET + 4)
            if start + 8 > end:
                return
            size, kind = struct.unpack_from(">I4s", head)
            if size == 1 and len(head) >= 16:
                size = struct.unpack_from(">Q", head, 8)[0]
            is_valid = all(32 <= byte < 127 for byte in kind) and not 0 < size < 8
            yield _TopBox(start, kind, head, is_valid)
            if not is_valid or size == 0:
                return
            start += size


def _read_edits(track: FragmentedTrack, body: bytes, wide: bool, movie_ticks: int) -> None:
    """An edit, which may follow an empty one: it delays the track."""
    for number in range(_unpack(">I", body, 4)):
        length, start, _ = struct.unpack_from(">Qqi" if wide else ">Iii", body, 8 + number * (20 if wide else 12))
        if start < 0:
            track.edit_delay_seconds = length / movie_ticks
        else:
            track.edit_start = start
            return


def _unpack(layout: str, body: bytes, at: int) -> int:
    return int(struct.unpack_from(layout, body, at)[0])


def _read_offsets(body: bytes) -> np.ndarray:
    """The composition offsets of a `trun` box, in ticks; none if it has none."""
    flags, count = _unpack(">I", body, 0) & 0xFFFFFF, _unpack(">I", body, 4)
    start = 8 + 4 * bool(flags & HAS_DATA_OFFSET) + 4 * bool(flags & HAS_FIRST_FLAGS)
    columns = sum(1 for bit in SAMPLE_FIELDS if flags & bit)
    if not flags & HAS_OFFSETS:
        return np.zeros(min(count, 1), np.int32)
    return np.frombuffer(body, ">i4", count * columns, start).reshape(count, columns)[:, -1]
