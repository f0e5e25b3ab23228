"""`comodal extract`: whatever kills it, and on any number of workers, the store is the same; bad files are told."""

import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions import extract
from comodal.regions.extract import extract_regions

COMMAND = """
import sys
from pathlib import Path
from comodal.regions.extract import extract_regions
extract_regions(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], grid=2, workers=2)
"""
IMAGES = 80  # more than two processes' worth


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of several sizes, one of them broken and one a second of its name."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(IMAGES):
        size = (40 + number % 30, 60, 3)
        path = folder / f"kind{number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(path)
    (folder / "kind0" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00")
    Image.new("RGB", (8, 8)).save(folder / "kind0" / "000.png")
    return folder


@pytest.fixture(scope="module")
def store(images: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "store"
    extract_regions(images, out, str(network), grid=2, workers=1, backend="sequential")
    return out


def tree(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_the_store_does_not_depend_on_the_number_of_workers(images: Path, network: Path, store: Path, tmp_path: Path):
    found = extract_regions(images, tmp_path / "store", str(network), grid=2, workers=2)
    assert (found.images, found.num_refused, found.regions) == (IMAGES, 2, 4 * IMAGES)
    assert tree(tmp_path / "store") == tree(store)
    refused = [json.loads(line) for line in (store / "report.jsonl").read_text().splitlines()]
    assert [(line["image"], line["reason"]) for line in refused] == [
        ("kind0/000.png", "id twice"),
        ("kind0/bad.png", "unreadable"),
    ]


def test_backends_that_give_their_results_at_the_end_make_the_same_store(
    images: Path, network: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Ray does: joblib's threads stand for it, and few images are made between two looks."""
    import joblib

    monkeypatch.setattr(joblib.parallel.ThreadingBackend, "supports_return_generator", False)
    monkeypatch.setattr(extract, "IMAGES_PER_CALL", 7)
    extractor = extract.load_extractor(extract.ExtractorSource(str(network), grid=2))
    listed = extract.list_images(images)
    with joblib.parallel_config("threading"):
        pool = extract.ExtractionPool(extractor, images, extract.ExtractionWorkers(2, "dask", "cpu"))
        extract.fill_store(tmp_path / "store", listed, pool, "float16")
    by_command = {name: data for name, data in tree(store).items() if name != ".lock" and "network/" not in name}
    assert by_command == tree(tmp_path / "store")


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(
    images: Path, network: Path, store: Path, tmp_path: Path
):
    out, chance = tmp_path / "store", random.Random(3)
    command = [sys.executable, "-c", COMMAND, str(images), str(out), str(network)]
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        begun = len(lines_of(out))
        while (
            len(lines_of(out)) < begun + chance.randrange(2, 20) and process.poll() is None and time.monotonic() < until
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "about.json").exists()
    with pytest.raises(DataError, match="is not finished: run the same command again"):
        RegionStore(out)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert tree(out) == tree(store)


def lines_of(out: Path) -> list[bytes]:
    journal = out / ".journal.part"
    return journal.read_bytes().splitlines() if journal.exists() else []


def test_stopped_before_each_of_its_renames_it_ends_with_the_same_bytes(
    images: Path, network: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    rename, left = Path.replace, [0]

    def replace(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    out = tmp_path / "store"
    for renames in range(10):
        left[0] = renames
        try:
            extract_regions(images, out, str(network), grid=2, workers=1)
            break
        except Killed:
            continue
    assert renames > 3
    assert tree(out) == tree(store)


def test_run_twice_it_does_nothing_and_otherwise_it_is_refused(
    images: Path, network: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "store"
    shutil.copytree(store, out)
    monkeypatch.setattr(extract, "extract_image_regions", lambda *_: pytest.fail("it made regions again"))
    assert extract_regions(images, out, str(network), grid=2).num_refused == 2
    shutil.copytree(network, tmp_path / "moved")
    assert extract_regions(images, out, str(tmp_path / "moved"), grid=2).num_refused == 2
    with pytest.raises(DataError, match=r"created with other settings \(grid was 2 and is 3\)"):
        extract_regions(images, out, str(network), grid=3)
    with pytest.raises(DataError, match=r"created with other settings \(images was"):
        extract_regions(images / "kind0", out, str(network), grid=2)
    assert tree(out) == tree(store)


def test_a_store_that_was_begun_otherwise_is_left_alone(images: Path, network: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), RegionWriter(tmp_path / "store", 5):
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="was started with other settings"):
        extract_regions(images, tmp_path / "store", str(network))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not a region store: give another folder"):
        extract_regions(images, tmp_path / "full", str(network))


KILLS = """
import os
import sys
from pathlib import Path
from comodal.errors import DataError
from comodal.regions import extract
extract_in_worker = extract.extract_in_worker
def kill(image, **others):
    if image.image.endswith(sys.argv[4]):
        os._exit(9)
    return extract_in_worker(image, **others)
extract.extract_in_worker = kill
try:
    extract.extract_regions(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], grid=2, workers=2)
except DataError as error:
    print(error)
"""


def kill_workers(images: Path, out: Path, network: Path, ending: str) -> str:
    """What the command prints where images of this ending end the process that reads them."""
    command = [sys.executable, "-c", KILLS, str(images), str(out), str(network), ending]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills the workers of this process")
def test_an_image_that_ends_its_process_is_refused_alone(images: Path, network: Path, tmp_path: Path):
    kill_workers(images, tmp_path / "store", network, "kind1/004.jpg")
    store = RegionStore(tmp_path / "store")
    assert len(store) == IMAGES - 1
    assert "kind1/004" not in store.ids
    lines = [json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["kind0/000.png", "kind0/bad.png", "kind1/004.jpg"]
    assert lines[-1]["reason"] == "crashed the decoder"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills the workers of this process")
def test_workers_that_die_with_every_image_are_told(images: Path, network: Path, tmp_path: Path):
    """As for want of memory: the command ends with a sentence; what was made stays."""
    told = kill_workers(images, tmp_path / "store", network, ".jpg")
    assert "a worker crashed, possibly because memory ran out, at kind0/000.jpg or soon after" in told


def write_odd_images(folder: Path) -> None:
    """Every kind that Pillow writes, and what must be refused."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "colour.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("1").save(folder / "bits.png")
    image.convert("LA").save(folder / "grey_alpha.png")
    image.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("CMYK").save(folder / "print.tif")
    image.quantize(16).save(folder / "palette.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.tif")
    image.save(folder / "film.gif", save_all=True, append_images=[Image.fromarray(255 - pixels)])
    image.save(folder / "film.webp", save_all=True, append_images=[Image.fromarray(255 - pixels)], lossless=True)
    Image.new("RGB", (1, 1), (9, 99, 200)).save(folder / "dot.bmp")
    (folder / "empty.jpg").write_bytes(b"")
    memory = io.BytesIO()
    image.save(memory, "JPEG")
    (folder / "cut.jpg").write_bytes(memory.getvalue()[: len(memory.getvalue()) // 2])
    Image.new("L", (180, 2)).save(folder / "line.png")
    Image.new("1", (30_000, 30_000)).save(folder / "bomb.png")
    header = struct.pack(">IIBBBBB", 90_000, 90_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "claim.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1) + b"IDAT")
    (folder / "page.jpg").write_text("<!doctype html><p>not found")


def test_every_kind_of_picture_has_regions_or_a_reason(network: Path, tmp_path: Path):
    write_odd_images(tmp_path / "images")
    extract_regions(tmp_path / "images", tmp_path / "store", str(network), grid=2, dtype="float32", workers=1)
    lines = [json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines()]
    assert {line["image"]: line["reason"] for line in lines} == {
        "bomb.png": "too large", "claim.png": "too large", "cut.jpg": "unreadable", "empty.jpg": "unreadable",
        "film.webp": "id twice", "grey16.tif": "id twice", "line.png": "too thin", "page.jpg": "unreadable",
        "print.tif": "id twice",
    }  # fmt: skip
    store = RegionStore(tmp_path / "store")
    regions = {name: store.read_regions(row) for row, name in enumerate(store.ids)}
    assert (regions["dot"].width, regions["dot"].height) == (1, 1)
    assert all((found.width, found.height) == (60, 40) for name, found in regions.items() if name != "dot")
    assert np.array_equal(regions["colour"].features, regions["alpha"].features)
    assert not np.array_equal(regions["colour"].features, regions["grey"].features)


def test_one_bad_box_refuses_its_image_alone(images: Path, network: Path, tmp_path: Path):
    lines = [
        {"image": "kind0/000.jpg", "boxes": [[0, 0, 60, 40]]},
        {"image": "kind0/003.jpg", "boxes": [[0, 0, 60, 40], [100, 0, 120, 10]]},
        {"image": "kind9/none.jpg", "boxes": [[0, 0, 60, 40]]},
        {"image": "kind0/000.jpg", "boxes": [[0, 0, 10, 10]]},
    ]
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = extract_regions(images, tmp_path / "store", str(network), boxes)
    assert (found.images, found.num_refused, found.regions) == (1, 3, 1)
    refused = [json.loads(line) for line in (tmp_path / "store" / "report.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in refused] == ["id twice", "box outside the image", "missing"]


def test_a_command_whose_images_are_all_refused_fails(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        (folder / name).write_bytes(b"no image")
    words = ["extract", folder, tmp_path / "store", "--detector", network, "--workers", "1"]
    assert main([str(word) for word in words]) == 1
    assert "none of the 2 images can be used" in capsys.readouterr().err
    assert len((tmp_path / "store" / "report.jsonl").read_text().splitlines()) == 2


def test_numbers_that_fp16_cannot_hold_refuse_their_image_alone(tmp_path: Path):
    writer = RegionWriter(tmp_path, 2)
    made = extract.ExtractionResult(
        "a.jpg", extract.Regions(np.full((1, 2), 1e6, np.float32), np.zeros((1, 4)), None, None, 5, 5)
    )
    found = extract.add_extraction_result(writer, made)
    assert found is not None and found.reason == "features do not fit" and "too large for float16" in found.detail


def run_of(store: Path, folder: Path) -> Path:
    """A model's folder, as far as its regions go."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "regions.json").write_bytes(RegionStore(store).encode_provenance())
    return folder


def test_a_model_reads_regions_of_its_network_and_no_others(
    images: Path, network: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = run_of(store, tmp_path / "run")
    few = images / "kind1"
    extract_regions(few, tmp_path / "same", like=run)
    assert RegionStore(tmp_path / "same").about["provenance"]["grid"] == 2
    check_same_regions(run, RegionStore(tmp_path / "same"))
    assert not capsys.readouterr().err.count("other boxes")
    extract_regions(few, tmp_path / "finer", str(network), grid=4)
    check_same_regions(run, RegionStore(tmp_path / "finer"))
    assert "has other boxes than" in capsys.readouterr().err
    extract_regions(few, tmp_path / "larger", str(network), grid=2, size=32)
    with pytest.raises(
        DataError, match=r"has features of L3-Net \(size 32, cells 1; .* was trained on L3-Net \(size 64"
    ):
        check_same_regions(run, RegionStore(tmp_path / "larger"))
    extract_regions(few, tmp_path / "larger", str(network), grid=2, size=32, compatible_with=run)
    check_same_regions(run, RegionStore(tmp_path / "larger"))


def test_a_network_that_was_moved_can_be_named_and_another_is_seen(
    images: Path, network: Path, store: Path, tmp_path: Path
):
    run, few = run_of(store, tmp_path / "run"), images / "kind1"
    shutil.copytree(network, tmp_path / "moved")
    found = json.loads((run / "regions.json").read_text())
    found["provenance"]["detector"] = "/nowhere"
    (run / "regions.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="network was not found at /nowhere: put it there"):
        extract_regions(few, tmp_path / "same", like=run)
    extract_regions(few, tmp_path / "same", str(tmp_path / "moved"), like=run)
    check_same_regions(run, RegionStore(tmp_path / "same"))
    torch.manual_seed(1)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), tmp_path / "other", {})
    with pytest.raises(CheckpointError, match="is not the network of these regions, L3-Net"):
        extract_regions(few, tmp_path / "another", str(tmp_path / "other"), like=run)


def test_what_cannot_be_told_is_said_in_a_line(
    images: Path, network: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, converted = tmp_path / "run", tmp_path / "converted"
    run.mkdir()
    (run / "config.json").write_text("{}")
    check_same_regions(run, RegionStore(store))  # a model of published weights does not say what it has learnt from
    with RegionWriter(converted, 5, about={"layout": "BUTD TSV", "source": "trainval.tsv"}) as writer:
        writer.add("a", np.ones((1, 5), np.float32), np.array([[0, 0, 5, 5.0]]), 5, 5)
    (run / "regions.json").write_bytes(RegionStore(converted).encode_provenance())
    assert not capsys.readouterr().err
    check_same_regions(run, RegionStore(store))
    assert "was trained on regions of BUTD TSV trainval.tsv" in capsys.readouterr().err
    for like, sentence in ((run, "its detector is unknown"), (tmp_path, "no model found")):
        with pytest.raises((DataError, CheckpointError), match=sentence):
            extract_regions(images, tmp_path / "out", like=like)
    (run / "regions.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"regions\.json: not JSON"):
        check_same_regions(run, RegionStore(store))
    (run / "regions.json").unlink()
    with pytest.raises(DataError, match="does not record the regions it was trained on: choose a --detector"):
        extract_regions(images, tmp_path / "out", like=run)
    with pytest.raises(DataError, match="so it accepts any of the right size"):
        extract_regions(images / "kind1", tmp_path / "out", str(network), compatible_with=run)


def test_the_command_line(images: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["extract", str(images / "kind2"), str(tmp_path / "store"), "--workers", "1"]
    assert main([*words]) == 1
    assert "--detector (the network) or --like" in capsys.readouterr().err
    assert main([*words, "--detector", str(network), "--boxes", "grid", "--grid", "3", "--dtype", "float32"]) == 0
    assert RegionStore(tmp_path / "store").features.shape == (9 * 26, 16)
    assert main([*words, "--detector", str(network), "--boxes", "here.jsonl"]) == 1
    assert "here.jsonl does not exist" in capsys.readouterr().err
    assert main([*words, "--detector", str(network), "--workers", "0"]) == 1
    assert "workers is a number from 1 to 1,024, got 0" in capsys.readouterr().err
