"""Classification metrics: accuracy, confusion matrix, per-class scores, and confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from comodal.errors import DataError

MAX_BOOTSTRAP_DRAWS = 1 << 22


class PerClass(NamedTuple):
    """One value per class; recall is 0 for a class without items, precision for one that is never predicted."""

    counts: Int[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]


def compute_accuracy(predicted: Int[np.ndarray, " items"], truth: Int[np.ndarray, " items"]) -> float:
    """The fraction of the items whose class was predicted."""
    if not len(truth):
        raise ValueError("accuracy needs at least one item")
    return float(np.mean(predicted == truth))


def count_confusions(
    predicted: Int[np.ndarray, " items"], truth: Int[np.ndarray, " items"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts of items: a row for each true class, a column for each predicted class."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def compute_per_class(confusion: Int[np.ndarray, "classes classes"]) -> PerClass:
    """Recall and precision of each class from the confusion matrix."""
    num_correct = np.diag(confusion).astype(np.float64)
    counts, num_predicted = confusion.sum(1), confusion.sum(0)
    return PerClass(counts, num_correct / np.maximum(counts, 1), num_correct / np.maximum(num_predicted, 1))


def check_finite_scores(scores: np.ndarray, description: object) -> None:
    """Checks that every score is finite. NaN compares false with everything, so its rank is arbitrary.

    Raises:
        DataError: A score is not finite; `description` names what was scored.
    """
    if not np.isfinite(scores).all():
        count = int((~np.isfinite(scores)).sum())
        raise DataError(
            f"{description}: {count:,} of {scores.size:,} scores are NaN or infinite, so there is no result; check "
            f"the model's "
            "weights and the input, or compute with --precision fp32"
        )


def compute_bootstrap_interval(
    correct: Bool[np.ndarray, " items"] | Float[np.ndarray, " items"],
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    groups: Sequence[str] | Int[np.ndarray, " items"] | None = None,
) -> tuple[float, float]:
    """Confidence interval of the mean of values from 0 to 1.

    Binary values of independent items have Wilson's interval (Wilson 1927), which does not collapse at 0 and 1.
    Items of one group (questions about one image, slices of one recording) are correlated, so groups are resampled with
    replacement. Binary values then have Wilson's interval at the effective number of items, p (1 - p) over the
    resampled variance (Kish's design effect); graded values have the percentile interval (Efron 1979). Where the
    resamples are all equal, each group counts once.

    Args:
        correct: One value per item.
        rng: Generator for the resamples.
        resamples: Number of resamples.
        confidence: Confidence level of the interval.
        groups: Group of each item; None where items are independent.
    """
    if not len(correct):
        raise ValueError("an interval needs at least one item")
    check_finite_scores(correct, "accuracy")
    values, items, mean = correct.astype(np.float64), len(correct), float(correct.mean())
    inverse = np.arange(items) if groups is None else np.unique(groups, return_inverse=True)[1]
    size, is_binary = int(inverse.max()) + 1, bool(np.isin(values, (0.0, 1.0)).all())
    if is_binary and size == items:
        return compute_wilson_interval(mean, items, confidence)
    means = compute_bootstrap_means(values, inverse, rng, resamples)
    variance = float(means.var())
    if variance < 1e-15:
        return compute_wilson_interval(mean, size, confidence)
    if is_binary:
        return compute_wilson_interval(mean, min(items, mean * (1.0 - mean) / variance), confidence)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def compute_wilson_interval(proportion: float, items: int | float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion over independent items."""
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    center = (proportion + z * z / (2.0 * items)) / (1.0 + z * z / items)
    half_width = (
        z * math.sqrt(proportion * (1.0 - proportion) / items + z * z / (4.0 * items * items)) / (1.0 + z * z / items)
    )
    return max(0.0, center - half_width), min(1.0, center + half_width)


def compute_bootstrap_means(
    values: Float[np.ndarray, " items"], groups: Int[np.ndarray, " items"], rng: np.random.Generator, resamples: int
) -> Float[np.ndarray, " resamples"]:
    """The mean over all items of the groups of each resample; groups are drawn with replacement."""
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    block = max(1, MAX_BOOTSTRAP_DRAWS // len(sums))
    means = []
    for start in range(0, resamples, block):
        sampled = rng.integers(len(sums), size=(min(block, resamples - start), len(sums)))
        means.append(sums[sampled].sum(1) / counts[sampled].sum(1))
    return np.concatenate(means)


def describe_intervals(
    metrics: Mapping[str, float],
    groups: Sequence[str] | Int[np.ndarray, " items"],
    group_name: str,
    is_graded: bool = False,
) -> str | None:
    """How `compute_bootstrap_interval` computed the intervals in `metrics`, for a card; None if there are none.

    Args:
        metrics: Scores by key, and their intervals by key with `.low` and `.high`.
        groups: Group of each item.
        group_name: What the groups are, as "images".
        is_graded: Whether any value of an item is neither 0 nor 1.
    """
    keys = [key.removesuffix(".low") for key in metrics if key.endswith(".low")]
    items, count = len(groups), len(np.unique(groups))
    if keys and count == items and not is_graded:
        return f"Wilson, {count:,} independent items"
    agreeing = [
        (metrics[f"{key}.low"], metrics[f"{key}.high"]) == compute_wilson_interval(metrics[key], count) for key in keys
    ]
    methods = []
    if not all(agreeing):
        in_groups = f"Wilson, {items:,} items in {count:,} {group_name}, which are resampled for the design effect"
        methods.append(f"bootstrap, {count:,} {group_name} resampled" if is_graded else in_groups)
    if any(agreeing):
        where = " where all have the same score" if methods else ", all with the same score"
        methods.append(f"Wilson, {count:,} {group_name}{where}")
    return "; ".join(methods) or None
