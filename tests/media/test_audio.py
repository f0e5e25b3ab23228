"""Sound is read whole or in blocks alike, mixed down plainly, resampled without a seam, and survives FLAC."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from comodal.errors import MediaError
from comodal.media.audio import decode_flac, encode_flac, read_audio, resample_audio, stream_audio
from tests.support.synthetic_media import onset_seconds, tone, write_video


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 5 * 44100)).astype(np.float32)


def test_a_wav_file_comes_back_as_the_mean_of_its_channels(tmp_path: Path, noise: np.ndarray):
    soundfile.write(tmp_path / "noise.wav", noise.T, 44100, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "noise.wav", 44100), noise.mean(axis=0), atol=1e-7)


def test_resampling_is_that_of_the_whole_mixed_down_sound(tmp_path: Path, noise: np.ndarray):
    soundfile.write(tmp_path / "noise.wav", noise.T, 44100, subtype="FLOAT")
    expected = soxr.resample(noise.mean(axis=0), 44100, 48000)
    np.testing.assert_allclose(read_audio(tmp_path / "noise.wav", 48000), expected, atol=1e-6)
    assert len(expected) == 5 * 48000


def test_a_tone_keeps_its_pitch_and_loudness(tmp_path: Path):
    soundfile.write(tmp_path / "tone.wav", tone(2, 22050, silent_seconds=0, pitch=1000), 22050, subtype="FLOAT")
    expected = tone(2, 48000, silent_seconds=0, pitch=1000)
    np.testing.assert_allclose(read_audio(tmp_path / "tone.wav")[1000:-1000], expected[1000:-1000], atol=1e-3)


@pytest.mark.parametrize("block_seconds", [0.01, 0.7, 1.0, 60.0])
@pytest.mark.parametrize("name", ["noise.wav", "noise.m4a"])
def test_blocks_joined_are_the_whole_sample_for_sample(
    tmp_path: Path, noise: np.ndarray, name: str, block_seconds: float
):
    if name == "noise.wav":
        soundfile.write(tmp_path / name, noise.T, 44100)
    else:
        write_video(tmp_path / name, picture_seconds=(), sound=noise, layout="stereo", sound_rate=44100)
    blocks = list(stream_audio(tmp_path / name, 16000, block_seconds))
    assert {len(block) for block in blocks[:-1]} <= {round(16000 * block_seconds)}
    assert np.array_equal(np.concatenate(blocks), read_audio(tmp_path / name, 16000))


def test_a_part_is_that_part_of_the_whole(tmp_path: Path, noise: np.ndarray):
    soundfile.write(tmp_path / "noise.wav", noise.T, 44100)
    whole = read_audio(tmp_path / "noise.wav", 16000)
    part = read_audio(tmp_path / "noise.wav", 16000, start_seconds=1.25, seconds=2.0)
    assert np.array_equal(part, whole[20000:52000])
    assert np.array_equal(read_audio(tmp_path / "noise.wav", 16000, start_seconds=4.0, seconds=9.0), whole[64000:])
    assert len(read_audio(tmp_path / "noise.wav", 16000, start_seconds=9.0)) == 0


def test_the_sound_of_a_video_is_on_the_clock_of_its_picture(tmp_path: Path):
    pictures = [k / 25 for k in range(75)]
    path = write_video(
        tmp_path / "late.mp4", picture_seconds=pictures, sound=tone(1.5, 48000, silent_seconds=0.25), sound_start=1.0
    )
    assert onset_seconds(read_audio(path, 48000), 48000) == pytest.approx(1.25, abs=0.002)


@pytest.mark.parametrize("name", ["tone.flac", "tone.ogg", "tone.mp3", "tone.m4a", "tone.mkv", "tone.avi"])
def test_every_usual_format_is_read(tmp_path: Path, name: str):
    sound = tone(2, 48000, silent_seconds=0.5)
    if name.endswith(("m4a", "mkv", "avi")):
        codec = "pcm_s16le" if name.endswith("avi") else "aac"
        write_video(tmp_path / name, picture_seconds=(), sound=sound, sound_codec=codec)
    else:
        soundfile.write(tmp_path / name, sound, 48000)
    read = read_audio(tmp_path / name, 48000)
    assert len(read) == pytest.approx(96000, abs=2400)
    assert onset_seconds(read, 48000) == pytest.approx(0.5, abs=0.03)
    assert np.abs(read[48000:90000]).max() == pytest.approx(0.5, abs=0.03)


def test_sound_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path):
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    write_video(tmp_path / "mute.mp4")
    wanted = {
        "text.wav": "unreadable",
        "noise.wav": "unreadable",
        "mute.mp4": "no audio stream",
        "nowhere.wav": "missing",
    }
    for name, reason in wanted.items():
        with pytest.raises(MediaError) as caught:
            read_audio(tmp_path / name)
        assert (caught.value.path, caught.value.reason) == (str(tmp_path / name), reason)


def test_impossible_wishes_are_the_callers_mistake(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot read"):
        read_audio(tmp_path / "noise.wav", start_seconds=-1.0)
    with pytest.raises(ValueError, match="at least one sample"):
        next(stream_audio(tmp_path / "noise.wav", block_seconds=0.0))


def test_streaming_needs_memory_for_a_block_and_not_for_the_file(tmp_path: Path):
    path = tmp_path / "minute.wav"
    with soundfile.SoundFile(path, "w", 44100, 1, subtype="PCM_16") as file:
        file.write(np.zeros(44100 * 60, np.int16))
    tracemalloc.start()
    seconds = sum(len(block) for block in stream_audio(path, 48000, 1.0)) / 48000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == pytest.approx(60.0, abs=0.001)
    assert peak < 3e6  # a minute is 11.5 MB


def test_flac_keeps_sixteen_bits_exactly():
    steps = np.random.default_rng(0).integers(-32768, 32768, 48000).astype(np.int16)
    sound, rate = decode_flac(encode_flac(steps.astype(np.float32) / 32768, 48000))
    assert rate == 48000
    assert np.array_equal(sound * 32768, steps)


def test_flac_clips_what_exceeds_full_scale_instead_of_wrapping_it():
    sound, _ = decode_flac(encode_flac(np.array([2.0, -2.0, 1.0, -1.0, 0.5], np.float32), 48000))
    np.testing.assert_allclose(sound, [1, -1, 1, -1, 0.5], atol=1 / 32768)


def test_any_part_of_flac_is_that_part_of_the_whole():
    sound = np.random.default_rng(0).uniform(-1, 1, 480000).astype(np.float32)
    data = encode_flac(sound, 48000)
    whole, _ = decode_flac(data)
    for start in (0.0, 0.1, 3.7771, 8.9999, 9.5):
        first = round(start * 48000)
        assert np.array_equal(decode_flac(data, start, 1.0)[0], whole[first : first + 48000])
    assert len(decode_flac(data, 20.0, 1.0)[0]) == 0


def test_one_second_of_flac_costs_a_tenth_of_ten():
    data = encode_flac(tone(10, 48000) + np.random.default_rng(0).normal(0, 0.01, 480000).astype(np.float32), 48000)

    def fastest(seconds: float | None, start: float) -> float:
        times = []
        for _ in range(15):
            began = time.perf_counter()
            decode_flac(data, start, seconds)
            times.append(time.perf_counter() - began)
        return min(times)

    assert fastest(1.0, 7.3) < 0.5 * fastest(None, 0.0)


def test_damaged_flac_is_refused():
    with pytest.raises(MediaError, match="FLAC data: unreadable"):
        decode_flac(b"fLaC" + bytes(100))


def test_resampling_to_the_same_rate_changes_nothing(noise: np.ndarray):
    assert resample_audio(noise[0], 44100, 44100) is noise[0] or np.array_equal(
        resample_audio(noise[0], 44100, 44100), noise[0]
    )
