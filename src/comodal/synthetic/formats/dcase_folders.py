"""Acoustic scenes in the folders of DCASE: the 2013 challenge's two parts, and the fold of TAU Urban Acoustic Scenes.

dcase2013/scenes_stereo/CLASS01.wav ... CLASS10.wav      for training; scenes_stereo_testset/ likewise, for testing
tau/audio/CLASS-CITY-LOCATION-SEGMENT-a.wav, tau/meta.csv, tau/evaluation_setup/fold1_{train,test,evaluate}.csv

A scene is two objects that sound together, from different sides, over random background noise. The ten pairs form a
ring. So every object is in two scenes, and no single object identifies the scene. The class names are the challenges'.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.audio_synthesis import render_world_audio
from comodal.synthetic.scenes.media_writers import write_wav_file
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import SOUNDING_KINDS, Purpose, RandomStream, make_world

SCENES_2013 = ("bus", "busystreet", "office", "openairmarket", "park", "quietstreet", "restaurant", "supermarket",
    "tube", "tubestation")  # fmt: skip
SCENES_TAU = ("airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall",
    "street_pedestrian", "street_traffic", "tram")  # fmt: skip
RECORDINGS_PER_SCENE = 10  # of each scene, in either part of DCASE 2013
CITIES = ("barcelona", "helsinki", "london", "paris", "stockholm")
TEST_CITIES = CITIES[3:]
SEGMENTS_PER_LOCATION = 3  # of each location, all in one split
SAMPLE_RATE_2013, SAMPLE_RATE_TAU = 44_100, 48_000


class SceneRecording(NamedTuple):
    """A file, the id of its scene, and whether it is for testing."""

    file: str
    scene: int
    is_test: bool


def list_recordings_2013() -> list[SceneRecording]:
    """All files of the 2013 challenge."""
    return [
        SceneRecording(f"scenes_stereo{'_testset' if is_test else ''}/{name}{take:02d}.wav", scene, is_test)
        for is_test in (False, True)
        for scene, name in enumerate(SCENES_2013)
        for take in range(1, RECORDINGS_PER_SCENE + 1)
    ]


def list_recordings_tau() -> list[SceneRecording]:
    """All files of the TAU layout: each city has its own locations, and is in one split."""
    return [
        SceneRecording(
            f"audio/{name}-{city}-{location}-{location * SEGMENTS_PER_LOCATION + segment}-a.wav",
            scene,
            city in TEST_CITIES,
        )
        for scene, name in enumerate(SCENES_TAU)
        for location, city in enumerate(CITIES)
        for segment in range(SEGMENTS_PER_LOCATION)
    ]


def list_jobs_2013(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the audio of the 2013 challenge."""
    return _list_recording_jobs(folder, options, Purpose.DCASE2013, list_recordings_2013(), SAMPLE_RATE_2013, "PCM_16")


def list_jobs_tau(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the audio of the TAU layout."""
    return _list_recording_jobs(folder, options, Purpose.TAU, list_recordings_tau(), SAMPLE_RATE_TAU, "PCM_24")


def write_lists_2013(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Writes nothing, since the file names contain everything; returns the counts."""
    del folder, options
    return {"audio_files": len(list_recordings_2013())}


def write_lists_tau(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write the tables, separated by tabs; returns the counts."""
    del options
    recordings = list_recordings_tau()
    labeled = [(recording.file, SCENES_TAU[recording.scene]) for recording in recordings]
    meta_rows = [(*row, *_parse_location(row[0])) for row in labeled]
    _write_table(folder / "meta.csv", ("filename", "scene_label", "identifier", "source_label"), meta_rows)
    setup = folder / "evaluation_setup"
    train_rows = [row for row, recording in zip(labeled, recordings, strict=True) if not recording.is_test]
    test_rows = [row for row, recording in zip(labeled, recordings, strict=True) if recording.is_test]
    _write_table(setup / "fold1_train.csv", ("filename", "scene_label"), train_rows)
    _write_table(setup / "fold1_evaluate.csv", ("filename", "scene_label"), test_rows)
    _write_table(setup / "fold1_test.csv", ("filename",), [row[:1] for row in test_rows])
    return {"audio_files": len(recordings)}


def _parse_location(file: str) -> tuple[str, str]:
    """City and location, and the recording device, from the file's name."""
    _, city, location, _, device = Path(file).stem.split("-")
    return f"{city}-{location}", device


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = io.StringIO()
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows([columns, *rows])
    write_bytes_atomically(path, table.getvalue().encode())


def _list_recording_jobs(
    folder: Path,
    options: SynthesisOptions,
    purpose: Purpose,
    recordings: Sequence[SceneRecording],
    sample_rate: int,
    encoding: str,
) -> list[Callable[[], None]]:
    return [
        partial(
            _write_recording, folder / recording.file, options, purpose, index, recording.scene, sample_rate, encoding
        )
        for index, recording in enumerate(recordings)
    ]


def _write_recording(
    path: Path, options: SynthesisOptions, purpose: Purpose, index: int, scene: int, sample_rate: int, encoding: str
) -> None:
    if not path.exists():
        write_wav_file(path, render_scene(options, purpose, index, scene, sample_rate), sample_rate, encoding)


def render_scene(
    options: SynthesisOptions, purpose: Purpose, index: int, scene: int, sample_rate: int
) -> Float[np.ndarray, "samples 2"]:
    """Two objects that sound together, each from its own side, equally loud overall."""
    rng = np.random.default_rng((options.seed, int(purpose), index, int(RandomStream.MOMENT)))
    mixed = np.zeros((round(options.audio_seconds * sample_rate), 2))
    side = float(rng.uniform(0.1, 0.4))
    for object_index, left_gain in enumerate((side, 1 - side)):
        kind = SOUNDING_KINDS[(scene + object_index) % len(SOUNDING_KINDS)]
        world = make_world(options.seed, purpose, 2 * index + object_index, seconds=options.audio_seconds, kind=kind)
        waveform = render_world_audio(world, sample_rate)
        mixed += waveform[:, None] / np.sqrt(np.mean(waveform**2)) * (left_gain, 1 - left_gain)
    return (mixed * (float(rng.uniform(0.15, 0.9)) / np.abs(mixed).max())).astype(np.float32)
