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
        fold: The tested fold, or 0 where there is one split.
        train_mask: Mask of the training items.
        test_mask: Mask of the test items.
        inner_folds: The inner fold of each training item; values of other items are ignored.
        held_out_folds: The inner folds that are held out in turn to choose C.
    """

    fold: int
    train_mask: Bool[np.ndarray, " items"]
    test_mask: Bool[np.ndarray, " items"]
    inner_folds: Int[np.ndarray, " items"]
    held_out_folds: tuple[int, ...]

    def select(self, mask: Bool[np.ndarray, " items"]) -> "Split":
        """The same split, restricted to some items."""
        return self._replace(
            train_mask=self.train_mask[mask], test_mask=self.test_mask[mask], inner_folds=self.inner_folds[mask]
        )


class ProbePredictions(NamedTuple):
    """Predictions of all splits: the items, their splits, the classes by each system, and each system's C per split."""

    items: Int[np.ndarray, " predictions"]
    folds: Int[np.ndarray, " predictions"]
    predictions: dict[str, Int[np.ndarray, " predictions"]]
    c_values: dict[str, dict[int, float]]


def build_cross_validation_splits(folds: Int[np.ndarray, " items"], num_held_out: int) -> list[Split]:
    """Each fold is tested once; the `num_held_out` folds after it (cyclically) are held out in turn to choose C."""
    fold_ids = [int(fold) for fold in np.unique(folds)]
    splits = []
    for index, fold in enumerate(fold_ids):
        other_folds = fold_ids[index + 1 :] + fold_ids[:index]
        splits.append(Split(fold, folds != fold, folds == fold, folds, tuple(sorted(other_folds[:num_held_out]))))
    return splits


def build_predefined_split(
    fold: int,
    train_mask: Bool[np.ndarray, " items"],
    test_mask: Bool[np.ndarray, " items"],
    groups: Sequence[str],
    truth: Sequence[str],
    num_held_out: int,
) -> Split:
    """A predefined split; the training items are in inner folds, `num_held_out` of which are held out in turn."""
    inner_folds = np.full(len(train_mask), -1)
    train_items = np.flatnonzero(train_mask).tolist()
    inner_folds[train_items] = assign_folds(
        [groups[item] for item in train_items], [truth[item] for item in train_items]
    )
    return Split(fold, train_mask, test_mask, inner_folds, tuple(range(num_held_out)))


def assign_folds(groups: Sequence[str], truth: Sequence[str]) -> Int[np.ndarray, " items"]:
    """Folds of nearly equal size for each class; all items of a group are in one fold, by a hash of its name."""
    fold_by_group: dict[str, int] = {}
    for category in sorted(set(truth)):
        class_groups = {
            group
            for group, label in zip(groups, truth, strict=True)
            if label == category and group not in fold_by_group
        }
        for index, group in enumerate(
            sorted(class_groups, key=lambda name: hashlib.sha256(encode_for_hash(name)).digest())
        ):
            fold_by_group[group] = index % NUM_INNER_FOLDS
    return np.array([fold_by_group[group] for group in groups], dtype=np.int64)


def predict_splits(
    features: Mapping[str, Float[Tensor, "items _ _"]],
    truth: Int[np.ndarray, " items"],
    splits: Sequence[Split],
    classes: int,
    classifier: AnyClassifier,
    seed: int = 0,
) -> ProbePredictions:
    """Fits a probe for each compared system in each split, and predicts the test items."""
    jobs = [(system, split) for system in features for split in splits]
    predictions: dict[str, list[np.ndarray]] = {system: [] for system in features}
    c_values: dict[str, dict[int, float]] = {system: {} for system in features}
    for system, split in track_progress(jobs, "fitting probes"):
        probe = fit_split_probe(features[system], truth, split, classes, classifier, seed)
        predictions[system].append(probe.predict(features[system][torch.from_numpy(split.test_mask)]))
        c_values[system][split.fold] = probe.C
    return ProbePredictions(
        np.concatenate([np.flatnonzero(split.test_mask) for split in splits]),
        np.concatenate([np.full(int(split.test_mask.sum()), split.fold) for split in splits]),
        {system: np.concatenate(split_predictions) for system, split_predictions in predictions.items()},
        c_values,
    )


def fit_split_probe(
    features: Float[Tensor, "items windows features"],
    truth: Int[np.ndarray, " items"],
    split: Split,
    classes: int,
    classifier: AnyClassifier,
    seed: int = 0,
) -> LinearProbe | MLPProbe:
    """The probe of one split, fitted on its training items alone."""
    train_features, target = features[torch.from_numpy(split.train_mask)], torch.from_numpy(truth[split.train_mask])
    inner_folds = split.inner_folds[split.train_mask]
    held_out_folds = select_usable_folds(split.held_out_folds, inner_folds)
    if classifier == "mlp":  # a fit is slow, so one inner fold is held out
        return fit_mlp_probe(train_features, target, inner_folds, held_out_folds[:1], classes, seed)
    linear: Classifier = classifier
    return fit_probe(train_features, target, inner_folds, held_out_folds, classes, linear)


def select_usable_folds(held_out_folds: Iterable[int], inner_folds: Int[np.ndarray, " items"]) -> list[int]:
    """The held-out folds that contain items, provided that there are other folds."""
    present_folds = set(np.unique(inner_folds).tolist())
    return [fold for fold in held_out_folds if fold in present_folds and len(present_folds) > 1]
