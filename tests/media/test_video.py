"""Videos are read on one clock, upright, in their colours, or refused for the right reason.

The pictures carry their number and the sound begins at a known time, so what comes out says where it came from.
"""

import math
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from comodal.errors import MediaError, MediaWarning
from comodal.media import video as video_module
from comodal.media.containers import track
from comodal.media.containers.avi_parts import find_avi_end
from comodal.media.image import decode_jpeg
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import Clip, iterate_frames, read_clip, read_video_info
from tests.support.paths import FIXTURES
from tests.support.synthetic_media import (
    name_channels,
    numbered_picture,
    onset_seconds,
    read_number,
    tone,
    turn_video,
    write_video,
)

FORMATS = {
    "h264.mp4": {},
    "h264.mkv": {"sound_codec": "ac3"},
    "h264.flv": {"sound_rate": 44100},
    "h264.ts": {"sound_codec": "mp2"},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus"},
    "vp8.webm": {"codec": "libvpx", "sound_codec": "libopus"},
    "mpeg4.avi": {"codec": "mpeg4", "ticks": 25, "sound_codec": "libmp3lame"},
    "mpeg1.mpg": {"codec": "mpeg1video", "ticks": 25, "sound_codec": "mp2"},
    "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le", "sound_codec": "pcm_s24le"},
    "11khz.mkv": {"sound_rate": 11025, "sound_codec": "pcm_s16le"},
    "8khz.mp4": {"sound_rate": 8000},
    "bytes.avi": {"codec": "mpeg4", "ticks": 25, "sound_rate": 22050, "sound_codec": "pcm_u8"},
    "doubles.mkv": {"sound_codec": "pcm_f64le"},
}


def numbers(clip: Clip) -> list[int]:
    return [read_number(decode_jpeg(frame)) for frame in clip.frames]


def refusal(path: Path, **options: float) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(path, **options)
    assert caught.value.path == str(path)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("frames_per_second", [1.0, 3.0, 5.0, 25.0, 30.0])
def test_each_picture_is_what_a_player_shows_at_that_time(tmp_path: Path, frames_per_second: float):
    path = write_video(tmp_path / "video.mp4", sound=tone(2, 48000))
    clip = read_clip(path, frames_per_second=frames_per_second)
    assert clip.frame_seconds == [k / frames_per_second for k in range(round(2 * frames_per_second))]
    assert numbers(clip) == [math.floor(25 * seconds + 1e-6) for seconds in clip.frame_seconds]
    assert clip.seconds == pytest.approx(2.0, abs=0.001)
    assert len(clip.audio) == round(clip.seconds * 48000)


@pytest.mark.parametrize("name", FORMATS)
def test_picture_and_sound_of_every_format_are_on_one_clock(tmp_path: Path, name: str):
    options = FORMATS[name]
    path = write_video(tmp_path / name, sound=tone(2, options.get("sound_rate", 48000)), **options)
    clip = read_clip(path, frames_per_second=25.0)
    sound_begins = clip.audio_start_seconds + onset_seconds(clip.audio, clip.sample_rate)
    pictures = dict(zip(numbers(clip), clip.frame_seconds, strict=True))
    # The tone was written to begin at 0.5 s, that is in the middle of picture 12; mp3 and TS shift both by one frame.
    assert sound_begins - pictures[12] == pytest.approx(0.02, abs=0.045)
    assert sound_begins == pytest.approx(0.5, abs=0.03)


def test_variable_frame_rate_worked_by_hand(tmp_path: Path):
    shown = (0, 0.03, 0.5, 0.55, 0.6, 1.3, 1.31, 1.88)
    path = write_video(tmp_path / "video.mp4", picture_seconds=shown, sound=tone(1.9, 48000))
    #            at 0.0 0.2 0.4 0.6 0.8 1.0 1.2 1.4 1.6 1.8
    assert numbers(read_clip(path)) == [0, 1, 1, 4, 4, 4, 4, 6, 6, 6]


def test_one_picture_a_second_stands_for_a_second(tmp_path: Path):
    path = write_video(tmp_path / "video.mp4", picture_seconds=(0, 1, 2), sound=tone(3, 48000))
    clip = read_clip(path, frames_per_second=2.0)
    assert numbers(clip) == [0, 0, 1, 1, 2, 2]
    assert clip.frames[2] is clip.frames[3]


def test_late_sound_and_late_picture_keep_their_times(tmp_path: Path):
    path = write_video(tmp_path / "audio.mp4", sound=tone(1.5, 48000, silent_seconds=0.25), sound_start=1.0,
                       picture_seconds=[k / 25 for k in range(75)])  # fmt: skip
    clip = read_clip(path)
    assert clip.audio_start_seconds == pytest.approx(1.0, abs=0.03)  # AAC begins with one frame of its own
    assert clip.audio_start_seconds + onset_seconds(clip.audio, 48000) == pytest.approx(1.25, abs=0.002)
    assert numbers(clip)[:3] == [0, 5, 10]
    path = write_video(
        tmp_path / "picture.mp4", sound=tone(4, 48000), picture_seconds=[1.5 + k / 25 for k in range(50)]
    )
    clip = read_clip(path)
    assert clip.frame_seconds[0] == 1.6
    assert numbers(clip)[:2] == [2, 7]
    assert clip.seconds == pytest.approx(3.5, abs=0.01)


def test_timestamps_that_begin_at_five_seconds_count_from_zero(tmp_path: Path):
    seconds = [5 + k / 25 for k in range(50)]
    clip = read_clip(write_video(tmp_path / "v.mkv", picture_seconds=seconds, sound=tone(2, 48000), sound_start=5.0))
    assert numbers(clip) == list(range(0, 50, 5))
    assert onset_seconds(clip.audio, 48000) == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("name", FORMATS)
def test_a_clip_from_the_middle_is_on_the_clock_that_begins_there(tmp_path: Path, name: str):
    options = FORMATS[name]
    sound = tone(8, options.get("sound_rate", 48000), silent_seconds=5.5)
    path = write_video(tmp_path / name, picture_seconds=[k / 25 for k in range(200)], sound=sound, **options)
    whole, part = read_clip(path), read_clip(path, start_seconds=4.2, seconds=2.0)
    assert part.frame_seconds == [k / 5 for k in range(10)]
    assert numbers(part) == numbers(whole)[21:31]
    assert part.seconds == 2.0
    assert part.audio_start_seconds == 0
    assert onset_seconds(part.audio, 48000) == pytest.approx(onset_seconds(whole.audio, 48000) - 4.2, abs=0.002)
    assert len(part.audio) == 96000


def test_a_clip_that_begins_behind_the_end_is_too_short(tmp_path: Path):
    path = write_video(tmp_path / "video.mp4", sound=tone(2, 48000))
    assert refusal(path, start_seconds=7.0) == RefusalReason.TOO_SHORT
    assert refusal(path, start_seconds=1.5) == RefusalReason.TOO_SHORT


def test_the_clip_ends_with_the_sound_or_after_the_seconds_asked_for(tmp_path: Path):
    seconds = [k / 25 for k in range(125)]
    path = write_video(tmp_path / "video.mp4", picture_seconds=seconds, sound=tone(3, 48000), sound_codec="mp3")
    with pytest.warns(MediaWarning, match=r"video\.mp4: its audio ends at 3\.0"):
        clip = read_clip(path)
    assert clip.seconds == pytest.approx(3.0, abs=0.06)
    assert max(clip.frame_seconds) < clip.seconds
    clip = read_clip(path, seconds=1.5, frames_per_second=4.0)
    assert clip.seconds == 1.5
    assert len(clip.audio) == 72000
    assert clip.frame_seconds == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8)])
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_channels_are_mixed_by_their_plain_mean(tmp_path: Path, layout: str, channels: int, codec: str):
    sound = np.zeros((channels, 96000), np.float32)
    sound[:2] = tone(2, 48000, silent_seconds=0)
    path = write_video(tmp_path / "video.mov", sound=sound, layout=layout, sound_codec=codec)
    loudness = np.sqrt(np.mean(read_clip(path).audio[4800:-4800] ** 2))
    assert loudness == pytest.approx(2 / channels * 0.5 / math.sqrt(2), rel=0.02)


def test_channels_in_an_unusual_order_do_no_harm(tmp_path: Path):
    """In a process of its own: PyAV alone crashes on such files (or corrupts memory, which shows later)."""
    path = write_video(
        tmp_path / "v.mov", sound=np.stack([tone(2, 48000)] * 2), layout="stereo", sound_codec="pcm_s16le"
    )
    name_channels(path, (2, 1))  # right, left
    code = (
        "import sys; from pathlib import Path; from comodal.media.video import read_clip\n"
        "for _ in range(5): clip = read_clip(Path(sys.argv[1]))\n"
        "print(abs(clip.audio).max())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.5, abs=0.01)


COLOURS = {
    "bt601.mp4": {"matrix": ("ITU601", 6)},
    "bt709.mp4": {"matrix": ("ITU709", 1)},
    "full_range.mp4": {"pixel_format": "yuvj420p"},
    "ten_bits.mp4": {"pixel_format": "yuv420p10le"},
    "full_chroma.mp4": {"pixel_format": "yuv444p"},
    "alpha.mov": {"codec": "qtrle", "pixel_format": "argb", "sound_codec": "pcm_s16le"},
    "palette_free.mkv": {"codec": "ffv1", "pixel_format": "bgr0"},
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_come_out_as_they_went_in(tmp_path: Path, name: str):
    path = write_video(
        tmp_path / name, sound=tone(1.2, 48000), picture_seconds=[k / 25 for k in range(30)], **COLOURS[name]
    )
    wanted = 200 * np.eye(3)  # the lower half: red, green, blue
    for picture in (decode_jpeg(read_clip(path, quality=95).frames[0]), next(iterate_frames(path, 1.0))[1]):
        height, width, _ = picture.shape
        found = [picture[height * 3 // 4, width * (2 * column + 1) // 6] for column in range(3)]
        np.testing.assert_allclose(found, wanted, atol=6)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_stand_upright(tmp_path: Path, degrees: int, mirrored: bool):
    path = write_video(tmp_path / "video.mp4", sound=tone(1.2, 48000), picture_seconds=[k / 25 for k in range(30)])
    plain = decode_jpeg(read_clip(path).frames[1]).astype(int)
    turn_video(path, degrees, mirrored)
    expected = np.rot90(plain, -degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    found = decode_jpeg(read_clip(path).frames[1]).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2
    assert read_video_info(path)[:2] == ((160, 120) if degrees % 180 == 0 else (120, 160))


@pytest.mark.parametrize(
    ("size", "wanted"), [((160, 120), (256, 342)), ((640, 360), (256, 456)), ((90, 160), (456, 256))]
)
def test_the_short_side_is_what_was_asked_and_the_aspect_stays(tmp_path: Path, size, wanted):
    path = write_video(
        tmp_path / "video.mp4", size=size, sound=tone(1.2, 48000), picture_seconds=[k / 25 for k in range(30)]
    )
    assert decode_jpeg(read_clip(path).frames[0]).shape[:2] == wanted


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path):
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for number in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_picture(number, 160, 120))))
        output.mux(stream.encode(None))
    assert next(iterate_frames(path, 1.0))[1].shape == (120, 320, 3)
    assert next(iterate_frames(path, 1.0, short_side=60))[1].shape == (60, 160, 3)


def test_not_every_file_is_a_video(tmp_path: Path):
    files = {
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n",
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "notes.mp4": b"nothing to be seen here\n" * 100,
        "list.m3u8": b"#EXTM3U\n#EXTINF:10,\nhttp://localhost/video.ts\n",
        "empty.mp4": b"",
        "noise.mp4": np.random.default_rng(0).bytes(10_000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name) == RefusalReason.NOT_A_VIDEO, name
    for name, kind in {"a.png": "PNG", "a.jpg": "JPEG", "a.webp": "WEBP", "png.mp4": "PNG", "jpg.mp4": "JPEG"}.items():
        Image.fromarray(numbered_picture(1, 64, 64)).save(tmp_path / name, format=kind)
        assert refusal(tmp_path / name) == RefusalReason.NOT_A_VIDEO, name
    assert refusal(tmp_path / "nowhere.mp4") == "missing"
    assert refusal(tmp_path) == "unreadable"


def test_a_playlist_does_not_open_other_files(tmp_path: Path):
    write_video(tmp_path / "video.mp4", sound=tone(2, 48000))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile video.mp4\n")
    assert refusal(tmp_path / "list.mp4") == "not a video"


def test_what_is_missing_in_a_good_file_is_the_reason(tmp_path: Path):
    sound = tone(2, 48000)
    assert refusal(write_video(tmp_path / "a.mp4")) == "no audio stream"
    assert refusal(write_video(tmp_path / "b.mp4", picture_seconds=(), sound=sound)) == "no video stream"
    assert refusal(write_video(tmp_path / "c.mp4", sound=0 * sound)) == "silent"
    assert refusal(write_video(tmp_path / "d.mp4", sound=1e-3 * sound)) == "silent"
    assert refusal(write_video(tmp_path / "e.mp4", sound=tone(0.8, 48000, 0.1))) == "too short"
    late = {"sound": sound, "sound_start": 1.5, "picture_seconds": [k / 25 for k in range(50)]}
    assert refusal(write_video(tmp_path / "f.mp4", **late)) == "too short"


def test_a_cover_is_no_picture(tmp_path: Path):
    path = tmp_path / "song.mp3"
    image = tmp_path / "cover.png"
    Image.fromarray(numbered_picture(1, 64, 64)).save(image)
    data = b"\0image/png\0\x03\0" + image.read_bytes()  # ID3v2.3: encoding, kind of image, front cover, no description
    frame = b"APIC" + struct.pack(">IH", len(data), 0) + data
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    song = write_video(tmp_path / "plain.mp3", picture_seconds=(), sound=tone(2, 48000), sound_codec="libmp3lame")
    path.write_bytes(b"ID3\x03\0\0" + size + frame + song.read_bytes())
    with av.open(str(path)) as opened:
        assert opened.streams.video  # FFmpeg does take it for one
    assert refusal(path) == "no video stream"


WHOLE = {"video.mp4": {"container_options": {"movflags": "faststart"}}, "end.mp4": {}} | {
    name: FORMATS[name] for name in ("h264.mkv", "h264.flv", "vp9.webm", "mpeg4.avi")
}


@pytest.mark.parametrize("part", [0.3, 0.6])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_was_cut_is_truncated(tmp_path: Path, name: str, part: float):
    sound = tone(2, WHOLE[name].get("sound_rate", 48000))
    path = write_video(tmp_path / name, sound=sound, **WHOLE[name])
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    assert refusal(path) == "truncated"


def long_video(path: Path) -> Path:
    options = {"container_options": {"movflags": "faststart"}, "codec_options": {"g": "10"}}
    return write_video(path, picture_seconds=[k / 25 for k in range(150)], sound=tone(6, 48000), **options)


def test_what_lies_behind_the_wanted_seconds_does_not_matter(tmp_path: Path):
    path = long_video(tmp_path / "video.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: int(0.7 * len(data))])
    assert numbers(read_clip(path, seconds=3.0)) == list(range(0, 75, 5))
    assert refusal(path, seconds=6.0) == "truncated"


def test_one_broken_picture_is_passed_over_and_half_a_second_is_not(tmp_path: Path):
    path = long_video(tmp_path / "video.mp4")
    with av.open(str(path)) as opened:
        packets = [(packet.pos, packet.size) for packet in opened.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[33]
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with pytest.warns(MediaWarning, match=r"video\.mp4: damaged: 1 video packets cannot be decoded at 1\.36 s"):
        assert numbers(read_clip(path, seconds=2.0))[-2:] == [40, 45]
    for position, size in packets[30:55]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    assert refusal(path, seconds=4.0) == "truncated"


@pytest.mark.parametrize("codec", ["rawvideo", "ffv1", "huffyuv"])
def test_a_huge_declared_picture_is_refused_before_memory_is_taken(tmp_path: Path, codec: str):
    pixel_format = "yuv422p" if codec == "huffyuv" else "yuv420p"
    options = {"codec": codec, "pixel_format": pixel_format, "ticks": 25, "sound_codec": "pcm_s16le"}
    path = write_video(tmp_path / "huge.avi", sound=tone(2, 48000), **options)
    data = bytearray(path.read_bytes())
    size = data.index(b"strf") + 12  # BITMAPINFOHEADER: after its own length come width and height
    assert struct.unpack("<II", data[size : size + 8]) == (160, 120)
    data[size : size + 8] = struct.pack("<II", 100_000, 100_000)
    path.write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path) == "too large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000  # kB


def test_a_picture_that_the_decoder_finds_huge_is_refused(tmp_path: Path):
    options = {"codec": "png", "pixel_format": "rgb24", "sound_codec": "pcm_s16le"}
    path = write_video(tmp_path / "huge.mov", sound=tone(2, 48000), **options)
    data = path.read_bytes()
    small, huge = b"IHDR" + struct.pack(">II", 160, 120), b"IHDR" + struct.pack(">II", 100_000, 100_000)
    assert small in data
    path.write_bytes(data.replace(small, huge))
    assert refusal(path) == "unreadable"


def test_pictures_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "video.mp4", sound=tone(2, 48000))
    monkeypatch.setattr(track, "MAX_FRAMES_PER_SECOND", 2)
    assert refusal(path) == "too large"


def test_a_strip_is_refused_instead_of_blown_up(tmp_path: Path):
    path = write_video(tmp_path / "strip.mkv", size=(640, 16), sound=tone(2, 48000), codec="ffv1")
    assert refusal(path) == "too large"


def test_refusals_travel_between_processes(tmp_path: Path):
    with pytest.raises(MediaError) as caught:
        read_clip(tmp_path / "nowhere.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, copy.reason, str(copy)) == (str(tmp_path / "nowhere.mp4"), "missing", str(caught.value))


def test_impossible_wishes_are_the_callers_mistake(tmp_path: Path):
    for name, value in (("seconds", 0.5), ("seconds", float("nan")), ("frames_per_second", 0.0), ("short_side", 0)):
        with pytest.raises(ValueError, match=f"^{name} is a number from"):
            read_clip(tmp_path / "video.mp4", **{name: value})
    with pytest.raises(ValueError, match="positive"):
        next(iterate_frames(tmp_path / "video.mp4", 0.0))


def test_iterating_goes_through_the_whole_video_without_sound(tmp_path: Path):
    path = write_video(tmp_path / "video.mkv", picture_seconds=[k / 10 for k in range(120)])
    seen = [(seconds, read_number(picture)) for seconds, picture in iterate_frames(path, 2.0)]
    assert seen == [(k / 2, 5 * k) for k in range(24)]


def test_probing_tells_what_the_file_is(tmp_path: Path):
    path = write_video(tmp_path / "video.mp4", sound=tone(2, 44100), sound_rate=44100)
    info = read_video_info(path)
    assert (info.width, info.height, info.frames_per_second) == (160, 120, 25.0)
    assert info.seconds == pytest.approx(2.0, abs=0.03)
    assert (info.video_codec, info.audio_codec, info.sample_rate) == ("h264", "aac", 44100)
    assert read_video_info(write_video(tmp_path / "mute.mp4")).audio_codec is None


@pytest.mark.parametrize("name", ["fragmented.mp4", "joined_segments.ts", "two_programs.ts"])
@pytest.mark.parametrize("seconds", [1.5, 10.0])
def test_audio_mixed_a_second_at_a_time_is_that_mixed_frame_by_frame(
    name: str, seconds: float, monkeypatch: pytest.MonkeyPatch
):
    path = FIXTURES / "media" / name
    fast = read_clip(path, seconds=seconds)
    monkeypatch.setattr(video_module, "MAX_HELD_SECONDS", -1.0)
    plain = read_clip(path, seconds=seconds)
    assert np.array_equal(fast.audio, plain.audio) and len(plain.audio) > 0
    assert (fast.frames, fast.seconds, fast.audio_start_seconds) == (
        plain.frames,
        plain.seconds,
        plain.audio_start_seconds,
    )


def test_the_index_of_an_avi_file_and_empty_chunks_before_it_are_no_second_file(tmp_path: Path):
    """Behind a packet of odd length: a byte of padding, two frames that repeat the last one, and the index."""
    path, empty = tmp_path / "x.avi", b"00dc" + bytes(4)
    index = b"idx1" + (48).to_bytes(4, "little") + bytes(48)
    for rest in (b"", b"RIFF" + bytes(40)):
        path.write_bytes(bytes(101) + b"\0" + empty + empty + index + rest)
        assert find_avi_end(path, 101) == 102 + 2 * 8 + 56
    path.write_bytes(bytes(101))
    assert find_avi_end(path, 101) == 102
