"""Audio of worlds in the layout of UrbanSound8K (Salamon et al. 2014): ten fixed folds, mixed audio formats.

metadata/UrbanSound8K.csv          slice_file_name,fsID,start,end,salience,fold,classID,class
audio/fold1/ ... audio/fold10/     FSID-CLASSID-OCCURRENCE-SLICE.wav

All slices of one recording are in one fold. Sample rates, bit depths, channels and lengths are mixed, as in the
original. The classes are those of the synthetic world.
"""

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.media_writers import write_wav_file
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import SOUNDING_KINDS, Purpose, RandomStream, World, make_world

URBANSOUND8K_FOLDS = 10
MAX_SLICE_SECONDS = 4.0
MIN_SLICE_FRACTION = 0.3  # of the longest slice
METADATA_COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
AUDIO_ENCODINGS = ((44_100, "PCM_16"), (48_000, "PCM_24"), (96_000, "PCM_24"), (22_050, "PCM_U8"), (11_025, "PCM_16"),
    (8_000, "PCM_U8"), (44_100, "FLOAT"), (48_000, "MS_ADPCM"), (44_100, "IMA_ADPCM"), (192_000, "PCM_32"))  # fmt: skip


class RecordingSlice(NamedTuple):
    """A part of a recording, between two times in samples of `sample_rate`."""

    recording: int
    slice_index: int
    sample_rate: int
    encoding: str
    channels: int
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{_make_freesound_id(self.recording)}-{self.recording % len(SOUNDING_KINDS)}-0-{self.slice_index}.wav"

    @property
    def fold(self) -> int:
        return self.recording // len(SOUNDING_KINDS) % URBANSOUND8K_FOLDS + 1


def list_slices(options: SynthesisOptions) -> list[RecordingSlice]:
    """All slices: each fold has one recording of each kind, and more when there are many slices."""
    recordings = URBANSOUND8K_FOLDS * len(SOUNDING_KINDS)
    slices = []
    for recording in range(recordings):
        rng = np.random.default_rng((options.seed, int(Purpose.URBANSOUND8K), recording, int(RandomStream.MOMENT)))
        for slice_index in range(max(1, options.audio // recordings)):
            sample_rate, encoding = AUDIO_ENCODINGS[int(rng.integers(len(AUDIO_ENCODINGS)))]
            longest = min(options.audio_seconds, MAX_SLICE_SECONDS) * sample_rate
            count = int(longest * (1 if rng.random() < 0.7 else rng.uniform(MIN_SLICE_FRACTION, 1)))
            start = int(rng.integers(0, int(_compute_recording_seconds(options) * sample_rate) - count + 1))
            channels = int(rng.integers(1, 3))
            slices.append(RecordingSlice(recording, slice_index, sample_rate, encoding, channels, start, start + count))
    return slices


def list_urbansound8k_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the audio."""
    return [partial(_write_slice, folder, options, recording_slice) for recording_slice in list_slices(options)]


def write_urbansound8k_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write the table; returns the counts."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(METADATA_COLUMNS)
    slices = list_slices(options)
    for recording_slice in slices:
        target = recording_slice.recording % len(SOUNDING_KINDS)
        start, end = (
            round(samples / recording_slice.sample_rate, 6) for samples in (recording_slice.start, recording_slice.end)
        )
        salience = 1 if _make_recording_world(options, recording_slice.recording).background.noise_level < 0.15 else 2
        rows.writerow(
            (
                recording_slice.name,
                _make_freesound_id(recording_slice.recording),
                start,
                end,
                salience,
                recording_slice.fold,
                target,
                SOUNDING_KINDS[target],
            )
        )
    write_bytes_atomically(folder / "metadata" / "UrbanSound8K.csv", table.getvalue().encode())
    return {"audio_files": len(slices)}


def _make_freesound_id(recording: int) -> int:
    """An id in the style of Freesound."""
    return 100_032 + 61 * recording


def _compute_recording_seconds(options: SynthesisOptions) -> float:
    """The length of a recording."""
    return 2 * min(options.audio_seconds, MAX_SLICE_SECONDS)


def _make_recording_world(options: SynthesisOptions, recording: int) -> World:
    kind = SOUNDING_KINDS[recording % len(SOUNDING_KINDS)]
    return make_world(
        options.seed, Purpose.URBANSOUND8K, recording, seconds=_compute_recording_seconds(options), kind=kind
    )


def _write_slice(folder: Path, options: SynthesisOptions, recording_slice: RecordingSlice) -> None:
    path = folder / "audio" / f"fold{recording_slice.fold}" / recording_slice.name
    if not path.exists():
        waveform = render_world_audio(
            _make_recording_world(options, recording_slice.recording), recording_slice.sample_rate
        )[recording_slice.start : recording_slice.end]
        channels = np.stack([waveform, 0.8 * waveform], axis=1) if recording_slice.channels == 2 else waveform
        write_wav_file(path, channels, recording_slice.sample_rate, recording_slice.encoding)
