"""Boxes of a source are judged together: in single records fractions and widths look like corners."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from comodal.data.regions.convert_features import convert_regions, sample_written_boxes
from comodal.data.regions.feature_files import read_records
from comodal.data.regions.feature_records import FeatureRecord
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError, MediaError
from comodal.regions.image_list import read_image_boxes
from comodal.regions.region_extractor import clip_boxes

WIDTH, HEIGHT = 640, 480


UNITS_PER_SIDE = {"fractions": 1, "percent": 100, "thousandths": 1000, "224 pixels": 224}


def boxes_of(rng: np.random.Generator, units: str, rows: int) -> np.ndarray:
    left, top = rng.uniform(0, 300, rows), rng.uniform(0, 200, rows)
    width, height = rng.uniform(20, 300, rows), rng.uniform(20, 250, rows)
    if units == "xywh":
        return np.stack([left, top, width, height], 1).astype(np.float32)
    corners = np.stack([left, top, left + width, top + height], 1)
    if units == "yxyx":
        corners = corners[:, [1, 0, 3, 2]]
    if units in UNITS_PER_SIDE:
        corners *= UNITS_PER_SIDE[units] / np.array([WIDTH, HEIGHT] * 2)
    return (corners * {"half size": 0.5, "short side 800": 800 / HEIGHT}.get(units, 1.0)).astype(np.float32)


def write(folder: Path, units: list[str], rows: int = 2) -> Path:
    """A file of the original's extractor for each image, its boxes in some units."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for number, unit in enumerate(units):
        features = rng.standard_normal((rows, 16)).astype(np.float32)
        values = {"image_id": str(number), "image_h": HEIGHT, "image_w": WIDTH, "num_boxes": rows}
        np.save(folder / f"{number:03d}.npy", values | {"boxes": boxes_of(rng, unit, rows), "features": features})
    return folder


@pytest.mark.parametrize(
    ("units", "reason"),
    [
        ("fractions", "normalized"),
        ("xywh", "xywh"),
        ("yxyx", "yxyx"),
        ("percent", r"other units: .* from 0 to [89]\d, and none goes beyond"),
        ("224 pixels", r"other units: .* from 0 to (1[89]|2\d)\d, and none goes beyond"),
        ("half size", "other units: .* and none goes beyond"),
        ("thousandths", "other units: .* leaves its image"),
        ("short side 800", "other units: .* leaves its image"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 36])
def test_a_source_of_other_units_is_refused_as_a_whole(tmp_path: Path, units: str, reason: str, rows: int):
    source = write(tmp_path / "source", [units] * 60, rows)
    with pytest.raises(DataError, match=rf"source: .*{reason}"):
        convert_regions(source, tmp_path / "store")
    assert not (tmp_path / "store" / "about.json").exists()


def write_boxes(folder: Path, images: list[tuple[np.ndarray, int, int]]) -> Path:
    folder.mkdir()
    for number, (boxes, width, height) in enumerate(images):
        values = {"image_id": str(number), "image_h": height, "image_w": width, "num_boxes": len(boxes)}
        features = np.ones((len(boxes), 4), np.float32)
        np.save(folder / f"{number:03d}.npy", values | {"boxes": boxes.astype(np.float32), "features": features})
    return folder


def small_boxes(rng: np.random.Generator, width: int, height: int, rows: int, side: float = 12) -> np.ndarray:
    corners = np.stack([rng.uniform(0, width - side, rows), rng.uniform(0, height - side, rows)], 1)
    return np.concatenate([corners, corners + side], 1)


def test_boxes_from_0_to_1000_in_larger_images_are_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    scale = 1000 / np.array([WIDTH, HEIGHT] * 2)
    full = np.array([[0, 0, 1000, 1000]])
    boxes = [np.concatenate([boxes_of(rng, "corners", 9) * scale, full]) for _ in range(20)]
    with pytest.raises(DataError, match=r"source: .*from 0 to 1000, and none goes beyond"):
        convert_regions(write_boxes(tmp_path / "source", [(one, 1920, 1080) for one in boxes]), tmp_path / "store")


@pytest.mark.parametrize("case", ["small", "one", "two", "logo", "center", "left", "thumbnails", "sizes", "tall"])
def test_boxes_in_pixels_are_taken_wherever_they_are(tmp_path: Path, case: str):
    """Few images, small objects, or objects of one part of the image are no other units."""
    rng = np.random.default_rng(0)
    anywhere = [(small_boxes(rng, WIDTH, HEIGHT, 3), WIDTH, HEIGHT) for _ in range(40)]
    images = {
        "small": anywhere,
        "one": [(small_boxes(rng, 100, 100, 5), WIDTH, HEIGHT)],
        "two": [(small_boxes(rng, 100, 100, 5), WIDTH, HEIGHT)] * 2,
        "logo": [(np.array([[5, 6, 95, 60]]) + rng.uniform(0, 5), WIDTH, HEIGHT) for _ in range(40)],
        "center": [(np.array([250, 180] * 2) + small_boxes(rng, 130, 110, 3), WIDTH, HEIGHT) for _ in range(40)],
        "left": [(small_boxes(rng, WIDTH // 3, HEIGHT, 3), WIDTH, HEIGHT) for _ in range(40)],
        "thumbnails": [(small_boxes(rng, 100, 75, 3), 100, 75) for _ in range(40)],
        "sizes": [*anywhere, *((small_boxes(rng, 90, 90, 3), 96, 96) for _ in range(400))],
        "tall": [(boxes_of(rng, "yxyx", 5), HEIGHT, WIDTH) for _ in range(40)],
    }[case]
    source = write_boxes(tmp_path / "source", images)
    summary = convert_regions(source, tmp_path / "store")
    assert (summary.images, summary.refused) == (len(images), {})


def test_a_few_boxes_outside_their_images_cost_these_images(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = [(boxes_of(rng, "corners", 5), WIDTH, HEIGHT) for _ in range(37)]
    images += [(boxes_of(rng, "yxyx", 36), WIDTH, HEIGHT), (boxes_of(rng, "thousandths", 36), WIDTH, HEIGHT)]
    counts = convert_regions(write_boxes(tmp_path / "source", images), tmp_path / "store")
    assert (counts.images, counts.refused) == (37, {"boxes fit if exchanged": 1, "boxes leave the image": 1})


def test_an_interrupted_conversion_judges_all_records(tmp_path: Path):
    """The first of two runs has written 30 records, which the second run does not read again."""
    rng = np.random.default_rng(0)
    source = write_boxes(tmp_path / "source", [(boxes_of(rng, "percent", 9), WIDTH, HEIGHT) for _ in range(40)])
    with pytest.raises(DataError, match="none goes beyond"):
        convert_regions(source, tmp_path / "store")
    with RegionWriter(tmp_path / "part", 4) as writer:
        for record in [*read_records(source, "npy")][:30]:
            assert isinstance(record, FeatureRecord)
            writer.add(record.image, record.features, record.boxes, record.width, record.height)
        sample = sample_written_boxes(writer)
        assert [one.width for one in sample] == [WIDTH] * 30
        assert np.array_equal(sample[29].boxes, np.load(source / "029.npy", allow_pickle=True).item()["boxes"])


def test_the_reported_sources_are_refused(tmp_path: Path):
    """100 images of two boxes each, first as xywh, then normalized, from one generator."""
    rng = np.random.default_rng(1)
    for units, reason in (("xywh", "xywh"), ("norm", "normalized")):
        (tmp_path / units).mkdir()
        for number in range(100):
            left, top, width, height = (rng.uniform(*ends, 2) for ends in ((0, 300), (0, 200), (20, 300), (20, 250)))
            boxes = np.stack([left, top, width, height], 1)
            if units == "norm":
                boxes = np.stack([left / 640, top / 480, (left + width) / 640, (top + height) / 480], 1)
            values = {"image_id": str(number), "image_h": 480, "image_w": 640, "num_boxes": 2}
            values |= {"boxes": boxes.astype("f4"), "features": rng.standard_normal((2, 16)).astype("f4")}
            np.save(tmp_path / units / f"{number}.npy", values)
        with pytest.raises(DataError, match=rf"{units}: .*{reason}.* of 25 records at its beginning"):
            convert_regions(tmp_path / units, tmp_path / f"out-{units}")


def test_other_units_behind_the_first_records_are_found(tmp_path: Path):
    source = write(tmp_path / "source", ["corners"] * 40 + ["xywh"] * 60, rows=36)
    with pytest.raises(DataError, match=r"xywh.* of 100 records a box"):
        convert_regions(source, tmp_path / "store")


def write_list(path: Path, units: list[str], rows: int = 2) -> Path:
    """A list of images with their boxes, as `comodal extract --boxes` takes it."""
    rng = np.random.default_rng(1)
    lines = [{"image": f"{n}.jpg", "boxes": boxes_of(rng, unit, rows).tolist()} for n, unit in enumerate(units)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(("units", "reason"), [("fractions", "normalized"), ("xywh", "xywh")])
@pytest.mark.parametrize("rows", [1, 2, 36])
def test_a_list_of_boxes_of_other_units_is_refused_as_a_whole(tmp_path: Path, units: str, reason: str, rows: int):
    with pytest.raises(DataError, match=rf"boxes\.jsonl: .*{reason}"):
        read_image_boxes(write_list(tmp_path / "boxes.jsonl", [units] * 60, rows), tmp_path)
    assert len(read_image_boxes(write_list(tmp_path / "boxes.jsonl", ["corners"] * 60, rows), tmp_path).images) == 60


def test_an_image_of_a_list_with_normalized_boxes_is_refused_alone(tmp_path: Path):
    assert (
        len(read_image_boxes(write_list(tmp_path / "boxes.jsonl", ["corners"] * 9 + ["fractions"]), tmp_path).images)
        == 10
    )
    rng = np.random.default_rng(0)
    with pytest.raises(MediaError, match="boxes are fractions"):
        clip_boxes(boxes_of(rng, "fractions", 3), WIDTH, HEIGHT)
    boxes, first_pixel = boxes_of(rng, "corners", 3), np.array([[0, 0, 1, 1]], np.float32)
    assert np.array_equal(clip_boxes(boxes, WIDTH, HEIGHT), boxes)
    assert np.array_equal(clip_boxes(first_pixel, 20, 20), first_pixel)


def test_one_wrong_record_costs_that_record(tmp_path: Path):
    source = write(tmp_path / "source", ["corners"] * 20 + ["xywh"] + ["fractions"] + ["corners"] * 20, rows=36)
    counts = convert_regions(source, tmp_path / "store")
    assert counts.images == 40 and counts.refused == {"boxes are not corners": 1, "boxes are fractions": 1}
    assert len(RegionStore(tmp_path / "store")) == 40


def table(path: Path, features: str, boxes: str = "<f4") -> Path:
    """LXMERT's table, its numbers written with some type."""
    rng = np.random.default_rng(0)

    def coded(array: np.ndarray, dtype: str) -> str:
        return base64.b64encode(array.astype(dtype).tobytes()).decode()

    lines = []
    for image in range(5):
        values = np.maximum(rng.standard_normal((4, 32)) * 2, 0) + 1e-3
        fields = [f"COCO_{image}", f"{HEIGHT}", f"{WIDTH}", "", "", "", "", "4"]
        lines.append("\t".join([*fields, coded(boxes_of(rng, "corners", 4), boxes), coded(values, features)]) + "\n")
    path.write_text("".join(lines))
    return path


def test_numbers_of_another_width_are_refused(tmp_path: Path):
    good = convert_regions(table(tmp_path / "good.tsv", "<f4"), tmp_path / "good")
    assert (good.images, good.refused) == (5, {})
    for features, reason in (("<f8", "their bytes are not of the type"), ("<f2", "features are float16")):
        with pytest.raises(DataError, match=rf"bad\.tsv has no usable record .*{reason}"):
            convert_regions(table(tmp_path / "bad.tsv", features), tmp_path / "bad")
    with pytest.raises(DataError, match=r"bad\.tsv has no usable record .*128 bytes, not 64 for 4 x 4 float32 values"):
        convert_regions(table(tmp_path / "bad.tsv", "<f4", "<f8"), tmp_path / "bad")


def test_quantized_features_are_refused(tmp_path: Path):
    source = write(tmp_path / "source", ["corners"] * 3)
    for path in source.iterdir():
        values = np.load(path, allow_pickle=True).item()
        np.save(path, values | {"features": np.ones((2, 16), np.int8)})
    with pytest.raises(DataError, match="features of int8"):
        convert_regions(source, tmp_path / "store")
