"""Baselines of an evaluation: their options, their scores with intervals, and their entries on the results card."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.tasks.baselines.baseline_names import BASELINE_LABELS
from comodal.tasks.baselines.region_choice import RegionItem, fit_and_choose, read_candidates
from comodal.tasks.baselines.text_and_region_classifiers import (
    BaselineItem,
    FindRow,
    average_regions,
    fit_and_predict,
)
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval
from comodal.tasks.evaluation.results_card import ScoreEntry

NOT_FITTED = "not fitted: --train-data was not given"
BASELINE_SETTING = "baselines"
POOLED_IMAGES = 4096  # pooled features that are kept: official files have the questions of an image together


@dataclass(frozen=True)
class BaselineOptions:
    """The training split that the baselines are fitted on.

    Args:
        train_data: The official training file, for the baselines on the results card; without it there are none.
        train_regions: The region store of the training images; by default that of the evaluated images.
    """

    train_data: Path | None = None
    train_regions: Path | None = None


DEFAULT_BASELINES = BaselineOptions()


def score_baselines(
    task: str,
    options: BaselineOptions,
    read_training: Callable[[Path], Sequence[BaselineItem]],
    evaluated: Sequence[BaselineItem],
    store: RegionStore,
    index_images: Callable[[RegionStore], FindRow],
    measure: Callable[[Sequence[str | None]], np.ndarray] | None = None,
) -> tuple[dict[str, float], str]:
    """The accuracy of each baseline with its interval by group, as TASK.baseline.NAME, and a description for the card.

    An item without a prediction counts as incorrect, as for the model.

    Args:
        task: The task's name.
        options: The training split.
        read_training: Reads the items of the training file.
        evaluated: The scored items, all with labels.
        store: The region store of the evaluated images.
        index_images: Builds the function that finds the row of an image in a store.
        measure: The score of each item, from 0 to 1, by its predicted label; by default whether it is correct.

    Raises:
        DataError: The training file or its region store cannot be read.
    """
    if options.train_data is None:
        return {}, NOT_FITTED
    start = time.perf_counter()
    training_store = open_training_store(options, store)
    predictions = fit_and_predict(
        read_training(options.train_data),
        evaluated,
        lru_cache(POOLED_IMAGES)(partial(average_regions, training_store, index_images(training_store))),
        lru_cache(POOLED_IMAGES)(partial(average_regions, store, index_images(store))),
    )
    values: dict[str, np.ndarray] = {}
    for name, labels in predictions.labels.items():
        is_correct = [label == item.label for label, item in zip(labels, evaluated, strict=True)]
        values[name] = np.array(is_correct) if measure is None else measure(labels)
    print_line(f"Baselines: {predictions.about}; {time.perf_counter() - start:.1f} s", stderr=True)
    metrics = compute_baseline_metrics(task, values, [item.group for item in evaluated])
    return metrics, f"{options.train_data.name}: {predictions.about}"


def score_region_baselines(
    task: str,
    options: BaselineOptions,
    read_training: Callable[[Path], Sequence[RegionItem]],
    evaluated: Sequence[RegionItem],
    is_correct: Sequence[np.ndarray | None],
    store: RegionStore,
    index_images: Callable[[RegionStore], FindRow],
    max_regions: int,
) -> tuple[dict[str, float], str]:
    """The accuracy of each baseline that chooses a region, with its interval by image, and a description for the card.

    Args:
        task: The task's name.
        options: The training split.
        read_training: Reads the items of the training file.
        evaluated: The scored items.
        is_correct: Whether each region (row 0 is the whole image) of each item is correct; None without its image.
        store: The region store of the evaluated images.
        index_images: Builds the function that finds the row of an image in a store.
        max_regions: Maximum number of regions of an image.

    Raises:
        DataError: The training file or its region store cannot be read.
    """
    if options.train_data is None:
        return {}, NOT_FITTED
    start = time.perf_counter()
    training_store = open_training_store(options, store)
    choices = fit_and_choose(
        read_training(options.train_data),
        evaluated,
        partial(read_candidates, training_store, index_images(training_store), max_regions),
        partial(read_candidates, store, index_images(store), max_regions),
    )
    values = {
        name: np.array([
            row is not None and correct is not None and bool(correct[row])
            for row, correct in zip(rows, is_correct, strict=True)
        ])
        for name, rows in choices.rows.items()
    }  # fmt: skip
    print_line(f"Baselines: {choices.about}; {time.perf_counter() - start:.1f} s", stderr=True)
    metrics = compute_baseline_metrics(task, values, [item.image for item in evaluated])
    return metrics, f"{options.train_data.name}: {choices.about}"


def open_training_store(options: BaselineOptions, store: RegionStore) -> RegionStore:
    """The region store of the training images.

    Raises:
        DataError: It cannot be read, or its features have another size than those of the evaluated images.
    """
    if options.train_regions is None:
        return store
    training_store = RegionStore(options.train_regions)
    if training_store.dim != store.dim:
        raise DataError(
            f"{options.train_regions}: regions of {training_store.dim:,} features, and {store.folder} has {store.dim:,}"
        )
    return training_store


def compute_baseline_metrics(task: str, values: Mapping[str, np.ndarray], groups: Sequence[str]) -> dict[str, float]:
    """The mean value of each baseline over the items, with its interval by group, as TASK.baseline.NAME."""
    metrics: dict[str, float] = {}
    for name, item_values in values.items():
        low, high = compute_bootstrap_interval(item_values, np.random.default_rng(0), groups=groups)
        key = f"{task}.baseline.{name}"
        metrics |= {key: float(item_values.mean()), f"{key}.low": low, f"{key}.high": high}
    return metrics


def build_baseline_entries(task: str, metrics: Mapping[str, float]) -> dict[str, ScoreEntry]:
    """The card's entries of the baselines among `metrics`."""
    keys = {label: f"{task}.baseline.{name}" for name, label in BASELINE_LABELS.items()}
    return {
        label: ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
        for label, key in keys.items()
        if key in metrics
    }
