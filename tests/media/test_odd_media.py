"""Sounds and pictures as they lie about: what is read is right, what is not is refused in one sentence by its name."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import comodal.openl3 as openl3
from comodal.cli.program import main
from comodal.errors import MediaError
from comodal.inference.embed_files import embed_audio, embed_image
from comodal.media.audio import read_audio, stream_audio
from comodal.media.image import read_image
from comodal.media.video import iterate_frames, read_clip, read_video_info
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from tests.support.synthetic_media import tone

RATE = 48_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder, {})
    return folder


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_tone_is_the_same_tone_however_it_is_stored(tmp_path: Path, rate: int, channels: int, subtype: str):
    stored = np.repeat(tone(0.6, rate, silent_seconds=0.0)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "tone.wav", stored, rate, subtype=subtype)
    read = read_audio(tmp_path / "tone.wav", RATE)
    assert len(read) == round(0.6 * RATE)
    assert np.abs(read - tone(0.6, RATE, silent_seconds=0.0))[2000:-2000].max() < 1e-3


@pytest.mark.parametrize(
    ("name", "samples", "rate", "sentence"),
    [
        ("nan", [0.1, np.nan, 0.1], RATE, "samples that are NaN, infinite or implausibly large"),
        ("infinite", [0.1, -np.inf, 0.1], 44_100, "samples that are NaN, infinite or implausibly large"),
        ("beyond", [0.1, 1e30, 0.1], RATE, "samples that are NaN, infinite or implausibly large"),
        ("double", [0.1, 1e300, 0.1], RATE, "samples that are NaN, infinite or implausibly large"),
        ("slow", [0.1] * 9, 1, "audio of 1 Hz"),
        ("fast", [0.1] * 9, 2_000_000, "audio of 2000000 Hz"),
        ("none", [], RATE, "no sample in the audio stream"),
    ],
)
def test_what_is_no_sound_gives_no_vector(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, samples: list, rate: int, sentence: str
):
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, np.array(samples), rate, subtype="DOUBLE" if name == "double" else "FLOAT")
    assert main(["embed", "audio", str(path), "--model", str(model), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert f"{name}.wav" in said and sentence in said
    assert list(tmp_path.iterdir()) == [path]


def test_a_sound_of_one_sample_or_a_tenth_of_a_second_is_one_window(model: Path, tmp_path: Path):
    for name, samples in (("one", 1), ("tenth", RATE // 10)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(samples, 0.1), RATE)
        embed_audio([tmp_path / f"{name}.wav"], model, workers=1)
        with np.load(tmp_path / f"{name}.npz") as found:
            assert found["embedding"].shape[0] == 1 and np.isfinite(found["embedding"]).all()


NAMES = ["with space.wav", "ümläut.wav", "日本.wav", "new\nline.wav", "[red]tape[.wav", "%s{}.wav"]


def test_names_may_be_anything_that_is_text(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in (*NAMES, os.fsdecode(b"latin\xff.wav")):
        soundfile.write(tmp_path / "tone.wav", tone(0.2, 16_000, silent_seconds=0.0), 16_000)
        (tmp_path / "tone.wav").rename(tmp_path / name)
    assert main(["embed", "audio", str(tmp_path), "--model", str(model), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "1 of 7 files could not be embedded" in said and "unreadable: its name is not UTF-8; rename it" in said
    assert {path.stem for path in tmp_path.glob("*.npz")} == {Path(name).stem for name in NAMES}
    assert main(["embed", "audio", str(tmp_path / os.fsdecode(b"latin\xff.wav")), "--model", str(model)]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_a_file_given_twice_is_embedded_once(model: Path, tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", tone(0.2, 16_000, silent_seconds=0.0), 16_000)
    counts = embed_audio([tmp_path, tmp_path / "a.wav"], model, tmp_path / "out", workers=1)
    assert counts.written == 1


@pytest.mark.parametrize(
    ("name", "picture", "sentence"),
    [
        ("row.png", Image.new("RGB", (50_000, 1)), "too large: 50000 x 1 pixels are narrower than 1 : 100"),
        ("column.png", Image.new("L", (1, 65_000)), "too large: 1 x 65000 pixels are narrower than 1 : 100"),
        ("unit.tif", Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "floats from 0.0 to 1.0"),
        ("nan.tif", Image.fromarray(np.full((8, 8), np.nan, np.float32)), "floats from nan to nan"),
    ],
)
def test_pictures_that_would_fill_the_memory_or_be_black_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, picture: Image.Image, sentence: str
):
    picture.save(tmp_path / name)
    with pytest.raises(MediaError, match=sentence):
        read_image(tmp_path / name)
    assert main(["embed", "image", str(tmp_path / name), "--model", str(model), "--workers", "1"]) == 1
    assert f"{name}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_floats_from_0_to_255_are_grey(tmp_path: Path):
    grey = np.arange(256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    assert np.array_equal(read_image(tmp_path / "grey.tif")[..., 1], grey.astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3)])
def test_the_smallest_pictures_are_embedded(model: Path, tmp_path: Path, size: tuple[int, int]):
    """A picture of one colour is that colour whatever its size."""
    for name, sides in (("small.png", size), ("large.png", (64, 64))):
        Image.new("RGB", sides, (200, 40, 90)).save(tmp_path / name)
    embed_image([tmp_path], model, workers=1)
    small, large = (np.load(tmp_path / name)["embedding"] for name in ("small.npz", "large.npz"))
    assert np.array_equal(small, large)


@pytest.mark.parametrize(
    "samples", [np.full(480, np.nan), np.full(480, np.inf), np.full(480, 1e30), np.ones(480, complex), np.array(["a"])]
)
def test_what_is_no_sound_in_memory_is_refused_as_openl3_would(samples: np.ndarray):
    with pytest.raises(openl3.OpenL3Error, match="audio must be real numbers"):
        openl3.preprocess_audio(samples, RATE)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9, 1e-3, "a"])
def test_rates_that_cannot_be_are_refused(rate: object):
    with pytest.raises(openl3.OpenL3Error, match="Invalid sample rate"):
        openl3.preprocess_audio(np.ones(480), rate)


@pytest.mark.parametrize("hop", [0, -1, float("nan"), float("inf"), 1e-6, "a", None])
def test_hops_that_cannot_be_are_refused(hop: object):
    with pytest.raises(openl3.OpenL3Error, match="Invalid hop size"):
        openl3.preprocess_audio(np.ones(480), RATE, hop_size=hop)


def test_blocks_of_a_damaged_sound_end_where_it_is_refused(tmp_path: Path):
    sound = tone(4.0, RATE, silent_seconds=0.0)
    sound[3 * RATE] = np.nan
    soundfile.write(tmp_path / "late.wav", sound, RATE, subtype="FLOAT")
    blocks = stream_audio(tmp_path / "late.wav", RATE, 1.0)
    assert len(next(blocks)) == RATE
    with pytest.raises(MediaError, match=r"late\.wav: unreadable"):
        list(blocks)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("pipe.wav", read_audio),
        ("pipe.png", read_image),
        ("pipe.mp4", read_clip),
        ("pipe.mp4", read_video_info),
        ("pipe.mp4", lambda path: next(iterate_frames(path, 1.0))),
    ],
)
def test_a_pipe_is_refused_at_once(tmp_path: Path, name: str, read: Callable[[Path], object]):
    """Opening it would wait for a writer that never comes."""
    os.mkfifo(tmp_path / name)
    signal.alarm(20)  # ends the test run if it waits
    try:
        with pytest.raises(MediaError, match=f"{name}: unreadable") as caught:
            read(tmp_path / name)
    finally:
        signal.alarm(0)
    assert caught.value.path == str(tmp_path / name)


def test_a_pipe_does_not_stop_the_other_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    files = [str(tmp_path / name) for name in ("pipe.png", "image.png")]
    signal.alarm(60)
    try:
        assert main(["embed", "image", *files, "--model", str(model), "--workers", "1"]) == 1
    finally:
        signal.alarm(0)
    assert "pipe.png: unreadable" in capsys.readouterr().err
    assert (tmp_path / "image.npz").exists()
