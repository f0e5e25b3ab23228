"""Referring expression comprehension: RefCOCO+ (ViLBERT, section 3.3), RefCOCO and RefCOCOg.

A linear layer scores each region from its last hidden state. The target is the region's IoU with the object where that
is at least 0.5, else 0; batches of 256, learning rate 4e-5, 20 epochs. Departs from the paper, which thresholds the IoU
at 0.5 to targets of 0 and 1, and follows its code. A prediction is correct if the best region, which may be the
whole image, has an IoU above 0.5 with the object.

Accuracies are comparable only for equal candidate boxes. The paper uses MAttNet's detections; the original's later code
uses 100 boxes of a detector, which contain a correct box more often. Every result therefore has the source of the boxes
and the fraction of expressions for which any box is correct.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from comodal.console import print_line
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.evaluation.metrics import describe_interval
from comodal.tasks.evaluation.missing_images import (
    INTERVAL_NAME,
    build_score_entries,
    compute_accuracy_numbers,
    count_items,
    format_missing_count,
    is_paper_protocol,
)
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.vision_language.grounding.refcoco_files import (
    GROUNDING_HEAD,
    ReferringExpression,
    compute_inclusive_iou,
    read_expressions,
)
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    EvaluationOptions,
    LoadedTaskModel,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    compute_region_loss,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.recipe_run import Run

REFCOCO_MAX_TOKENS = 20
MIN_CORRECT_IOU = 0.5  # IoU
GroundingAblation = Literal["nothing", "text"]
RefCOCOSplit = Literal["train", "val", "test", "testA", "testB"]
# ViLBERT, table 1 (MAttNet's detections), by split and its number of expressions in RefCOCO+
REFCOCO_PAPER_ACCURACY = {("val", 10_758): 0.7234, ("testA", 5_726): 0.7852, ("testB", 4_889): 0.6261}


@dataclass(frozen=True)
class GroundingFineTuneConfig(ViLBERTFineTuneConfig):
    """The options of the recipes of grounding; the defaults are RefCOCO+'s.

    Args:
        learning_rate: Learning rate of the network and of the new head.
        blank: Ablate the text, to measure what positions and appearance predict alone.
    """

    blank: GroundingAblation = "nothing"


@dataclass(frozen=True)
class GroundingEvaluation(EvaluationOptions):
    """The options of the evaluations of grounding.

    Args:
        blank: Ablate the text.
    """

    blank: GroundingAblation = "nothing"


GROUNDING_FINE_TUNING = GroundingFineTuneConfig(batch_size=256, learning_rate=4e-5)
GROUNDING_EVALUATION = GroundingEvaluation()


@flatten_parameters
def recipe(
    model: Path,
    references: Path,
    instances: Path,
    regions: Path,
    max_words: int = REFCOCO_MAX_TOKENS,
    fine_tune: GroundingFineTuneConfig = GROUNDING_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to ground referring expressions to regions.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        references: Official refs(unc).p, refs(umd).p or refs(google).p; no code in the pickle is executed.
        instances: The instances.json in the same folder.
        regions: The region store of the images; its boxes are the candidates.
        max_words: Maximum number of tokens of an expression.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train grounding --model RUN --references "refs(unc).p" --instances instances.json --regions r/ --out g
    """
    parts = load_fine_tuning_data(model, regions, fine_tune)
    every = read_expressions(references, instances)
    found = {
        split: FixedExamples(
            build_grounding_examples(
                every, split, references, parts.store, parts.words, max_words, fine_tune.max_regions
            ).examples
        )
        for split in ("train", "val")
    }
    return build_vilbert_run(
        parts,
        fine_tune,
        GROUNDING_HEAD,
        compute_region_loss,
        found["train"],
        found["val"] if len(found["val"]) else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, [references, instances]),
        {},
    )


class GroundingData(NamedTuple):
    """Examples, expressions whose image is missing, and the IoU of each region with the known boxes."""

    examples: list[TaskExample]
    missing: list[ReferringExpression]
    overlaps: dict[str, Float32[np.ndarray, "rows"]]


def build_grounding_examples(
    every: Sequence[ReferringExpression],
    split: str,
    references: Path,
    store: RegionStore,
    words: WordPieceTokenizer,
    max_words: int,
    max_regions: int,
) -> GroundingData:
    """The expressions of a split whose image is in the store; row 0 is the whole image.

    Raises:
        DataError: The file has no such split, or none of its images is in the store.
    """
    chosen = [expression for expression in every if expression.split == split]
    there = Counter(expression.split for expression in every)
    if not chosen and split != "val":
        raise DataError(f"{references}: there is no split {split!r}; there are {', '.join(sorted(there))}")
    is_coco = any(isinstance(expression.image, int) for expression in chosen)  # Flickr30k's image ids are text
    rows, gathered = ImageRows(store, "coco" if is_coco else "plain"), GroundingData([], [], {})
    for expression in chosen:
        row = rows.find(str(expression.image))
        if row is None:
            gathered.missing.append(expression)
            continue
        key, target = str(expression.sentence), None
        if expression.box is not None:
            inside = store.regions(row)
            whole = np.array([[0, 0, inside.width, inside.height]], np.float32)
            overlaps = compute_inclusive_iou(
                np.concatenate([whole, inside.boxes[:max_regions]]), expression.box
            ).astype(np.float32)
            gathered.overlaps[key] = overlaps
            target = np.where(overlaps < MIN_CORRECT_IOU, 0, overlaps).astype(np.float32)
        gathered.examples.append(TaskExample(key, (tokenize_text(words, expression.text, max_words),), (row,), target))
    rows.check(references, len(gathered.examples))
    return gathered


@flatten_parameters
def evaluate_grounding(
    model: Path,
    references: Path,
    instances: Path,
    regions: Path,
    split: RefCOCOSplit = "val",
    max_words: int = REFCOCO_MAX_TOKENS,
    evaluation: GroundingEvaluation = GROUNDING_EVALUATION,
) -> dict[str, float]:
    """Grounds each referring expression to a region, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train grounding`.
        references: Official refs(unc).p, refs(umd).p or refs(google).p; no code in the pickle is executed.
        instances: The instances.json in the same folder.
        regions: The region store of the images; its boxes are the candidates.
        split: Split of the references: val, testA or testB; val or test in RefCOCOg.
        max_words: Maximum number of tokens of an expression.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        out: Folder for results.json, predictions.json and the results card; nothing is written without it.

    Returns:
        grounding.accuracy with its interval, grounding.oracle (any of the boxes is correct) and grounding.chance (a
        random box).

    Raises:
        DataError: A file is missing or damaged, has no such split, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate grounding --model r --references "refs(unc).p" --instances instances.json --regions r/
    """
    asked = evaluation.load_model(model, regions, GROUNDING_HEAD.name)
    every = read_expressions(references, instances)
    found = build_grounding_examples(
        every, split, references, asked.store, asked.words, max_words, evaluation.max_regions
    )
    if not found.examples:
        raise DataError(f"{references}: there is no expression in the split {split!r}")
    predictions = predict_boxes(asked, found, every)
    counts = count_items(len(predictions) + len(found.missing), len(predictions))
    groups = group_by_image(predictions, found)
    numbers = score_expressions(np.array([entry["iou"] for entry in predictions]), found, groups)
    source = str(asked.store.about["made_from"])
    print_line(
        f"{references.name}, {split}: {counts['items']:,} expressions{format_missing_count(counts)}; boxes: {source}"
    )
    if evaluation.out is not None:
        write_bytes_atomically(evaluation.out / "predictions.json", (json.dumps(predictions, indent=0) + "\n").encode())
    files = {"references": references, "instances": instances}
    settings = {"blank": evaluation.blank, INTERVAL_NAME: describe_interval(groups, "images")}
    report_results(
        numbers, build_grounding_card(numbers, model, split, files, source, settings, counts), evaluation.out
    )
    return numbers


def predict_boxes(
    asked: LoadedTaskModel, found: GroundingData, every: Sequence[ReferringExpression]
) -> list[dict[str, Any]]:
    """The predicted box of each expression, with its IoU where the correct box is known."""
    expressions, predictions = {str(expression.sentence): expression for expression in every}, []
    for one in score_examples(asked, GROUNDING_HEAD.name, found.examples):
        inside, overlaps = asked.store.regions(one.example.rows[0]), found.overlaps.get(one.example.key)
        best = int(one.scores[: len(inside.boxes[: asked.max_regions]) + 1].argmax())
        whole = [0.0, 0.0, float(inside.width), float(inside.height)]
        left, top, right, bottom = inside.boxes[best - 1].tolist() if best else whole
        entry = {"box": [left, top, right - left, bottom - top]}  # in COCO's format; row 0 is the whole image
        known = {} if overlaps is None else {"iou": float(overlaps[best])}
        predictions.append(entry | known | identify_expression(expressions[one.example.key]))
    return predictions


def identify_expression(expression: ReferringExpression) -> dict[str, object]:
    """The identifiers of the expression that a prediction is for."""
    return {"sent_id": expression.sentence, "ref_id": expression.reference, "image_id": expression.image}


def group_by_image(predictions: Sequence[Mapping[str, Any]], found: GroundingData) -> list[str]:
    """The image of each prediction, then of each expression whose image is missing."""
    return [str(entry["image_id"]) for entry in predictions] + [str(one.image) for one in found.missing]


def score_expressions(ious: np.ndarray, found: GroundingData, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy of the expressions, with the upper bound and chance level of the boxes."""
    return compute_grounding_fractions(
        "grounding",
        ious > MIN_CORRECT_IOU,
        [overlaps > MIN_CORRECT_IOU for overlaps in found.overlaps.values()],
        groups,
    )


def compute_grounding_fractions(
    task: str, right: Bool[np.ndarray, "items"], boxes_right: Sequence[Bool[np.ndarray, "rows"]], groups: Sequence[str]
) -> dict[str, float]:
    """Accuracy with its interval, the fraction of items with any correct box, and the mean fraction of correct boxes.

    `groups` are the images of all items; those after the predicted ones are missing, and count as incorrect.
    """
    missing = len(groups) - len(right)
    present = np.arange(len(groups)) < len(right)
    return compute_accuracy_numbers(f"{task}.accuracy", np.pad(right, (0, missing)), present, groups) | {
        f"{task}.oracle": float(np.sum([each.any() for each in boxes_right]) / len(groups)),
        f"{task}.chance": float(np.sum([each.mean() for each in boxes_right]) / len(groups)),
    }


def build_grounding_card(
    numbers: Mapping[str, float], model: Path, split: str, files: Mapping[str, Path], source: str,
    settings: Mapping[str, str], counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where the references are RefCOCO+'s."""
    training = read_training_settings(model)
    plus = "refcoco+" in str(files["references"]).lower() and is_paper_protocol(counts, settings["blank"], training)
    paper = REFCOCO_PAPER_ACCURACY.get((split, counts["items"])) if plus else None
    scores = build_score_entries("accuracy", "grounding.accuracy", numbers, counts, paper) | {
        "any box is right": ScoreEntry(numbers["grounding.oracle"]),
        "a box by chance": ScoreEntry(numbers["grounding.chance"]),
    }
    title = f"Referring expressions, {files['references'].parent.name or files['references'].name}"
    return ResultsCard(
        "grounding", title, split, scores, str(model), counts, files, source, {}, {**settings, **training}
    )
