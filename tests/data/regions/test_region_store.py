"""A region store gives back what was put in, to every process, and tells when it is not whole."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comodal.data.regions.region_store import RegionStore, RegionWriter, compute_spatials
from comodal.errors import DataError
from tests.support.small_regions import some_images, write_store


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(min_size=0, max_size=12).filter(lambda t: t.isprintable()), unique=True, max_size=20), st.data()
)
def test_every_id_finds_its_regions(tmp_path_factory, ids, data):
    folder = tmp_path_factory.mktemp("store")
    counts = [data.draw(st.integers(0, 4)) for _ in ids]
    with RegionWriter(folder, 2, dtype="float32") as writer:
        for number, (image, count) in enumerate(zip(ids, counts, strict=True)):
            boxes = np.tile(np.float32([0, 0, 1, 1]), (count, 1))
            writer.add(image, np.full((count, 2), number, np.float32), boxes, number + 1, 5)
    store = pickle.loads(pickle.dumps(RegionStore(folder)))
    assert list(store.ids) == ids
    assert store.counts.tolist() == counts
    for number, image in enumerate(ids):
        assert store.find(image) == number
        found = store.read_regions(number)
        assert found.features.tolist() == [[number, number]] * counts[number]
        assert (found.width, found.height) == (number + 1, 5)
    assert store.find("not there at all") is None


def test_locations_worked_by_hand():
    found = compute_spatials(np.float32([[10, 20, 60, 70]]), 100, 200)
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.6, 0.35, 50 * 50 / 20_000]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_batch_holds_the_features_of_its_images(tmp_path: Path, dtype: str):
    """The first regions of each, as numpy converts them, and 0 behind them."""
    rng, counts = np.random.default_rng(0), [3, 0, 1, 5]
    with RegionWriter(tmp_path, 7, dtype=dtype) as writer:
        for number, count in enumerate(counts):
            features = rng.standard_normal((count, 7)).astype(np.float32)
            writer.add(str(number), features, np.zeros((count, 4)), 9, 9)
    store = pickle.loads(pickle.dumps(RegionStore(tmp_path)))
    rows = [3, 1, 0, 2, 3]
    batch = torch.full((len(rows), 1 + 4, 7), 99.0)
    store.fill_features(rows, batch[:, 1:])
    assert (batch[:, 0] == 99).all()  # what was not given is left alone
    for found, row in zip(batch[:, 1:].numpy(), rows, strict=True):
        count = min(counts[row], 4)
        np.testing.assert_array_equal(found[:count], store.read_regions(row).features[:count].astype(np.float32))
        assert not found[count:].any()
    RegionStore(tmp_path).fill_features([], torch.empty(0, 4, 7))


def test_numbers_are_kept_as_numpy_rounds_them(tmp_path: Path):
    """Halfway cases, the smallest and the largest number of fp16."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.unique(halves[np.isfinite(halves)].astype(np.float32))
    features = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2])[:, None]
    with RegionWriter(tmp_path, 1) as writer:
        writer.add("a", features, np.zeros((len(features), 4)), 9, 9)
    kept = RegionStore(tmp_path).read_regions(0).features
    np.testing.assert_array_equal(kept.view(np.uint16), features.astype(np.float16).view(np.uint16))


def first_features(folder: str, row: int, queue) -> None:
    queue.put(RegionStore(Path(folder)).read_regions(row).features.tolist())


def test_a_spawned_process_reads_the_same(tmp_path: Path):
    store = write_store(tmp_path / "store", some_images([2, 3]))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=first_features, args=(str(store.folder), 1, queue))
    process.start()
    assert queue.get(timeout=60) == store.read_regions(1).features.tolist()
    process.join()


def test_what_was_not_finished_is_no_store_and_goes_on(tmp_path: Path):
    boxes = np.float32([[0, 0, 1, 1]])
    with pytest.raises(RuntimeError), RegionWriter(tmp_path, 2) as writer:
        writer.add("a", np.ones((1, 2)), boxes, 3, 3)
        raise RuntimeError("the power goes")
    with pytest.raises(DataError, match="not finished: run the same command again"):
        RegionStore(tmp_path)
    with pytest.raises(DataError, match="started with other settings"), RegionWriter(tmp_path, 3):
        pass
    with (tmp_path / ".features.bin.part").open("ab") as file:
        file.write(b"half a row")
    with (tmp_path / ".journal.part").open("ab") as file:
        file.write(b'["b", 1')
    with RegionWriter(tmp_path, 2) as writer:
        assert writer.written_ids == {"a"}
        writer.add("b", np.full((1, 2), 2.0), boxes, 3, 3)
    store = RegionStore(tmp_path)
    assert [store.read_regions(row).features.tolist() for row in range(2)] == [[[1, 1]], [[2, 2]]]
    with pytest.raises(DataError, match="already finished"), RegionWriter(tmp_path, 2):
        pass


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"image": "a"}, "in the store already"),
        ({"features": np.ones((2, 3))}, "features have 2 columns"),
        ({"features": np.full((2, 2), np.inf)}, "not finite"),
        ({"features": np.full((2, 2), 70_000.0)}, "too large for float16"),
        ({"classes": np.ones((2, 9))}, "class probabilities"),
        ({"width": 0}, "0 x 5"),
        ({"width": 10**12}, "'b' of 1000000000000 x 5 pixels"),
        ({"image": "\ud800"}, r"image '\\ud800' of 5 x 5 pixels: not a valid image id"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, wrong: dict, match: str):
    good = {"image": "b", "features": np.ones((2, 2)), "boxes": np.ones((2, 4)), "width": 5, "height": 5}
    with RegionWriter(tmp_path, 2) as writer:
        writer.add(**{**good, "image": "a"})
        with pytest.raises(ValueError, match=match):
            writer.add(**{**good, **wrong})


@pytest.mark.parametrize("name", ["features.bin", "boxes.bin", "index.bin"])
def test_a_truncated_store_is_told(tmp_path: Path, name: str):
    folder = write_store(tmp_path / "store", some_images([2, 3])).folder
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(DataError, match="damaged"):
        RegionStore(folder)


def test_what_is_no_store_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="not a region store"):
        RegionStore(tmp_path)
    (tmp_path / "about.json").write_text('{"kind": "clips"}')
    with pytest.raises(DataError, match="holds clips, not regions"):
        RegionStore(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(DataError, match="not empty"), RegionWriter(tmp_path / "other", 2):
        pass
