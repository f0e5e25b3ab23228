"""NLVR2 and SNLI-VE: their official files as they are, a network that learns from them, and what must be told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.tasks.evaluation.results_card import results
from comodal.tasks.vision_language import nlvr2, snli_ve
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, DIM, colour_of, write_colours, write_pretrained

SENTENCES = [f"it is {colour}" for colour in COLOURS]


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_colours(tmp_path / "regions")


def write(path: Path, entries: list[dict]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def entailments(count: int = 40) -> list[dict]:
    """A true and a false sentence of each picture, with the fields that the official files have."""
    entries = []
    for image in range(count):
        for said, label in ((0, "entailment"), (1 + image % 3, "contradiction")):
            sentence = SENTENCES[(colour_of(image) + said) % 4]
            entries.append({
                "Flickr30K_ID": str(image), "annotator_labels": [label], "captionID": f"{image}.jpg#0",
                "gold_label": label, "pairID": f"{image}.jpg#0r{said}", "sentence1": "", "sentence2": sentence,
            })  # fmt: skip
    return entries


MISSING = {"image is not in the store (incorrect)": 1}
NO_BASELINES = "not fitted: --train-data was not given"
SETTINGS = {"epochs": 80.0, "batch_size": 40, "learning_rate": 2e-3, "workers": 0}


def test_entailment_is_learnt_from_picture_and_sentence_together(store: RegionStore, tmp_path: Path):
    run, data = write_pretrained(tmp_path / "run", SENTENCES), write(tmp_path / "train.jsonl", entailments())
    settings = SETTINGS | {"model": run, "data": data, "regions": store.folder, "validation": data}
    assert train(snli_ve.recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    out = tmp_path / "out"
    found = snli_ve.evaluate_entailment(tmp_path / "tuned", data, store.folder, out=out)
    assert json.loads((out / "card.json").read_text())["settings"]["baselines"] == NO_BASELINES
    assert found["entailment.accuracy"] >= 0.95
    assert found["entailment.chance_level"] == 0.5
    for blank in (
        "image",
        "text",
    ):  # a sentence alone, or a picture alone, says nothing: each is half of the time true
        blind = snli_ve.evaluate_entailment(tmp_path / "tuned", data, store.folder, ablate=blank)
        assert blind["entailment.accuracy"] == pytest.approx(0.5, abs=0.15)
    predictions = dict(line.split(",") for line in (out / "predictions.csv").read_text().splitlines())
    assert len(predictions) == 80
    right = [predictions[entry["pairID"]] == entry["gold_label"] for entry in entailments()]
    assert np.mean(right) == pytest.approx(found["entailment.accuracy"])
    card = json.loads((out / "card.json").read_text())
    assert card["scores"]["accuracy"]["value"] == found["entailment.accuracy"]
    assert "by hand" in card["regions"]


def pairs_of(count: int = 120) -> list[dict]:
    """Two pictures and whether the first one has a colour; each sentence is as often true as false."""
    entries = []
    rng = np.random.default_rng(0)
    for number in range(count):
        colour, label = number % 4, number // 4 % 2
        left = int(rng.choice([i for i in range(40) if (colour_of(i) == colour) == bool(label)]))
        entries.append({"sentence": SENTENCES[colour], "label": str(bool(label)), "identifier": f"train-{number}-0-0",
                        "left": left, "right": int(rng.integers(40))})  # fmt: skip
    return entries


@pytest.mark.slow
def test_two_pictures_meet_one_sentence(tmp_path: Path):
    entries = pairs_of()
    plain = write_colours(tmp_path / "plain")
    with RegionWriter(tmp_path / "regions", DIM) as writer:
        for entry in entries:
            for side, row in ((0, entry["left"]), (1, entry["right"])):
                inside, name = plain.read_regions(row), f"train/7/{entry['identifier'][:-2]}-img{side}"
                writer.add(name, inside.features.astype(np.float32), inside.boxes, inside.width, inside.height)
    run, data = write_pretrained(tmp_path / "run", SENTENCES), write(tmp_path / "train.json", entries)
    settings = SETTINGS | {"model": run, "data": data, "regions": tmp_path / "regions"}
    assert train(nlvr2.recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    found = nlvr2.evaluate_nlvr2(tmp_path / "tuned", data, tmp_path / "regions")
    assert found["nlvr2.accuracy"] >= 0.9
    assert found["nlvr2.chance_level"] == 0.5
    write(data, [*entries, entries[0] | {"identifier": "train-999-0-0"}])
    with pytest.raises(DataError, match=r"train\.json: the images of 1 of 121 items .* 'train-999-0-0'"):
        nlvr2.evaluate_nlvr2(tmp_path / "tuned", data, tmp_path / "regions")  # as the official script does


def test_official_lines_are_read(tmp_path: Path):
    line = {  # as in the official test1.json
        "sentence": "There is a dog.", "identifier": "test1-0-1-0", "label": "False", "synset": "golden retriever",
        "query": "two dogs0", "left_url": "http://a", "right_url": "http://b", "validation": {"36": "False"},
    }  # fmt: skip
    (statement,), left_out = nlvr2.read_nlvr2_sentences(write(tmp_path / "test1.json", [line]))
    assert statement.images == ("test1-0-1-img0", "test1-0-1-img1")
    assert (statement.key, statement.label, left_out) == ("test1-0-1-0", "False", {})
    assert statement.group == "test1-0"  # the set whose pictures and sentences were made together
    disputed = {"Flickr30K_ID": "1", "pairID": "1.jpg#0r1", "sentence2": "A dog.", "gold_label": "-"}
    statements, left_out = snli_ve.read_snli_ve_sentences(write(tmp_path / "dev.jsonl", [disputed]))
    assert (statements, left_out) == ([], {"annotators do not agree": 1})


def test_images_are_found_by_any_of_their_names(tmp_path: Path):
    with RegionWriter(tmp_path / "coco", DIM) as writer:
        for name in ("val2014/COCO_val2014_000000000042", "a/same", "b/same", "12"):
            writer.add(name, np.ones((1, DIM), np.float32), np.array([[0, 0, 1, 1]], np.float32), 2, 2)
    rows = ImageRows(RegionStore(tmp_path / "coco"))
    names = (
        "42",
        "COCO_val2014_000000000042.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
        "000000000012",
        "b/same.png",
    )
    assert [rows.find(name) for name in names] == [0, 0, 0, 3, 2]
    assert [rows.find(name) for name in ("same", "7", "x42")] == [None] * 3  # two are called so; nobody; another
    assert list(rows.missing) == ["same", "7", "x42"]


def test_without_labels_there_are_predictions_and_no_score(
    store: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run, data = write_pretrained(tmp_path / "run", SENTENCES), write(tmp_path / "train.jsonl", entailments())
    settings = SETTINGS | {"model": run, "data": data, "regions": store.folder, "epochs": 0.2}
    train(snli_ve.recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32")
    without = [{name: value for name, value in entry.items() if name != "gold_label"} for entry in entailments(3)]
    test = write(tmp_path / "test.jsonl", [*without, {**without[0], "Flickr30K_ID": "999", "pairID": "x"}])
    found = snli_ve.evaluate_entailment(tmp_path / "tuned", test, store.folder, out=tmp_path / "out")
    assert found == {"entailment.items": 7.0}
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 6
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["scores"] == {} and card["counts"] == MISSING | {"items": 7, "predicted": 6}
    said = capsys.readouterr().out
    assert "1 counted as incorrect: image is not in the store" in said and "there is no score" in said
    labelled = write(tmp_path / "some.jsonl", [*entailments(3), entailments(1)[0] | {"Flickr30K_ID": "999"}])
    found = snli_ve.evaluate_entailment(tmp_path / "tuned", labelled, store.folder, out=tmp_path / "out")
    assert found["entailment.accuracy"] == pytest.approx(found["entailment.accuracy.predicted"] * 6 / 7)
    others = write(tmp_path / "others.jsonl", [*entailments()[6:], entailments(4)[-1] | {"gold_label": "neutral"}])
    snli_ve.evaluate_entailment(tmp_path / "tuned", labelled, store.folder, out=tmp_path / "out", train_data=others)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    # 37 of each class and a neutral one: contradiction is the first of equals, and right for 3 of 7
    assert card["scores"]["baseline: most frequent label"]["value"] == pytest.approx(3 / 7)
    assert set(card["scores"]) >= {"baseline: bag of words", "baseline: bag of words and region features"}
    assert "linear models on 75 of 75 training items, 3 labels" in card["settings"]["baselines"]
    shown = results(tmp_path / "out")
    assert shown["..baseline: most frequent label"] == pytest.approx(3 / 7)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["counts"] == MISSING | {"items": 7, "predicted": 6}
    assert card["scores"]["accuracy, of the predicted items"]["value"] == found["entailment.accuracy.predicted"]
    assert card["settings"]["95 % interval"].startswith("Wilson, 7 items in 4 images")
    half = write(tmp_path / "half.jsonl", [*entailments(2), without[0] | {"pairID": "y"}])
    with pytest.raises(DataError, match=r"half\.jsonl: 1 of 5 statements have no label, the first is y"):
        snli_ve.evaluate_entailment(tmp_path / "tuned", half, store.folder)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"Flickr30K_ID": "1"', "line 1: not JSON .*; the file may be truncated"),
        ('{"Flickr30K_ID": 1, "pairID": "a", "sentence2": "b"}', "line 1: 'Flickr30K_ID' is 1, not text"),
        ('{"Flickr30K_ID": "1", "pairID": "a", "sentence2": "b"}', "a has no label to train on"),
        ('{"Flickr30K_ID": "1", "pairID": "a", "sentence2": "b", "gold_label": "maybe"}', "a is 'maybe'; SNLI-VE has"),
        ('{"Flickr30K_ID": "x", "pairID": "a", "sentence2": "b", "gold_label": "neutral"}', "none of its images is in"),
        ("", r"train\.jsonl: no statements"),
    ],
)
def test_a_line_that_cannot_be_used_is_told(
    store: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture, line: str, sentence: str
):
    run, data = write_pretrained(tmp_path / "run", SENTENCES), tmp_path / "train.jsonl"
    data.write_text(line)
    words = ["train", "entailment", "--model", str(run), "--data", str(data), "--regions", str(store.folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1

    assert re.search(sentence, capsys.readouterr().err)
