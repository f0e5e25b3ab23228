"""Cross-validation of a probe: each split fits some items and predicts others.

Nothing of the test items is used for fitting: z-scores, C and the weights come from the fitted items alone. C is chosen
by holding out inner folds of the fitted items in turn. An inner fold holds whole groups (recordings, locations), so
that no item has a near-duplicate on both sides.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from comodal.files import encode_for_hash
from comodal.progress import track_progress
from comodal.tasks.evaluation.linear_probe import Classifier, LinearProbe, fit_probe
from comodal.tasks.evaluation.mlp_probe import MLPProbe, fit_mlp_probe

AnyClassifier = Literal["svm", "logistic", "mlp"]
NUM_INNER_FOLDS = 5


class Split(NamedTuple):
    """One split: the items to fit and the items to test.

    Args:
        number: The tested fold, or 0 where there is one split.
        fitted: Mask of the training items.
        tested: Mask of the test items.
        parts: The inner fold of each training item; values of other items are ignored.
        held_out: The inner folds that are held out in turn to choose C.
    """

    number: int
    fitted: Bool[np.ndarray, " items"]
    tested: Bool[np.ndarray, " items"]
    parts: Int[np.ndarray, " items"]
    held_out: tuple[int, ...]

    def of(self, kept: Bool[np.ndarray, " items"]) -> "Split":
        """The same split, restricted to some items."""
        return self._replace(fitted=self.fitted[kept], tested=self.tested[kept], parts=self.parts[kept])


class ProbePredictions(NamedTuple):
    """Predictions of all splits: the items, their splits, the classes by each system, and each system's C per split."""

    items: Int[np.ndarray, " answers"]
    rounds: Int[np.ndarray, " answers"]
    answers: dict[str, Int[np.ndarray, " answers"]]
    strengths: dict[str, dict[int, float]]


def build_cross_validation_splits(folds: Int[np.ndarray, " items"], held_out: int) -> list[Split]:
    """Each fold is tested once; the `held_out` folds that follow it (cyclically) are held out in turn to choose C."""
    numbers = [int(fold) for fold in np.unique(folds)]
    rounds = []
    for place, fold in enumerate(numbers):
        others = numbers[place + 1 :] + numbers[:place]
        rounds.append(Split(fold, folds != fold, folds == fold, folds, tuple(sorted(others[:held_out]))))
    return rounds


def build_given_split(
    number: int,
    fitted: Bool[np.ndarray, " items"],
    tested: Bool[np.ndarray, " items"],
    groups: Sequence[str],
    truth: Sequence[str],
    held_out: int,
) -> Split:
    """A predefined split; the training items are assigned to inner folds, `held_out` of which are held out in turn."""
    parts = np.full(len(fitted), -1)
    chosen = np.flatnonzero(fitted).tolist()
    parts[chosen] = assign_folds([groups[item] for item in chosen], [truth[item] for item in chosen])
    return Split(number, fitted, tested, parts, tuple(range(held_out)))


def assign_folds(groups: Sequence[str], truth: Sequence[str]) -> Int[np.ndarray, " items"]:
    """Folds of nearly equal size for each class; all items of a group are in one fold, by a hash of its name."""
    part: dict[str, int] = {}
    for category in sorted(set(truth)):
        own = {group for group, other in zip(groups, truth, strict=True) if other == category and group not in part}
        for place, group in enumerate(sorted(own, key=lambda name: hashlib.sha256(encode_for_hash(name)).digest())):
            part[group] = place % NUM_INNER_FOLDS
    return np.array([part[group] for group in groups], dtype=np.int64)


def predict_splits(
    features: Mapping[str, Float[Tensor, "items _ _"]],
    truth: Int[np.ndarray, " items"],
    rounds: Sequence[Split],
    classes: int,
    classifier: AnyClassifier,
    seed: int = 0,
) -> ProbePredictions:
    """Fits a probe for every system in every split, and predicts the test items."""
    jobs = [(system, one) for system in features for one in rounds]
    answers: dict[str, list[np.ndarray]] = {system: [] for system in features}
    strengths: dict[str, dict[int, float]] = {system: {} for system in features}
    for system, one in track_progress(jobs, "fitting probes"):
        probe = fit_split_probe(features[system], truth, one, classes, classifier, seed)
        answers[system].append(probe.predict(features[system][torch.from_numpy(one.tested)]))
        strengths[system][one.number] = probe.strength
    return ProbePredictions(
        np.concatenate([np.flatnonzero(one.tested) for one in rounds]),
        np.concatenate([np.full(int(one.tested.sum()), one.number) for one in rounds]),
        {system: np.concatenate(given) for system, given in answers.items()},
        strengths,
    )


def fit_split_probe(
    features: Float[Tensor, "items windows features"],
    truth: Int[np.ndarray, " items"],
    one: Split,
    classes: int,
    classifier: AnyClassifier,
    seed: int = 0,
) -> LinearProbe | MLPProbe:
    """The probe of one split, fitted on its training items alone."""
    seen, target = features[torch.from_numpy(one.fitted)], torch.from_numpy(truth[one.fitted])
    inner = one.parts[one.fitted]
    held_out = select_usable_folds(one.held_out, inner)
    if classifier == "mlp":  # a fit is slow, so one inner fold is held out
        return fit_mlp_probe(seen, target, inner, held_out[:1], classes, seed)
    linear: Classifier = classifier
    return fit_probe(seen, target, inner, held_out, classes, linear)


def select_usable_folds(held_out: Iterable[int], parts: Int[np.ndarray, " items"]) -> list[int]:
    """The held-out folds that contain items, provided that there are other folds."""
    there = set(np.unique(parts).tolist())
    return [part for part in held_out if part in there and len(there) > 1]
