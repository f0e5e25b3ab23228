"""Baselines of an evaluation: their options, their scores with intervals, and their entries on the results card."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.data.regions.region_store import RegionStore
from comodal.tasks.baselines.text_and_region_classifiers import (
    BASELINE_LABELS,
    BaselineItem,
    FindRow,
    average_regions,
    fit_and_predict,
)
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval
from comodal.tasks.evaluation.results_card import ScoreEntry

NOT_FITTED = "not fitted: --train-data was not given"
BASELINE_SETTING = "baselines"


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
    training_store = store if options.train_regions is None else RegionStore(options.train_regions)
    predictions = fit_and_predict(
        read_training(options.train_data),
        evaluated,
        partial(average_regions, training_store, index_images(training_store)),
        partial(average_regions, store, index_images(store)),
    )
    groups = [item.group for item in evaluated]
    metrics: dict[str, float] = {}
    for name, labels in predictions.labels.items():
        is_correct = [label == item.label for label, item in zip(labels, evaluated, strict=True)]
        values = np.array(is_correct) if measure is None else measure(labels)
        low, high = compute_bootstrap_interval(values, np.random.default_rng(0), groups=groups)
        key = f"{task}.baseline.{name}"
        metrics |= {key: float(values.mean()), f"{key}.low": low, f"{key}.high": high}
    print_line(f"Baselines: {predictions.about}; {time.perf_counter() - start:.1f} s", stderr=True)
    return metrics, f"{options.train_data.name}: {predictions.about}"


def build_baseline_entries(task: str, metrics: Mapping[str, float]) -> dict[str, ScoreEntry]:
    """The card's entries of the baselines among `metrics`."""
    keys = {label: f"{task}.baseline.{name}" for name, label in BASELINE_LABELS.items()}
    return {
        label: ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
        for label, key in keys.items()
        if key in metrics
    }
