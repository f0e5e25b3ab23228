"""Region features in every layout that people have: the original's own files become what its own readers return."""

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from comodal.data.convert_regions import convert_regions
from comodal.data.legacy import Skipped, read_records, recognise
from comodal.data.regions import RegionStore, locations
from comodal.errors import DataError

lmdb = pytest.importorskip("lmdb")
msgpack = pytest.importorskip("msgpack")
h5py = pytest.importorskip("h5py")

FIXTURES = Path(os.environ.get("COMODAL_FIXTURES", Path(__file__).parent / "fixtures")) / "vilbert" / "data"
LAYOUTS = ["multi_task.lmdb", "beta.lmdb", "butd_6col.tsv", "butd_7col.tsv", "npy", "trainval36_style.hdf5"]


def source_of(name: str, folder: Path) -> Path:
    if name != "npy":
        return FIXTURES / name
    (folder / "npy").mkdir()
    for path in FIXTURES.glob("npy_*.npy"):
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
    assert convert_regions(source, tmp_path / "store", dtype="float32") == {"taken": 2}
    store = RegionStore(tmp_path / "store")
    with np.load(FIXTURES / "reader_expected.npz") as expected:
        for index, image in enumerate(("9", "139")):
            row = store.find(image)
            found = store.regions(index if row is None else row)  # the HDF5 file numbers its images
            mean = found.features.sum(0) / len(found.features)
            np.testing.assert_allclose(np.vstack([mean, found.features]), expected[f"{image}.features"], atol=1e-6)
            places = np.vstack([[0, 0, 1, 1, 1], locations(found.boxes, found.width, found.height)])
            np.testing.assert_allclose(places, expected[f"{image}.loc"], atol=1e-6)
    assert store.classes == (1601 if name in ("beta.lmdb", "butd_7col.tsv", "npy") else 0)
    assert convert_regions(source, tmp_path / "store", dtype="float32") == {"taken": 2}


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
    assert found == {"taken": 1, "refused": 2, "damaged": 3, "does not fit": 1, "id twice": 1}
    assert not marker.exists()
    lines = [json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines()]
    said = {line["image"]: line["detail"] for line in lines}
    assert "system" in said["b"] and "system" in said["keys"]
    assert "num_boxes says 7, there are 3" in said["d"]
    assert "not finite" in said["e"]
    assert "features have 6 columns" in said["f"]


def test_truncated_base64_and_short_rows_are_skipped(tmp_path: Path):
    lines = (FIXTURES / "butd_6col.tsv").read_text().splitlines()
    broken = [lines[0], lines[1][:-10], "139\t333", ""]
    (tmp_path / "t.tsv").write_text("\n".join(broken))
    found = list(read_records(tmp_path / "t.tsv", "tsv"))
    assert [isinstance(one, Skipped) for one in found] == [False, True, True]


@pytest.mark.parametrize("name", ["x.txt", "none.tsv", "empty"])
def test_what_is_no_feature_file_is_told_so(tmp_path: Path, name: str):
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such file|no file of region features"):
        recognise(tmp_path / name)


def test_another_source_does_not_go_into_the_same_store(tmp_path: Path):
    convert_regions(FIXTURES / "butd_6col.tsv", tmp_path / "store")
    with pytest.raises(DataError, match="made otherwise"):
        convert_regions(FIXTURES / "butd_7col.tsv", tmp_path / "store")


def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path):
    values = {f"{n:05d}".encode(): pickle.dumps(record(n, rows=4, image=f"{n:05d}")) for n in range(4000)}
    source = write_lmdb(tmp_path / "x.lmdb", values)
    convert_regions(source, tmp_path / "whole")
    text = "import sys; from pathlib import Path; from comodal.data.convert_regions import convert_regions; "
    command = [
        sys.executable,
        "-c",
        f"{text}convert_regions(Path(sys.argv[1]), Path(sys.argv[2]))",
        source,
        tmp_path / "x",
    ]
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        journal = tmp_path / "x" / ".journal.part"
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < before + 9000):
            time.sleep(0.001)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills
    convert_regions(source, tmp_path / "x")
    for name in ("features.bin", "boxes.bin", "index.bin", "about.json", "report.jsonl"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
