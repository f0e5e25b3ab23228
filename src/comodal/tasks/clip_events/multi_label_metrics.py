"""Metrics of multi-label classification by scores: F1 and hit rate of the k highest, areas under curves, confusion.

They are those of VGGSounder's benchmark: `compare_labels_logits` and `compute_modality_confusion_logits` of the PyPI
package `vggsounder`, whose numbers the tests compare.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score

from comodal.tasks.evaluation.metrics import MAX_BOOTSTRAP_DRAWS

BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE_TAIL = 0.025  # on either side of a 95 % interval


class ModalityConfusion(NamedTuple):
    """For each item, whether one modality hits where both together fail: audio, image, and each of them."""

    a: Bool[np.ndarray, " items"]
    v: Bool[np.ndarray, " items"]
    av: Bool[np.ndarray, " items"]


def mark_top_k(scores: Float[np.ndarray, "items classes"], k: int) -> Bool[np.ndarray, "items classes"]:
    """Whether a class is among the k highest scores of an item."""
    highest = np.argsort(scores, axis=1)[:, -k:]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, highest, True, axis=1)
    return chosen


def compute_hits(
    chosen: Bool[np.ndarray, "items classes"], truth: Bool[np.ndarray, "items classes"]
) -> Bool[np.ndarray, " items"]:
    """Whether any chosen class of an item is correct; its mean is the hit rate."""
    return (chosen & truth).any(1)


def compute_micro_f1(chosen: Bool[np.ndarray, "items classes"], truth: Bool[np.ndarray, "items classes"]) -> float:
    """Micro-averaged F1: twice the correct choices, over the choices and the labels of all items."""
    return float(2 * (chosen & truth).sum() / (chosen.sum() + truth.sum()))


def compute_f1_interval(
    chosen: Bool[np.ndarray, "items classes"],
    truth: Bool[np.ndarray, "items classes"],
    groups: Sequence[str],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The 95 % percentile interval of the micro-averaged F1 over resampled groups."""
    inverse = np.unique(groups, return_inverse=True)[1]
    correct = np.bincount(inverse, weights=2 * (chosen & truth).sum(1))
    total = np.bincount(inverse, weights=chosen.sum(1) + truth.sum(1))
    values, block = [], max(1, MAX_BOOTSTRAP_DRAWS // len(total))
    for start in range(0, BOOTSTRAP_RESAMPLES, block):
        sampled = rng.integers(len(total), size=(min(block, BOOTSTRAP_RESAMPLES - start), len(total)))
        values.append(correct[sampled].sum(1) / total[sampled].sum(1))
    low, high = np.quantile(np.concatenate(values), [CONFIDENCE_TAIL, 1 - CONFIDENCE_TAIL])
    return float(low), float(high)


def compute_curve_means(
    scores: Float[np.ndarray, "items classes"], truth: Bool[np.ndarray, "items classes"]
) -> tuple[float, float]:
    """The mean over the classes of the area under the ROC curve, and of the average precision.

    Classes that no item has, or that all have, are left out. Without any other class both are 0.
    """
    areas = [
        (roc_auc_score(truth[:, index], scores[:, index]), average_precision_score(truth[:, index], scores[:, index]))
        for index in range(truth.shape[1])
        if 0 < truth[:, index].sum() < len(truth)
    ]
    roc, precision = np.mean(areas, axis=0) if areas else (0.0, 0.0)
    return float(roc), float(precision)


def compute_modality_confusion(
    audio: Float[np.ndarray, "items classes"],
    image: Float[np.ndarray, "items classes"],
    both: Float[np.ndarray, "items classes"],
    truth: Bool[np.ndarray, "items classes"],
) -> ModalityConfusion:
    """Where the highest score of one modality is a label of the item, and that of both modalities is not.

    Args:
        audio: Scores from the audio.
        image: Scores from the image.
        both: Scores from audio and image.
        truth: All labels of each item, of any modality.
    """
    a, v, av = (compute_hits(mark_top_k(scores, 1), truth) for scores in (audio, image, both))
    return ModalityConfusion(a & ~av, v & ~av, a & v & ~av)
