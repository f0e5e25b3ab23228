"""Picture and sound agree within one picture and 5 ms, whatever the container and what is wrong with it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comodal.errors import MediaError, MediaWarning
from comodal.media.audio import read_audio
from comodal.media.containers.matroska_segments import has_second_segment, read_element_size
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import iterate_all_frames, iterate_frames, read_clip, read_video_info
from tests.support.sync_media import RATE, check_agreement, noise, original, remux, set_edits
from tests.support.synthetic_media import read_number, tone, write_video

SECONDS = 5.0


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return noise(SECONDS)


@pytest.fixture(scope="module")
def source(sound: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original(tmp_path_factory.mktemp("sync") / "source.mp4", sound)


@pytest.mark.parametrize("lost", [0.02, 0.085, 1.5])
def test_a_gap_in_the_sound_of_any_length(source: Path, sound: np.ndarray, tmp_path: Path, lost: float):
    cut = lambda kind, time: None if kind == "audio" and 1.5 <= time < 1.5 + lost else time  # noqa: E731
    check_agreement(remux(source, tmp_path / "gap.mkv", cut), sound)


@pytest.mark.parametrize("leap", [3.0, 30.0, 1000.0, -1.0, -100.0])
def test_timestamps_of_a_second_part_that_lie_elsewhere(sound: np.ndarray, tmp_path: Path, leap: float):
    joined = b""
    for number, begins in enumerate((200.0, 202.0 + leap)):
        made = original(tmp_path / f"{number}.mp4", sound[: RATE * 2 * (number + 1)], 50 * number)
        moved = remux(made, tmp_path / f"{number}.ts", lambda _, time, begins=begins: time + begins)
        joined += moved.read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined)
    said = notes_of(lambda: check_agreement(tmp_path / "joined.ts", sound))
    assert all("no video for 3.00 s from 2.00 s" in note or "no audio for" in note for note in said)
    assert bool(said) == (leap == 3.0)  # a longer jump starts a segment, a shorter one may be lost data


def damage(path: Path, start: float, stop: float, unit: int = 188) -> Path:
    """A copy whose packets are zeroed from one part of the file to another."""
    data = bytearray(path.read_bytes())
    first, last = (int(len(data) * part) // unit * unit for part in (start, stop))
    data[first:last] = bytes(last - first)
    copy = path.with_name(f"damaged-{path.name}")
    copy.write_bytes(data)
    return copy


def notes_of(read: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read()
    return [str(warning.message) for warning in caught]


def test_lost_packets_of_a_transport_stream_are_told(source: Path, sound: np.ndarray, tmp_path: Path):
    """The frames that are missing are as many as the note has seconds."""
    whole = remux(source, tmp_path / "a.ts", lambda _, time: time)
    assert not notes_of(lambda: check_agreement(whole, sound))
    path = damage(whole, 0.5, 0.53)
    numbers: list[int] = []
    said = notes_of(lambda: numbers.extend(read_number(frame) for _, frame in iterate_all_frames(path)))
    (lost,) = [float(match) for note in said for match in re.findall(r"no video for (\d\.\d\d) s from 2\.\d", note)]
    assert lost > 0 and 125 - len(numbers) == pytest.approx(lost * 25, abs=0.3)
    assert any("no audio for 0." in note for note in notes_of(lambda: read_audio(path, RATE)))
    times, shown = zip(*iterate_frames_quietly(path), strict=True)
    (until,) = {float(match) for note in said for match in re.findall(r"damaged until (\d\.\d\d) s", note)}
    clock = [abs(time * 25 - number) for time, number in zip(times, shown, strict=True) if not 2 < time < until]
    assert until % 1 == 0 and max(clock) < 0.01  # each frame is at its time, and intact from the next key frame on
    assert any("no video for 1." in note for note in notes_of(lambda: read_clip(damage(whole, 0.4, 0.7))))


def iterate_frames_quietly(path: Path) -> list[tuple[float, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        return [(time, read_number(frame)) for time, frame in iterate_all_frames(path)]


def test_fragments_behind_a_damaged_one_are_not_lost_silently(source: Path, tmp_path: Path):
    """FFmpeg stops at the damaged one, as if the file ended there."""
    whole = remux(source, tmp_path / "f.mp4", lambda _, time: time, movflags="empty_moov+frag_keyframe")
    data = bytearray(whole.read_bytes())
    place = data.index(b"moof", len(data) // 2) - 4
    data[place : place + 200] = bytes(200)
    whole.write_bytes(data)
    with pytest.raises(MediaError, match=r"f\.mp4: truncated: .*cannot be read after [23]\.\d+ s.*byte"):
        read_clip(whole)
    frames: list[object] = []
    (said,) = notes_of(lambda: frames.extend(iterate_all_frames(whole)))
    assert 50 <= len(frames) < 100 and "its video cannot be read after" in said
    assert "its audio cannot be read after" in notes_of(lambda: read_audio(whole, RATE))[0]


def test_a_pause_of_picture_and_sound(source: Path, sound: np.ndarray, tmp_path: Path):
    with pytest.warns(MediaWarning, match=r"pause\.mkv: .*no (video|audio) for 20\.0\d s from 2\.0"):
        check_agreement(remux(source, tmp_path / "pause.mkv", lambda _, time: time + 20 * (time >= 2)), sound)


def test_joined_segments_are_all_there(tmp_path: Path):
    """Three segments of 2 s whose timestamps all begin alike: 6 s, 150 pictures."""
    sound, joined = noise(6.0), b""
    for number in range(3):
        part = sound[: RATE * 2 * (number + 1)]
        joined += original(tmp_path / f"{number}.ts", part, 50 * number, codec_options={"bf": "2"}).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(joined)
    check_agreement(path, sound)
    assert read_clip(path).seconds == pytest.approx(6.0, abs=0.005)
    assert len(list(iterate_frames(path, 25.0))) == 150


@pytest.mark.parametrize(
    ("begins", "parts"),
    [
        ((0, 0, 0), ("both", "audio", "both")),
        ((0, 50, 2), ("both", "audio", "both")),
        ((0, 0, 0), ("audio", "both", "both")),
        ((0, 0, 0), ("both", "both", "audio")),
        ((0, 0, 0, 0), ("both", "audio", "audio", "both")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*its audio ends:comodal.errors.MediaWarning")
def test_joined_segments_of_which_some_have_no_audio(tmp_path: Path, begins: tuple[float, ...], parts: tuple[str, ...]):
    """Each is where it is in the file, and its audio with it: the part without audio is silent."""
    sound, joined = noise(2.0 * len(parts)), b""
    for number, (first, lost) in enumerate(zip(begins, parts, strict=True)):
        whole = original(tmp_path / f"whole{number}.ts", sound[: RATE * 2 * (number + 1)], 50 * number)
        change = lambda kind, time, first=first, lost=lost: None if kind == lost else time + first  # noqa: E731
        joined += remux(whole, tmp_path / f"{number}.ts", change).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(joined)
    check_agreement(path, sound)
    last = 2.0 * (1 + max(number for number, lost in enumerate(parts) if lost == "both"))
    heard = read_audio(path, RATE)
    assert len(heard) / RATE == pytest.approx(last, abs=0.05)
    for number, lost in enumerate(parts):
        part = heard[round((2 * number + 0.5) * RATE) : round((2 * number + 1.5) * RATE)]
        assert (np.abs(part).max(initial=0.0) < 0.01) == (lost == "audio")
    assert [read_number(frame) for _, frame in iterate_frames(path, 25.0)] == list(range(50 * len(parts)))
    assert read_video_info(path).seconds == pytest.approx(2.0 * len(parts), abs=0.05)


def test_an_edit_that_begins_inside_a_long_picture(tmp_path: Path):
    """Pictures of half a second, an edit from 1.2 s on: picture 2 for 0.3 s, then picture 3."""
    shown = [k / 2 for k in range(12)]
    path = write_video(tmp_path / "slow.mp4", picture_seconds=shown, sound=tone(6, 48000), codec_options={"bf": "0"})
    edited = remux(path, tmp_path / "edited.mp4", lambda _, time: time - 1.2)
    numbers = [read_number(picture) for _, picture in iterate_frames(edited, 10.0)]
    assert numbers[:9] == [2, 2, 2, 3, 3, 3, 3, 3, 4]


def list_edits(parts: list[tuple[float, float]], rate: float = 1.0) -> list[list[tuple[int, int, int]]]:
    """Parts of (start, seconds) as edits of video and audio; AAC begins with 1,024 samples of its own."""
    return [
        [(round(1000 * seconds), round(start * ticks) + delay, round(rate * 65536)) for start, seconds in parts]
        for ticks, delay in ((90_000, 0), (RATE, 1024))
    ]


@pytest.mark.parametrize("parts", [[(0, 1), (2, 2)], [(0, 1), (1.6, 1), (3, 1)], [(1, 1), (3, 2)]])
def test_parts_that_an_edit_list_joins(source: Path, sound: np.ndarray, tmp_path: Path, parts: list):
    path = set_edits(source, tmp_path / "cut.mp4", list_edits(parts))
    check_agreement(path, sound)
    length = sum(seconds for _, seconds in parts)
    assert read_clip(path).seconds == pytest.approx(length, abs=0.022)
    first = [round(start * 25) + number for start, seconds in parts for number in range(round(seconds * 25))]
    assert [read_number(frame) for _, frame in iterate_frames(path, 25.0)] == first


def test_parts_at_another_speed_are_refused(source: Path, tmp_path: Path):
    path = set_edits(source, tmp_path / "slow.mp4", list_edits([(0, 4)], rate=0.5))
    for read in (read_clip, read_audio, lambda path: list(iterate_frames(path, 1.0))):
        with pytest.raises(MediaError, match=r"slow\.mp4.*0\.5") as caught:
            read(path)
        assert caught.value.reason == RefusalReason.UNREADABLE


FRAGMENTS = {"container_options": {"movflags": "empty_moov+frag_keyframe+default_base_moof"}}
MPEG2 = {"codec": "mpeg2video", "ticks": 25, "sound_codec": "pcm_s16le", "codec_options": {}}


@pytest.mark.parametrize(
    ("name", "options"), [("a.flv", {}), ("a.mkv", {}), ("a.mxf", MPEG2), ("a.mp4", {}), ("fragments.mp4", FRAGMENTS)]
)
@pytest.mark.parametrize("seconds", [2.0, 5.0])
def test_joined_files_that_ffmpeg_reads_in_part_are_refused(
    sound: np.ndarray, tmp_path: Path, name: str, options: dict, seconds: float
):
    one = original(tmp_path / f"one-{name}", sound[: round(RATE * seconds)], **options).read_bytes()
    (tmp_path / name).write_bytes(one * 3)
    for read in (read_clip, lambda path: list(iterate_frames(path, 1.0)), *([] if options is MPEG2 else [read_audio])):
        with pytest.raises(MediaError, match=name) as caught:
            read(tmp_path / name)
        assert caught.value.reason == RefusalReason.UNREADABLE


def test_fragments_whose_times_start_again_are_refused(source: Path, tmp_path: Path):
    """Two recordings after one index: FFmpeg sorts their samples into each other."""
    data = remux(source, tmp_path / "one.mp4", lambda _, time: time, movflags="empty_moov+frag_keyframe").read_bytes()
    first, last = data.index(b"moof") - 4, data.index(b"mfra") - 4
    (tmp_path / "two.mp4").write_bytes(data[:last] + data[first:last])
    with pytest.raises(MediaError, match=r"two\.mp4.*again") as caught:
        read_clip(tmp_path / "two.mp4")
    assert caught.value.reason == RefusalReason.UNREADABLE


@pytest.mark.parametrize("name", ["joined.avi", "joined.mpg"])
def test_the_length_of_joined_files_that_ffmpeg_reads_is_that_of_all(sound: np.ndarray, tmp_path: Path, name: str):
    codec = {"avi": ("mpeg4", "libmp3lame"), "mpg": ("mpeg1video", "mp2")}[name[-3:]]
    one = original(tmp_path / f"one-{name}", sound, codec=codec[0], sound_codec=codec[1], ticks=25, codec_options={})
    (tmp_path / name).write_bytes(one.read_bytes() * 2)
    assert read_video_info(tmp_path / name).seconds == pytest.approx(2 * SECONDS, abs=0.1)
    assert read_clip(tmp_path / name, seconds=60.0).seconds == pytest.approx(2 * SECONDS, abs=0.1)


@pytest.mark.parametrize("name", ["joined.mkv", "joined.webm"])
def test_the_length_of_a_joined_matroska_file_is_not_that_of_its_first_segment(
    sound: np.ndarray, tmp_path: Path, name: str
):
    """FFmpeg skips a small second segment, and reads on in a larger one: all is read, or it is refused."""
    codec = ("libx264", "aac") if name.endswith("mkv") else ("libvpx", "libopus")
    options = {"codec_options": {} if name.endswith("webm") else {"bf": "0", "crf": "0"}}
    one = original(tmp_path / f"one-{name}", sound, codec=codec[0], sound_codec=codec[1], **options)
    assert not has_second_segment(one) and read_video_info(one).seconds == pytest.approx(SECONDS, abs=0.1)
    (tmp_path / name).write_bytes(one.read_bytes() * 2)
    assert has_second_segment(tmp_path / name)
    try:
        seconds = read_video_info(tmp_path / name).seconds
    except MediaError as error:
        assert error.reason == RefusalReason.UNREADABLE
    else:
        assert seconds == pytest.approx(2 * SECONDS, abs=0.1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (b"\x81", (1, 1)),
        (b"\x40\x7f", (2, 127)),
        (b"\x01" + b"\xff" * 7, (8, None)),
        (b"\x1a\x45\xdf\xa3", (4, 0x0A45DFA3)),
        (b"\xff", (1, None)),
    ],
)
def test_sizes_of_matroska_elements(size: bytes, expected: tuple[int, int | None]):
    """RFC 8794, section 4: the leading zeros count the bytes, all ones are an unknown size."""
    assert read_element_size(size.ljust(8, b"\0")) == expected


def test_one_stream_that_starts_again_alone_is_refused(source: Path, tmp_path: Path):
    first = remux(source, tmp_path / "0.ts", lambda _, time: time).read_bytes()
    second = remux(source, tmp_path / "1.ts", lambda kind, time: time + SECONDS * (kind == "video")).read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    with pytest.raises(MediaError, match="timestamps of its audio restart") as caught:
        read_clip(tmp_path / "joined.ts", seconds=20.0)
    assert caught.value.reason == RefusalReason.UNREADABLE


def test_sound_begins_where_it_begins(tmp_path: Path):
    """At 160 s, which was once cut to 100 s."""
    path = write_video(tmp_path / "late.mkv", picture_seconds=range(163), sound=tone(3, 48000), sound_start=160.0,
                       size=(32, 32), sound_codec="flac")  # fmt: skip
    heard = read_audio(path, RATE)
    assert np.argmax(np.abs(heard) > 0.25) / RATE == pytest.approx(160.5, abs=0.005)
    assert len(heard) / RATE == pytest.approx(163.0, abs=0.03)
