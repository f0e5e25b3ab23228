"""Timestamps of one stream that jump forward: a pause where the streams end together with it, otherwise a broken clock.

A still frame and a jump look alike at the place itself. What tells them apart is the end: a video of 4 s whose
timestamps jump by 5 s ends 5 s after its audio, and a frame that is shown for 5 s while audio goes on does not.
"""

from pathlib import Path

import numpy as np
import pytest

from comodal.errors import MediaError
from comodal.media.audio import read_audio
from comodal.media.image import decode_jpeg
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import iterate_frames, read_clip
from tests.support.sync_media import RATE, noise, original, remux
from tests.support.synthetic_media import onset_seconds, read_number, tone, write_video

SECONDS = 4.0
SLOW = {"size": (32, 32), "codec_options": {"preset": "ultrafast"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original(tmp_path_factory.mktemp("jumps") / "source.mp4", noise(SECONDS))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv", "a.mov", "fragments.mp4"])
@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("jump", [1.0, 12.0])
def test_a_jump_of_one_stream_alone_is_refused(source: Path, tmp_path: Path, name: str, kind: str, jump: float):
    options = {"movflags": "empty_moov+frag_keyframe"} if name.startswith("fragments") else {}
    path = remux(source, tmp_path / name, lambda stream, time: time + jump * (stream == kind and time >= 2), **options)
    with pytest.raises(MediaError, match=f"{name}.*timestamps of its {kind} jump by {jump:.1f}") as caught:
        read_clip(path, seconds=3.0)  # it ends before the file does
    assert caught.value.reason == RefusalReason.UNREADABLE
    for read in (read_audio, lambda path: list(iterate_frames(path, 1.0))):
        with pytest.raises(MediaError, match=f"timestamps of its {kind} jump"):
            read(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
@pytest.mark.parametrize(("kind", "other"), [("video", "audio"), ("audio", "video")])
def test_a_jump_is_refused_if_the_other_stream_ends_a_little_earlier(
    source: Path, tmp_path: Path, name: str, kind: str, other: str
):
    """By 0.3 s, as many encoders leave it."""

    def move(stream: str, time: float) -> float | None:
        return None if stream == other and time >= SECONDS - 0.3 else time + 5 * (stream == kind and time >= 2)

    with pytest.raises(MediaError, match=f"{name}.*timestamps of its {kind} jump by 5.0"):
        read_clip(remux(source, tmp_path / name, move), seconds=3.0)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv"])
def test_a_frame_that_is_shown_for_five_seconds_is_kept(tmp_path: Path, name: str):
    """Frames 0 to 49 until 2 s, 49 until 7 s, then 50 to 74; the tone begins at 7.5 s."""
    times = [k / 25 for k in range(50)] + [7 + k / 25 for k in range(25)]
    rate = 44_100 if name.endswith("flv") else RATE
    path = write_video(tmp_path / name, picture_seconds=times, sound=tone(8, rate, 7.5), sound_rate=rate, **SLOW)
    clip = read_clip(path, frames_per_second=2.0)
    assert [read_number(decode_jpeg(frame)) for frame in clip.frames] == [0, 12, 25, 37, *[49] * 10, 50, 62]
    assert onset_seconds(clip.audio, clip.sample_rate) == pytest.approx(7.5, abs=0.025)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_screen_recording_and_a_slide_show_are_read(tmp_path: Path, name: str):
    recording = [0, 0.04, 0.08, 1.5, 1.54, 1.6, 1.64, 3.0, 3.04, 3.08, 6.5, 6.54, 6.58, 6.62]
    path = write_video(tmp_path / name, picture_seconds=recording, sound=tone(8, RATE), **SLOW)
    shown = [read_number(frame) for _, frame in iterate_frames(path, 2.0)]
    assert shown[:13] == [0, 2, 2, 3, 6, 6, 7, 9, 9, 9, 9, 9, 9]
    path = write_video(tmp_path / f"slides-{name}", picture_seconds=[0, 2, 4, 6], sound=tone(6, RATE), **SLOW)
    assert [read_number(frame) for _, frame in iterate_frames(path, 0.5)][:3] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_a_long_still_frame_shortly_before_the_end_is_kept(tmp_path: Path, name: str):
    """30 s, in MPEG-TS more than a jump of both streams may be before it starts a segment."""
    times = [k / 5 for k in range(10)] + [32 + k / 5 for k in range(10)]
    source = write_video(tmp_path / "source.mkv", picture_seconds=times, sound=tone(34, RATE, 33), **SLOW)
    path = remux(source, tmp_path / name, lambda _, time: time)
    shown = [(time, read_number(frame)) for time, frame in iterate_frames(path, 1.0)]
    assert shown[:2] == [(0.0, 0), (1.0, 5)] and shown[2:34] == [(k, 9) for k in range(2, 32)] + [
        (32.0, 10),
        (33.0, 15),
    ]
    assert onset_seconds(read_audio(path, RATE), RATE) == pytest.approx(33, abs=0.025)


def test_a_pause_of_the_audio_of_150_seconds_is_silence(tmp_path: Path):
    path = write_video(tmp_path / "whole.mkv", picture_seconds=range(156), sound=tone(156, 8000, 0.5), sound_rate=8000,
                       sound_codec="pcm_s16le", **SLOW)  # fmt: skip
    cut = lambda kind, time: None if kind == "audio" and 3 <= time < 153 else time  # noqa: E731
    heard = np.abs(read_audio(remux(path, tmp_path / "pause.mkv", cut), 8000))
    loud = np.flatnonzero(heard > 0.25) / 8000
    assert loud[0] == pytest.approx(0.5, abs=0.005) and loud[-1] == pytest.approx(156.0, abs=0.005)
    begin, end = loud[np.diff(loud, append=loud[-1]).argmax()], loud[1:][np.diff(loud).argmax()]
    assert 2.8 < begin <= 3.1 and 152.9 <= end < 153.1  # blocks of 0.128 s
    assert end - begin == pytest.approx(150.0, abs=0.13)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_frame_of_seven_hours_is_refused_and_not_made_shorter(tmp_path: Path, name: str):
    path = write_video(tmp_path / name, picture_seconds=[0, 1, 7 * 3600], ticks=1000, sound=tone(2, RATE), **SLOW)
    for read in (read_clip, lambda path: list(iterate_frames(path, 0.01))):
        with pytest.raises(MediaError, match=name) as caught:
            read(path)
        assert caught.value.reason == RefusalReason.UNREADABLE
