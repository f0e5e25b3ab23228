"""The cache of features: found again, gone on with, never used for other pictures or weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.data.shards.clip_dataset import Augmentation
from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig, max_pool_to_grid
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.feature_cache import FeatureFile
from comodal.tasks.image import image_features
from comodal.tasks.image.image_features import (
    DEFAULT_GRID_BY_BLOCK,
    FeatureLayer,
    build_feature_system,
    compute_image_features,
    resolve_grid,
)
from comodal.tasks.image.image_views import ImageView, ViewConfig, cut_ten_crops, render_view

SHOWING = ViewConfig(28, Augmentation(), 0)  # short side 32
MIDDLE, TEN, RANDOM = ImageView("middle"), ImageView("ten"), ImageView("random", 1)
STAMPS = ["a", "b", "c", "d", "e"]
CPU = Compute(torch.device("cpu"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=4, image_size=28)), folder, {})
    return folder


@pytest.fixture
def items(tmp_path: Path) -> list[LabeledFile]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
        made.append(LabeledFile(path, path.name, "a", False))
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that are read, in order."""
    seen: list[str] = []
    plain = image_features.read_resized_image

    def counted(item: LabeledFile, short_side: int) -> np.ndarray:
        seen.append(item.name)
        return plain(item, short_side)

    monkeypatch.setattr(image_features, "read_resized_image", counted)
    return seen


def where(model: Path, layer: str = "conv4_2", pooling: str = "max") -> FeatureLayer:
    return FeatureLayer(layer, pooling, resolve_grid(L3Net.from_pretrained(model).config, layer, None))


def pass_over(
    model: Path, items: list[LabeledFile], cache: Path, views: tuple[ImageView, ...] = (MIDDLE,), **more: object
):
    systems = [build_feature_system("trained", model, more.get("where", where(model)), [], SHOWING, 0, CPU)]
    return compute_image_features(items, views, systems, SHOWING, cache, 1)[0]["trained"]


def test_the_second_pass_reads_no_picture(model: Path, items: list[LabeledFile], tmp_path: Path, reads: list[str]):
    first = np.array(pass_over(model, items, tmp_path / "cache")[0])
    assert len(reads) == 7
    assert np.array_equal(pass_over(model, items, tmp_path / "cache")[0], first)
    assert len(reads) == 7
    pass_over(model, items, tmp_path / "cache", (MIDDLE, RANDOM))
    assert len(reads) == 14


def test_a_stopped_pass_goes_on_where_it_was(
    model: Path, items: list[LabeledFile], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    whole = np.array(pass_over(model, items, tmp_path / "whole")[0])
    monkeypatch.setattr(image_features, "IMAGE_FEATURE_BATCH_SIZE", 2)
    with monkeypatch.context() as patched:
        plain = image_features.read_resized_image

        def stopped(item: LabeledFile, short_side: int) -> np.ndarray:
            if item.name == "5.png":
                raise DataError("stopped")
            return plain(item, short_side)

        patched.setattr(image_features, "read_resized_image", stopped)
        with pytest.raises(DataError, match="stopped"):
            pass_over(model, items, tmp_path / "cache")
    reads.clear()
    assert np.array_equal(pass_over(model, items, tmp_path / "cache")[0], whole)
    assert reads == ["4.png", "5.png", "6.png"]


def test_a_picture_that_cannot_be_read_is_noted_once(
    model: Path, items: list[LabeledFile], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    """It has a row of zeros, also among others of its batch, until its file changes."""
    monkeypatch.setattr(image_features, "IMAGE_FEATURE_BATCH_SIZE", 3)
    whole = np.array(pass_over(model, items, tmp_path / "whole")[0])
    content = items[4].path.read_bytes()
    items[4].path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    reads.clear()
    systems = [build_feature_system("trained", model, where(model), [], SHOWING, 0, CPU)]
    for _ in range(2):
        found, problems = compute_image_features(items, (MIDDLE,), systems, SHOWING, tmp_path / "cache", 1)
        assert list(problems) == [4] and problems[4].path == str(items[4].path)
        assert not found["trained"][0][4].any()
        assert np.array_equal(np.delete(found["trained"][0], 4, axis=0), np.delete(whole, 4, axis=0))
    assert len(reads) == 7
    items[4].path.write_bytes(content)
    found, problems = compute_image_features(items, (MIDDLE,), systems, SHOWING, tmp_path / "cache", 1)
    assert not problems and np.array_equal(found["trained"][0], whole)


def test_rows_that_were_not_saved_are_cut_off(tmp_path: Path):
    file = FeatureFile(tmp_path, {"a": 1}, (5, 1, 3), STAMPS)
    file.append(torch.ones(2, 1, 3))
    file.save()
    with (file.folder / "features.bin").open("ab") as more:
        more.write(b"killed here")
    again = FeatureFile(tmp_path, {"a": 1}, (5, 1, 3), STAMPS)
    again.append(torch.full((3, 1, 3), 2.0))
    assert again.open_rows()[:, 0, 0].tolist() == [1, 1, 2, 2, 2]
    assert FeatureFile(tmp_path, {"a": 2}, (5, 1, 3), STAMPS).num_done == 0


def test_what_changes_the_numbers_makes_another_file(model: Path, items: list[LabeledFile], tmp_path: Path):
    cache = tmp_path / "cache"
    pass_over(model, items, cache)
    torch.manual_seed(1)
    save_model(L3Net(L3NetConfig(width=4, image_size=28)), tmp_path / "other", {})
    for changed in (
        lambda: pass_over(tmp_path / "other", items, cache),
        lambda: pass_over(model, items[:6], cache),
        lambda: pass_over(model, items, cache, where=where(model, "conv3_1")),
        lambda: pass_over(model, items, cache, where=where(model, pooling="mean")),
    ):
        before = {path.name for path in cache.iterdir() if path.is_dir()}
        changed()
        assert len({path.name for path in cache.iterdir() if path.is_dir()} - before) == 1


def test_a_picture_that_has_changed_is_looked_at_again(
    model: Path, items: list[LabeledFile], tmp_path: Path, reads: list[str]
):
    before = np.array(pass_over(model, items, tmp_path / "cache")[0])
    Image.new("RGB", (32, 40), "red").save(items[3].path)
    after = pass_over(model, items, tmp_path / "cache")[0]
    assert len(reads) == 14
    assert [bool((one == other).all()) for one, other in zip(before, after, strict=True)] == [True] * 3 + [False] + [
        True
    ] * 3


def test_damage_and_numbers_that_are_none_are_told(tmp_path: Path):
    file = FeatureFile(tmp_path, {}, (2, 1, 3), STAMPS)
    with pytest.raises(DataError, match=r"features of .* are not finite"):
        file.append(torch.tensor([[[1.0, float("nan"), 0.0]]]))
    with pytest.raises(DataError, match=r"features of .* are not finite"):
        file.append(torch.full((1, 1, 3), 1e6))
    file.append(torch.ones(2, 1, 3))
    (file.folder / "features.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"has 5 bytes, and 2 images take 12; delete this folder"):
        FeatureFile(tmp_path, {}, (2, 1, 3), STAMPS)
    (file.folder / "done.json").write_text("{")
    with pytest.raises(DataError, match="the feature cache is damaged"):
        FeatureFile(tmp_path, {}, (2, 1, 3), STAMPS)


@pytest.mark.parametrize("layer", ["conv1_2", "conv2_1", "conv4_2"])
def test_any_layer_is_the_models_own_map(model: Path, items: list[LabeledFile], tmp_path: Path, layer: str):
    """Against a hook on the module of the plain model; bfloat16 inside."""
    trained, seen = L3Net.from_pretrained(model), {}
    trained.image_tower.layers[layer].register_forward_hook(lambda *call: seen.update(map=call[2]))
    squares = np.concatenate(
        [render_view(np.asarray(Image.open(item.path)), item.name, MIDDLE, SHOWING) for item in items[:2]]
    )
    with torch.no_grad():
        trained.compute_image_map(torch.from_numpy(squares).permute(0, 3, 1, 2))
    at = where(model, layer)
    rows = pass_over(model, items, tmp_path / "cache", where=at)[0][:2, 0]
    expected = max_pool_to_grid(seen["map"], (at.grid, at.grid)).numpy()
    assert rows.shape == expected.shape
    assert np.corrcoef(rows.ravel(), expected.ravel())[0, 1] > 0.999


def test_the_papers_network_has_less_than_ten_thousand_features_everywhere():
    """8192 of conv4_2 are the paper's; no finer grid would stay below 10,000."""
    for block, grid in DEFAULT_GRID_BY_BLOCK.items():
        filters = 64 * 2 ** (block - 1)
        assert filters * grid**2 < 10_000 or block == 4
        assert filters * (grid + 1) ** 2 >= 10_000
    assert 512 * DEFAULT_GRID_BY_BLOCK[4] ** 2 == 8192


def test_ten_crops_are_corners_and_middle_and_their_mirror_images():
    rows, columns = np.mgrid[0:6, 0:8].astype(np.uint8)
    crops = cut_ten_crops(np.stack([rows, columns, columns], -1), 4)
    assert [tuple(crop[0, 0, :2]) for crop in crops[:5]] == [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    assert [tuple(crop[0, -1, :2]) for crop in crops[5:]] == [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]


def test_a_random_view_is_the_same_for_the_same_picture_and_number():
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    one = render_view(picture, "a", RANDOM, SHOWING)
    assert one.shape == (1, 28, 28, 3)
    assert np.array_equal(one, render_view(picture, "a", RANDOM, SHOWING))
    assert not np.array_equal(one, render_view(picture, "a", ImageView("random", 2), SHOWING))
    assert not np.array_equal(one, render_view(picture, "b", RANDOM, SHOWING))
