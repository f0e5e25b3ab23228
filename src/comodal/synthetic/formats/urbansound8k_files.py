"""Sounds of worlds as UrbanSound8K (Salamon et al. 2014): ten folds that must not be shuffled, files of all sorts.

metadata/UrbanSound8K.csv          slice_file_name,fsID,start,end,salience,fold,classID,class
audio/fold1/ ... audio/fold10/     FSID-CLASSID-OCCURRENCE-SLICE.wav

All slices of one recording are in one fold. Sample rates, bit depths, channels and lengths are mixed, as in the
original. The classes are the playground's own.
"""

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.files import write_whole
from comodal.synthetic.scenes.audio_synthesis import render_sound
from comodal.synthetic.scenes.media_writers import write_sound
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import KINDS, Purpose, RandomStream, World, make_world

FOLDS = 10
LONGEST_SECONDS = 4.0
SHORTEST_PART = 0.3  # of the longest slice
COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
ENCODINGS = ((44_100, "PCM_16"), (48_000, "PCM_24"), (96_000, "PCM_24"), (22_050, "PCM_U8"), (11_025, "PCM_16"),
    (8_000, "PCM_U8"), (44_100, "FLOAT"), (48_000, "MS_ADPCM"), (44_100, "IMA_ADPCM"), (192_000, "PCM_32"))  # fmt: skip


class RecordingSlice(NamedTuple):
    """A part of a recording, between two of its times in samples of `rate`."""

    recording: int
    number: int
    rate: int
    encoding: str
    channels: int
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{_identity(self.recording)}-{self.recording % len(KINDS)}-0-{self.number}.wav"

    @property
    def fold(self) -> int:
        return self.recording // len(KINDS) % FOLDS + 1


def slices(options: SynthesisOptions) -> list[RecordingSlice]:
    """All slices: each fold has one recording of each kind, and more when there are many sounds."""
    recordings = FOLDS * len(KINDS)
    found = []
    for recording in range(recordings):
        rng = np.random.default_rng((options.seed, int(Purpose.URBANSOUND8K), recording, int(RandomStream.MOMENT)))
        for number in range(max(1, options.sounds // recordings)):
            rate, encoding = ENCODINGS[int(rng.integers(len(ENCODINGS)))]
            longest = min(options.sound_seconds, LONGEST_SECONDS) * rate
            count = int(longest * (1 if rng.random() < 0.7 else rng.uniform(SHORTEST_PART, 1)))
            start = int(rng.integers(0, int(_seconds(options) * rate) - count + 1))
            channels = int(rng.integers(1, 3))
            found.append(RecordingSlice(recording, number, rate, encoding, channels, start, start + count))
    return found


def jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """What makes the sounds."""
    return [partial(_write_slice, folder, options, piece) for piece in slices(options)]


def write_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """The table; returns what there is how often."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(COLUMNS)
    pieces = slices(options)
    for piece in pieces:
        target = piece.recording % len(KINDS)
        start, end = (round(samples / piece.rate, 6) for samples in (piece.start, piece.end))
        salience = 1 if _world(options, piece.recording).background.noise_level < 0.15 else 2
        rows.writerow((piece.name, _identity(piece.recording), start, end, salience, piece.fold, target, KINDS[target]))
    write_whole(folder / "metadata" / "UrbanSound8K.csv", table.getvalue().encode())
    return {"sounds": len(pieces)}


def _identity(recording: int) -> int:
    """As Freesound's own numbers look."""
    return 100_032 + 61 * recording


def _seconds(options: SynthesisOptions) -> float:
    """The length of a recording."""
    return 2 * min(options.sound_seconds, LONGEST_SECONDS)


def _world(options: SynthesisOptions, recording: int) -> World:
    kind = KINDS[recording % len(KINDS)]
    return make_world(options.seed, Purpose.URBANSOUND8K, recording, seconds=_seconds(options), kind=kind)


def _write_slice(folder: Path, options: SynthesisOptions, piece: RecordingSlice) -> None:
    path = folder / "audio" / f"fold{piece.fold}" / piece.name
    if not path.exists():
        sound = render_sound(_world(options, piece.recording), piece.rate)[piece.start : piece.end]
        channels = np.stack([sound, 0.8 * sound], axis=1) if piece.channels == 2 else sound
        write_sound(path, channels, piece.rate, piece.encoding)
