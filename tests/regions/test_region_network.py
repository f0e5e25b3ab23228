"""A run is self-contained: moved, shared and got back, it answers as before, with all that it was made from deleted."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError
from comodal.hub import share_model
from comodal.inference.vision_language import load_vision_language
from comodal.models.checkpoint import load_model, save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions import region_network
from comodal.regions.convert_detector import convert_detector
from comodal.regions.extract import extract_regions
from comodal.regions.extractors import load_extractor_like
from comodal.tasks.vision_language.region_record import collect_region_record
from tests.support.detector_fixtures import CAFFE
from tests.support.hub_server import comodal_at, served

IMAGES = 12
COLOURS = ("red", "green", "blue")
KEPT = ("config.json", "model.safetensors")


class Moved(NamedTuple):
    """A pretrained run and one fine-tuned from it, and what each said where it was made."""

    pretrained: Path
    aligned: list[tuple[str, float]]
    fine_tuned: Path
    answered: list[tuple[str, float]]
    images: Path


def network(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), folder / "model", {"recipe": "by hand"})
    return folder


def aligned(run: Path, images: Path) -> list[tuple[str, float]]:
    answerer = load_vision_language(run)
    return [
        tuple(guess) for guess in answerer.score(answerer.encode_image(images / "5.png"), ["a red dog", "a blue dog"])
    ]


def answered(run: Path, images: Path) -> list[tuple[str, float]]:
    answerer = load_vision_language(run)
    return [tuple(guess) for guess in answerer.ask(answerer.encode_image(images / "5.png"), "what colour is the dog?")]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    """L3-Net, its regions, ViLBERT, a fine-tuned ViLBERT; then the first two are deleted, and the others moved."""
    folder = tmp_path_factory.mktemp("made")
    images, store, first, second = (folder / name for name in ("images", "store", "first", "second"))
    images.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 255, (40 + number, 60, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    extract_regions(images, store, str(network(folder / "l3net", 0)), grid=2, workers=1)
    common = ["--batch_size", "4", "--workers", "0", "--precision", "fp32"]
    words = ["--data", store, "--captions", captions(folder), "--variant", "small", "--steps", "2"]
    assert main([*map(str, ["train", "vilbert", *words, "--validation_pairs", "0", "--out", first]), *common]) == 0
    words = ["--model", first, "--regions", store, *questions(folder), "--epochs", "1", "--min-answer-count", "1"]
    assert main([*map(str, ["train", "vqa", *words, "--out", second]), *common]) == 0
    said = aligned(first, images), answered(second, images)
    shutil.rmtree(folder / "l3net")
    shutil.rmtree(store)
    (folder / "elsewhere").mkdir()
    places = [run.rename(folder / "elsewhere" / run.name) for run in (first, second)]
    return Moved(places[0], said[0], places[1], said[1], images)


def captions(folder: Path) -> Path:
    lines = [{"image": f"{number}.png", "caption": f"a {COLOURS[number % 3]} dog"} for number in range(IMAGES)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "captions.jsonl"


def questions(folder: Path) -> list[object]:
    """Options that name the official files."""
    asked, told = [], []
    for number in range(IMAGES):
        same, answer = {"image_id": number, "question_id": number}, COLOURS[number % 3]
        asked.append({**same, "question": "what colour is the dog?"})
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": person} for person in range(10)]
        kinds = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": answer}
        told.append({**same, **kinds, "answers": people})
    (folder / "q.json").write_text(json.dumps({"data_subtype": "train2014", "questions": asked}))
    (folder / "a.json").write_text(json.dumps({"data_subtype": "train2014", "annotations": told}))
    return ["--questions", folder / "q.json", "--annotations", folder / "a.json"]


def test_moved_and_with_all_that_made_it_deleted_a_run_answers_with_the_same_bits(
    moved: Moved, capsys: pytest.CaptureFixture
):
    assert aligned(moved.pretrained, moved.images) == moved.aligned
    assert answered(moved.fine_tuned, moved.images) == moved.answered
    image = str(moved.images / "5.png")
    capsys.readouterr()
    assert main(["ask", image, "what colour is the dog?", "--model", str(moved.fine_tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"text": text, "probability": probability} for text, probability in moved.answered
    ]


def test_shared_and_got_back_it_answers_with_the_same_bits(moved: Moved, tmp_path: Path):
    share_model(moved.fine_tuned, tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "is included in `regions_network/`" in card and "comodal ask photo.jpg" in card
    assert answered(tmp_path / "shared", moved.images) == moved.answered
    with served() as (address, files):
        commands = ("push", moved.fine_tuned, "me/small"), ("pull", "me/small", tmp_path / "got")
        pushed, pulled = comodal_at(address, tmp_path / "home", *commands)
        assert pushed[0] == pulled[0] == 0, pushed[1] + pulled[1]
        assert {f"regions_network/{name}" for name in KEPT} < files.keys()
    assert answered(tmp_path / "got", moved.images) == moved.answered


def test_regions_are_made_and_fine_tuning_goes_on_where_only_the_run_is_left(moved: Moved, tmp_path: Path):
    """A store that does not hold the network (as those of before) takes it from the model."""
    extract_regions(moved.images, tmp_path / "store", like=moved.pretrained, workers=1)
    made = load_model(tmp_path / "store" / "network").state_dict()
    kept = load_model(moved.pretrained / "model" / "regions_network").state_dict()
    assert all(torch.equal(made[name], kept[name]) for name in kept)
    shutil.rmtree(tmp_path / "store" / "network")
    words = ["--model", moved.pretrained, "--regions", tmp_path / "store", *questions(tmp_path), "--epochs", "1"]
    words += ["--min-answer-count", "1", "--batch_size", "4", "--workers", "0", "--out", tmp_path / "run"]
    assert main([*map(str, ["train", "vqa", *words])]) == 0
    assert len(answered(tmp_path / "run", moved.images)) == len(COLOURS)
    assert {path.name for path in (tmp_path / "run" / "model" / "regions_network").iterdir()} == set(KEPT)


def test_another_network_than_the_models_does_not_go_along(moved: Moved, tmp_path: Path):
    extract_regions(moved.images, tmp_path / "store", str(network(tmp_path / "other", 1)), grid=2, workers=1)
    store = RegionStore(tmp_path / "store")
    assert collect_region_record(store, moved.pretrained)["regions_network/model.safetensors"] == (
        tmp_path / "store" / "network" / "model.safetensors"
    )
    shutil.rmtree(tmp_path / "store" / "network")
    assert [*collect_region_record(store, moved.pretrained)] == ["regions.json"]


def cut(run: Path) -> Path:
    path = run / "model" / "regions_network" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return path


def flipped(run: Path) -> Path:
    path = run / "model" / "regions_network" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    return path


def replaced(run: Path) -> Path:
    shutil.rmtree(run / "model" / "regions_network")
    shutil.copytree(network(run / "other", 1) / "model", run / "model" / "regions_network")
    return run / "model" / "regions_network"


@pytest.mark.parametrize("damage", [cut, flipped, replaced])
def test_a_copy_that_is_not_the_network_is_refused_with_its_path(damage, moved: Moved, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(moved.fine_tuned, run)
    path = damage(run)
    with pytest.raises(CheckpointError, match=str(path)):
        answered(run, moved.images)
    with pytest.raises(CheckpointError, match=str(path)):
        extract_regions(moved.images, tmp_path / "store", like=run)
    with pytest.raises(CheckpointError, match=str(path)):
        share_model(run, tmp_path / "shared")
    assert not (tmp_path / "store").exists() and not (tmp_path / "shared").exists()


def test_damage_in_a_store_is_told_before_training(moved: Moved, tmp_path: Path):
    extract_regions(moved.images, tmp_path / "store", str(network(tmp_path / "l3net", 1)), grid=2, workers=1)
    path = tmp_path / "store" / "network" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=str(path)):
        collect_region_record(RegionStore(tmp_path / "store"))


def test_what_is_not_copied_is_named_and_can_be_put_beside_the_model(
    moved: Moved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(region_network, "MAX_NETWORK_BYTES", 10)
    extract_regions(moved.images, tmp_path / "store", str(network(tmp_path / "large", 0)), grid=2, workers=1)
    assert not (tmp_path / "store" / "network").exists()
    run = tmp_path / "run"
    shutil.copytree(moved.fine_tuned, run)
    shutil.rmtree(run / "model" / "regions_network")
    image = str(moved.images / "5.png")
    assert main(["ask", image, "what colour?", "--model", str(run)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "was trained on regions of L3-Net" in told and f"or into {run / 'model' / 'regions_network'}" in told
    share_model(run, tmp_path / "shared")
    assert "put `l3net` into `MODEL/regions_network/`" in (tmp_path / "shared" / "README.md").read_text()
    shutil.copytree(tmp_path / "large" / "model", run / "model" / "regions_network")
    assert answered(run, moved.images) == moved.answered


@pytest.mark.parametrize(
    "words",
    [
        ["ask", "IMAGE", "what?", "--model", "RUN"],
        ["extract", "IMAGES", "STORE", "--like", "RUN"],
        ["extract", "IMAGES", "STORE", "--detector", "RUN"],
        ["share", "RUN", "STORE"],
        ["inspect", "RUN"],
        ["report", "RUN", "page.html"],
        ["export", "RUN", "--to", "onnx"],
        ["embed", "image", "IMAGE", "--model", "RUN"],
        ["match", "IMAGE", "SOUND", "--model", "RUN"],
        ["convert", "vilbert", "RUN", "STORE"],
    ],
)
def test_a_packed_run_is_told_to_be_unpacked(
    words: list[str], moved: Moved, tmp_path: Path, capsys: pytest.CaptureFixture
):
    packed = shutil.make_archive(str(tmp_path / "run"), "zip", moved.fine_tuned)
    places = {"IMAGE": moved.images / "5.png", "IMAGES": moved.images, "STORE": tmp_path / "out", "SOUND": packed}
    assert main([str(places.get(word, packed if word == "RUN" else word)) for word in words]) == 1
    assert f"{packed} is a packed run: unpack it" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_unpacked_it_answers_with_the_same_bits(moved: Moved, tmp_path: Path):
    packed = shutil.make_archive(str(tmp_path / "run"), "zip", moved.fine_tuned)
    shutil.unpack_archive(packed, tmp_path / "unpacked")
    assert answered(tmp_path / "unpacked", moved.images) == moved.answered


def test_a_converted_detector_is_kept_and_a_published_file_is_not(moved: Moved, tmp_path: Path):
    file = next(CAFFE[0].glob("*.caffemodel"))
    convert_detector(file, tmp_path / "vg")
    (tmp_path / "photos").mkdir()
    shutil.copyfile(moved.images / "5.png", tmp_path / "photos" / "5.png")
    for number, detector in enumerate((file, tmp_path / "vg")):
        store = tmp_path / f"store{number}"
        extract_regions(tmp_path / "photos", store, str(detector), size=96, max_regions=4, workers=1)
        kept = [path.name for path in sorted(store.glob("network/*"))]
        assert kept == ([] if detector == file else sorted(KEPT))
    made = RegionStore(tmp_path / "store1").about["provenance"]
    there = load_extractor_like(made, str(tmp_path / "store1" / "network"))
    assert there.network.fingerprint == RegionStore(tmp_path / "store0").about["provenance"]["fingerprint"]
