"""Region features in every layout that people have: the original's own files become what its own readers return."""

import base64
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.data.regions.convert_features import convert_regions
from comodal.data.regions.feature_files import detect_feature_layout, read_records
from comodal.data.regions.feature_records import SkippedRecordError, check_feature_spread
from comodal.data.regions.region_store import RegionStore, compute_spatials
from comodal.errors import DataError
from tests.support.paths import PARITY_FIXTURES, ROOT

lmdb = pytest.importorskip("lmdb")
msgpack = pytest.importorskip("msgpack")
h5py = pytest.importorskip("h5py")

FEATURES = PARITY_FIXTURES / "vilbert" / "data"
LAYOUTS = ["multi_task.lmdb", "beta.lmdb", "butd_6col.tsv", "butd_7col.tsv", "npy", "trainval36_style.hdf5"]


def source_of(name: str, folder: Path) -> Path:
    if name.endswith(".hdf5"):  # people have a pickle of ids beside it
        (folder / name).write_bytes((FEATURES / name).read_bytes())
        (folder / f"{Path(name).stem}_imgid2idx.pkl").write_bytes(pickle.dumps({139: 1, 9: 0}, 2))
        return folder / name
    if name != "npy":
        return FEATURES / name
    (folder / "npy").mkdir()
    for path in FEATURES.glob("npy_*.npy"):
        (folder / "npy" / path.name).write_bytes(path.read_bytes())
    return folder / "npy"


def record(seed: int = 0, rows: int = 3, image: str = "a") -> dict:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (rows, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 50, (rows, 2))], 1).astype(np.float32)
    features = rng.random((rows, 6)).astype(np.float32)
    return {"image_id": image, "image_w": 100, "image_h": 90, "num_boxes": rows, "boxes": boxes, "features": features}


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_what_the_original_reads(tmp_path: Path, name: str):
    """The original's reader puts the mean of the features before them and locations as fractions beside them."""
    source = source_of(name, tmp_path)
    assert convert_regions(source, tmp_path / "store", dtype="float32").images == 2
    store = RegionStore(tmp_path / "store")
    with np.load(FEATURES / "reader_expected.npz") as expected:
        for image in ("9", "139"):
            found = store.read_regions(store.ids.index(image))
            mean = found.features.sum(0) / len(found.features)
            np.testing.assert_allclose(np.vstack([mean, found.features]), expected[f"{image}.features"], atol=1e-6)
            places = np.vstack([[0, 0, 1, 1, 1], compute_spatials(found.boxes, found.width, found.height)])
            np.testing.assert_allclose(places, expected[f"{image}.loc"], atol=1e-6)
    assert store.classes == (1601 if name in ("beta.lmdb", "butd_7col.tsv", "npy") else 0)
    assert convert_regions(source, tmp_path / "store", dtype="float32").images == 2


def test_lxmerts_table_has_the_height_before_the_width(tmp_path: Path):
    values = record(rows=2)

    def coded(array: np.ndarray) -> str:
        return base64.b64encode(array.tobytes()).decode()

    row = ["COCO_1", "90", "100", coded(np.zeros(2, int)), coded(np.zeros(2)), coded(np.zeros(2, int)), "", "2"]
    row += [coded(values["boxes"]), coded(values["features"])]
    (tmp_path / "t.tsv").write_text("\t".join(row) + "\n")
    (found,) = read_records(tmp_path / "t.tsv", "tsv")
    assert (found.image, found.width, found.height) == ("COCO_1", 100, 90)
    np.testing.assert_array_equal(found.features, values["features"])


def test_mmfs_pairs_of_files_and_its_lmdb(tmp_path: Path):
    values = record()
    info = {"bbox": values["boxes"], "num_boxes": 3, "image_width": 100, "image_height": 90}
    (tmp_path / "coco").mkdir()
    np.save(tmp_path / "coco" / "x.npy", values["features"])
    np.save(tmp_path / "coco" / "x_info.npy", info, allow_pickle=True)
    (found,) = read_records(tmp_path, "npy")
    assert (found.image, found.width) == ("coco/x", 100)
    np.testing.assert_array_equal(found.boxes, values["boxes"])
    value = pickle.dumps({**info, "feature_path": "coco/x.npy", "features": values["features"]})
    (found,) = read_records(write_lmdb(tmp_path / "m.lmdb", {b"coco/x": value}), "lmdb")
    assert found.image == "coco/x"
    np.testing.assert_array_equal(found.features, values["features"])


def test_tensorpacks_msgpack_records(tmp_path: Path):
    values = record()

    def packed(array: np.ndarray) -> dict:
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}

    classes = np.full((3, 5), 0.2, np.float32)
    fields = [packed(values["features"]), packed(classes), packed(values["boxes"]), "3", "90", "100", "a", "A caption."]
    (found,) = read_records(write_lmdb(tmp_path / "t.lmdb", {b"0": msgpack.packb(fields)}), "lmdb")
    assert (found.image, found.width, found.height) == ("a", 100, 90)
    np.testing.assert_array_equal(found.features, values["features"])
    np.testing.assert_array_equal(found.classes, classes)
    harmful = [{b"nd": True, b"type": "|O", b"kind": b"O", b"shape": (1,), b"data": b"x"}, *fields[1:]]
    (found,) = read_records(write_lmdb(tmp_path / "h.lmdb", {b"0": msgpack.packb(harmful)}), "lmdb")
    assert found.reason == "refused"


class Harmful:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_what_could_run_code_is_refused_named_and_reported_and_the_rest_is_taken(tmp_path: Path):
    marker = tmp_path / "was_run"
    values = {
        b"a": pickle.dumps(record(image="a")),
        b"b": pickle.dumps({**record(image="b"), "objects": Harmful(marker)}),
        b"c": pickle.dumps(record(image="c"))[:-40],
        b"d": pickle.dumps({**record(image="d"), "num_boxes": 7}),
        b"e": pickle.dumps({**record(image="e"), "features": np.full((3, 6), np.nan, np.float32)}),
        b"f": pickle.dumps({**record(image="f"), "features": np.zeros((3, 5), np.float32)}),
        b"g": pickle.dumps(record(image="a")),
        b"keys": pickle.dumps([b"a", Harmful(marker)]),
    }
    found = convert_regions(write_lmdb(tmp_path / "x.lmdb", values), tmp_path / "store")
    assert found.images == 1 and found.refused == {"refused": 2, "damaged": 3, "does not fit": 1, "id twice": 1}
    assert not marker.exists()
    lines = [json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines()]
    said = {line["image"]: line["detail"] for line in lines}
    assert "system" in said["b"] and "system" in said["keys"]
    assert "num_boxes is 7, and there are 3 boxes" in said["d"]
    assert "not finite" in said["e"]
    assert "features have 6 columns" in said["f"]


def test_truncated_base64_and_short_rows_are_skipped(tmp_path: Path):
    lines = (FEATURES / "butd_6col.tsv").read_text().splitlines()
    broken = [lines[0], lines[1][:-10], "139\t333", ""]
    (tmp_path / "t.tsv").write_text("\n".join(broken))
    found = list(read_records(tmp_path / "t.tsv", "tsv"))
    assert [isinstance(one, SkippedRecordError) for one in found] == [False, True, True]


@pytest.mark.parametrize("name", LAYOUTS)
def test_reading_goes_on_at_any_record(tmp_path: Path, name: str):
    source = source_of(name, tmp_path)
    layout = detect_feature_layout(source)
    every = [found.image for found in read_records(source, layout)]
    assert len(every) == 2
    for start in range(4):
        assert [found.image for found in read_records(source, layout, start)] == every[start:]


def test_a_cut_lmdb_is_told_and_does_not_end_the_process(tmp_path: Path):
    """Reading behind the end of a mapped file is a bus error."""
    whole = write_lmdb(tmp_path / "x.lmdb", {b"%d" % n: pickle.dumps(record(n, rows=300)) for n in range(9)})
    data = whole / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(DataError, match=r"x\.lmdb: .* the copy is incomplete"):
        list(read_records(whole, "lmdb"))
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="an incomplete or damaged LMDB"):
        list(read_records(whole, "lmdb"))


def test_an_lmdb_may_be_a_file_and_its_ids_any_text(tmp_path: Path):
    write_lmdb(tmp_path / "x.lmdb", {"снег/1".encode(): pickle.dumps({**record(), "image_id": "снег/1"}, 2)})
    (tmp_path / "x.lmdb" / "data.mdb").rename(tmp_path / "y.lmdb")
    (found,) = read_records(tmp_path / "y.lmdb", detect_feature_layout(tmp_path / "y.lmdb"))
    assert found.image == "снег/1"


@pytest.mark.parametrize("kind", ["lmdb", "tsv"])
def test_a_folder_of_parts_is_read_as_one(tmp_path: Path, kind: str):
    table = (FEATURES / "butd_6col.tsv").read_text().splitlines(keepends=True)
    for part in (0, 1):
        if kind == "tsv":
            (tmp_path / f"resnet101.tsv.{part}").write_text(table[part])
        else:
            write_lmdb(tmp_path / f"{part}.lmdb", {b"x": pickle.dumps(record(image=("9", "139")[part]))})
    assert detect_feature_layout(tmp_path) == kind
    for start in (0, 1):
        assert [found.image for found in read_records(tmp_path, kind, start)] == ["9", "139"][start:]


def test_all_rows_are_taken_though_fewer_have_a_score(tmp_path: Path):
    """The original's extractor writes 100 rows and counts those above 0; its readers take all of them."""
    np.save(tmp_path / "a.npy", {**record(rows=5), "num_boxes": 2}, allow_pickle=True)
    (found,) = read_records(tmp_path, "npy")
    assert found.boxes.shape == (5, 4)


def test_boxes_tell_that_width_and_height_are_swapped(tmp_path: Path):
    values = {**record(), "image_w": 90, "image_h": 300}
    values["boxes"][0] = [0, 0, 80, 290]
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    np.save(tmp_path / "b.npy", {**values, "image_w": 300, "image_h": 90}, allow_pickle=True)
    np.save(tmp_path / "c.npy", {**values, "boxes": values["boxes"][:, [2, 3, 0, 1]]}, allow_pickle=True)
    good, *others = read_records(tmp_path, "npy")
    assert good.height == 300
    assert ["leave the image of 300 x 90" in others[0].detail, "ends before it begins" in others[1].detail] == [
        True
    ] * 2


def test_an_npy_file_that_could_run_code_is_named_and_the_others_are_taken(tmp_path: Path):
    marker, folder = tmp_path / "was_run", tmp_path / "npy"
    folder.mkdir()
    np.save(folder / "a.npy", record(), allow_pickle=True)
    np.save(folder / "b.npy", np.array({"features": Harmful(marker)}, object), allow_pickle=True)
    np.save(folder / "c.npy", np.eye(3))
    converted = convert_regions(folder, tmp_path / "store")
    assert converted.images == 1 and converted.refused == {"refused": 1, "damaged": 1}
    said = (tmp_path / "store" / "report.jsonl").read_text()
    assert "b.npy: refused: it references posix.system" in said and "c_info.npy" in said
    assert not marker.exists()


def test_what_most_records_have_is_the_size_of_a_region(tmp_path: Path):
    first = {**record(image="a"), "features": np.zeros((3, 5), np.float32)}
    values = {b"a": pickle.dumps(first)} | {b"b%d" % n: pickle.dumps(record(n, image=f"b{n}")) for n in range(3)}
    converted = convert_regions(write_lmdb(tmp_path / "x.lmdb", values), tmp_path / "s")
    assert converted.images == 3 and converted.refused == {"does not fit": 1}
    assert RegionStore(tmp_path / "s").dim == 6


def test_nothing_that_can_be_taken_is_told(tmp_path: Path):
    source = write_lmdb(tmp_path / "x.lmdb", {b"a": b"\x80\x04N.", b"b": b""})
    with pytest.raises(
        DataError, match=r"x\.lmdb has no usable record \(a: a NoneType, not a dictionary; b: a damaged"
    ):
        convert_regions(source, tmp_path / "store")


def write_hdf5(path: Path, images: int, regions: int) -> np.ndarray:
    """The layout of 36 rows an image, of 100 x 80 pixels; the last row of the last image is padding."""
    boxes = np.tile(np.float32([[5, 10, 50, 60], [0, 0, 99, 79]]), (images, regions // 2, 1))
    boxes[-1, -1] = 0
    shares = np.concatenate([boxes / [100, 80, 100, 80], np.zeros((images, regions, 2))], -1)
    features = np.arange(images * regions * 3, dtype=np.float32).reshape(images, regions, 3)
    with h5py.File(path, "w") as file:
        for name, numbers in {"image_features": features, "image_bb": boxes, "spatial_features": shares}.items():
            file[name] = numbers
    return features


def test_hdf5_with_as_many_rows_for_every_image(tmp_path: Path):
    features = write_hdf5(tmp_path / "val36.hdf5", images=3, regions=4)
    (tmp_path / "val36_imgid2idx.json").write_text('{"30": 2, "10": 0, "20": 1}')
    found = list(read_records(tmp_path / "val36.hdf5", "hdf5"))
    assert [(one.image, one.width, one.height) for one in found] == [(name, 100, 80) for name in ("10", "20", "30")]
    np.testing.assert_array_equal(found[1].features, features[1])
    np.testing.assert_array_equal(found[2].features, features[2, :3])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"10": 0, "20": 1, "30": 1}', "the images 20 and 30 have the same row 1"),
        ('{"10": 0, "20": 0.5}', "the row of image 20 is 0.5, not one of the 2 rows"),
        ('{"10": 0, "20": 1.0}', "the row of image 20 is 1.0"),
        ('{"10": 0, "20": -1}', "the row of image 20 is -1"),
        ('{"10": 0, "20": NaN}', "the row of image 20 is nan"),
        ('{"10": 0, "20": 1e999}', "the row of image 20 is inf"),
        ('{"10": 0, "20": 1, "30": 2}', "the row of image 30 is 2"),
        ('{"10": 0, "20": true}', "the row of image 20 is True"),
        ('{"10": 0, "20": "1"}', "the row of image 20 is '1'"),
        ('{"10": 0, "20": null}', "the row of image 20 is None"),
        ('{"10": 0, "10": 1}', "'10' is twice"),
        (pickle.dumps({10: 0, "10": 1}), "an image has two rows"),
        (pickle.dumps({10: 0, 20: np.float64(1)}), r"the row of image 20 is .*1\.0"),
    ],
)
def test_rows_of_an_hdf5_index_are_checked(tmp_path: Path, rows: str | bytes, said: str):
    """Two ids of one row would give one image's regions to another; 0.5 and -1 would be rounded, or count from the
    end."""
    write_hdf5(tmp_path / "val.hdf5", images=2, regions=2)
    index = tmp_path / f"val_imgid2idx.{'json' if isinstance(rows, str) else 'pkl'}"
    index.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    with pytest.raises(DataError, match=rf"{index.name}[^\n]*{said}[^\n]*\Z"):
        convert_regions(tmp_path / "val.hdf5", tmp_path / "store")


def test_a_table_of_features_may_have_a_byte_order_mark_and_is_not_utf_16(tmp_path: Path):
    text = (FEATURES / "butd_6col.tsv").read_bytes()
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + text)
    plain = [one.image for one in read_records(FEATURES / "butd_6col.tsv", "tsv")]
    assert [one.image for one in read_records(tmp_path / "a.tsv", "tsv")] == plain
    (tmp_path / "b.tsv").write_bytes(text.decode().encode("utf-16-le"))
    with pytest.raises(DataError, match=r"b\.tsv is not text: it is UTF-16"):
        list(read_records(tmp_path / "b.tsv", "tsv"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_bb": np.float32([[[0, 0, 50, 40], [10, 10, 90, 70]]])}, "different numbers of rows: 2 of image_feat"),
        ({"image_features": np.ones((2, 2, 6), np.int8)}, "features of int8: quantized"),
        ({"image_features": np.full((2, 2, 6), b"x")}, "features of .S1: quantized"),
    ],
)
def test_columns_of_an_hdf5_file_are_checked(tmp_path: Path, changed: dict, said: str):
    write_hdf5(tmp_path / "val.hdf5", images=2, regions=2)
    with h5py.File(tmp_path / "val.hdf5", "r+") as file:
        for name, values in changed.items():
            del file[name]
            file[name] = values
    (tmp_path / "val_imgid2idx.json").write_text('{"10": 0, "20": 1}')
    with pytest.raises(DataError, match=rf"val\.hdf5.*{said}"):
        convert_regions(tmp_path / "val.hdf5", tmp_path / "store")


def test_numpy_rows_of_an_hdf5_index_are_read(tmp_path: Path):
    write_hdf5(tmp_path / "val.hdf5", images=2, regions=2)
    (tmp_path / "val_imgid2idx.pkl").write_bytes(pickle.dumps({10: np.int64(1), 20: np.int32(0)}))
    assert [one.image for one in read_records(tmp_path / "val.hdf5", "hdf5")] == ["20", "10"]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([[0, 2], [1, 3]], "row 1 is in two blocks"),
        ([[0, 2], [-2, 3]], "pos_boxes are not blocks of its 3 rows"),
        ([[0, 2], [3, 2]], "pos_boxes are not blocks of its 3 rows"),
        ([[0, 2], [2, 4]], "pos_boxes are not blocks of its 3 rows"),
        ([[0.0, 1.5], [1.5, 3]], "pos_boxes of float64"),
        ([0, 1], r"pos_boxes of int64 and shape \(2,\)"),
    ],
)
def test_blocks_of_an_hdf5_file_are_checked(tmp_path: Path, blocks: list, said: str):
    write_hdf5(tmp_path / "fixed.hdf5", images=1, regions=4)
    with h5py.File(tmp_path / "fixed.hdf5") as fixed, h5py.File(tmp_path / "val.hdf5", "w") as file:
        for name in ("image_features", "image_bb", "spatial_features"):
            file[name] = fixed[name][0][:3]
        file["pos_boxes"] = np.array(blocks)
    (tmp_path / "val_imgid2idx.json").write_text('{"10": 0, "20": 1}')
    with pytest.raises(DataError, match=rf"val\.hdf5: {said}"):
        convert_regions(tmp_path / "val.hdf5", tmp_path / "store")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_boxes": 2.5}, "2.5 is not an integer"),
        ({"image_w": "100.5"}, "100.5 is not an integer"),
        ({"image_h": float("nan")}, "nan is not an integer"),
        ({"image_id": 1.5}, "the id 1.5 is neither text nor an integer"),
        ({"image_id": True}, "the id True is neither"),
        ({"image_id": ""}, "the id '' is empty"),
        ({"image_id": "a\0"}, "has a null character"),
        ({"num_boxes": -1}, "num_boxes is -1"),
        ({"features": np.zeros((3, 0), np.float32)}, "a region has no features"),
        ({"cls_prob": np.full((3, 5), 7, np.float32)}, "class probabilities from 7 to 7"),
        ({"cls_prob": np.full((3, 5), -1, np.float32)}, "class probabilities from -1 to -1"),
        ({"image_id": ["a"]}, r"the id \['a'\] is neither"),
    ],
)
def test_numbers_of_a_record_are_not_rounded(tmp_path: Path, changed: dict, said: str):
    source = write_lmdb(tmp_path / "a.lmdb", {b"a": pickle.dumps(record() | changed)})
    with pytest.raises(DataError, match=rf"a\.lmdb has no usable record .*{said}"):
        convert_regions(source, tmp_path / "store")


def test_hdf5_without_ids_or_with_harmful_ones_is_told(tmp_path: Path):
    """Numbers of rows would pass for ids of images."""
    write_hdf5(tmp_path / "val.hdf5", images=2, regions=2)
    with pytest.raises(DataError, match=r"put val_imgid2idx\.pkl .*next to it"):
        list(read_records(tmp_path / "val.hdf5", "hdf5"))
    ids, marker = tmp_path / "val_imgid2idx.pkl", tmp_path / "was_run"
    for value, match in (
        (Harmful(marker), r"val_imgid2idx\.pkl: refused: it references posix\.system"),
        ({7: 0}, "has no id for 1 of 2 rows, such as row 1"),
        ([1, 2], r"val_imgid2idx\.pkl: not a dictionary"),
    ):
        ids.write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=match):
            list(read_records(tmp_path / "val.hdf5", "hdf5"))
    assert not marker.exists()
    (tmp_path / "bad.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"bad\.hdf5: "):
        list(read_records(tmp_path / "bad.hdf5", "hdf5"))


@pytest.mark.parametrize(("module", "name"), [("lmdb", "beta.lmdb"), ("h5py", "trainval36_style.hdf5")])
def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, module: str, name: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install .comodal\[legacy\]"):
        list(read_records(FEATURES / name, detect_feature_layout(FEATURES / name)))


@pytest.mark.parametrize("name", ["x.txt", "none.tsv", "empty"])
def test_what_is_no_feature_file_is_told_so(tmp_path: Path, name: str):
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such file|unknown layout of region features"):
        detect_feature_layout(tmp_path / name)


def test_another_source_does_not_go_into_the_same_store(tmp_path: Path):
    convert_regions(FEATURES / "butd_6col.tsv", tmp_path / "store")
    with pytest.raises(DataError, match=r"was created from .*butd_6col"):
        convert_regions(FEATURES / "butd_7col.tsv", tmp_path / "store")


@pytest.mark.parametrize("step", [18, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_line_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path, step: int):
    values = {b"%d" % n: pickle.dumps({**record(n, image=str(n)), "cls_prob": np.ones((3, 2))}) for n in range(7)}
    values |= {b"3": values[b"3"][:-9], b"5": values[b"4"]}  # one damaged, one twice
    command = ["-m", "tests.support.kill_conversions", write_lmdb(tmp_path / "x.lmdb", values), tmp_path, step]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100 // step
    found = [json.loads(line)["reason"] for line in (tmp_path / "whole" / "report.jsonl").read_text().splitlines()]
    assert found == ["damaged", "id twice"]


def test_float16_features_are_not_half_as_many_float32_features():
    """Nor are features refused that were converted from float16 or bfloat16, or are rounded."""
    features = np.random.default_rng(0).gamma(0.5, 0.5, (6, 64)).astype(np.float32)
    with pytest.raises(ValueError, match="features are float16"):
        check_feature_spread(features.astype(np.float16).view(np.float32))
    shorter = torch.from_numpy(features).bfloat16().float().numpy()
    for precise in (features.astype(np.float16).astype(np.float32), shorter, features.round(2), features.round()):
        check_feature_spread(precise)
    check_feature_spread(features)
