"""Visual Genome's questions: its official file as it is, answers in VQA's way of writing, and what must be told."""

import json
import re
from pathlib import Path

import pytest

from comodal.cli.program import main
from comodal.tasks.vision_language.question_answering.visual_genome import (
    evaluate_visual_genome,
    read_visual_genome_questions,
    recipe,
)
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, QUESTION, colour_of, write_colours, write_pretrained


def question(number: int, image: int, text: str, answer: str) -> dict:
    return {"qa_id": number, "image_id": image, "question": text, "answer": answer, "a_objects": [], "q_objects": []}


def write(path: Path, images: range) -> Path:
    found = [
        {"id": image, "qas": [question(1000 + image, image, f"{QUESTION}?".capitalize(), f"{said.capitalize()}.")]}
        for image in images
        for said in [COLOURS[colour_of(image)]]
    ]
    path.write_text(json.dumps(found))
    return path


def test_official_entries_are_read_in_vqas_way_of_writing(tmp_path: Path):
    inside = [question(1, 4, "What is on the couch?", "A teddy bear."), question(2, 4, "How many?", "Two."),
              question(3, 4, "Is it, though?", "In a home office."), question(4, 4, "Why?", "The.")]  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps([{"id": 4, "qas": inside}, {"id": 5, "qas": []}]))
    every, left_out = read_visual_genome_questions(tmp_path / "q.json")
    assert [one.answer for one in every] == ["teddy bear", "2", "in home office"]
    assert [one.kinds for one in every] == [("what",), ("how",), ("other",)]
    assert list(left_out.values()) == [1]  # of "The." nothing is left


def test_it_answers_by_looking(tmp_path: Path):
    store, run = write_colours(tmp_path / "regions"), write_pretrained(tmp_path / "run", [QUESTION])
    settings = {"model": run, "questions": write(tmp_path / "train.json", range(36)), "regions": store.folder,
                "epochs": 25.0, "batch_size": 8, "learning_rate": 2e-3, "workers": 0,
                "min_answer_count": 3}  # fmt: skip
    assert train(recipe, settings, tmp_path / "vg", device="cpu", precision="fp32") == 0
    held_out = write(tmp_path / "held_out.json", range(36, 40))
    found = evaluate_visual_genome(tmp_path / "vg", held_out, store.folder, out=tmp_path / "out")
    assert found["visual_genome.accuracy"] == 1.0 == found["visual_genome.what"]
    assert found["visual_genome.majority"] == 0.25
    assert json.loads((tmp_path / "out" / "submission.json").read_text())[0] == {
        "qa_id": 1036, "answer": COLOURS[colour_of(36)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "is a list of images with 'qas'"),
        ('[{"id": 4}]', "image 0: no list of 'qas'"),
        ('[{"id": 4, "qas": [{"qa_id": 7, "image_id": 4}]}]', "image 0: question 7 has no 'question'"),
        ('[{"id": 4, "qas": [3]}]', "image 0: question 3 has no 'qa_id'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture, content: str, sentence: str):
    store, run = write_colours(tmp_path / "regions", 1), write_pretrained(tmp_path / "run", [QUESTION])
    (tmp_path / "q.json").write_text(content)
    words = ["train", "visual_genome", "--model", str(run), "--questions", str(tmp_path / "q.json")]
    assert main([*words, "--regions", str(store.folder), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 1
    assert re.search(sentence, capsys.readouterr().err)
