"""The protocol of a probe: rounds, in each of which some items are fitted and others answered.

What a round does not fit it does not see: z-scores, the penalty and the weights come from the fitted items alone. The
penalty is chosen by holding out parts of them in turn; a part holds whole groups (recordings, places), so that no item
has a near-copy on both sides.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from comodal.progress import track_progress
from comodal.tasks.evaluation.linear_probe import Classifier, LinearProbe, fit_probe
from comodal.tasks.evaluation.mlp_probe import MLPProbe, fit_mlp_probe

AnyClassifier = Literal["svm", "logistic", "mlp"]
NUM_INNER_FOLDS = 5


class Split(NamedTuple):
    """One fit and one test.

    Args:
        number: Of the fold that is tested, or 0 where there is one split.
        fitted: The items that are fitted.
        tested: The items that are answered.
        parts: In which part each fitted item is; of the others nothing is read.
        held_out: The parts that are held out in turn to choose the penalty.
    """

    number: int
    fitted: Bool[np.ndarray, " items"]
    tested: Bool[np.ndarray, " items"]
    parts: Int[np.ndarray, " items"]
    held_out: tuple[int, ...]

    def of(self, kept: Bool[np.ndarray, " items"]) -> "Split":
        """The same round of some of the items."""
        return self._replace(fitted=self.fitted[kept], tested=self.tested[kept], parts=self.parts[kept])


class ProbePredictions(NamedTuple):
    """What was answered: the item, the round, each system's class, and the C of each system in each round."""

    items: Int[np.ndarray, " answers"]
    rounds: Int[np.ndarray, " answers"]
    answers: dict[str, Int[np.ndarray, " answers"]]
    strengths: dict[str, dict[int, float]]


def build_cross_validation_splits(folds: Int[np.ndarray, " items"], held_out: int) -> list[Split]:
    """Each fold is tested once; of the others, so many that follow it (the last by the first) are held out in turn."""
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
    """A split that is given; the fitted items alone are dealt into parts, so many of which are held out in turn."""
    parts = np.full(len(fitted), -1)
    chosen = np.flatnonzero(fitted).tolist()
    parts[chosen] = assign_folds([groups[item] for item in chosen], [truth[item] for item in chosen])
    return Split(number, fitted, tested, parts, tuple(range(held_out)))


def assign_folds(groups: Sequence[str], truth: Sequence[str]) -> Int[np.ndarray, " items"]:
    """Parts of nearly equal size for each class; all items of a group are in one, by a hash of its name."""
    part: dict[str, int] = {}
    for category in sorted(set(truth)):
        own = {group for group, other in zip(groups, truth, strict=True) if other == category and group not in part}
        for place, group in enumerate(sorted(own, key=lambda name: hashlib.sha256(name.encode()).digest())):
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
    """Fits a probe for every system in every round, and answers."""
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
    """The probe of one round, from its fitted items alone."""
    seen, target = features[torch.from_numpy(one.fitted)], torch.from_numpy(truth[one.fitted])
    inner = one.parts[one.fitted]
    held_out = select_usable_folds(one.held_out, inner)
    if classifier == "mlp":  # a fit takes so long that one part has to do
        return fit_mlp_probe(seen, target, inner, held_out[:1], classes, seed)
    linear: Classifier = classifier
    return fit_probe(seen, target, inner, held_out, classes, linear)


def select_usable_folds(held_out: Iterable[int], parts: Int[np.ndarray, " items"]) -> list[int]:
    """Those parts that hold something and leave something."""
    there = set(np.unique(parts).tolist())
    return [part for part in held_out if part in there and len(there) > 1]
