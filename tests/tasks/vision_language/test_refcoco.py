"""Referring expressions: overlaps and targets as the original has them, its files, and a network that points."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from comodal.cli.program import main
from comodal.data.regions.box_iou import compute_inclusive_iou
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.regions.extract import read_image_boxes
from comodal.tasks.vision_language.grounding.prepare_boxes import prepare_boxes
from comodal.tasks.vision_language.grounding.refcoco import build_grounding_examples, evaluate_grounding, recipe
from comodal.tasks.vision_language.grounding.refcoco_files import read_expressions
from comodal.tasks.vision_language.vcr_files import BoxCounts
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, DIM, SIDE, write_pretrained
from tests.support.vilbert_fixtures import FIXTURES

SENTENCES = [f"the {colour} one" for colour in COLOURS]
BOXES = [(10.0 * place, 0.0, 10.0 * place + 9, 50.0) for place in range(4)]


def test_overlaps_and_targets_are_the_originals():
    expected = json.loads((FIXTURES / "data" / "refer_iou.json").read_text())
    found = compute_inclusive_iou(np.array(expected["boxes"]), np.array(expected["gt"][:1]))[:, 0]
    np.testing.assert_allclose(found, expected["iou"], rtol=1e-6)
    np.testing.assert_allclose(np.where(found < 0.5, 0, found), expected["train_target"], rtol=1e-6)


def test_overlap_worked_by_hand():
    # pixels 0-9 and 5-14 in both directions: 25 of 100 + 100 - 25 pixels
    assert compute_inclusive_iou(np.array([[5.0, 5.0, 14.0, 14.0]]), np.array([[0.0, 0.0, 9.0, 9.0]])) == pytest.approx(
        25 / 175
    )


def colour_at(image: int, place: int) -> int:
    return int(np.random.default_rng(image).permutation(4)[place])


def write_store(folder: Path, images: int = 40) -> RegionStore:
    """Four regions side by side, each of another colour, in another order in every image."""
    rng = np.random.default_rng(0)
    with RegionWriter(folder, DIM, about={"boxes": "ground truth"}) as writer:
        for image in range(images):
            features = rng.normal(0, 0.1, (4, DIM)).astype(np.float32)
            for place in range(4):
                features[place, colour_at(image, place)] += 2
            writer.add(f"COCO_train2014_{image:012d}", features, np.array(BOXES, np.float32), SIDE, SIDE)
    return RegionStore(folder)


def write_references(folder: Path, images: int = 40) -> tuple[Path, Path]:
    """Two expressions an image, with the fields that the official files have."""
    references, annotations, pictures = [], [], []
    for image in range(images):
        pictures.append({"id": image, "file_name": f"COCO_train2014_{image:012d}.jpg", "width": SIDE, "height": SIDE})
        for place in range(4):
            left, top, right, bottom = BOXES[place]
            annotations.append({"id": 10 * image + place, "image_id": image, "category_id": 1, "iscrowd": 0,
                                "bbox": [left, top, right - left, bottom - top], "area": 1.0})  # fmt: skip
        for place in ((image % 4), (image + 1) % 4):
            number = len(references)
            text = SENTENCES[colour_at(image, place)]
            references.append({
                "ref_id": number, "ann_id": 10 * image + place, "category_id": 1, "image_id": image,
                "file_name": f"COCO_train2014_{image:012d}_{number}.jpg", "sent_ids": [number],
                "split": "train" if image < 32 else "val" if image < 36 else "testA",
                "sentences": [{"raw": text, "sent": text, "sent_id": number, "tokens": text.split()}],
            })  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    (folder / "instances.json").write_text(json.dumps({"images": pictures, "annotations": annotations}))
    return folder / "refs(unc).p", folder / "instances.json"


def test_it_points_at_what_is_meant_and_says_from_which_boxes(tmp_path: Path):
    store, (references, instances) = write_store(tmp_path / "regions"), write_references(tmp_path / "refcoco+")
    run = write_pretrained(tmp_path / "run", SENTENCES)
    settings = {
        "model": run, "references": references, "instances": instances, "regions": store.folder, "epochs": 60.0,
        "batch_size": 32, "learning_rate": 5e-3, "workers": 0,
    }  # fmt: skip
    assert train(recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    out = tmp_path / "out"
    found = evaluate_grounding(
        tmp_path / "tuned", references, instances, store.folder, "testA", out=out, train_data=references
    )
    assert found["grounding.accuracy"] == 1.0 == found["grounding.oracle"]
    assert found["grounding.chance_level"] == pytest.approx(1 / 5)  # four regions and the whole image
    blind = evaluate_grounding(tmp_path / "tuned", references, instances, store.folder, "testA", ablate="text")
    assert blind["grounding.accuracy"] <= 0.6
    predictions = {entry["sent_id"]: entry for entry in json.loads((out / "predictions.json").read_text())}
    assert sorted(predictions) == list(range(72, 80))  # every expression by its own number
    left, top, width, height = predictions[72]["box"]
    assert (left, top, left + width, top + height) == BOXES[36 % 4] and predictions[72]["iou"] == 1.0
    card = json.loads((out / "card.json").read_text())
    # one place for all images; the two objects of image n are at places n and n + 1 of 4, so that each place is 1 of 4
    assert card["scores"]["baseline: box geometry"]["value"] == 1 / 4
    words = card["scores"]["baseline: bag of words times region features"]
    assert words["value"] >= 7 / 8 and words["low"] < words["value"] <= words["high"]
    assert card["settings"]["baselines"] == "refs(unc).p: fitted on 64 of 64 training texts"
    assert "ground truth" in card["regions"] and card["scores"]["accuracy"]["paper"] is None


def test_a_target_is_the_overlap_of_every_row_with_the_whole_image_first(tmp_path: Path):
    store, files = write_store(tmp_path / "regions", 1), write_references(tmp_path / "files", 1)

    words = WordPieceTokenizer.from_texts(SENTENCES)
    gathered = build_grounding_examples(read_expressions(*files), "train", files[0], store, words, 20, 100)
    assert gathered.examples[0].target.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    whole = 10 * 51 / (101 * 101)  # the object's pixels among those of the image, both with their last pixel
    assert gathered.overlaps["0"][0] == pytest.approx(whole)
    assert (
        len(
            build_grounding_examples(read_expressions(*files), "train", files[0], store, words, 20, 2)
            .examples[0]
            .target
        )
        == 3
    )


def test_objects_and_detections_become_boxes_that_regions_are_made_of(tmp_path: Path):
    _, instances = write_references(tmp_path / "files", 2)
    assert prepare_boxes(instances, tmp_path / "boxes.jsonl") == BoxCounts(2, 8)
    (tmp_path / "images").mkdir()
    first = read_image_boxes(tmp_path / "boxes.jsonl", tmp_path / "images").images[0]
    assert first.image == "COCO_train2014_000000000000.jpg"
    assert first.boxes.tolist() == [list(box) for box in BOXES]
    listed = read_image_boxes(tmp_path / "boxes.jsonl", tmp_path / "images")
    assert listed.boxes_from == f"{instances.name}, all its objects"
    detections = [
        {"det_id": 1, "h5_id": 0, "box": [1, 2, 3, 4], "image_id": 1, "category_id": 1, "score": 0.9},
        {"det_id": 2, "h5_id": 1, "box": [1, 2, 3, 4], "image_id": 1, "category_id": 1, "score": 0.1},
    ]
    (tmp_path / "dets.json").write_text(json.dumps(detections))
    with pytest.raises(DataError, match=r"pass --instances instances\.json"):
        prepare_boxes(tmp_path / "dets.json", tmp_path / "boxes.jsonl")
    found = prepare_boxes(tmp_path / "dets.json", tmp_path / "boxes.jsonl", instances)
    assert found == BoxCounts(1, 1)
    assert json.loads((tmp_path / "boxes.jsonl").read_text())["boxes"] == [[1.0, 2.0, 4.0, 6.0]]
    assert (
        read_image_boxes(tmp_path / "boxes.jsonl", tmp_path / "images").boxes_from
        == "dets.json, detections of 0.65 or more"
    )
    for entry, sentence in (
        ({"box": [1, 2, 3, 4], "image_id": [1]}, "entry 0: no 'box', or of an image"),
        ({"box": [1, 2, 3, 4], "image_id": 1, "score": "high"}, "entry 0: score 'high' is not a number"),
        ({"box": [1, 2], "image_id": 1}, r"box \[1, 2\] is not left, top, width, height"),
    ):
        (tmp_path / "dets.json").write_text(json.dumps([entry]))
        with pytest.raises(DataError, match=rf"dets\.json.*{sentence}"):
            prepare_boxes(tmp_path / "dets.json", tmp_path / "boxes.jsonl", instances)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def test_references_that_are_none_are_told_and_nothing_of_them_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    references, instances = write_references(tmp_path / "files", 2)
    good, whole = references.read_bytes(), instances.read_text()
    for content, sentence in (
        (pickle.dumps([{"ref_id": Harmful()}]), "mkdir"),
        (good[:-40], "damaged"),
        (pickle.dumps({"a": 1}), "not a list of references"),
        (pickle.dumps([{"ref_id": 1}]), "reference 0: no 'ann_id'"),
    ):
        references.write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            read_expressions(references, instances)
    assert not (tmp_path / "harmed").exists()
    references.write_bytes(good)
    with pytest.raises(DataError, match="no list of 'annotations'"):
        instances.write_text('{"images": []}')
        read_expressions(references, instances)
    instances.write_text('{"annotations": [{"id": 0, "bbox": [0, 0, 1, 1]}]}')
    with pytest.raises(DataError, match="no object 1 of reference 1"):
        read_expressions(references, instances)
    twice = pickle.loads(good)
    twice[3]["sentences"][0]["sent_id"] = 1
    references.write_bytes(pickle.dumps(twice))
    instances.write_text(whole)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p, reference 3: sent_id 1 is also in 1"):
        read_expressions(references, instances)
    instances.write_text('{"annotations": [{"id": "0", "bbox": [0, 0, 1, 1]}]}')
    with pytest.raises(DataError, match=r"instances\.json: annotations\[0\] has id '0', which is not an integer"):
        read_expressions(references, instances)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"image_id": 77}, r"object 1 is in image 77, and reference 1 of refs\(unc\)\.p in image 0"),
        ({"id": 0}, "two annotations have the id 0"),
        ({"bbox": [0, 0, float("nan"), 1]}, "bbox .* is not left, top, width, height"),
        ({"bbox": [9, 9, -3, 1]}, "bbox .* is not left, top, width, height"),
        ({"bbox": [9, 9, 3, float("inf")]}, "bbox .* is not left, top, width, height"),
    ],
)
def test_objects_that_contradict_the_references_are_told(tmp_path: Path, changed: dict, sentence: str):
    references, instances = write_references(tmp_path / "files", 2)
    content = json.loads(instances.read_text())
    read_expressions(references, instances)
    content["annotations"][1] |= changed
    instances.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances\.json: {sentence}"):
        read_expressions(references, instances)


def test_a_split_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    store, (references, instances) = write_store(tmp_path / "regions", 2), write_references(tmp_path / "files", 2)
    run = write_pretrained(tmp_path / "run", SENTENCES)
    words = ["--model", str(run), "--references", str(references), "--instances", str(instances)]
    words += ["--regions", str(store.folder), "--out", str(tmp_path / "tuned")]
    assert main(["train", "grounding", *words, "--epochs", "0.1", "--device", "cpu", "--workers", "0"]) == 0
    words[1] = str(tmp_path / "tuned")
    assert main(["evaluate", "grounding", *words[:-2], "--split", "testB"]) == 1
    assert "there is no split 'testB'; there are train" in capsys.readouterr().err
