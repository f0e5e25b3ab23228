"""Items whose image is missing: wrong, or refused where the official evaluation refuses them."""

from pathlib import Path

import numpy as np
import pytest

from comodal.errors import DataError
from comodal.tasks.evaluation.missing_images import (
    build_score_entries,
    check_no_missing_images,
    compute_accuracy_metrics,
    count_items,
    format_missing_count,
    is_paper_protocol,
)
from comodal.tasks.vision_language import nlvr2, snli_ve
from comodal.tasks.vision_language.grounding.refcoco import compute_grounding_fractions
from comodal.tasks.vision_language.question_answering import gqa, visual_genome


def test_both_denominators_worked_by_hand():
    """Of five items in three images four were answered, two of them correctly: 2 of 5, and 2 of 4."""
    correct, answered = np.array([1, 1, 0, 0, 0], bool), np.array([1, 1, 1, 1, 0], bool)
    numbers = compute_accuracy_metrics("task.accuracy", correct, answered, ["a", "a", "b", "b", "c"])
    assert (numbers["task.accuracy"], numbers["task.accuracy.predicted"]) == (0.4, 0.5)
    counts = count_items(5, 4)
    assert counts == {"items": 5, "predicted": 4, "image is not in the store (incorrect)": 1}
    assert format_missing_count(counts) == "; 1 counted as incorrect: image is not in the store"
    scores = build_score_entries("accuracy", "task.accuracy", numbers, counts)
    assert {name: score.value for name, score in scores.items()} == {
        "accuracy": 0.4,
        "accuracy, of the predicted items": 0.5,
    }


def test_boxes_of_missing_images_fit_nothing():
    """Two expressions were answered, one correctly, and the image of a third is missing; of two boxes each one fits."""
    fits = [np.array([True, False]), np.array([False, False])]
    numbers = compute_grounding_fractions("grounding", np.array([True, False]), fits, ["1", "1", "2"])
    assert (numbers["grounding.accuracy"], numbers["grounding.accuracy.predicted"]) == (pytest.approx(1 / 3), 0.5)
    assert numbers["grounding.oracle"] == pytest.approx(1 / 3) and numbers["grounding.chance_level"] == pytest.approx(
        1 / 6
    )


def test_where_nothing_is_missing_there_is_one_score():
    numbers = compute_accuracy_metrics("accuracy", np.ones(3, bool), np.ones(3, bool), ["a", "b", "c"])
    assert list(build_score_entries("accuracy", "accuracy", numbers, count_items(3, 3))) == ["accuracy"]
    assert count_items(3, 3) == {"items": 3, "predicted": 3} and format_missing_count(count_items(3, 3)) == ""


def test_the_official_scripts_that_refuse_are_followed():
    """NLVR2's and GQA's end on a missing prediction; SNLI-VE and Visual Genome have no official script."""
    assert nlvr2.NLVR2_TASK.refuses_missing and gqa.GQA_TASK.refuses_missing
    assert not snli_ve.SNLI_VE_TASK.refuses_missing and not visual_genome.VISUAL_GENOME_TASK.refuses_missing
    check_no_missing_images(Path("dev.json"), "NLVR2", [], 7)
    with pytest.raises(DataError, match=r"dev\.json: the images of 2 of 7 items .* 'dev-1-0-0'"):
        check_no_missing_images(Path("dev.json"), "NLVR2", ["dev-1-0-0", "dev-2-0-0"], 7)


@pytest.mark.parametrize(
    ("missing", "ablate", "training", "expected"),
    [
        (0, "none", {"training ablate": "none"}, True),
        (0, "none", {}, True),
        (1, "none", {}, False),
        (0, "image", {}, False),
        (0, "none", {"training ablate": "text"}, False),
    ],
)
def test_a_papers_number_stands_beside_whole_runs_alone(missing: int, ablate: str, training: dict, expected: bool):
    assert is_paper_protocol(count_items(9, 9 - missing), ablate, training) is expected
