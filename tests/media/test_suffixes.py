"""A file of every listed suffix of videos and of images is read; audio is in test_wrong_headers.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.media.image import read_image
from comodal.media.storage.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from comodal.media.video import read_clip
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from tests.support.synthetic_media import onset_seconds, tone, write_video

H264, MPEG2, WMV = ("libx264", "aac"), ("mpeg2video", "mp2"), ("wmv2", "wmav2")
VP8, REAL = ("libvpx", "libopus"), ("rv20", "ac3")
# The suffix that the file is written under, which names its format to FFmpeg, and the codecs of image and audio.
# FFmpeg has no encoder of Theora and of RealVideo 3 and 4: .ogv and .ogm hold VP8, .rm and .rmvb RealVideo 2.
VIDEOS = {
    ".mp4": (".mp4", *H264), ".m4v": (".mp4", *H264), ".mov": (".mov", *H264), ".qt": (".mov", *H264),
    ".f4v": (".f4v", *H264), ".mkv": (".mkv", *H264), ".webm": (".webm", *VP8), ".ogv": (".ogv", *VP8),
    ".ogm": (".ogv", *VP8), ".avi": (".avi", "mpeg4", "libmp3lame"), ".divx": (".avi", "mpeg4", "libmp3lame"),
    ".mpg": (".mpg", *MPEG2), ".mpeg": (".mpg", *MPEG2), ".mpe": (".mpg", "mpeg1video", "mp2"),
    ".vob": (".vob", *MPEG2), ".ts": (".ts", *MPEG2),
    ".mts": (".ts", *H264), ".m2ts": (".ts", *H264), ".m2t": (".ts", *MPEG2),
    ".flv": (".flv", "flv", "aac"), ".wmv": (".asf", *WMV), ".asf": (".asf", *WMV), ".3gp": (".3gp", "mpeg4", "aac"),
    ".3g2": (".3g2", "mpeg4", "aac"), ".mxf": (".mxf", "mpeg2video", "pcm_s16le"),
    ".nut": (".nut", "mpeg4", "libmp3lame"), ".rm": (".rm", *REAL), ".rmvb": (".rm", *REAL),
    ".dv": (".dv", "dvvideo", "pcm_s16le"),
}  # fmt: skip
IMAGES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip


def test_the_tables_are_complete():
    assert VIDEOS.keys() == VIDEO_SUFFIXES and IMAGES.keys() == {*IMAGE_SUFFIXES}


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_video_of_every_suffix_is_read(tmp_path: Path, suffix: str):
    written, codec, sound_codec = VIDEOS[suffix]
    size, layout = ((720, 576), "stereo") if suffix == ".dv" else ((176, 144), "mono")
    sound = tone(2.0, 48_000) if layout == "mono" else np.tile(tone(2.0, 48_000), (2, 1))
    coded = {"size": size, "codec": codec, "sound_codec": sound_codec, "layout": layout, "sound_bit_rate": 64_000}
    path = write_video(tmp_path / f"a{written}", ticks=25, sound=sound, **coded).rename(tmp_path / f"b{suffix.upper()}")
    clip = read_clip(path, short_side=64, sample_rate=16_000)
    assert 9 <= len(clip.frames) <= 11
    assert clip.audio_start_seconds + onset_seconds(clip.audio, 16_000) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("suffix", IMAGES)
def test_an_image_of_every_suffix_is_read(tmp_path: Path, suffix: str):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", IMAGES[suffix], **({"quality": 95} if "J" in suffix else {}))
    found = read_image(tmp_path / f"a{suffix}").astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found[:, [3, 36]] - pixels[:, [3, 36]]).max() < 12


def test_a_mixed_folder_is_searched_for_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What is of another kind is counted, and what only pretends to be a video is named with its reason."""
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), tmp_path / "model", {})
    folder = tmp_path / "in"
    (folder / "inner").mkdir(parents=True)
    write_video(folder / "good.mp4", sound=tone(2.0, 48_000))
    write_video(folder / "inner" / "good.MKV", sound=tone(2.0, 48_000))
    Image.new("RGB", (9, 9)).save(folder / "cover.jpg")
    Image.new("RGB", (9, 9)).save(folder / "image.mp4", "PNG")
    for name, data in {
        "a.wav": b"RIFF", "notes.txt": b"notes", "README": b"read me", "empty.mp4": b"",
        "page.webm": b"<!doctype html>", "text.avi": b"plain", "cut.mp4": (folder / "good.mp4").read_bytes()[:500],
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    words = ["embed", "video", str(folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert "2 written, 0 existed already, 5 could not be read" in said.out
    assert "4 files of other kinds were skipped: " in said.out
    assert all(f"1 {ending}" in said.out for ending in (".jpg", ".wav", ".txt", "without an ending"))
    assert "5 of 7 files could not be embedded" in said.err
    for name, reason in {"empty.mp4": "the file is empty", "page.webm": "web page", "text.avi": "plain text"}.items():
        assert any(name in line and reason in line for line in said.out.splitlines())
    assert all(name in said.out for name in ("image.mp4", "cut.mp4"))
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npz")}
    assert made >= {f"{name}_{kind}.npz" for name in ("good", "inner/good") for kind in ("audio", "image")}
