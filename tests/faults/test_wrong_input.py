"""What people get wrong at the command line ends in one sentence that names it, with nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.files import write_atomically, write_bytes_atomically
from comodal.hardware import find_device
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.regions.extract import extract_regions
from tests.support.small_tasks import config as small_config

ANSWERS = ["yes", "no", "two"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, an L3-Net of chance, a store of its regions, and a run that answers and points."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(4)), folder / "network", {})
    extract_regions(folder / "images", folder / "store", str(folder / "network"), grid=2, workers=1)
    words, store, run = (
        WordPieceTokenizer.from_texts(["what is on the grass"]),
        RegionStore(folder / "store"),
        folder / "run",
    )
    vilbert = small_config(words.size)
    heads = (Head("vqa", "answers", len(ANSWERS), 8), Head("regions", "regions", 1))
    sizes = {**vars(vilbert), "region_feature_dim": store.dim}
    save_model(TaskModel(TaskModelConfig(type(vilbert)(**sizes), heads)), run, {})
    words.save(run)
    (run / "regions.json").write_bytes(store.encode_provenance())
    (run / "answers.json").write_text(json.dumps(ANSWERS))
    return folder


def told(capsys: pytest.CaptureFixture, *words: object) -> str:
    """What a command that fails says: one line."""
    assert main([str(word) for word in words]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("comodal: error: ")]
    assert len(said) == 1
    return said[0].removeprefix("comodal: error: ")


@pytest.mark.parametrize("command", ["ask", "fill", "ground"])
@pytest.mark.parametrize("top", [0, -1])
def test_no_guess_at_all_cannot_be_asked_for(world: Path, capsys: pytest.CaptureFixture, command: str, top: int):
    image, run = world / "images" / "a.png", world / "run"
    assert (
        told(capsys, command, image, "a [MASK]", "--model", run, "--top-k", top) == f"top_k ({top}) must be at least 1"
    )


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        *(("regions.json", text, "regions.json") for text in ("[]", "{}", "null", "7", "{")),
        ("answers.json", '["yes", "no"]', "run: its 2 answers do not fit its 3 scores"),
        ("answers.json", '["a", "b", "c", "d"]', "run: its 4 answers do not fit its 3 scores"),
        ("answers.json", '["a", "b"', "answers.json: not JSON"),
        ("config.json", "[]", "config.json: "),
        ("model.safetensors", "", "model.safetensors: "),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ],
)
def test_a_damaged_run_is_told_by_its_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, file: str, content: str, sentence: str
):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    (run / file).write_text(content)
    assert sentence in told(capsys, "ask", world / "images" / "a.png", "what is it", "--model", run)


def test_a_picture_too_thin_for_regions_is_told_by_its_name(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    Image.new("RGB", (80, 1)).save(tmp_path / "thin.png")
    said = told(capsys, "ask", tmp_path / "thin.png", "what is it", "--model", world / "run")
    assert "thin.png: too thin: 80 x 1 pixels" in said


def test_a_mask_that_is_not_read_is_told_without_repeating_the_text(world: Path, capsys: pytest.CaptureFixture):
    said = told(capsys, "fill", world / "images" / "a.png", "the grass " * 300 + "[MASK]", "--model", world / "run")
    assert "has no [MASK] in its first 34 tokens" in said and len(said) < 200


@pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
def test_a_device_that_is_not_there_is_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    with pytest.raises(ValueError, match=f"device {name}: "):
        find_device(name)
    words = ["embed", "image", world / "images", "--model", world / "network", "--out", tmp_path / "out"]
    assert main([*map(str, words), "--device", name]) == 2
    assert "--device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_are_not_negative(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["embed", "image", world / "images", "--model", world / "network", "--out", tmp_path, "--workers", -1]
    assert told(capsys, *words) == "workers is a number from 0 to 1,024, got -1"


def test_a_sound_is_no_model(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    said = told(capsys, "embed", "image", world / "images", "--model", tmp_path / "a.flac")
    assert "a.flac: refused, it holds more than tensors" in said and "torch.load" not in said


@pytest.mark.parametrize("what", ["folder", "device"])
def test_only_files_are_replaced_by_results(tmp_path: Path, what: str):
    """A superuser could put a file in the place of /dev/null, and nothing would work afterwards."""
    target = tmp_path if what == "folder" else Path("/dev/null")
    with pytest.raises(OSError, match="which is no file"), write_atomically(target) as path:
        raise AssertionError(path)
    write_bytes_atomically(tmp_path / "new.txt", b"new")
    write_bytes_atomically(tmp_path / "new.txt", b"newer")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"newer"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--grid", 100_000, "grid is a number from 1 to 100, got 100000"),
        ("--size", 10**9, "size is a number from 1 to 4,096, got 1000000000"),
        ("--cells", 0, "cells is a number from 1 to 32, got 0"),
    ],
)
def test_regions_that_no_machine_could_make_are_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flag: str, value: object, said: str
):
    words = ["extract", world / "images", tmp_path / "store", "--detector", world / "network", "--workers", 1]
    assert told(capsys, *words, flag, value).startswith(said)
    assert not (tmp_path / "store").exists()


def test_the_smallest_pictures_that_a_network_can_see_have_all_maps(world: Path, tmp_path: Path):
    made = {"detector": str(world / "network"), "grid": 1, "size": 1, "workers": 1, "maps": "all"}
    assert extract_regions(world / "images", tmp_path / "store", **made).regions == 1


@pytest.mark.parametrize("content", ["[]", "{}", "{", "[" * 100_000])
def test_a_damaged_report_of_regions_is_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str):
    store = shutil.copytree(world / "store", tmp_path / "store")
    (store / "report.jsonl").write_text(content)
    words = ["extract", world / "images", store, "--detector", world / "network", "--grid", 2, "--workers", 1]
    assert told(capsys, *words).startswith(f"{store / 'report.jsonl'} is damaged")


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", -1), ("vocab_size", 10**12), ("v_feature_size", -1), ("num_attention_heads", 0)]
)
def test_a_network_of_impossible_sizes_is_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, key: str, value: int
):
    assert main(["convert", "vilbert", str(world / "run"), str(tmp_path / "back")]) == 0
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((tmp_path / "back" / "config.json").read_text()) | {key: value}))
    words = ["convert", "vilbert", tmp_path / "back" / "pytorch_model.safetensors", tmp_path / "new"]
    assert told(capsys, *words, "--original-config", config).startswith(f"{config}")
    assert not (tmp_path / "new").exists()


def test_times_that_are_no_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "a.npz"
    np.savez(path, embedding=np.ones((2, 512), np.float32), timestamps=np.array(["a", "b"]))
    assert told(capsys, "identify", path) == f"{path}: 2 vectors and timestamps of the shape (2,), <U1"
