"""Linear classification of an ImageFolder tree, and how class folders are split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.tasks.evaluation.class_folders import list_labeled_files
from comodal.tasks.image.image_features import downsample_pixels
from comodal.tasks.image.imagenet_files import IMAGENET_SUFFIXES
from comodal.tasks.image.linear_classification import evaluate_images


def write_images(folder: Path, count: int, seed: int) -> None:
    """Vertical and horizontal stripes of any phase and colour: no pixel by itself tells them apart."""
    rng = np.random.default_rng(seed)
    for kind in ("vertical", "horizontal"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            wave = np.sin(np.arange(40) * 0.9 + rng.uniform(0, 6.3))
            stripes = np.tile(wave, (40, 1)) if kind == "vertical" else np.tile(wave[:, None], (1, 40))
            colour = rng.uniform(40, 120, 3)
            pixels = 128 + stripes[..., None] * colour + rng.normal(0, 5, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{number}.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=4, image_size=32)), folder, {})
    return folder


def test_stripes_are_told_apart_by_convolutions_and_not_by_pixels(tmp_path: Path, model: Path):
    write_images(tmp_path / "tree" / "train", 40, 0)
    write_images(tmp_path / "tree" / "test", 15, 1)
    numbers = evaluate_images(model, tmp_path / "tree", out=tmp_path / "out", workers=1)
    assert numbers["vision.trained"] >= 0.9
    assert numbers["vision.untrained"] >= 0.9
    assert numbers["vision.pixels"] <= 0.8
    assert numbers["vision.items"] == 30
    assert numbers["vision.chance_level"] == 0.5
    assert (tmp_path / "out" / "results.json").is_file()


def test_the_middle_of_a_folder_without_a_test_is_split_by_names(tmp_path: Path):
    write_images(tmp_path, 60, 0)
    before = {item.name: item.is_test for item in list_labeled_files(tmp_path, IMAGENET_SUFFIXES)}
    assert 0.1 < np.mean(list(before.values())) < 0.3
    (tmp_path / "vertical" / "0.png").unlink()
    after = {item.name: item.is_test for item in list_labeled_files(tmp_path, IMAGENET_SUFFIXES)}
    assert after == {name: test for name, test in before.items() if name != "vertical/0.png"}


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_the_test_folder_may_have_several_names(tmp_path: Path, name: str):
    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / name, 1, 1)
    assert [item.is_test for item in list_labeled_files(tmp_path, IMAGENET_SUFFIXES)] == [False] * 4 + [True] * 2


def test_wrong_trees_are_told(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        list_labeled_files(tmp_path / "nowhere", IMAGENET_SUFFIXES)
    with pytest.raises(DataError, match="0 class folders"):
        list_labeled_files(tmp_path, IMAGENET_SUFFIXES)
    write_images(tmp_path / "train", 2, 0)
    with pytest.raises(DataError, match="none of test/, val/, validation/"):
        list_labeled_files(tmp_path, IMAGENET_SUFFIXES)
    write_images(tmp_path / "test", 1, 1)
    (tmp_path / "test" / "vertical").rename(tmp_path / "test" / "oblique")
    with pytest.raises(DataError, match="class 'oblique' is tested"):
        list_labeled_files(tmp_path, IMAGENET_SUFFIXES)


def test_a_damaged_picture_is_named(tmp_path: Path, model: Path):
    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / "test", 1, 1)
    (tmp_path / "test" / "vertical" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(DataError, match=r"none of the 1 files of class 'vertical' to test can be read; .*0\.png"):
        evaluate_images(model, tmp_path, workers=1)


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_pictures_that_cannot_be_read_are_left_out_named_and_counted(
    tmp_path: Path, model: Path, solver: str, capsys: pytest.CaptureFixture[str]
):
    """The numbers are those of the same tree without them."""
    for name in ("damaged", "smaller"):
        write_images(tmp_path / name / "train", 20, 0)
        write_images(tmp_path / name / "test", 8, 1)
    bad = [f"train/horizontal/{number}.png" for number in (3, 4)] + ["test/vertical/5.png"]
    for path in bad:
        (tmp_path / "damaged" / path).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        (tmp_path / "smaller" / path).unlink()
    found, expected = (
        evaluate_images(model, tmp_path / name, solver=solver, batch_size=16, out=tmp_path / f"of {name}", workers=1)
        for name in ("damaged", "smaller")
    )
    kept = found.keys() - {"vision.seconds"}
    assert found["vision.items"] == 15 and {k: found[k] for k in kept} == {k: expected[k] for k in kept}
    said = capsys.readouterr().out
    assert "files that cannot be read and are excluded: 3" in said and all(Path(path).name in said for path in bad)
    card = json.loads((tmp_path / "of damaged" / "card.json").read_text())
    assert card["counts"] == {
        "items": 16, "predicted": 15, "cannot be read, to test": 1, "fitted": 38, "cannot be read": 3,
    }  # fmt: skip


def test_plain_pixels_are_means_of_blocks():
    square = np.zeros((64, 64, 3), np.uint8)
    square[:2, :2] = [255, 51, 0]
    row = downsample_pixels(square)
    assert row.shape == (3072,)
    assert torch.allclose(row[:6], torch.tensor([1.0, 0.2, 0.0, 0.0, 0.0, 0.0]), atol=1e-6)


def test_mini_batches_views_and_crops_tell_the_stripes_apart_too(tmp_path: Path, model: Path):
    write_images(tmp_path / "tree" / "train", 40, 0)
    write_images(tmp_path / "tree" / "test", 15, 1)
    asked = {"cache": tmp_path / "cache", "workers": 1, "systems": ["trained"], "out": tmp_path / "out"}
    for solver in ("adam", "sgd"):
        numbers = evaluate_images(model, tmp_path / "tree", solver=solver, epochs=60, batch_size=16, **asked)
        assert numbers["vision.trained"] >= 0.9
    numbers = evaluate_images(model, tmp_path / "tree", views=3, crops="ten", **asked)
    assert numbers["vision.trained"] >= 0.9
    assert len([path for path in (tmp_path / "cache" / "train").iterdir() if path.is_dir()]) == 3
    numbers = evaluate_images(model, tmp_path / "tree", layer="conv1_2", pooling="mean", C=0.01, **asked)
    assert numbers["vision.trained.C0"] == 0.01
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["settings"]["grid"] == 12
    assert "pixels" not in (tmp_path / "out" / "classes.csv").read_text()


def test_wrong_numbers_are_a_callers_mistake(tmp_path: Path, model: Path):
    with pytest.raises(ValueError, match="views, epochs, batch_size and grid must be at least 1"):
        evaluate_images(model, tmp_path, views=0)
