"""What a classifier got right: accuracy, confusion, each class by itself, and how sure one may be of the figure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class PerClass(NamedTuple):
    """One number for each class; a class that never occurs (or is never answered) has 0."""

    counts: Int[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]


def accuracy(predicted: Int[np.ndarray, " items"], truth: Int[np.ndarray, " items"]) -> float:
    """Share of the items whose class was answered."""
    if not len(truth):
        raise ValueError("accuracy of no items")
    return float(np.mean(predicted == truth))


def confusion_matrix(
    predicted: Int[np.ndarray, " items"], truth: Int[np.ndarray, " items"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts of items: a row for each true class, a column for each answer."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def per_class(confusion: Int[np.ndarray, "classes classes"]) -> PerClass:
    """Recall and precision of each class from the confusion matrix."""
    right = np.diag(confusion).astype(np.float64)
    counts, answered = confusion.sum(1), confusion.sum(0)
    return PerClass(counts, right / np.maximum(counts, 1), right / np.maximum(answered, 1))


def bootstrap_interval(
    correct: Bool[np.ndarray, " items"], rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the accuracy, items drawn again with replacement (Efron 1979).

    The mean of a resample of n yes/no answers is a binomial count over n, which is drawn directly.
    """
    items = len(correct)
    means = rng.binomial(items, correct.mean(), size=resamples) / items
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
