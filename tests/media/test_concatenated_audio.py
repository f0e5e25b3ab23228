"""Audio files that are concatenated, truncated or damaged in the middle: a note, and never a changed length."""

import random
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from comodal.errors import MediaError, MediaWarning
from comodal.media.audio import read_audio

RATE, SECONDS = 44100, 3
# suffix: FFmpeg's format and codec, and the options of the format
FORMATS = {
    "wav": ("wav", "pcm_s16le", {}), "rf64.wav": ("wav", "pcm_s16le", {"rf64": "always"}),
    "w64": ("w64", "pcm_s16le", {}), "aiff": ("aiff", "pcm_s16be", {}), "pcm.caf": ("caf", "pcm_s16be", {}),
    "alac.caf": ("caf", "alac", {}), "tta": ("tta", "tta", {}), "au": ("au", "pcm_s16be", {}),
    "wv": ("wv", "wavpack", {}),
}  # fmt: skip


def write(path: Path, kind: str) -> bytes:
    """Three seconds of a sweep with noise."""
    container_format, codec, options = FORMATS[kind]
    seconds = np.arange(SECONDS * RATE) / RATE
    sweep = 0.3 * np.sin(2 * np.pi * (300 + 200 * seconds) * seconds)
    samples = sweep + 0.02 * np.random.default_rng(0).standard_normal(len(seconds))
    with av.open(str(path), "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, "mono", RATE, frame_size=context.frame_size or 4096)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path.read_bytes()


def read(path: Path) -> tuple[float, list[str]]:
    """The seconds of a file, and the notes about it."""
    waveform, notes = read_with_notes(path)
    return len(waveform) / RATE, notes


def read_with_notes(path: Path) -> tuple[np.ndarray, list[str]]:
    """The waveform of a file, and the notes about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        waveform = read_audio(path, RATE)
    assert all(issubclass(one.category, MediaWarning) for one in caught)
    return waveform, [str(one.message) for one in caught]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_has_no_note(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    write(path, kind)
    assert read(path) == (SECONDS, [])


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "wv"])
def test_a_second_file_behind_the_first_is_noted(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    data = write(path, kind)
    path.write_bytes(2 * data)
    seconds, notes = read(path)
    assert seconds == pytest.approx(2 * SECONDS if kind == "au" else SECONDS, abs=0.01)
    assert len(notes) == 1 and f"concatenated: another file begins at byte {len(data):,}" in notes[0]


@pytest.mark.parametrize("kind", ["rf64.wav", "w64", "pcm.caf", "wav", "aiff", "au", "tta", "wv"])
def test_a_truncated_file_is_read_to_its_end_with_a_note(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    data = write(path, kind)
    path.write_bytes(data[: round(0.6 * len(data))])
    seconds, notes = read(path)
    assert seconds == pytest.approx(0.6 * SECONDS, abs=0.01 if kind not in ("tta", "wv") else 1.05)
    assert f"truncated: its audio ends at {seconds:.2f} s, its header declares 3.00 s" in notes[0]


@pytest.mark.parametrize("kind", ["pcm.caf", "aiff", "au"])
def test_a_fiftieth_of_a_second_that_is_missing_is_noted(tmp_path: Path, kind: str):
    """The headers of these formats count the samples."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(write(path, kind)[: -RATE // 50 * 2])
    assert "truncated: its audio ends at 2.98 s, its header declares 3.00 s" in read(path)[1][0]


@pytest.mark.parametrize("lost", [100, 10_000])
def test_alac_without_the_packet_table_behind_it_is_refused_as_truncated(tmp_path: Path, lost: int):
    path = tmp_path / "a.alac.caf"
    path.write_bytes(write(path, "alac.caf")[:-lost])
    with pytest.raises(MediaError, match=r"a\.alac\.caf: truncated: at least [\d,]+ bytes are missing"):
        read_audio(path, RATE)


@pytest.mark.parametrize("kind", ["tta", "wv"])
def test_a_wrong_checksum_of_a_frame_is_noted_and_shifts_nothing(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    data = bytearray(write(path, kind))
    whole = read_audio(path, RATE)
    middle = len(data) // 2
    data[middle : middle + 2000] = random.Random(1).randbytes(2000)
    path.write_bytes(data)
    waveform, notes = read_with_notes(path)
    assert len(waveform) == len(whole)
    assert len(notes) == 1 and "damaged: 1 audio packets have a wrong checksum at 1.0" in notes[0]
    assert np.array_equal(waveform[:RATE], whole[:RATE])
    assert np.array_equal(waveform[-RATE // 2 :], whole[-RATE // 2 :])


@pytest.mark.parametrize("depth", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_noise_in_a_flac_file_is_noted(tmp_path: Path, depth: str, channels: int):
    """A bit of a sample is flipped: the frame is still decodable, and its samples are others."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, channels)), RATE, subtype=depth)
    assert read(path) == (1.0, [])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    _, notes = read(path)
    assert len(notes) == 1 and "damaged: " in notes[0]
