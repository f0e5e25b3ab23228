"""Classification of sentences about one or more images: the parts that NLVR2 and SNLI-VE share."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comodal.console import print_line
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.evaluation.metrics import describe_interval
from comodal.tasks.evaluation.missing_images import (
    INTERVAL_NAME,
    build_score_entries,
    check_no_missing_images,
    compute_accuracy_numbers,
    count_items,
    format_missing_count,
    is_paper_protocol,
)
from comodal.tasks.evaluation.results_card import (
    ResultsCard,
    ScoreEntry,
    format_exclusions,
    read_training_settings,
    report_results,
)
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    EvaluationOptions,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_class_loss,
    compute_fine_tuning_fingerprint,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.recipe_run import Run

NO_PREDICTION = -1


class ImageSentence(NamedTuple):
    """A sentence about images and its label (None if unknown). Sentences of one group are correlated."""

    key: str
    text: str
    images: tuple[str, ...]
    label: str | None
    group: str


@dataclass(frozen=True)
class SentenceTask:
    """The definition of a sentence classification task.

    Args:
        name: Name on the command line.
        title: Display name.
        classes: Class names, in the order of the head's outputs.
        head: The model's head.
        read: Reads the sentences of an official file, and counts excluded ones by reason.
        papers: The papers' accuracy by a part of the file's name and its number of sentences.
        groups: What the sentences of one group share.
        refuses_missing: Whether the official evaluation refuses missing predictions.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    head: Head
    read: Callable[[Path], tuple[list[ImageSentence], Counter[str]]]
    papers: dict[tuple[str, int], float]
    groups: str
    refuses_missing: bool


def read_text_fields(path: Path, number: int, entry: dict[str, Any], *names: str) -> list[str]:
    """The values of some fields of an entry, which must be text."""
    values = [entry.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            raise DataError(f"{path}, line {number}: {name!r} is {value!r}, not text; it has {', '.join(entry)}")
    return values  # type: ignore[return-value]


class SentenceData(NamedTuple):
    """The examples of a file with their sentences, those whose image is missing, and excluded ones by reason."""

    examples: list[TaskExample]
    statements: list[ImageSentence]
    missing: list[ImageSentence]
    left_out: Counter[str]


def build_sentence_examples(
    task: SentenceTask, path: Path, store: RegionStore, words: WordPieceTokenizer, max_words: int, labelled: bool
) -> SentenceData:
    """The sentences whose images are in the store.

    Raises:
        DataError: A label is unknown or a required one is missing, or no image is in the store.
    """
    statements, left_out = task.read(path)
    rows, gathered = ImageRows(store), SentenceData([], [], [], left_out)
    for statement in statements:
        label = statement.label
        if label is None and labelled:
            raise DataError(
                f"{path}: {statement.key} has no label, so nothing can be learnt from it; is it a test file?"
            )
        if label is not None and label not in task.classes:
            raise DataError(f"{path}: {statement.key} is {label!r}; {task.title} has {', '.join(task.classes)}")
        found = [rows.find(image) for image in statement.images]
        if None in found:
            gathered.missing.append(statement)
            continue
        text = tokenize_text(words, statement.text, max_words)
        target = None if label is None else task.classes.index(label)
        present = tuple(row for row in found if row is not None)
        gathered.examples.append(TaskExample(statement.key, (text,) * len(found), present, target))
        gathered.statements.append(statement)
    rows.check(path, len(gathered.examples))
    if not gathered.examples:
        raise DataError(f"{path}: it has no statement")
    unknown = [statement.key for statement in statements if statement.label is None]
    if 0 < len(unknown) < len(statements):
        raise DataError(
            f"{path}: {len(unknown):,} of {len(statements):,} statements have no label, the first is {unknown[0]}; all "
            "or none must have one"
        )
    return gathered


def build_sentence_run(
    task: SentenceTask,
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None,
    max_words: int,
    fine_tune: ViLBERTFineTuneConfig,
) -> Run:
    """The training run of a sentence classification task."""
    parts = load_fine_tuning_data(model, regions, fine_tune)
    train = build_sentence_examples(task, data, parts.store, parts.words, max_words, labelled=True)
    held_out = validation and build_sentence_examples(
        task, validation, parts.store, parts.words, max_words, labelled=True
    )
    files = [data, *([validation] if validation else [])]
    told = {"task.json": json.dumps({"task": task.name, "classes": task.classes, "max_words": max_words}).encode()}
    return build_vilbert_run(
        parts,
        fine_tune,
        task.head,
        compute_class_loss,
        FixedExamples(train.examples),
        FixedExamples(held_out.examples) if held_out else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, files),
        told,
    )


def evaluate_statements(
    task: SentenceTask, model: Path, data: Path, regions: Path, max_words: int, evaluation: EvaluationOptions
) -> dict[str, float]:
    """Reports the accuracy where labels are known, and writes predictions; a missing prediction counts as incorrect.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    asked = evaluation.load_model(model, regions, task.head.name)
    found = build_sentence_examples(task, data, asked.store, asked.words, max_words, labelled=False)
    every = found.statements + found.missing
    if task.refuses_missing:
        check_no_missing_images(data, task.title, [statement.key for statement in found.missing], len(every))
    predicted = np.full(len(every), NO_PREDICTION)
    for one in score_examples(asked, task.head.name, found.examples):
        predicted[one.position] = one.scores.argmax()
    if evaluation.out is not None:
        write_predictions(evaluation.out / "predictions.csv", task, [statement.key for statement in every], predicted)
    counts = {**count_items(len(every), len(found.examples)), **found.left_out}
    print_line(
        f"{task.title}, {data.name}: {len(every):,} statements"
        f"{format_exclusions(found.left_out)}{format_missing_count(counts)}"
    )
    if every[0].label is None:
        print_line(f"{data} has no labels: there is no score, and predictions.csv is the answer")
        numbers = {f"{task.name}.items": float(len(every))}
    else:
        truth = np.array([task.classes.index(str(statement.label)) for statement in every])
        numbers = compute_sentence_numbers(task, predicted, truth, [statement.group for statement in every])
    how = describe_interval([statement.group for statement in every], task.groups)
    regions_from = str(asked.store.about["made_from"])
    report_results(
        numbers,
        build_sentence_card(
            task, numbers, model, data, regions_from, {"blank": evaluation.blank, INTERVAL_NAME: how}, counts
        ),
        evaluation.out,
    )
    return numbers


def compute_sentence_numbers(
    task: SentenceTask, predicted: np.ndarray, truth: np.ndarray, groups: Sequence[str]
) -> dict[str, float]:
    """Accuracy with its interval, chance level (the largest class), and the recall of each class."""
    numbers = compute_accuracy_numbers(f"{task.name}.accuracy", predicted == truth, predicted != NO_PREDICTION, groups)
    numbers[f"{task.name}.chance"] = float(np.bincount(truth).max() / len(truth))
    for number, name in enumerate(task.classes):
        right = predicted[truth == number] == number
        numbers[f"{task.name}.recall.{name}"] = float(right.mean()) if len(right) else 0.0
    return numbers


def build_sentence_card(
    task: SentenceTask, numbers: dict[str, float], model: Path, data: Path, regions: str, settings: dict[str, str],
    counts: dict[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where file and number of sentences are the official ones."""
    key, training = f"{task.name}.accuracy", read_training_settings(model)
    official = (value for (part, items), value in task.papers.items() if part in data.name and items == counts["items"])
    scores: dict[str, ScoreEntry] = {}
    if key in numbers:
        paper = next(official, None) if is_paper_protocol(counts, settings["blank"], training) else None
        scores = build_score_entries("accuracy", key, numbers, counts, paper)
        scores["largest class"] = ScoreEntry(numbers[f"{task.name}.chance"])
        scores |= {f"recall of {name}": ScoreEntry(numbers[f"{task.name}.recall.{name}"]) for name in task.classes}
    return ResultsCard(
        task=task.name,
        title=task.title,
        split=data.stem,
        scores=scores,
        model=str(model),
        counts=counts,
        files={"statements": data},
        regions=regions,
        settings={**settings, **training},
    )


def write_predictions(path: Path, task: SentenceTask, keys: Sequence[str], predicted: np.ndarray) -> None:
    """Writes a line for each sentence with a prediction: its identifier and its class."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    answered = [one for one in zip(keys, predicted.tolist(), strict=True) if one[1] != NO_PREDICTION]
    rows.writerows((key, task.classes[number]) for key, number in answered)
    write_bytes_atomically(path, text.getvalue().encode())
