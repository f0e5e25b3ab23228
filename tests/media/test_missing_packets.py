"""Packets that are missing, or that FFmpeg would leave out: all of the audio, or a note with the seconds."""

import re
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from comodal.errors import MediaWarning
from comodal.media.audio import read_audio
from comodal.media.video import iterate_all_frames

RATE, FRAMES_PER_SECOND, SECONDS = 48_000, 25, 4


def write(
    path: Path,
    container_format: str,
    options: dict[str, str],
    *,
    streams: str = "video",
    hole: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Four seconds of frames with a key frame every second, and of noise; packets in the hole are left out."""
    packets = []
    with av.open(str(path), "w", format=container_format, options=options) as container:
        if "video" in streams:
            video = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND, options={"g": "25"})
            video.width = video.height = 32
            for number in range(SECONDS * FRAMES_PER_SECOND):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
                packets += video.encode(frame)
            packets += video.encode(None)
        if "audio" in streams:
            audio = container.add_stream("aac", rate=RATE, layout="mono")
            noise = np.random.default_rng(0).normal(0, 3000, (1, SECONDS * RATE)).astype("<i2")
            whole = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            whole.sample_rate, whole.pts = RATE, 0
            resampler = av.AudioResampler("fltp", "mono", RATE, frame_size=1024)
            for part in (*resampler.resample(whole), *resampler.resample(None)):
                packets += audio.encode(part)
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            if not hole[0] <= packet.dts * packet.time_base < hole[1]:
                container.mux(packet)
    return path


def remux(source: Path, path: Path, flags: str, **more: str) -> Path:
    """The packets of a file in an mp4 file with fragments."""
    options = {"movflags": flags, **more}
    with av.open(str(source)) as old, av.open(str(path), "w", format="mp4", options=options) as new:
        copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                new.mux(packet)
    return path


def read_notes(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        for _ in iterate_all_frames(path):
            pass
    return [str(one.message) for one in caught if one.category is MediaWarning]


@pytest.mark.parametrize("flags", ["frag_every_frame+empty_moov", "frag_every_frame+dash"])
def test_audio_of_fragments_with_the_same_time_is_read(tmp_path: Path, flags: str):
    """FFmpeg marks every second packet of such a file as one to be left out. The same packets in an mkv file, as FFmpeg
    decodes them, are the right samples.
    """
    source = write(tmp_path / "a.mkv", "matroska", {}, streams="video+audio")
    with av.open(str(source)) as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    waveform = read_audio(remux(source, tmp_path / "a.mp4", flags), RATE)
    middle = decoded[RATE : 3 * RATE]
    offsets = [
        offset
        for offset in np.flatnonzero(waveform[: 2 * RATE] == middle[0])
        if np.array_equal(waveform[offset : offset + len(middle)], middle)
    ]
    assert len(offsets) == 1


def test_a_hole_in_a_matroska_file_without_audio_is_noted(tmp_path: Path):
    assert read_notes(write(tmp_path / "whole.mkv", "matroska", {})) == []
    notes = read_notes(write(tmp_path / "hole.mkv", "matroska", {}, hole=(1.0, 2.0)))
    assert len(notes) == 1 and "the file has no video for 1.00 s from 1.00 s on" in notes[0]


def test_the_images_of_a_slide_show_are_no_holes(tmp_path: Path):
    path = tmp_path / "slides.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        video.width = video.height = 32
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 2 * FRAMES_PER_SECOND, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert read_notes(path) == []


@pytest.mark.parametrize(
    ("streams", "missing"), [("video", "video for 0.20 s from 2.2"), ("audio", "audio for 0.21 s")]
)
def test_a_short_fragment_that_is_missing_is_noted(tmp_path: Path, streams: str, missing: str):
    """A pause of 0.2 s may belong to the video, but the number of its fragment is missing as well."""
    source, whole = write(tmp_path / "a.mkv", "matroska", {}, streams=streams), tmp_path / "whole.mp4"
    remux(source, whole, "cmaf", frag_duration="200000")
    data, notes = whole.read_bytes(), []
    starts = [match.start() - 4 for match in re.finditer(b"moof", data)]
    (tmp_path / "hole.mp4").write_bytes(data[: starts[11]] + data[starts[12] :])
    for path in (whole, tmp_path / "hole.mp4"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MediaWarning)
            read_audio(path, RATE) if streams == "audio" else [*iterate_all_frames(path)]
        notes.append([str(one.message) for one in caught])
    assert notes[0] == [] and len(notes[1]) == 1 and f"the file has no {missing}" in notes[1][0]
