"""Metrics of foils: pairwise accuracy; VALSE's p_c, p_f, acc and AUROC; Winoground's text, image and group scores.

Departs from VALSE's script for LXMERT: pairs are ranked by the log odds of a match, which order them as the probability
does. The script compares the logits of the class "match" alone.

All comparisons are strict: a foil with the same score as the caption is an error. (VALSE's and SugarCrepe's scripts do
the same. ARO's take the first of equal scores, which is the foil of VG-Relation and VG-Attribution and the caption of
the order sets.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score

from comodal.tasks.evaluation.missing_images import compute_accuracy_metrics
from comodal.tasks.foils.aro_relations import EXCLUDED_RELATIONS
from comodal.tasks.foils.foil_files import Benchmark, Foil

FOILS_TASK = "foils"
PAIRWISE, CAPTION_PRECISION, FOIL_PRECISION = "pairwise_accuracy", "caption_precision", "foil_precision"
DETECTION, AUROC = "detection_accuracy", "auroc"
WINOGROUND_SCORES = ("text_score", "image_score", "group_score")
MIN_ATTRIBUTE_COUNT = 25  # of a pair of attributes in the mean of VG-Attribution (the published evaluate_scores)


@dataclass(frozen=True)
class ScoredFoils:
    """The scores of a system.

    Args:
        foils: The foils.
        scores: The score of each image with each text of each foil; None where an image is missing.
        is_log_odds: Whether scores are log odds of a match, so that a text above 0 is classified as a caption.
    """

    foils: Sequence[Foil]
    scores: Sequence[np.ndarray | None]
    is_log_odds: bool

    @property
    def has_prediction(self) -> Bool[np.ndarray, " foils"]:
        """Whether the images of each foil were found."""
        return np.array([one is not None for one in self.scores])

    def compute_values(self) -> dict[str, Float[np.ndarray, " foils"]]:
        """The value of each foil by metric, from 0 to 1; 0 where an image is missing."""
        is_winoground = len(self.foils[0].images) == 2
        measure = measure_winoground if is_winoground else (measure_detection if self.is_log_odds else measure_pair)
        values = [None if one is None else measure(one) for one in self.scores]
        names = next((list(one) for one in values if one is not None), [PAIRWISE])
        return {name: np.array([0.0 if one is None else one[name] for one in values], np.float64) for name in names}

    def compute_auroc(self, rows: Sequence[int]) -> float:
        """The area under the ROC curve of captions against foils, over these foils."""
        found = [scores for row in rows if (scores := self.scores[row]) is not None]
        values = np.concatenate([one[0] for one in found])
        is_caption = np.concatenate([np.arange(one.shape[1]) == 0 for one in found])
        return float(roc_auc_score(is_caption, values))


def measure_pair(scores: np.ndarray) -> dict[str, float]:
    """Whether the caption scores higher than every foil: VALSE's acc_r."""
    return {PAIRWISE: float(scores[0, 0] > scores[0, 1:].max())}


def measure_detection(scores: np.ndarray) -> dict[str, float]:
    """`measure_pair`, and the classification by log odds: p_c, p_f and acc of VALSE."""
    caption_fits, foil_detected = float(scores[0, 0] > 0), float((scores[0, 1:] <= 0).mean())
    return measure_pair(scores) | {
        CAPTION_PRECISION: caption_fits,
        FOIL_PRECISION: foil_detected,
        DETECTION: (caption_fits + foil_detected) / 2,
    }


def measure_winoground(scores: np.ndarray) -> dict[str, float]:
    """Winoground, section 3.2: rows are images and columns texts, and text i is of image i."""
    (first, first_wrong), (second_wrong, second) = scores
    text = first > first_wrong and second > second_wrong
    image = first > second_wrong and second > first_wrong
    return dict(zip(WINOGROUND_SCORES, map(float, (text, image, text and image)), strict=True))


def measure_shorter_text(foils: Sequence[Foil]) -> Float[np.ndarray, " foils"]:
    """The text-only baseline that chooses the text with the fewest words; equal ones count as a random choice."""
    lengths = [np.array([len(text.split()) for text in foil.texts]) for foil in foils]
    return np.array([(one[0] == one.min()) / (one == one.min()).sum() for one in lengths])


def compute_chance_levels(foils: Sequence[Foil]) -> dict[str, float]:
    """The values of random scores: one of the texts for pairs, and 1/4, 1/4 and 1/6 for Winoground."""
    if len(foils[0].images) == 2:
        return dict(zip(WINOGROUND_SCORES, (1 / 4, 1 / 4, 1 / 6), strict=True))
    return {PAIRWISE: float(np.mean([1 / len(foil.texts) for foil in foils]))}


def group_by_subset(foils: Sequence[Foil]) -> dict[str, list[int]]:
    """The rows of the foils of each subset, by its name."""
    rows: dict[str, list[int]] = {}
    for row, foil in enumerate(foils):
        rows.setdefault(foil.subset, []).append(row)
    return dict(sorted(rows.items()))


def list_averaged_subsets(benchmark: Benchmark, subsets: Mapping[str, Sequence[int]]) -> list[str]:
    """The subsets whose mean is the published number: all, except those that ARO's authors leave out."""
    if benchmark == "aro_relation":
        return [name for name in subsets if name not in EXCLUDED_RELATIONS]
    if benchmark == "aro_attribution":
        return [name for name, rows in subsets.items() if len(rows) >= MIN_ATTRIBUTE_COUNT]
    return list(subsets)


def compute_foil_metrics(benchmark: Benchmark, system: ScoredFoils) -> dict[str, float]:
    """All metrics of a system: with intervals by image, of all foils, of each subset, and the mean of the subsets.

    Keys are METRIC, METRIC.low, METRIC.high, METRIC.predicted, the same below subset.NAME, and mean.METRIC.
    """
    subsets, values = group_by_subset(system.foils), system.compute_values()
    images, has_prediction = [foil.images[0] for foil in system.foils], system.has_prediction
    metrics: dict[str, float] = {}
    parts = {"": list(range(len(images)))} | {f"subset.{name}.": rows for name, rows in subsets.items()}
    for prefix, rows in parts.items():
        found = has_prediction[rows]
        predicted = found if found.any() else ~found  # without any image, all count as incorrect
        for name, one in values.items():
            metrics |= compute_accuracy_metrics(prefix + name, one[rows], predicted, [images[row] for row in rows])
        if found.any() and PAIRWISE in values:
            metrics[f"{prefix}{AUROC}"] = system.compute_auroc(rows)
    averaged = list_averaged_subsets(benchmark, subsets)
    for name in values if averaged else ():
        metrics[f"mean.{name}"] = float(np.mean([metrics[f"subset.{one}.{name}"] for one in averaged]))
    return metrics
