"""Answers about one image, recording or pair of images are no independent items; and NaN is no score of any task."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from comodal.data.regions.region_store import RegionWriter
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.classification_results import ClassProbabilities
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.tasks.vision_language import nlvr2, snli_ve
from comodal.tasks.vision_language.grounding.refcoco import GroundingData, evaluate_grounding, score_expressions
from comodal.tasks.vision_language.question_answering.vqa import compute_vqa_accuracies, evaluate_vqa, score_vqa_answers
from comodal.tasks.vision_language.question_answering.vqa_files import VQAQuestion
from comodal.tasks.vision_language.vcr import evaluate_vcr, score_vcr
from comodal.tasks.vision_language.vcr_files import VCRExample
from tests.support.small_tasks import COLOURS, QUESTION, config, write_colours
from tests.tasks.vision_language.test_nlvr2_and_snli_ve import entailments
from tests.tasks.vision_language.test_refcoco import write_references
from tests.tasks.vision_language.test_refcoco import write_store as write_grounding_store
from tests.tasks.vision_language.test_vcr import riddle, write
from tests.tasks.vision_language.test_vqa import write_files

GROUPS, COPIES = 40, 9
RIGHT = np.repeat(np.random.default_rng(0).random(GROUPS) < 0.6, COPIES)
NAMES = tuple(f"group{number // COPIES}" for number in range(GROUPS * COPIES))


def score_vqa() -> dict[str, float]:
    questions = [VQAQuestion(n, NAMES[n], "is it?", ("yes",) * 10, "yes", "yes/no", "is") for n in range(len(NAMES))]
    predictions = {n: "yes" if right else "no" for n, right in enumerate(RIGHT)}
    return score_vqa_answers(questions, compute_vqa_accuracies(questions, predictions), predictions)


def score_riddles() -> dict[str, float]:
    riddles = [VCRExample(str(n), NAMES[n], "?", ("a",) * 4, ("b",) * 4, 0, 0) for n in range(len(NAMES))]
    rows = {n: np.float32([1, 0, 0, 0] if right else [0, 1, 0, 0]) for n, right in enumerate(RIGHT)}
    whole = {f"{n} {part}": rows[n] for n in rows for part in ("answer", *(f"rationale {i}" for i in range(4)))}
    return score_vcr(riddles, whole)


def score_recordings() -> dict[str, float]:
    """As the probes of DCASE, whose recordings are cut into segments."""
    truth = np.zeros(len(NAMES), np.int64)
    items, answers = tuple(map(str, range(len(NAMES)))), {"trained": np.where(RIGHT, 0, 1)}
    return Comparison(
        "sound", "DCASE", items, ("a", "b"), truth, truth, answers, {"trained": {}}, NAMES
    ).compute_metrics()


TASKS: dict[str, Callable[[], dict[str, float]]] = {
    "VQA, images": score_vqa,
    "VCR, images": score_riddles,
    "RefCOCO, images": lambda: score_expressions(np.where(RIGHT, 0.9, 0.1), GroundingData([], [], {}), NAMES),
    "DCASE, recordings": score_recordings,
}


def wilson(share: float, items: int) -> tuple[float, float]:
    """Wilson (1927), written once more."""
    z = 1.959963984540054
    middle, half = share + z**2 / (2 * items), z * np.sqrt(share * (1 - share) / items + z**2 / (4 * items**2))
    return (middle - half) / (1 + z**2 / items), (middle + half) / (1 + z**2 / items)


@pytest.mark.parametrize("task", TASKS)
def test_nine_answers_of_a_group_that_agree_count_as_one(task: str):
    numbers = TASKS[task]()
    intervals = [key.removesuffix(".low") for key in numbers if key.endswith(".low")]
    assert intervals
    for key in intervals:
        low, high = wilson(numbers[key], GROUPS)
        found = numbers[f"{key}.low"], numbers[f"{key}.high"]
        assert_allclose(found, (low, high), atol=0.03)
        narrow = wilson(numbers[key], GROUPS * COPIES)
        assert found[1] - found[0] > 2 * (narrow[1] - narrow[0])


def test_images_that_are_classified_are_independent_items(tmp_path: Path):
    items = [LabeledFile(tmp_path / str(n), str(n), "a", True) for n in range(len(RIGHT))]
    scores = np.stack([np.where(RIGHT, 0.9, 0.1), np.where(RIGHT, 0.1, 0.9)], 1)
    told = ClassProbabilities("image_classes", "vision", "t", "test", tmp_path, items, ("a", "b"), scores, {})
    numbers = told.build_comparison().compute_metrics()
    found = numbers["vision.fine_tuned.low"], numbers["vision.fine_tuned.high"]
    assert_allclose(found, wilson(RIGHT.mean(), len(RIGHT)), rtol=1e-6)
    assert told.build_comparison().describe_intervals(numbers) == "Wilson, 360 independent items"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViLBERT with a head for every task."""
    torch.manual_seed(0)
    words = WordPieceTokenizer.from_texts([QUESTION, " ".join(COLOURS), "it is the one since i see ? ."])
    kinds = [Head("vqa", "answers", 4, 8), Head("regions", "regions", 1), Head("score", "linear", 1)]
    kinds += [Head("pairs", "pairs", 2, 8), Head("entailment", "linear", 3)]
    folder = tmp_path_factory.mktemp("run")
    save_model(TaskModel(TaskModelConfig(config(words.size), tuple(kinds))), folder, {})
    words.save(folder)
    (folder / "answers.json").write_text(json.dumps(COLOURS))
    return folder


def evaluate_task(task: str, run: Path, folder: Path) -> dict[str, float]:
    """One small evaluation."""
    folder.mkdir()
    if task == "grounding":
        references, instances = write_references(folder / "refcoco", 4)
        return evaluate_grounding(
            run, references, instances, write_grounding_store(folder / "boxes", 4).folder, "train"
        )
    store = write_colours(folder / "regions", 8)
    match task:
        case "vqa":
            questions, annotations = write_files(folder / "files", [*range(6)])
            return evaluate_vqa(run, questions, store.folder, annotations)
        case "vcr":
            return evaluate_vcr(run, write(folder / "val.jsonl", [riddle(n, "val") for n in range(4)]), store.folder)
        case "entailment":
            return snli_ve.evaluate_entailment(run, write(folder / "dev.jsonl", entailments(4)), store.folder)
    entry = {"sentence": "it is red", "label": "True", "identifier": "dev-0-0-0"}
    with RegionWriter(folder / "pairs", 8, about={"boxes": "by hand"}) as writer:
        inside = store.read_regions(0)
        for side in (0, 1):
            writer.add(f"dev-0-0-img{side}", inside.features.astype(np.float32), inside.boxes, 100, 100)
    return nlvr2.evaluate_nlvr2(run, write(folder / "dev.json", [entry]), folder / "pairs")


@pytest.mark.parametrize("task", ["vqa", "vcr", "grounding", "nlvr2", "entailment"])
def test_nan_is_refused_before_the_metric(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str):
    """The same evaluation has a score where the numbers are finite."""
    numbers = evaluate_task(task, untrained, tmp_path / "finite")
    assert all(np.isfinite(value) for value in numbers.values())
    plain = TaskModel.forward
    monkeypatch.setattr(TaskModel, "forward", lambda *args, **named: plain(*args, **named) * float("nan"))
    with pytest.raises(DataError, match=r"scores are NaN or infinite, so there is no result"):
        evaluate_task(task, untrained, tmp_path / "nan")
