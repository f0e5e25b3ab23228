"""The protocol of probes: what is tested changes nothing that is fitted; folds, parts and the perceptron."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from comodal.tasks.evaluation.cross_validation import (
    NUM_INNER_FOLDS,
    AnyClassifier,
    Split,
    assign_folds,
    build_cross_validation_splits,
    build_predefined_split,
    fit_split_probe,
    predict_splits,
)
from comodal.tasks.evaluation.linear_probe import choose_c, fit_probe
from comodal.tasks.evaluation.mlp_probe import MLPProbeProblem

FOLDS = np.arange(60) % 4 + 1
TRUTH = np.arange(60) // 4 % 3


def features_of(truth: np.ndarray, seed: int = 0) -> torch.Tensor:
    """Two windows of eight noisy numbers that tell the class somewhat."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(truth), 2, 8))
    rows[np.arange(len(truth)), :, truth] += 1.2
    return torch.from_numpy(rows.astype(np.float32))


@pytest.mark.parametrize("classifier", get_args(AnyClassifier))
def test_a_poisoned_test_fold_changes_nothing_that_is_fitted(classifier: AnyClassifier):
    """Features and labels of the tested fold are replaced by others, far away: the probe is the same bit for bit."""
    features, one = features_of(TRUTH), build_cross_validation_splits(FOLDS, 3)[1]
    poisoned, lies = features.clone(), TRUTH.copy()
    poisoned[torch.from_numpy(one.test_mask)] = 1e4 * torch.randn(int(one.test_mask.sum()), 2, 8)
    lies[one.test_mask] = (lies[one.test_mask] + 1) % 3
    honest = fit_split_probe(features, TRUTH, one, 3, classifier)
    other = fit_split_probe(poisoned, lies, one, 3, classifier)
    assert honest.C == other.C
    assert torch.equal(honest.compute_scores(features), other.compute_scores(features))
    seen = features.clone()
    seen[torch.from_numpy(one.train_mask)] *= 2.0
    assert not torch.equal(
        honest.compute_scores(features), fit_split_probe(seen, TRUTH, one, 3, classifier).compute_scores(features)
    )


def test_the_penalty_is_that_of_the_fitted_folds_alone():
    """The chosen C of a round is what the search gives when only the fitted items exist."""
    rng = np.random.default_rng(3)
    features = torch.from_numpy(rng.normal(size=(60, 1, 40)).astype(np.float32))
    features[:, 0, 0] += torch.from_numpy(TRUTH).float()
    for one in build_cross_validation_splits(FOLDS, 3):
        alone = features[torch.from_numpy(one.train_mask)].clone()
        inner = FOLDS[one.train_mask]
        probe = fit_probe(
            alone, torch.from_numpy(TRUTH[one.train_mask]), inner, np.unique(inner).tolist(), 3, "logistic"
        )
        found = fit_split_probe(features, TRUTH, one, 3, "logistic")
        assert found.C == probe.C
        assert torch.equal(found.weight, probe.weight)


def test_no_fold_is_answered_by_a_probe_that_saw_it():
    """Each item's features tell the item and nothing else: only a probe that saw it could answer above chance."""
    truth = np.arange(30) % 3
    alone = torch.eye(30)[:, None].repeat(1, 3, 1)
    found = predict_splits({"trained": alone}, truth, build_cross_validation_splits(np.arange(30) // 6, 4), 3, "svm")
    assert np.mean(found.predictions["trained"] == truth[found.items]) <= 1 / 3 + 1e-9


def test_each_fold_is_tested_once_and_those_after_it_choose_the_penalty():
    rounds = build_cross_validation_splits(np.array([1, 2, 3, 3]), num_held_out=1)
    assert [(one.fold, one.held_out_folds) for one in rounds] == [(1, (2,)), (2, (3,)), (3, (1,))]
    assert rounds[2].test_mask.tolist() == [False, False, True, True]
    assert all((one.train_mask ^ one.test_mask).all() for one in rounds)
    assert [one.held_out_folds for one in build_cross_validation_splits(np.array([1, 2, 3]), num_held_out=9)] == [
        (2, 3),
        (1, 3),
        (1, 2),
    ]


def test_a_group_is_in_one_part_and_classes_are_spread_evenly():
    groups = [f"{kind}{place}" for kind in "ab" for place in range(10) for _ in range(3)]
    truth = [name[0] for name in groups]
    parts = assign_folds(groups, truth)
    assert all(len({part for part, name in zip(parts, groups, strict=True) if name == group}) == 1 for group in groups)
    for kind in "ab":
        assert (
            np.bincount(parts[[name == kind for name in truth]], minlength=NUM_INNER_FOLDS).tolist()
            == [6] * NUM_INNER_FOLDS
        )
    assert np.array_equal(assign_folds(groups[::-1], truth[::-1]), parts[::-1])


def test_parts_of_what_is_fitted_do_not_depend_on_what_is_tested():
    names, labels, fitted = [f"file {number}" for number in range(60)], [str(kind) for kind in TRUTH], FOLDS != 1
    honest = build_predefined_split(0, fitted, ~fitted, names, labels, NUM_INNER_FOLDS)
    lies = [label if fit else "0" for label, fit in zip(labels, fitted, strict=True)]
    renamed = [name if fit else names[1] for name, fit in zip(names, fitted, strict=True)]
    other = build_predefined_split(0, fitted, ~fitted, renamed, lies, NUM_INNER_FOLDS)
    assert np.array_equal(honest.inner_folds[fitted], other.inner_folds[fitted])
    assert np.bincount(honest.inner_folds[fitted], minlength=NUM_INNER_FOLDS).tolist() == [9] * NUM_INNER_FOLDS
    assert honest.held_out_folds == (0, 1, 2, 3, 4)


def test_what_is_in_no_round_is_neither_fitted_nor_answered():
    features, used = features_of(TRUTH), np.arange(60) < 48
    one = Split(0, used & (FOLDS != 1), used & (FOLDS == 1), FOLDS, (2,))
    found = predict_splits({"trained": features}, np.where(used, TRUTH, -1), [one], 3, "logistic")
    assert found.items.tolist() == np.flatnonzero(one.test_mask).tolist()
    assert set(found.folds.tolist()) == {0}


def test_a_perceptron_learns_what_no_line_can():
    """Exclusive or: a linear probe is at chance, two hidden layers are not."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, size=(400, 1, 2)).astype(np.float32)
    truth = ((points[:, 0, 0] > 0) ^ (points[:, 0, 1] > 0)).astype(np.int64)
    features, target = torch.from_numpy(points), torch.from_numpy(truth)
    seen, rest = torch.arange(400) < 300, torch.arange(400) >= 300
    probe = MLPProbeProblem(features[seen], target[seen], 2, seed=0).fit(5e3, 40)
    line = LogisticRegression().fit(points[:300, 0], truth[:300]).score(points[300:, 0], truth[300:])
    assert (probe.predict(features[rest]) == truth[300:]).mean() > 0.95 > 0.7 > line
    assert torch.allclose(probe.compute_scores(features).sum(1), torch.ones(400))


def test_a_perceptron_under_an_overwhelming_penalty_says_how_frequent_the_classes_are():
    """Closed form: with weights of zero the best biases are the logarithms of the classes' shares."""
    features, target = features_of(TRUTH), torch.from_numpy(np.minimum(TRUTH, 1))
    scores = MLPProbeProblem(features, target, 2, seed=0).fit(1e-2, 450).compute_scores(features)
    assert torch.allclose(scores, torch.tensor([1 / 3, 2 / 3]), atol=0.03)


def test_the_same_perceptron_again_and_windows_are_averaged():
    features, target = features_of(TRUTH), torch.from_numpy(TRUTH)
    problem = partial(MLPProbeProblem, features, target, 3)
    first, again, other = (problem(seed=seed).fit(5e3, 5) for seed in (0, 0, 1))
    assert torch.equal(first.compute_scores(features), again.compute_scores(features))
    assert not torch.equal(first.compute_scores(features), other.compute_scores(features))
    apart = first.compute_scores(features.flatten(0, 1)[:, None]).unflatten(0, (60, 2)).mean(1)
    assert torch.allclose(first.compute_scores(features), apart, atol=1e-6)


def test_a_search_with_nothing_held_out_takes_the_strongest_penalty():
    features, target = features_of(TRUTH), torch.from_numpy(TRUTH)
    problem = partial(MLPProbeProblem, classes=3, seed=0)
    assert choose_c(features, target, FOLDS, [], problem, (5e2, 5e3), 1) == 5e2
