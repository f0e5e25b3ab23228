"""Statements about one or more pictures, each of one of a few classes: the parts that NLVR2 and SNLI-VE share."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comodal.console import say
from comodal.data.regions import RegionStore
from comodal.errors import DataError
from comodal.files import write_whole
from comodal.hardware import Compute
from comodal.media.text import Words
from comodal.models.heads import Head
from comodal.tasks.card import Card, Score, reasons, tell, training_of
from comodal.tasks.examples import Blank, Example, Fixed, single
from comodal.tasks.fine_tuning import (
    Setup,
    answer,
    fingerprint_of,
    new_run,
    one_class,
    read_asked,
    read_parts,
)
from comodal.tasks.image_rows import ImageRows
from comodal.tasks.metrics import bootstrap_interval, confusion_matrix, per_class
from comodal.training.run import Run

NOT_THERE = "image is not in the store"


class Statement(NamedTuple):
    """A sentence about pictures, and what it is of them; None where that is not known."""

    key: str
    text: str
    images: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class StatementTask:
    """What makes one task of statements.

    Args:
        name: On the command line.
        title: What people call it.
        classes: What a statement can be, in the order of the head's outputs.
        head: Of the model.
        read: The statements of an official file, and what was left out, counted by reason.
        papers: The papers' accuracy by a part of the file's name and the number of statements in it.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    head: Head
    read: Callable[[Path], tuple[list[Statement], Counter[str]]]
    papers: dict[tuple[str, int], float]


def taken(path: Path, number: int, entry: dict[str, Any], *names: str) -> list[str]:
    """The values of some names of an entry, which must be text."""
    values = [entry.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            raise DataError(f"{path}, line {number}: {name!r} is {value!r}, not text; it has {', '.join(entry)}")
    return values  # type: ignore[return-value]


class Gathered(NamedTuple):
    """The examples of a file, and what was left out, counted by reason."""

    examples: list[Example]
    left_out: Counter[str]


def examples_of(
    task: StatementTask, path: Path, store: RegionStore, words: Words, max_words: int, labelled: bool
) -> Gathered:
    """The statements whose images are in the store.

    Raises:
        DataError: A label is unknown, there is none where one is needed, or no image is in the store.
    """
    statements, left_out = task.read(path)
    rows, examples = ImageRows(store), []
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
            left_out[NOT_THERE] += 1
            continue
        text = single(words, statement.text, max_words)
        target = None if label is None else task.classes.index(label)
        examples.append(
            Example(statement.key, (text,) * len(found), tuple(row for row in found if row is not None), target)
        )
    rows.check(path, len(examples))
    if not examples:
        raise DataError(f"{path}: it has no statement")
    unknown = [example.key for example in examples if example.target is None]
    if 0 < len(unknown) < len(examples):
        raise DataError(
            f"{path}: {len(unknown):,} of {len(examples):,} statements have no label, the first is {unknown[0]}; all "
            "or none must have one"
        )
    return Gathered(examples, left_out)


def statement_run(task: StatementTask, setup: Setup, data: Path, validation: Path | None, max_words: int) -> Run:
    """The run of a task of statements."""
    parts = read_parts(setup)
    train = examples_of(task, data, parts.store, parts.words, max_words, labelled=True)
    held_out = validation and examples_of(task, validation, parts.store, parts.words, max_words, labelled=True)
    files = [data, *([validation] if validation else [])]
    told = {"task.json": json.dumps({"task": task.name, "classes": task.classes, "max_words": max_words}).encode()}
    return new_run(
        parts,
        setup,
        task.head,
        one_class,
        Fixed(train.examples),
        Fixed(held_out.examples) if held_out else None,
        fingerprint_of(setup, parts.store, files),
        told,
    )


def evaluate_statements(
    task: StatementTask,
    model: Path,
    data: Path,
    regions: Path,
    blank: Blank,
    max_words: int,
    max_regions: int,
    compute: Compute,
    out: Path | None,
) -> dict[str, float]:
    """Accuracy where labels are known, and a file of predictions."""
    asked = read_asked(model, regions, blank, max_regions, compute, task.head.name)
    examples, left_out = examples_of(task, data, asked.store, asked.words, max_words, labelled=False)
    answered = list(answer(asked, task.head.name, examples))
    predicted = np.array([int(one.scores.argmax()) for one in answered])
    if out is not None:
        write_predictions(out / "predictions.csv", task, [one.example.key for one in answered], predicted)
    unknown = [one.example.key for one in answered if one.example.target is None]
    say(f"{task.title}, {data.name}: {len(examples):,} statements{reasons(left_out)}")
    if unknown:
        say(f"{data} has no labels: there is no score, and predictions.csv is the answer")
        numbers = {f"{task.name}.items": float(len(examples))}
    else:
        numbers = numbers_of(task, predicted, np.array([one.example.target for one in answered]))
    counts = {"items": len(examples), **left_out}
    tell(numbers, card_of(task, numbers, model, data, str(asked.store.about["made_from"]), blank, counts), out)
    return numbers


def numbers_of(task: StatementTask, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy with its interval, the largest class, and the recall of each class."""
    low, high = bootstrap_interval(predicted == truth, np.random.default_rng(0))
    recall = per_class(confusion_matrix(predicted, truth, len(task.classes))).recall
    numbers = {
        f"{task.name}.accuracy": float((predicted == truth).mean()),
        f"{task.name}.accuracy.low": low,
        f"{task.name}.accuracy.high": high,
        f"{task.name}.chance": float(np.bincount(truth).max() / len(truth)),
    }
    return numbers | {f"{task.name}.recall.{name}": float(r) for name, r in zip(task.classes, recall, strict=True)}


def card_of(
    task: StatementTask, numbers: dict[str, float], model: Path, data: Path, regions: str, blank: Blank,
    counts: dict[str, int],
) -> Card:  # fmt: skip
    """The results card; a paper's number stands on it where file and count are the official ones."""
    key = f"{task.name}.accuracy"
    official = (value for (part, items), value in task.papers.items() if part in data.name and items == counts["items"])
    scores = {}
    if key in numbers:
        scores["accuracy"] = Score(numbers[key], numbers[f"{key}.low"], numbers[f"{key}.high"], next(official, None))
        scores["largest class"] = Score(numbers[f"{task.name}.chance"])
        scores |= {f"recall of {name}": Score(numbers[f"{task.name}.recall.{name}"]) for name in task.classes}
    return Card(
        task=task.name,
        title=task.title,
        split=data.stem,
        scores=scores,
        model=str(model),
        counts=counts,
        files={"statements": data},
        regions=regions,
        settings={"blank": blank, **training_of(model)},
    )


def write_predictions(path: Path, task: StatementTask, keys: Sequence[str], predicted: np.ndarray) -> None:
    """A line for each statement: its identifier and its class."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows((key, task.classes[number]) for key, number in zip(keys, predicted.tolist(), strict=True))
    write_whole(path, text.getvalue().encode())
