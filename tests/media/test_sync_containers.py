"""Frames and audio agree within one frame and 5 ms: every container, with every fault that it can hold.

AVI stores no timestamps of audio, so it has neither audio gaps nor late audio. MPEG-1 and MPEG-2 have a constant frame
rate. Fragments without an edit list begin at zero: their first frame lasts until the second.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
import soxr

from comodal.errors import MediaError
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import read_clip
from tests.support.sync_media import RATE, Change, check_agreement, noise, original, remux
from tests.support.synthetic_media import write_video

SECONDS = 4.0
MPEG4 = {"codec": "mpeg4", "ticks": 25, "codec_options": {}}
VP8 = {"codec": "libvpx", "codec_options": {"deadline": "realtime", "cpu-used": "8"}}
B_FRAMES = {"codec_options": {"preset": "ultrafast", "g": "25", "bf": "2"}}
CONTAINERS = {
    "aac.mp4": B_FRAMES,
    "aac.mov": {},
    "pcm.mov": {"sound_codec": "pcm_s16le"},
    "aac.3gp": MPEG4,
    "aac.mkv": B_FRAMES,
    "opus.mkv": {"sound_codec": "libopus"},
    "opus.webm": VP8 | {"sound_codec": "libopus"},
    "mp3.avi": MPEG4 | {"sound_codec": "libmp3lame"},
    "h264.avi": B_FRAMES | {"ticks": 25, "sound_codec": "libmp3lame"},
    "aac.flv": {"sound_rate": 44_100},
    "mp3.flv": {"sound_rate": 44_100, "sound_codec": "libmp3lame"},
    "aac.ts": B_FRAMES,
    "mp2.mpg": {"codec": "mpeg1video", "ticks": 25, "sound_codec": "mp2", "codec_options": {"bf": "2"}},
    "ac3.vob": {"codec": "mpeg2video", "ticks": 25, "sound_codec": "ac3", "codec_options": {"bf": "2"}},
    "mp3.asf": MPEG4 | {"sound_codec": "libmp3lame"},
    "mp3.nut": MPEG4 | {"sound_codec": "libmp3lame"},
    "pcm.mxf": {"codec": "mpeg2video", "ticks": 25, "sound_codec": "pcm_s16le", "codec_options": {}},
    "fragments.mp4": {"container_options": {"movflags": "empty_moov+frag_keyframe"}},
    "delayed.mp4": B_FRAMES | {"container_options": {"movflags": "delay_moov+frag_keyframe"}},
    "cmaf.mp4": B_FRAMES | {"container_options": {"movflags": "cmaf+delay_moov+frag_keyframe"}},
    "dash.mp4": B_FRAMES | {"container_options": {"movflags": "dash"}},
}
REWRITTEN = {"aac.mkv", "cmaf.mp4"}  # FFmpeg returns other timestamps than it wrote
WITH_DELAYS = [
    "aac.mp4",
    "pcm.mov",
    "aac.mkv",
    "opus.webm",
    "mp3.flv",
    "aac.ts",
    "mp2.mpg",
    "mp3.nut",
    "delayed.mp4",
    "cmaf.mp4",
]
WITH_AUDIO_TIMES = [name for name in CONTAINERS if not name.endswith((".avi", ".mxf"))]
WITH_VARIABLE_RATE = ["aac.mp4", "aac.mkv", "opus.webm", "mp3.avi", "aac.flv", "aac.ts", "mp3.asf", "fragments.mp4"]


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return noise(SECONDS)


@pytest.fixture(scope="module")
def sources(sound: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("sources"), {}
    for name, options in CONTAINERS.items():
        rate = options.get("sound_rate", RATE)
        heard = sound if rate == RATE else soxr.resample(sound, RATE, rate)
        made[name] = original(folder / name, heard, **{"sound_rate": rate} | options)
    return made


def remux_as(sources: dict[str, Path], name: str, folder: Path, change: Change) -> Path:
    source = sources["aac.mp4" if name in REWRITTEN else name]
    return remux(source, folder / name, change, **CONTAINERS[name].get("container_options", {}))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_plain_file(sources: dict[str, Path], sound: np.ndarray, name: str):
    check_agreement(sources[name], sound)


@pytest.mark.parametrize("lost", [0.06, 0.3])
@pytest.mark.parametrize("name", [name for name in WITH_AUDIO_TIMES if name not in ("pcm.mov", "aac.3gp")])
def test_a_gap_in_the_audio(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str, lost: float):
    """FFmpeg writes PCM in mov without gaps."""
    cut = lambda kind, time: None if kind == "audio" and 1.5 <= time < 1.5 + lost else time  # noqa: E731
    check_agreement(remux_as(sources, name, tmp_path, cut), sound)


@pytest.mark.parametrize(
    ("name", "late"),
    [(name, 0.03) for name in WITH_DELAYS] + [(name, 1.3) for name in ["aac.flv", "ac3.vob", "mp3.asf", *WITH_DELAYS]],
)
def test_late_audio(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str, late: float):
    path = remux_as(sources, name, tmp_path, lambda kind, time: time + late * (kind == "audio"))
    check_agreement(path, sound, late)


@pytest.mark.parametrize(
    ("name", "late"),
    [(name, 0.03) for name in WITH_DELAYS] + [(name, 1.3) for name in ["aac.flv", "ac3.vob", "mp3.asf", *WITH_DELAYS]],
)
@pytest.mark.filterwarnings("ignore:.*its audio ends:comodal.errors.MediaWarning")
def test_late_video(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str, late: float):
    path = remux_as(sources, name, tmp_path, lambda kind, time: time + late * (kind == "video"))
    check_agreement(path, sound, -late)


@pytest.mark.parametrize("name", ["mp3.asf", "dash.mp4", *WITH_DELAYS])
def test_timestamps_that_begin_at_5_seconds(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str):
    check_agreement(remux_as(sources, name, tmp_path, lambda _, time: time + 5), sound)


@pytest.mark.parametrize("name", WITH_VARIABLE_RATE)
def test_a_variable_frame_rate(sound: np.ndarray, tmp_path: Path, name: str):
    times = [k / 25 for k in range(100) if k % 7 * (k % 3) == 0 or k % 50 < 5]
    options = {
        "picture_seconds": times,
        "size": (96, 64),
        "container_options": CONTAINERS[name].get("container_options"),
    }
    rate = CONTAINERS[name].get("sound_rate", RATE)
    heard = sound if rate == RATE else soxr.resample(sound, RATE, rate)
    path = write_video(tmp_path / name, sound=heard, **{"sound_rate": rate} | CONTAINERS[name] | options)
    check_agreement(path, sound, starts=times)


@pytest.mark.parametrize("name", ["aac.mp4", "delayed.mp4", "cmaf.mp4"])
@pytest.mark.parametrize("begins", [1.0, 1.01])
def test_an_edit(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str, begins: float):
    """It begins with a frame, or inside one."""
    check_agreement(remux_as(sources, name, tmp_path, lambda _, time: time - begins), sound)


@pytest.mark.parametrize("name", ["aac.ts", "mp2.mpg", "ac3.vob"])
def test_timestamps_that_wrap_around(sources: dict[str, Path], sound: np.ndarray, tmp_path: Path, name: str):
    """They have 33 bits of 90 kHz (ISO/IEC 13818-1, 2.4.3.7): zero follows 26.5 hours."""
    begins = 2**33 / 90_000 - 3.5
    check_agreement(remux_as(sources, name, tmp_path, lambda _, time: time + begins), sound)


def test_offsets_that_change_between_fragments_are_refused(sources: dict[str, Path], tmp_path: Path):
    """FFmpeg would be late by one frame at first and by two in the end."""
    data = bytearray(sources["cmaf.mp4"].read_bytes())
    one, two = struct.pack(">i", -3600), struct.pack(">i", -7200)  # ticks of 90 kHz
    place = data.index(one, data.rindex(b"moof"))
    data[place : place + 4] = two
    (tmp_path / "changing.mp4").write_bytes(data)
    with pytest.raises(MediaError, match=r"changing\.mp4.*offsets") as caught:
        read_clip(tmp_path / "changing.mp4")
    assert caught.value.reason == RefusalReason.UNREADABLE


def test_reordered_frames_whose_times_are_unknown_are_refused(sound: np.ndarray, tmp_path: Path):
    """ASF has the times of decoding of H.264 and not by how many frames the presentation is later."""
    path = original(tmp_path / "h264.asf", sound, ticks=25, sound_codec="libmp3lame", **B_FRAMES)
    with pytest.raises(MediaError, match=r"h264\.asf.*not later") as caught:
        read_clip(path)
    assert caught.value.reason == RefusalReason.UNREADABLE
