"""A store that grew image by image is the store that was written at once, wherever its writers were killed."""

from pathlib import Path

import numpy as np
import pytest

from comodal.data.regions import region_appender
from comodal.data.regions.region_appender import RegionAppender
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError

DIM, CLASSES, IMAGES = 5, 3, 40


def regions_of(number: int) -> dict:
    rng = np.random.default_rng(number)
    count = int(rng.integers(0, 4))
    return {
        "image": f"bild {number} é",
        "features": rng.standard_normal((count, DIM), np.float32),
        "boxes": rng.uniform(0, 9, (count, 4)).astype(np.float32),
        "width": 10 + number,
        "height": 20,
        "classes": rng.uniform(0, 1, (count, CLASSES)).astype(np.float32),
    }


def write(folder: Path, images: range) -> RegionStore:
    with RegionWriter(folder, DIM, CLASSES, about={"network": "a"}) as writer:
        for number in images:
            writer.add(**regions_of(number))
    return RegionStore(folder)


def append(folder: Path, images: range) -> RegionStore:
    with RegionAppender(RegionStore(folder)) as writer:
        for number in images:
            writer.add(**regions_of(number))
    return RegionStore(folder)


def same(grown: RegionStore, plain: RegionStore) -> None:
    assert list(grown.ids) == list(plain.ids)
    assert grown.ids.find_rows(["none", *plain.ids]).tolist() == [-1, *range(len(plain))]
    assert [grown.find(image) for image in plain.ids] == list(range(len(plain)))
    assert grown.find("none") is None
    for row in range(len(plain)):
        for ours, theirs in zip(grown.read_regions(row), plain.read_regions(row), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert (grown.about["images"], grown.about["regions"]) == (plain.about["images"], plain.about["regions"])
    assert grown.about["provenance"] == plain.about["provenance"]


@pytest.mark.parametrize("first", [0, 1, 30])
@pytest.mark.parametrize("step", [1, 7])
def test_what_grew_is_what_was_written_at_once(tmp_path: Path, first: int, step: int):
    plain = write(tmp_path / "plain", range(IMAGES))
    fingerprints = {write(tmp_path / "grown", range(first)).fingerprint}
    for start in range(first, IMAGES, step):
        grown = append(tmp_path / "grown", range(start, min(start + step, IMAGES)))
        fingerprints.add(grown.fingerprint)
    same(grown, plain)
    assert len(fingerprints) == 1 + len(range(first, IMAGES, step))
    assert len(list(grown.folder.glob("index*.bin"))) == len(list(grown.folder.glob("added-*"))) == 1


def test_ids_of_one_hash_are_told_apart(tmp_path: Path):
    store = write(tmp_path / "store", range(9))
    store.ids.hashes[:] = store.ids.hashes[4]
    image = store.ids[int(store.ids.order[4])]
    assert store.ids.find_rows([image, "none"]).tolist() == [store.find(image), -1]


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_it_is_the_store_of_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
):
    """Every write of a file's content, sync and manifest is a moment; what stands behind the commit is garbage."""
    plain, folder = write(tmp_path / "plain", range(IMAGES)), tmp_path / "grown"
    before = write(folder, range(10))
    monkeypatch.setattr(region_appender, "COMMIT_SECONDS", 0.0)
    calls = 0

    def dying(real: object) -> object:
        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return real(*arguments)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for name in ("write_store_about", "write_regions", "write_bytes_atomically"):
            patch.setattr(region_appender, name, dying(getattr(region_appender, name)))
        patch.setattr(region_appender.os, "fsync", dying(region_appender.os.fsync))
        with pytest.raises(Killed):
            append(folder, range(10, 25))
    if (added := RegionStore(folder).about.get("added_file")) is not None:  # nothing grows before it says so
        for name in ("features.bin", "boxes.bin", "classes.bin", added):
            with (folder / name).open("ab") as file:
                file.write(b'["half a row' * 7)
    found = RegionStore(folder)
    assert list(found.ids) == list(plain.ids)[: len(found)] and len(found) >= len(before)
    same(append(folder, range(len(found), IMAGES)), plain)


def test_a_million_rows_cost_no_more_than_ten(tmp_path: Path):
    """No file but the manifest and the growing ones is touched, and those grow by what was added."""
    store = write(tmp_path / "store", range(30))
    append(store.folder, range(30, 31))
    before = {path.name: path.stat() for path in store.folder.iterdir()}
    append(store.folder, range(31, 32))
    after = {path.name: path.stat() for path in store.folder.iterdir()}
    rows = len(regions_of(31)["boxes"])
    grown = {name: after[name].st_size - before[name].st_size for name in before}
    assert {name: after[name].st_ino for name in grown if name != "about.json"} == {
        name: before[name].st_ino for name in grown if name != "about.json"
    }
    assert (grown["features.bin"], grown["boxes.bin"], grown["index.bin"]) == (2 * DIM * rows, 16 * rows, 0)
    assert after["index.bin"].st_mtime_ns == before["index.bin"].st_mtime_ns


def test_what_cannot_be_added_is_refused(tmp_path: Path):
    store = write(tmp_path / "store", range(3))
    with RegionAppender(store) as writer:
        writer.add(**regions_of(3))
        for number in (1, 3):
            with pytest.raises(ValueError, match=f"bild {number} .* is in the store already"):
                writer.add(**regions_of(number))
        with pytest.raises(ValueError, match="features have 5 columns"):
            writer.add(**regions_of(6) | {"features": np.zeros((1, 4), np.float32)})
    same(RegionStore(store.folder), write(tmp_path / "plain", range(4)))
    (store.folder / "added-3.jsonl").write_bytes(b"[")
    with pytest.raises(DataError, match=r"added-3.jsonl is damaged \(1 bytes instead of"):
        RegionStore(store.folder)
