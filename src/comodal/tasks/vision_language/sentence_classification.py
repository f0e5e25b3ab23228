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
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    BaselineOptions,
    build_baseline_entries,
    score_baselines,
)
from comodal.tasks.baselines.text_and_region_classifiers import BaselineItem
from comodal.tasks.evaluation.missing_images import (
    build_interval_settings,
    build_score_entries,
    check_no_missing_images,
    compute_accuracy_metrics,
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
TASK_FILE = "task.json"  # in the model folder: the classes of a model of one task


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
        read_sentences: Reads the sentences of an official file, and counts excluded ones by reason.
        paper_accuracy: The papers' accuracy by a part of the file's name and its number of sentences.
        groups: What the sentences of one group share.
        refuses_missing: Whether the official evaluation refuses missing predictions.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    head: Head
    read_sentences: Callable[[Path], tuple[list[ImageSentence], Counter[str]]]
    paper_accuracy: dict[tuple[str, int], float]
    groups: str
    refuses_missing: bool


def read_text_fields(path: Path, line_number: int, entry: dict[str, Any], *names: str) -> list[str]:
    """The values of some fields of an entry, which must be text."""
    values = [entry.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            raise DataError(f"{path}, line {line_number}: {name!r} is {value!r}, not text; it has {', '.join(entry)}")
    return values  # type: ignore[return-value]


class SentenceData(NamedTuple):
    """The examples of a file with their sentences, those whose image is missing, and excluded ones by reason."""

    examples: list[TaskExample]
    statements: list[ImageSentence]
    missing: list[ImageSentence]
    excluded: Counter[str]


def build_sentence_examples(
    task: SentenceTask,
    path: Path,
    store: RegionStore,
    tokenizer: WordPieceTokenizer,
    max_tokens: int,
    needs_labels: bool,
) -> SentenceData:
    """The sentences whose images are in the store.

    Raises:
        DataError: A label is unknown or a required one is missing, or no image is in the store.
    """
    statements, excluded = task.read_sentences(path)
    rows, sentence_data = ImageRows(store), SentenceData([], [], [], excluded)
    for statement in statements:
        label = statement.label
        if label is None and needs_labels:
            raise DataError(f"{path}: {statement.key} has no label to train on; is it a test file?")
        if label is not None and label not in task.classes:
            raise DataError(f"{path}: {statement.key} is {label!r}; {task.title} has {', '.join(task.classes)}")
        image_rows = [rows.find(image) for image in statement.images]
        if None in image_rows:
            sentence_data.missing.append(statement)
            continue
        text = tokenize_text(tokenizer, statement.text, max_tokens)
        target = None if label is None else task.classes.index(label)
        present = tuple(row for row in image_rows if row is not None)
        sentence_data.examples.append(TaskExample(statement.key, (text,) * len(image_rows), present, target))
        sentence_data.statements.append(statement)
    rows.check(path, len(sentence_data.examples))
    if not sentence_data.examples:
        raise DataError(f"{path}: no statements")
    unknown = [statement.key for statement in statements if statement.label is None]
    if 0 < len(unknown) < len(statements):
        raise DataError(
            f"{path}: {len(unknown):,} of {len(statements):,} statements have no label, the first is {unknown[0]}; all "
            "or none must have one"
        )
    return sentence_data


def build_sentence_run(
    task: SentenceTask,
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None,
    max_tokens: int,
    fine_tune: ViLBERTFineTuneConfig,
) -> Run:
    """The training run of a sentence classification task."""
    parts = load_fine_tuning_data(model, regions, fine_tune)
    train_data = build_sentence_examples(task, data, parts.store, parts.tokenizer, max_tokens, needs_labels=True)
    validation_data = validation and build_sentence_examples(
        task, validation, parts.store, parts.tokenizer, max_tokens, needs_labels=True
    )
    files = [data, *([validation] if validation else [])]
    extra_files = {
        TASK_FILE: json.dumps({"task": task.name, "classes": task.classes, "max_tokens": max_tokens}).encode()
    }
    return build_vilbert_run(
        parts,
        fine_tune,
        task.head,
        compute_class_loss,
        FixedExamples(train_data.examples),
        FixedExamples(validation_data.examples) if validation_data else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, files),
        extra_files,
    )


def evaluate_statements(
    task: SentenceTask,
    model: Path,
    data: Path,
    regions: Path,
    max_tokens: int,
    evaluation: EvaluationOptions,
    baselines: BaselineOptions,
) -> dict[str, float]:
    """Reports the accuracy where labels are known, and writes predictions; a missing prediction counts as incorrect.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    loaded = evaluation.load_model(model, regions, task.head.name)
    sentence_data = build_sentence_examples(task, data, loaded.store, loaded.tokenizer, max_tokens, needs_labels=False)
    sentences = sentence_data.statements + sentence_data.missing
    if task.refuses_missing:
        check_no_missing_images(
            data, task.title, [statement.key for statement in sentence_data.missing], len(sentences)
        )
    predicted = np.full(len(sentences), NO_PREDICTION)
    for scored in score_examples(loaded, task.head.name, sentence_data.examples):
        predicted[scored.position] = scored.scores.argmax()
    if evaluation.out is not None:
        write_predictions(
            evaluation.out / "predictions.csv", task, [statement.key for statement in sentences], predicted
        )
    counts = {**count_items(len(sentences), len(sentence_data.examples)), **sentence_data.excluded}
    print_line(
        f"{task.title}, {data.name}: {len(sentences):,} statements"
        f"{format_exclusions(sentence_data.excluded)}{format_missing_count(counts)}"
    )
    if sentences[0].label is None:
        print_line(f"{data} has no labels, so there is no score; the predictions are in predictions.csv")
        metrics, fitted = {f"{task.name}.items": float(len(sentences))}, "not fitted: there is no score"
    else:
        truth = np.array([task.classes.index(str(statement.label)) for statement in sentences])
        metrics = compute_sentence_metrics(task, predicted, truth, [statement.group for statement in sentences])
        evaluated = list_sentence_items(sentences)
        baseline_metrics, fitted = score_baselines(
            task.name,
            baselines,
            lambda path: list_sentence_items(task.read_sentences(path)[0]),
            evaluated,
            loaded.store,
            lambda store: ImageRows(store).find,
        )
        metrics |= baseline_metrics
    settings = {
        "ablate": evaluation.ablate,
        BASELINE_SETTING: fitted,
        **build_interval_settings(metrics, [statement.group for statement in sentences], task.groups),
    }
    region_source = str(loaded.store.about["provenance"])
    report_results(
        metrics,
        build_sentence_card(task, metrics, model, data, region_source, settings, counts),
        evaluation.out,
    )
    return metrics


def list_sentence_items(sentences: Sequence[ImageSentence]) -> list[BaselineItem]:
    """The sentences as items of the baselines."""
    return [BaselineItem(sentence.text, sentence.images, sentence.label, sentence.group) for sentence in sentences]


def compute_sentence_metrics(
    task: SentenceTask, predicted: np.ndarray, truth: np.ndarray, groups: Sequence[str]
) -> dict[str, float]:
    """Accuracy with its interval, chance level (the largest class), and the recall of each class."""
    metrics = compute_accuracy_metrics(f"{task.name}.accuracy", predicted == truth, predicted != NO_PREDICTION, groups)
    metrics[f"{task.name}.chance_level"] = float(np.bincount(truth).max() / len(truth))
    for class_id, name in enumerate(task.classes):
        is_correct = predicted[truth == class_id] == class_id
        metrics[f"{task.name}.recall.{name}"] = float(is_correct.mean()) if len(is_correct) else 0.0
    return metrics


def build_sentence_card(
    task: SentenceTask, metrics: dict[str, float], model: Path, data: Path, regions: str, settings: dict[str, str],
    counts: dict[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where file and number of sentences are the official ones."""
    key, training = f"{task.name}.accuracy", read_training_settings(model)
    official_accuracy = (
        value for (part, items), value in task.paper_accuracy.items() if part in data.name and items == counts["items"]
    )
    scores: dict[str, ScoreEntry] = {}
    if key in metrics:
        paper = next(official_accuracy, None) if is_paper_protocol(counts, settings["ablate"], training) else None
        scores = build_score_entries("accuracy", key, metrics, counts, paper)
        scores["largest class"] = ScoreEntry(metrics[f"{task.name}.chance_level"])
        scores |= build_baseline_entries(task.name, metrics)
        scores |= {f"recall of {name}": ScoreEntry(metrics[f"{task.name}.recall.{name}"]) for name in task.classes}
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
    items = [item for item in zip(keys, predicted.tolist(), strict=True) if item[1] != NO_PREDICTION]
    rows.writerows((key, task.classes[class_id]) for key, class_id in items)
    write_bytes_atomically(path, text.getvalue().encode())
