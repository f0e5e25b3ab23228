"""Files that were once read wrongly. What they hold is known from how they were made, not from this code.

The videos have 25 frames a second, each with its number in blocks, and known noise as audio.
"""

import warnings
from functools import cache

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from comodal.errors import MediaWarning
from comodal.media.audio import read_audio
from comodal.media.image import decode_jpeg
from comodal.media.video import iterate_all_frames, iterate_frames, read_clip, read_video_info
from tests.support.paths import FIXTURES

MEDIA = FIXTURES / "media"
RATE, FRAMES_PER_SECOND, PIECE_SECONDS = 12_000, 25, 0.2
FFT_SIZE = 1 << 17  # 10.9 s
TOLERANCE = 0.005


@cache
def reference_spectrum() -> np.ndarray:
    """Of the noise in the videos, whose beginning does not depend on its length; at 12 kHz."""
    noise = np.random.default_rng(1).standard_normal(7 * 48_000)
    filtered = sosfiltfilt(butter(4, [100, 5000], "band", fs=48_000, output="sos"), noise)
    return np.fft.rfft(filtered[::4], FFT_SIZE)


def block_number(frame: np.ndarray) -> int:
    """The number in 4 x 3 blocks, the lowest bit first."""
    gray = frame.mean(axis=2)
    height, width = gray.shape
    bits = [gray[(2 * (bit // 4) + 1) * height // 6, (2 * (bit % 4) + 1) * width // 8] > 127 for bit in range(12)]
    return sum(1 << bit for bit, is_white in enumerate(bits) if is_white)


def original_seconds(piece: np.ndarray) -> float | None:
    """Where in the noise a piece of audio is from; None where it is from elsewhere, or in part silence."""
    match = np.fft.irfft(reference_spectrum() * np.conj(np.fft.rfft(piece, FFT_SIZE)), FFT_SIZE)
    return match.argmax() / RATE if match.max() > 10 * match.std() else None


def sync_errors(times: list[float], frames: list[np.ndarray], audio: np.ndarray) -> list[float]:
    """For each frame, the seconds by which the audio at its time lies outside of what the frame lasts."""
    errors = []
    for time, frame in zip(times, frames, strict=True):
        piece = audio[round(time * RATE) : round((time + PIECE_SECONDS) * RATE)]
        if len(piece) < PIECE_SECONDS * RATE - 1 or np.abs(piece).max() < 0.02:
            continue
        heard, shown = original_seconds(piece), block_number(frame) / FRAMES_PER_SECOND
        if heard is not None:
            errors.append(max(shown - heard, heard - shown - 1 / FRAMES_PER_SECOND, 0.0))
    return errors


@pytest.mark.parametrize(
    ("name", "count", "seconds"),
    [("joined_segments.ts", 150, 6.0), ("fragmented.mp4", 125, 5.0), ("two_programs.ts", 75, 3.0)],
)
def test_numbered_frames_agree_with_the_noise(name: str, count: int, seconds: float):
    path = MEDIA / name
    assert [block_number(frame) for _, frame in iterate_all_frames(path)] == list(range(count))
    clip = read_clip(path, seconds=20.0, sample_rate=RATE)
    lead = np.zeros(round(clip.audio_start_seconds * RATE), np.float32)
    read = sync_errors(
        clip.frame_seconds, [decode_jpeg(jpeg) for jpeg in clip.frames], np.concatenate([lead, clip.audio])
    )
    times, frames = zip(*iterate_frames(path, 5.0), strict=True)
    for errors in (read, sync_errors(list(times), list(frames), read_audio(path, RATE))):
        assert len(errors) >= 5 * seconds - 3
        assert max(errors) <= TOLERANCE, errors


def test_joined_segments_have_their_whole_length():
    """Three segments of 50 frames: 150 frames, 6.0 s."""
    path = MEDIA / "joined_segments.ts"
    assert read_video_info(path).seconds == pytest.approx(6.0, abs=0.0214)  # one AAC frame may end later
    clip = read_clip(path, seconds=20.0, frames_per_second=25.0)
    assert clip.seconds == pytest.approx(6.0, abs=1e-3)
    assert [block_number(decode_jpeg(jpeg)) for jpeg in clip.frames] == list(range(150))


def test_the_first_audio_packet_of_a_fragmented_file_lasts_until_the_second():
    """Its packets are at 0.000, 0.080, 0.101 s: what a first packet of 1,024 samples leaves open is silence."""
    audio = read_audio(MEDIA / "fragmented.mp4", 48_000)
    assert not audio[1024 : round(0.08 * 48_000)].any()
    assert np.abs(audio[round(0.08 * 48_000) :][:480]).max() > 0.01


def test_audio_begins_160_seconds_after_the_video():
    audio = read_audio(MEDIA / "late_audio.mkv", RATE)
    assert np.argmax(np.abs(audio) > 0.05) / RATE == pytest.approx(160.0, abs=0.001)


@pytest.mark.parametrize(
    ("name", "rate", "seconds", "is_truncated"),
    [
        ("truncated.mp3", 48_000, 2.953, True),
        ("vbr_without_header.mp3", 48_000, 8.04, False),
        ("gsm.wav", 8_000, 1.0, False),
    ],
)
def test_audio_has_the_length_of_its_content(name: str, rate: int, seconds: float, is_truncated: bool):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio = read_audio(MEDIA / name, rate)
    assert len(audio) / rate == pytest.approx(seconds, abs=0.0005)
    assert [str(MEDIA / name) in str(w.message) for w in caught if w.category is MediaWarning] == [True] * is_truncated
