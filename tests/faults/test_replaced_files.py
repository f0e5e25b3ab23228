"""A file that is replaced under its name is another file, though its size, its time, its beginning and its end stay."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.files import fingerprint_file
from comodal.inference.image_search.search_command import open_index
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions import extract
from tests.support.make_media import make_video
from tests.support.small_tasks import config

RATE = 16_000


@pytest.fixture(scope="module")
def network(network: Path) -> str:
    return str(network)


def write_image(path: Path, color: tuple[int, int, int]) -> None:
    """A square on black, without compression: as many bytes whatever its colour, and black at both ends."""
    image = Image.new("RGB", (120, 120))
    image.paste(color, (20, 20, 100, 100))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    os.utime(path, (1, 1))


def write_sound(path: Path, pitch: float) -> None:
    """A tone between two silences."""
    time = np.arange(RATE) / RATE
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.where(abs(time - 0.5) < 0.3, 0.4 * np.sin(2 * np.pi * pitch * time), 0.0), RATE)
    os.utime(path, (1, 1))


def write_video(path: Path, seed: int) -> None:
    make_video(path, seconds=1.2, seed=seed)
    os.utime(path, (1, 1))


IMAGES, SOUNDS, VIDEOS = (write_image, [(255, 0, 0), (0, 0, 255)]), (write_sound, [300, 900]), (write_video, [1, 7])


@pytest.mark.parametrize(("name", "write", "values"), [("a.bmp", *IMAGES), ("a.wav", *SOUNDS)])
def test_ends_alone_do_not_tell_files_apart(tmp_path: Path, name: str, write, values: list):
    stamps, contents = [], []
    for value in (*values, values[0]):
        write(tmp_path / name, value)
        stamps.append(fingerprint_file(tmp_path / name))
        contents.append((tmp_path / name).read_bytes())
    assert len(contents[0]) == len(contents[1])
    assert contents[0][:4096] == contents[1][:4096] and contents[0][-4096:] == contents[1][-4096:]
    assert stamps[0] == stamps[2] != stamps[1]


def rejects(words: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 1
    said = capsys.readouterr()
    assert "nothing to do" not in said.out
    assert re.search("was started with other (options|settings)|was created (with other settings|from )", said.err)
    return said.err


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Videos, pairs and regions: the folder that was made of the old file is not taken for finished."""
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", number)
        write_image(tmp_path / "images" / "train" / "a" / f"{number}.bmp", (255, 0, 0))
        write_sound(tmp_path / "sounds" / "train" / "a" / f"{number}.wav", 300 + number)
        record = {"image_id": f"{number}", "image_w": 90, "image_h": 80, "num_boxes": 1,
                  "boxes": np.float32([[1, 2, 50, 60]]), "features": np.ones((1, 6), np.float32)}  # fmt: skip
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{number}.npy", record)
    small = ["--short-side", "32", "--backend", "sequential"]
    commands = {
        "videos": ["prepare", "videos", tmp_path / "videos", tmp_path / "clips", *small],
        "pairs": ["prepare", "pairs", tmp_path / "images", tmp_path / "sounds", tmp_path / "pairs", *small],
        "regions": ["prepare", "regions", tmp_path / "npy", tmp_path / "regions"],
    }
    for words in commands.values():
        assert main([*map(str, words)]) == 0 and main([*map(str, words)]) == 0
    write_video(tmp_path / "videos" / "1.mp4", 7)
    assert str(tmp_path / "clips") in rejects(commands["videos"], capsys)
    write_sound(tmp_path / "sounds" / "train" / "a" / "1.wav", 900)
    assert str(tmp_path / "pairs") in rejects(commands["pairs"], capsys)
    write_sound(tmp_path / "sounds" / "train" / "a" / "1.wav", 301)
    assert main([*map(str, commands["pairs"])]) == 0  # the old file is back
    write_image(tmp_path / "images" / "train" / "a" / "1.bmp", (0, 0, 255))
    assert str(tmp_path / "pairs") in rejects(commands["pairs"], capsys)
    np.save(tmp_path / "npy" / "1.npy", record | {"features": np.full((1, 6), 2, np.float32)})
    assert str(tmp_path / "regions") in rejects(commands["regions"], capsys)


def test_extract_finished_and_interrupted(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for number in range(3):
        write_image(tmp_path / "photos" / f"{number}.bmp", (255, 40 * number, 0))
    words = ["extract", tmp_path / "photos", tmp_path / "out", "--detector", network, "--workers", 1]
    assert main([*map(str, words)]) == 0 and main([*map(str, words)]) == 0
    add = extract.add_extraction_result

    def interrupted(writer: object, made: extract.ExtractionResult) -> object:
        if made.image == "2.bmp":
            raise KeyboardInterrupt
        return add(writer, made)

    begun = [*words[:2], tmp_path / "begun", *words[3:]]
    with monkeypatch.context() as patch:
        patch.setattr(extract, "add_extraction_result", interrupted)
        assert main([*map(str, begun)]) != 0
    write_image(tmp_path / "photos" / "0.bmp", (0, 0, 255))
    assert str(tmp_path / "out") in rejects(words, capsys)
    assert str(tmp_path / "begun") in rejects(begun, capsys)


@pytest.mark.parametrize(
    ("kind", "suffix", "write", "values"),
    [("audio", "wav", *SOUNDS), ("image", "bmp", *IMAGES), ("video", "mp4", *VIDEOS)],
)
def test_embed(
    tmp_path: Path, network: str, kind: str, suffix: str, write, values: list, capsys: pytest.CaptureFixture[str]
):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.{suffix}", values[0])
    words = ["embed", kind, str(tmp_path / "in"), "--model", network, "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 0
    before = {path.name: np.load(path)["embedding"] for path in (tmp_path / "out").iterdir()}
    write(tmp_path / "in" / f"b.{suffix}", values[1])
    capsys.readouterr()
    assert main(words) == 0
    assert "1 written, 1 existed already" in capsys.readouterr().out
    after = {path.name: np.load(path)["embedding"] for path in (tmp_path / "out").iterdir()}
    assert before.keys() == after.keys()
    assert {name[0] for name in before if not np.array_equal(before[name], after[name])} == {"b"}


def test_search(tmp_path: Path, network: str):
    folder = tmp_path / "photos"
    for number in range(4):
        write_image(folder / f"{number}.bmp", (255, 40 * number, 0))
    extract.extract_regions(folder, tmp_path / "store", network, grid=2, workers=1)
    store, words = RegionStore(tmp_path / "store"), WordPieceTokenizer.from_texts(["a red dog"])
    save_model(ViLBERT(replace(config(words.size), region_feature_dim=store.dim)), tmp_path / "run" / "model", {})
    words.save(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "regions.json").write_bytes(store.encode_provenance())
    before = open_index(folder, tmp_path / "run").images
    write_image(folder / "1.bmp", (0, 0, 255))
    os.utime(folder / "1.bmp", (2, 2))  # an index knows a file by its size and time
    after = open_index(folder, tmp_path / "run").images
    assert before.names == after.names
    changed = [
        name
        for name, old, new in zip(after.names, before.rows, after.rows, strict=True)
        if not np.array_equal(before.store.read_regions(int(old)).features, after.store.read_regions(int(new)).features)
    ]
    assert changed == ["1.bmp"]
