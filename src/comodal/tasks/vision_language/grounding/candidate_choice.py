"""Choosing one of several boxes of an image by a text: Visual7W's pointing questions and GuessWhat?! (12-in-1).

The head on regions, shared with referring expressions, scores the candidates. The target of a candidate is its IoU with
the correct box where that is at least 0.5, else 0; the loss is the binary cross-entropy summed over the candidates. A
prediction is correct if the best candidate is the correct one. Both as `V-logit-mc` of
facebookresearch/vilbert-multi-task.

Departs from the original: the network sees the regions of the store, by `comodal prepare boxes` the candidates of all
texts about the image; the original adds 100 regions of a detector. A candidate is the region with the highest IoU,
which has to be at least 0.9.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from comodal.console import print_line
from comodal.data.batch import TaskBatch
from comodal.data.image_ids import ImageIdFormat
from comodal.data.regions.box_iou import compute_inclusive_iou
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    NOT_FITTED,
    BaselineOptions,
    build_baseline_entries,
    compute_baseline_metrics,
    open_training_store,
)
from comodal.tasks.baselines.region_choice import Candidates, RegionItem, fit_and_choose, read_candidates
from comodal.tasks.evaluation.missing_images import (
    build_interval_settings,
    build_score_entries,
    compute_accuracy_metrics,
    count_items,
)
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.vision_language.grounding.candidate_files import CandidateItem
from comodal.tasks.vision_language.grounding.refcoco import MIN_CORRECT_IOU, GroundingEvaluation
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.text_image_examples import TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import LoadedTaskModel, LossOutput, score_examples

MIN_CANDIDATE_IOU = 0.9
NO_CANDIDATE = -1.0  # the target of a region that is no candidate
REASON_NO_REGIONS = "image or a candidate box is not in the store"


class CandidateData(NamedTuple):
    """Examples, the region rows of the candidates of each by its key, and the items that have none."""

    examples: list[TaskExample]
    rows: dict[str, list[int]]
    missing: list[CandidateItem]


def compute_candidate_loss(scores: Float[Tensor, "rows regions"], batch: TaskBatch) -> LossOutput:
    """Binary cross-entropy summed over the candidates; correct is the candidate with the highest target."""
    is_candidate = (batch.targets >= 0) & batch.region_mask[batch.image_indices]
    losses = F.binary_cross_entropy_with_logits(scores, batch.targets.clamp(min=0), reduction="none")
    best = scores.masked_fill(~is_candidate, -float("inf")).argmax(1, keepdim=True)
    is_correct = batch.targets.gather(1, best)[:, 0] == batch.targets.max(1).values
    return LossOutput((losses * is_candidate).sum(1).mean(), is_correct.float().mean())


def build_candidate_examples(
    items: Sequence[CandidateItem],
    file: Path,
    store: RegionStore,
    id_format: ImageIdFormat,
    tokenizer: WordPieceTokenizer,
    max_tokens: int,
    max_regions: int,
) -> CandidateData:
    """The items whose candidates are among the regions of their image; row 0 is the whole image.

    Raises:
        DataError: No item has its candidates in the store.
    """
    rows, candidate_data, num_images = ImageRows(store, id_format), CandidateData([], {}, []), 0
    for item in items:
        row = find_candidate_image(rows, item)
        num_images += row is not None
        found = None if row is None else find_candidate_rows(store, row, item, max_regions)
        if row is None or found is None:
            candidate_data.missing.append(item)
            continue
        boxes = np.array(item.boxes)
        overlaps = compute_inclusive_iou(boxes, boxes[[item.answer]])[:, 0]
        target = np.full(min(len(store.read_regions(row).boxes), max_regions) + 1, NO_CANDIDATE, np.float32)
        target[found] = np.where(overlaps < MIN_CORRECT_IOU, 0, overlaps)
        target[found[item.answer]] = 1.0  # of equal boxes, the correct one is the last written
        candidate_data.rows[item.key] = found
        candidate_data.examples.append(
            TaskExample(item.key, (tokenize_text(tokenizer, item.text, max_tokens),), (row,), target)
        )
    if not candidate_data.examples:
        rows.check(file, num_images)
        raise DataError(
            f"{file}: no image has a region at each candidate box in {store.folder}; make a list of the boxes with "
            f"`comodal prepare boxes {file.name} boxes.jsonl`, and their regions with `comodal extract --boxes`"
        )
    if candidate_data.missing:
        print_line(f"{file.name}: {len(candidate_data.missing):,} excluded: {REASON_NO_REGIONS}", stderr=True)
    return candidate_data


def find_candidate_image(rows: ImageRows, item: CandidateItem) -> int | None:
    """The row of an image by its file name or its id."""
    row = rows.find(item.file_name) if item.file_name else None
    return rows.find(item.image) if row is None else row


def find_candidate_rows(store: RegionStore, row: int, item: CandidateItem, max_regions: int) -> list[int] | None:
    """The region row of each candidate, from 1; None if one has no region."""
    boxes = store.read_regions(row).boxes[:max_regions]
    if not len(boxes):
        return None
    overlaps = compute_inclusive_iou(boxes, np.array(item.boxes, np.float32))
    return (overlaps.argmax(0) + 1).tolist() if (overlaps.max(0) >= MIN_CANDIDATE_IOU).all() else None


class CandidateTask(NamedTuple):
    """A task of this kind.

    Args:
        name: Name on the command line.
        title: Display name.
        id_format: Format of the image ids.
        read_training: Reads the items of the training split from a file.
    """

    name: str
    title: str
    id_format: ImageIdFormat
    read_training: Callable[[Path], Sequence[CandidateItem]]


def evaluate_candidates(
    task: CandidateTask,
    model: Path,
    loaded: LoadedTaskModel,
    file: Path,
    split: str,
    items: Sequence[CandidateItem],
    max_tokens: int,
    evaluation: GroundingEvaluation,
    baselines: BaselineOptions,
) -> dict[str, float]:
    """Chooses a candidate for each item, and writes scores, predictions and the results card.

    An item without its image or a candidate counts as incorrect.
    """
    candidate_data = build_candidate_examples(
        items, file, loaded.store, task.id_format, loaded.tokenizer, max_tokens, loaded.max_regions
    )
    choices = {
        scored.example.key: int(scored.scores[candidate_data.rows[scored.example.key]].argmax())
        for scored in score_examples(loaded, GROUNDING_HEAD.name, candidate_data.examples)
    }
    metrics = score_choices(task.name, items, choices)
    baseline_metrics, fitted = score_candidate_baselines(task, baselines, items, candidate_data, loaded)
    metrics |= baseline_metrics
    if evaluation.out is not None:
        predictions = [
            {"id": item.key, "image_id": item.image, "answer": item.candidates[choices[item.key]]}
            for item in items
            if item.key in choices
        ]
        content = json.dumps(predictions, indent=0) + "\n"
        write_bytes_atomically(evaluation.out / "predictions.json", content.encode())
    counts = count_items(len(items), len(choices), f"{REASON_NO_REGIONS} (incorrect)")
    intervals = build_interval_settings(metrics, [item.image for item in items], "images")
    settings = {"ablate": evaluation.ablate, BASELINE_SETTING: fitted, **intervals, **read_training_settings(model)}
    scores = build_score_entries("accuracy", f"{task.name}.accuracy", metrics, counts) | {
        "random candidate": ScoreEntry(metrics[f"{task.name}.chance_level"]),
        **build_baseline_entries(task.name, metrics),
    }
    source = str(loaded.store.about["provenance"])
    card = ResultsCard(task.name, task.title, split, scores, str(model), counts, {"data": file}, source, {}, settings)
    report_results(metrics, card, evaluation.out)
    return metrics


def score_choices(task: str, items: Sequence[CandidateItem], choices: Mapping[str, int]) -> dict[str, float]:
    """The accuracy of the chosen candidates with its interval by image, and that of a random candidate."""
    is_correct = np.array([choices.get(item.key) == item.answer for item in items])
    has_prediction = np.array([item.key in choices for item in items])
    metrics = compute_accuracy_metrics(f"{task}.accuracy", is_correct, has_prediction, [item.image for item in items])
    return metrics | {f"{task}.chance_level": float(np.mean([1 / len(item.candidates) for item in items]))}


def score_candidate_baselines(
    task: CandidateTask,
    options: BaselineOptions,
    items: Sequence[CandidateItem],
    candidate_data: CandidateData,
    loaded: LoadedTaskModel,
) -> tuple[dict[str, float], str]:
    """The accuracy of the baselines of grounding (`tasks/baselines/region_choice.py`) on the candidates alone.

    Training items of an evaluated image are left out.
    """
    if options.train_data is None:
        return {}, NOT_FITTED
    start, store = time.perf_counter(), open_training_store(options, loaded.store)
    evaluated_images, max_regions = {item.image for item in items}, loaded.max_regions
    training = [item for item in task.read_training(options.train_data) if item.image not in evaluated_images]
    evaluated = {f"evaluated {item.key}": item for item in items}
    choices = fit_and_choose(
        [describe_item(item) for item in training],
        [describe_item(item)._replace(image=key) for key, item in evaluated.items()],
        build_candidate_reader(store, task.id_format, {item.key: item for item in training}, max_regions),
        build_candidate_reader(loaded.store, task.id_format, evaluated, max_regions),
    )
    values = {
        name: np.array([
            row is not None and item.key in candidate_data.rows and row == item.answer
            for row, item in zip(rows, items, strict=True)
        ])
        for name, rows in choices.rows.items()
    }  # fmt: skip
    print_line(f"Baselines: {choices.about}; {time.perf_counter() - start:.1f} s", stderr=True)
    metrics = compute_baseline_metrics(task.name, values, [item.image for item in items])
    return metrics, f"{options.train_data.name}: {choices.about}"


def describe_item(item: CandidateItem) -> RegionItem:
    """An item of the baselines. Each item is its own image there: its regions are its candidates."""
    return RegionItem(item.text, item.key, item.boxes[item.answer])


def build_candidate_reader(
    store: RegionStore, id_format: ImageIdFormat, items: Mapping[str, CandidateItem], max_regions: int
) -> Callable[[str], Candidates | None]:
    """Reads the candidates of an item by its key, without the whole image; None if they are not in the store."""
    rows = ImageRows(store, id_format)

    def read(key: str) -> Candidates | None:
        row = find_candidate_image(rows, items[key])
        found = None if row is None else find_candidate_rows(store, row, items[key], max_regions)
        candidates = None if row is None else read_candidates(store, lambda _: row, max_regions, key)
        if candidates is None or found is None:
            return None
        return Candidates(*(array[found] for array in candidates))

    return read
