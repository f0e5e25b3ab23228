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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from comodal.console import print_line
from comodal.data.image_ids import ImageIdFormat
from comodal.data.regions.box_iou import compute_inclusive_iou
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    DEFAULT_BASELINES,
    BaselineOptions,
    build_baseline_entries,
    score_region_baselines,
)
from comodal.tasks.baselines.region_choice import RegionItem
from comodal.tasks.evaluation.missing_images import (
    build_interval_settings,
    build_score_entries,
    compute_accuracy_metrics,
    count_items,
    format_missing_count,
    is_paper_protocol,
)
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.vision_language.grounding.refcoco_files import (
    GROUNDING_HEAD,
    ReferringExpression,
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
GroundingAblation = Literal["none", "text"]
RefCOCOSplit = Literal["train", "val", "test", "testA", "testB"]
# ViLBERT, table 1 (MAttNet's detections), by split and its number of expressions in RefCOCO+
REFCOCO_PAPER_ACCURACY = {("val", 10_758): 0.7234, ("testA", 5_726): 0.7852, ("testB", 4_889): 0.6261}


@dataclass(frozen=True)
class GroundingFineTuneConfig(ViLBERTFineTuneConfig):
    """The options of the recipes of grounding; the defaults are RefCOCO+'s.

    Args:
        learning_rate: Learning rate of the network and of the new head.
        ablate: Ablate the text, to measure what positions and appearance predict alone.
    """

    ablate: GroundingAblation = "none"


@dataclass(frozen=True)
class GroundingEvaluation(EvaluationOptions):
    """The options of the evaluations of grounding.

    Args:
        ablate: Ablate the text.
    """

    ablate: GroundingAblation = "none"


GROUNDING_FINE_TUNING = GroundingFineTuneConfig(batch_size=256, learning_rate=4e-5)
GROUNDING_EVALUATION = GroundingEvaluation()


@flatten_parameters
def recipe(
    model: Path,
    references: Path,
    instances: Path,
    regions: Path,
    max_tokens: int = REFCOCO_MAX_TOKENS,
    fine_tune: GroundingFineTuneConfig = GROUNDING_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to ground referring expressions to regions.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        references: Official refs(unc).p, refs(umd).p or refs(google).p; no code in the pickle is executed.
        instances: The instances.json in the same folder.
        regions: The region store of the images; its boxes are the candidates.
        max_tokens: Maximum number of tokens of an expression.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train grounding --model RUN --references "refs(unc).p" --instances instances.json --regions coco/ --out runs/refcoco
    """  # noqa: E501 (an example is one line)
    parts = load_fine_tuning_data(model, regions, fine_tune)
    expressions = read_expressions(references, instances)
    datasets = {
        split: FixedExamples(
            build_grounding_examples(
                expressions, split, references, parts.store, parts.tokenizer, max_tokens, fine_tune.max_regions
            ).examples
        )
        for split in ("train", "val")
    }
    return build_vilbert_run(
        parts,
        fine_tune,
        GROUNDING_HEAD,
        compute_region_loss,
        datasets["train"],
        datasets["val"] if len(datasets["val"]) else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, [references, instances]),
        {},
    )


class GroundingData(NamedTuple):
    """Examples, expressions whose image is missing, and the IoU of each region with the known boxes."""

    examples: list[TaskExample]
    missing: list[ReferringExpression]
    overlaps: dict[str, Float32[np.ndarray, "rows"]]


def build_grounding_examples(
    expressions: Sequence[ReferringExpression],
    split: str,
    references: Path,
    store: RegionStore,
    tokenizer: WordPieceTokenizer,
    max_tokens: int,
    max_regions: int,
) -> GroundingData:
    """The expressions of a split whose image is in the store; row 0 is the whole image.

    Raises:
        DataError: The file has no such split, or none of its images is in the store.
    """
    split_expressions = [expression for expression in expressions if expression.split == split]
    counts = Counter(expression.split for expression in expressions)
    if not split_expressions and split != "val":
        raise DataError(f"{references}: there is no split {split!r}; there are {', '.join(sorted(counts))}")
    rows, grounding_data = ImageRows(store, choose_id_format(split_expressions)), GroundingData([], [], {})
    for expression in split_expressions:
        row = rows.find(str(expression.image))
        if row is None:
            grounding_data.missing.append(expression)
            continue
        key, target = str(expression.sentence), None
        if expression.box is not None:
            regions = store.read_regions(row)
            image_box = np.array([[0, 0, regions.width, regions.height]], np.float32)
            overlaps = compute_inclusive_iou(
                np.concatenate([image_box, regions.boxes[:max_regions]]), np.array([expression.box])
            )[:, 0].astype(np.float32)
            grounding_data.overlaps[key] = overlaps
            target = np.where(overlaps < MIN_CORRECT_IOU, 0, overlaps).astype(np.float32)
        grounding_data.examples.append(
            TaskExample(key, (tokenize_text(tokenizer, expression.text, max_tokens),), (row,), target)
        )
    rows.check(references, len(grounding_data.examples))
    return grounding_data


def choose_id_format(expressions: Sequence[ReferringExpression]) -> ImageIdFormat:
    """COCO's image ids are integers, Flickr30k's are text."""
    return "coco" if any(isinstance(expression.image, int) for expression in expressions) else "visual_genome"


@flatten_parameters
def evaluate_grounding(
    model: Path,
    references: Path,
    instances: Path,
    regions: Path,
    split: RefCOCOSplit = "val",
    max_tokens: int = REFCOCO_MAX_TOKENS,
    evaluation: GroundingEvaluation = GROUNDING_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Grounds each referring expression to a region, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train grounding`.
        references: Official refs(unc).p, refs(umd).p or refs(google).p; no code in the pickle is executed.
        instances: The instances.json in the same folder.
        regions: The region store of the images; its boxes are the candidates.
        split: Split of the references: val, testA or testB; val or test in RefCOCOg.
        max_tokens: Maximum number of tokens of an expression.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        train_data: References whose training split the baselines are fitted on, mostly those of --references; their
            objects are in --instances.
        out: Folder for results.json, predictions.json and the results card; nothing is written without it.

    Returns:
        grounding.accuracy with its interval, grounding.oracle (any box is correct) and grounding.chance_level (a
        random box).

    Raises:
        DataError: A file is missing or damaged, has no such split, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate grounding --model runs/refcoco --references "refs(unc).p" --instances instances.json --regions coco/
    """  # noqa: E501 (an example is one line)
    loaded = evaluation.load_model(model, regions, GROUNDING_HEAD.name)
    expressions = read_expressions(references, instances)
    grounding_data = build_grounding_examples(
        expressions, split, references, loaded.store, loaded.tokenizer, max_tokens, evaluation.max_regions
    )
    if not grounding_data.examples:
        raise DataError(f"{references}: there is no expression in the split {split!r}")
    predictions = predict_boxes(loaded, grounding_data, expressions)
    counts = count_items(len(predictions) + len(grounding_data.missing), len(predictions))
    groups = group_by_image(predictions, grounding_data)
    metrics = score_expressions(np.array([entry["iou"] for entry in predictions]), grounding_data, groups)
    is_correct = {key: overlaps > MIN_CORRECT_IOU for key, overlaps in grounding_data.overlaps.items()}
    baseline_metrics, fitted = score_grounding_baselines(
        "grounding",
        baselines,
        lambda path: [one for one in read_expressions(path, instances) if one.split == "train"],
        [expression for expression in expressions if expression.split == split],
        is_correct,
        loaded,
    )
    metrics |= baseline_metrics
    source = str(loaded.store.about["provenance"])
    print_line(
        f"{references.name}, {split}: {counts['items']:,} expressions{format_missing_count(counts)}; boxes: {source}"
    )
    if evaluation.out is not None:
        write_bytes_atomically(evaluation.out / "predictions.json", (json.dumps(predictions, indent=0) + "\n").encode())
    files = {"references": references, "instances": instances}
    settings = {
        "ablate": evaluation.ablate,
        BASELINE_SETTING: fitted,
        **build_interval_settings(metrics, groups, "images"),
    }
    report_results(
        metrics, build_grounding_card(metrics, model, split, files, source, settings, counts), evaluation.out
    )
    return metrics


def predict_boxes(
    loaded: LoadedTaskModel, grounding_data: GroundingData, all_expressions: Sequence[ReferringExpression]
) -> list[dict[str, Any]]:
    """The predicted box of each expression, with its IoU where the correct box is known."""
    expressions, predictions = {str(expression.sentence): expression for expression in all_expressions}, []
    for scored in score_examples(loaded, GROUNDING_HEAD.name, grounding_data.examples):
        regions, overlaps = (
            loaded.store.read_regions(scored.example.rows[0]),
            grounding_data.overlaps.get(scored.example.key),
        )
        best = int(scored.scores[: len(regions.boxes[: loaded.max_regions]) + 1].argmax())
        image_box = [0.0, 0.0, float(regions.width), float(regions.height)]
        left, top, right, bottom = regions.boxes[best - 1].tolist() if best else image_box
        entry = {"box": [left, top, right - left, bottom - top]}  # in COCO's format; row 0 is the whole image
        iou_entry = {} if overlaps is None else {"iou": float(overlaps[best])}
        predictions.append(entry | iou_entry | identify_expression(expressions[scored.example.key]))
    return predictions


def identify_expression(expression: ReferringExpression) -> dict[str, object]:
    """The identifiers of the expression that a prediction is for."""
    return {"sent_id": expression.sentence, "ref_id": expression.reference, "image_id": expression.image}


def group_by_image(predictions: Sequence[Mapping[str, Any]], grounding_data: GroundingData) -> list[str]:
    """The image of each prediction, then of each expression whose image is missing."""
    return [str(entry["image_id"]) for entry in predictions] + [
        str(expression.image) for expression in grounding_data.missing
    ]


def score_expressions(ious: np.ndarray, grounding_data: GroundingData, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy of the expressions, with the upper bound and chance level of the boxes."""
    return compute_grounding_fractions(
        "grounding",
        ious > MIN_CORRECT_IOU,
        [overlaps > MIN_CORRECT_IOU for overlaps in grounding_data.overlaps.values()],
        groups,
    )


def compute_grounding_fractions(
    task: str,
    is_correct: Bool[np.ndarray, "items"],
    is_box_correct: Sequence[Bool[np.ndarray, "rows"]],
    groups: Sequence[str],
) -> dict[str, float]:
    """Accuracy with its interval, the fraction of items with any correct box, and the mean fraction of correct boxes.

    `groups` are the images of all items; those after the predicted ones are missing, and count as incorrect.
    """
    missing = len(groups) - len(is_correct)
    has_prediction = np.arange(len(groups)) < len(is_correct)
    return compute_accuracy_metrics(f"{task}.accuracy", np.pad(is_correct, (0, missing)), has_prediction, groups) | {
        f"{task}.oracle": float(np.sum([row.any() for row in is_box_correct]) / len(groups)),
        f"{task}.chance_level": float(np.sum([row.mean() for row in is_box_correct]) / len(groups)),
    }


def score_grounding_baselines(
    task: str,
    options: BaselineOptions,
    read_training: Callable[[Path], Sequence[ReferringExpression]],
    evaluated: Sequence[ReferringExpression],
    is_correct: Mapping[str, Bool[np.ndarray, "rows"]],
    loaded: LoadedTaskModel,
) -> tuple[dict[str, float], str]:
    """The accuracy of the baselines, with intervals by image, and a description of them for the card.

    Args:
        task: The task's name.
        options: The training split.
        read_training: Reads the expressions of the training file.
        evaluated: All evaluated expressions, those of missing images included.
        is_correct: Whether each region is correct, by the identifier of the expression.
        loaded: The evaluated model, whose regions are the candidates.
    """

    def list_items(expressions: Sequence[ReferringExpression]) -> list[RegionItem]:
        return [RegionItem(one.text, str(one.image), one.box) for one in expressions]

    return score_region_baselines(
        task,
        options,
        lambda path: list_items(read_training(path)),
        list_items(evaluated),
        [is_correct.get(str(one.sentence)) for one in evaluated],
        loaded.store,
        lambda store: ImageRows(store, choose_id_format(evaluated)).find,
        loaded.max_regions,
    )


def build_grounding_card(
    metrics: Mapping[str, float], model: Path, split: str, files: Mapping[str, Path], source: str,
    settings: Mapping[str, str], counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where the references are RefCOCO+'s."""
    training = read_training_settings(model)
    is_paper_setting = "refcoco+" in str(files["references"]).lower() and is_paper_protocol(
        counts, settings["ablate"], training
    )
    paper = REFCOCO_PAPER_ACCURACY.get((split, counts["items"])) if is_paper_setting else None
    scores = build_score_entries("accuracy", "grounding.accuracy", metrics, counts, paper) | {
        "any box is correct": ScoreEntry(metrics["grounding.oracle"]),
        "random box": ScoreEntry(metrics["grounding.chance_level"]),
        **build_baseline_entries("grounding", metrics),
    }
    title = f"Referring expressions, {files['references'].parent.name or files['references'].name}"
    return ResultsCard(
        "grounding", title, split, scores, str(model), counts, files, source, {}, {**settings, **training}
    )
