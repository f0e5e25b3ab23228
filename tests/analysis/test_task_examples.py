"""The examples on a task's page are those of its validation: answers and boxes are those that the evaluation gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.analysis.co_attention import index_image_files
from comodal.analysis.reports.report import write_report
from comodal.analysis.reports.task_examples import (
    TaskPrediction,
    build_answer_table,
    format_text_attention,
    mark_predicted_region,
)
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.tasks.vision_language.question_answering.vqa import evaluate_vqa
from comodal.tasks.vision_language.text_image_examples import (
    FixedExamples,
    TaskDataset,
    TaskExample,
    tokenize_text,
    tokenize_text_pair,
)
from comodal.tasks.vision_language.vilbert_fine_tuning import load_fine_tuned_model, score_batch
from tests.support.self_contained import check_page
from tests.support.small_tasks import SIDE
from tests.tasks.vision_language.test_vqa import store, tuned, write_files

__all__ = ["store"]


CPU = Compute(torch.device("cpu"))


def photographs(folder: Path, store: RegionStore) -> Path:
    folder.mkdir()
    for image in store.ids:
        Image.new("RGB", (SIDE, SIDE), (200, 200, 200)).save(folder / f"{image}.png")
    return folder


def test_marks_agree_with_the_score_and_answers_with_the_submission(store: RegionStore, tmp_path: Path):
    questions, annotations = write_files(tmp_path / "val", list(range(36, 40)), "val2014")
    held_out = {"validation_questions": questions, "validation_annotations": annotations}
    run = tuned(tmp_path, store, epochs=3.0, **held_out)
    numbers = evaluate_vqa(run, questions, store.folder, annotations, out=tmp_path / "card")
    write_report(run, tmp_path / "page.html", images=photographs(tmp_path / "images", store))
    page = check_page((tmp_path / "page.html").read_text())
    found = re.search(r"Of 4 examples of its validation data, evaluated for this page, (\d) predictions", page.text)
    assert found is not None
    # nine of ten people agree: an answer is right for all or for one, whose official accuracy is 0.3
    right = int(found.group(1))
    assert right == round(numbers["vqa.accuracy"] * 4) or numbers["vqa.accuracy"] * 4 == pytest.approx(right, abs=1.2)
    marks = [text for text in page.texts_of("p") if text in {"correct", "incorrect"}]
    assert marks == ["correct"] * min(right, 3) + ["incorrect"] * min(4 - right, 3)
    told = {entry["answer"] for entry in json.loads((tmp_path / "card" / "submission.json").read_text())}
    first = {table.rows[1][0] for table in page.tables if table.caption == "Predictions"}
    assert first <= told and first
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "val" / "another.png")
    with pytest.raises(DataError, match="has no image named"):
        write_report(run, tmp_path / "none.html", images=tmp_path / "val")
    assert not (tmp_path / "none.html").exists()


def test_training_examples_are_called_so_and_missing_files_are_told(store: RegionStore, tmp_path: Path):
    run, images = tuned(tmp_path, store, epochs=1.0), photographs(tmp_path / "images", store)
    write_report(run, tmp_path / "page.html", images=images)
    assert "of its training data (the run has no validation data)" in (tmp_path / "page.html").read_text()
    for file in (tmp_path / "files").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"annotations\.json: No such file"):
        write_report(run, tmp_path / "other.html", images=images)


def test_the_attention_that_is_drawn_is_a_share_of_one(store: RegionStore, tmp_path: Path):
    run, images = tuned(tmp_path, store, epochs=1.0), photographs(tmp_path / "images", store)
    asked = load_fine_tuned_model(run, store.folder, "none", 100, CPU, "vqa")
    example = TaskExample("1", (tokenize_text(asked.tokenizer, "what colour is it", 20),), (3,), None)
    seen = TaskDataset(FixedExamples([example]), store, asked.tokenizer, 100, False, "none", 1, None)
    shown = format_text_attention(asked, seen, example, 0, index_image_files(images), images)
    assert shown.text == "what colour is it"
    np.testing.assert_allclose(shown.layers[-1].token_to_region.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(shown.layers[-1].region_to_token.sum(1), 1, atol=1e-5)
    assert np.array_equal(shown.boxes, store.read_regions(3).boxes)
    assert shown.layers[-1].token_to_region.shape[1] == 1 + len(shown.boxes)
    blind = TaskDataset(FixedExamples([example]), store, asked.tokenizer, 100, False, "image", 1, None)
    alone = format_text_attention(asked, blind, example, 0, index_image_files(images), images)
    assert alone.layers[-1].token_to_region.shape[1] == 1 and len(alone.boxes) == 0
    two = example._replace(texts=(tokenize_text_pair(asked.tokenizer, ["what colour"], "it is", 20),))
    other = two._replace(texts=(two.texts[0]._replace(token_types=[0] * len(two.texts[0].token_ids)),))
    parts = [
        format_text_attention(asked, seen, one, 0, index_image_files(images), images).layers[-1].token_to_region
        for one in (two, other)
    ]
    assert not np.allclose(*parts)  # the second text is told from the first
    assert score_batch(asked.model, "vqa", seen.collate([example])).shape[0] == 1


def test_the_box_that_is_drawn_is_the_likeliest(store: RegionStore, tmp_path: Path):
    run, images = tuned(tmp_path, store, epochs=1.0), photographs(tmp_path / "images", store)
    asked = load_fine_tuned_model(run, store.folder, "none", 100, CPU, "vqa")
    example = TaskExample("1", (tokenize_text(asked.tokenizer, "what colour is it", 20),), (3,), None)
    seen = TaskDataset(FixedExamples([example]), store, asked.tokenizer, 100, False, "none", 1, None)
    shown = format_text_attention(asked, seen, example, 0, index_image_files(images), images)
    verdict = TaskPrediction(["whole", "left", "right"], np.array([0.1, 0.2, 0.9]), np.array([0.0, 0.8, 0.0]))
    drawn, fits = mark_predicted_region(shown, verdict)
    assert drawn.grounded_box == (50, 0, 100, 100) and fits is not None and fits.tolist() == [0, 0, 40, 100]
    assert not verdict.is_correct
    whole = TaskPrediction(verdict.names, np.array([0.9, 0.2, 0.1]), np.zeros(3))
    drawn, fits = mark_predicted_region(shown, whole)
    assert drawn.grounded_box == (0, 0, 100, 100) and fits is None


def test_the_right_answer_is_told_even_where_it_is_the_least_likely():
    verdict = TaskPrediction(list("abcdefg"), np.linspace(0.9, 0.1, 7), np.array([0.3, 0, 0, 0, 0, 0, 1.0]))
    rows = [row.cells for row in build_answer_table(verdict).rows]
    assert [cells[0] for cells in rows] == list("abcdeg")
    assert [cells[2] for cells in rows] == ["score 0.30", "", "", "", "", "correct"]
