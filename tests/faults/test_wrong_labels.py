"""Label files and results cards that are damaged or of another version end in one sentence that names the file."""

import json
from pathlib import Path

import pytest

from comodal.data.captions.caption_files import read_captions
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import read_model_config
from comodal.regions.image_list import read_image_boxes
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_card, results, write_card
from comodal.tasks.vision_language.answer_files import read_answer_vocabulary
from comodal.tasks.vision_language.grounding.prepare_boxes import prepare_boxes
from comodal.tasks.vision_language.question_answering.gqa import read_gqa_questions
from comodal.tasks.vision_language.question_answering.visual_genome import read_visual_genome_questions
from comodal.tasks.vision_language.question_answering.vqa_files import read_vqa_questions
from comodal.tasks.vision_language.vcr_files import read_vcr_boxes, read_vcr_examples
from comodal.text_files import read_json, read_json_lines


def read_boxes(path: Path) -> object:
    return read_image_boxes(path, path.parent)


DEEP = "[" * 100_000  # more than a reader's stack
RIDDLE = {
    "annot_id": "val-0",
    "img_fn": "a.jpg",
    "objects": ["person", "dog"],
    "question": ["what", "is", [1]],
    "answer_choices": [["yes"]] * 4,
    "rationale_choices": [["so"]] * 4,
    "answer_label": 1,
    "rationale_label": 2,
}


@pytest.mark.parametrize(
    "read",
    [read_json, read_card, read_boxes, lambda path: list(read_json_lines(path))],
)
def test_lists_within_lists_without_end_are_told(tmp_path: Path, read):
    (tmp_path / "deep.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"deep\.json.*deeper than"):
        read(tmp_path / "deep.json")


def test_a_model_of_lists_without_end_is_told(tmp_path: Path):
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match=r"config\.json: .*deeper than"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"answer_label": 1.0}, "line 1: 'answer_label' is 1.0, not 0 to 3"),
        ({"answer_label": True}, "line 1: 'answer_label' is True, not 0 to 3"),
        ({"answer_label": 4}, "line 1: 'answer_label' is 4, not 0 to 3"),
        ({"objects": ["dog", None]}, "line 1: None in 'objects' is not a class name"),
        ({"objects": ["dog", 7]}, "line 1: 7 in 'objects' is not a class name"),
        ({"objects": ["dog", []]}, r"line 1: \[\] in 'objects' is not a class name"),
    ],
)
def test_riddles_of_another_version_are_told_by_their_line(tmp_path: Path, changed: dict, sentence: str):
    path = tmp_path / "val.jsonl"
    path.write_text(json.dumps(RIDDLE))
    assert read_vcr_examples(path, 0)[0].question == "what is dog"
    path.write_text(json.dumps(RIDDLE | changed))
    with pytest.raises(DataError, match=rf"val\.jsonl, {sentence}"):
        read_vcr_examples(path, 0)


@pytest.mark.parametrize("side", ["null", '"a"', "[]", "NaN", "1e999", "1" + "0" * 400])
def test_boxes_that_are_no_numbers_are_told(tmp_path: Path, side: str):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.json").write_text(f'{{"boxes": [[{side}, 0, 1, 1]]}}')
    with pytest.raises(DataError, match=r"a\.json: no 'boxes' of left"):
        read_vcr_boxes(tmp_path / "tree")


def test_a_box_beyond_all_numbers_is_told(tmp_path: Path):
    images, box = [{"id": 1, "file_name": "a.jpg"}], [10**400, 0, 1, 1]
    content = {"images": images, "annotations": [{"id": 1, "image_id": 1, "bbox": box}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"instances\.json: bbox .* is not left"):
        prepare_boxes(tmp_path / "instances.json", tmp_path / "boxes.jsonl")
    assert not (tmp_path / "boxes.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        *((name, None, f"'{name}' is None") for name in ("task", "title", "split", "model", "scores", "counts")),
        *((name, [], rf"'{name}' is \[\]") for name in ("files", "seeds", "settings", "versions", "regions")),
        ("scores", {"accuracy": 0.5}, "the score 'accuracy' is 0.5"),
        ("scores", {"accuracy": {"value": 0.5}}, "the score 'accuracy' is {'value': 0.5}"),
        ("scores", {"a": {"value": None, "low": None, "high": None, "paper": None}}, "the score 'a' is {'value': None"),
        ("scores", {"a": {"value": 0.5, "low": 0.4, "high": None, "paper": None}}, "the score 'a' is {'value': 0.5"),
        ("scores", {"a": {"value": "q", "low": None, "high": None, "paper": None}}, "the score 'a' is {'value': 'q'"),
    ],
)
def test_cards_of_another_version_are_told_by_their_file(tmp_path: Path, name: str, value: object, sentence: str):
    write_card(ResultsCard("vqa", "VQA v2", "val", {"accuracy": ScoreEntry(0.5, 0.4, 0.6)}, "run"), tmp_path)
    assert results(tmp_path) == {"..accuracy": 0.5}
    content = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(DataError, match=rf"card\.json: a results card of another version: {sentence}"):
        results(tmp_path)
    del content[name]
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"card\.json: a results card of another version: '{name}' is None"):
        results(tmp_path)


@pytest.mark.parametrize(
    ("read", "content", "sentence"),
    [
        (read_captions, '[{"image": ["a.jpg"], "caption": "a dog"}]', "1 x image is not text"),
        (read_captions, '[{"image": true, "caption": "a dog"}]', "1 x image is not text"),
        (read_captions, '[{"image": 1.5, "caption": "a dog"}]', "1 x image is not text"),
        (
            read_captions,
            '{"images": [{"id": 1}, {"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}',
            "two images have the same id",
        ),
        (read_captions, "image,caption,caption\na.jpg,a dog,a cat\n", "two columns named 'caption'"),
        (read_answer_vocabulary, '{"yes": false, "no": true}', "do not have the indices"),
        (
            read_gqa_questions,
            '{"7": {"question": "x", "imageId": "5", "isBalanced": "false"}}',
            "'isBalanced' of question 7 is 'false', not true or false",
        ),
        (
            read_visual_genome_questions,
            '[{"id": 9, "qas": [{"qa_id": 7, "image_id": 1, "question": "x", "answer": "y"}]}]',
            "qa_id 7 is about image 1, and is listed with image 9",
        ),
        (
            read_visual_genome_questions,
            '[{"id": 1, "qas": [{"qa_id": true, "image_id": 1, "question": "x", "answer": "y"}]}]',
            "question True has no 'qa_id'",
        ),
        (read_boxes, '{"image": "a.jpg", "boxes": [[0, 0, Infinity, 5]]}', "line 1: .*a side of a box is not finite"),
        (read_boxes, '{"image": "a.jpg", "boxes": [[0, 0, NaN, 5]]}', "line 1: .*a side of a box is not finite"),
        (read_boxes, '{"image": null, "boxes": [[0, 0, 5, 5]]}', "line 1: .*the image None is not text"),
    ],
)
def test_values_of_another_type_are_not_converted_in_silence(tmp_path: Path, read, content: str, sentence: str):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=rf"labels\.json[^\n]*{sentence}"):
        read(tmp_path / "labels.json")


@pytest.mark.parametrize("answer", [None, 5, ["yes"], True])
def test_a_human_answer_is_text(tmp_path: Path, answer: object):
    """`str` would make an answer "None" of it."""
    annotation = {"question_id": 1, "image_id": 2, "answers": [{"answer": answer}], "multiple_choice_answer": "yes"}
    (tmp_path / "q.json").write_text('{"questions": [{"question_id": 1, "image_id": 2, "question": "is it?"}]}')
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(DataError, match=r"a\.json: question 1 has the answer .*, which is not text"):
        read_vqa_questions(tmp_path / "q.json", tmp_path / "a.json")
