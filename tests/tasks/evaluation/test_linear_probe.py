"""The probe against scikit-learn's solvers of the same objectives, and against what must not leak or matter."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from comodal.errors import DataError
from comodal.tasks.evaluation.linear_probe import LinearProbeProblem, choose_c, fit_probe
from comodal.tasks.evaluation.linear_probe_sgd import predict_top_classes

ITEMS, FEATURES, CLASSES = 300, 24, 4


def made_up(items: int = ITEMS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of four overlapping classes, one window each."""
    rng = np.random.default_rng(seed)
    target = np.arange(items) % CLASSES
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    mix = np.random.default_rng(98).normal(size=(FEATURES, FEATURES))
    rows = (0.7 * centres[target] + rng.normal(size=(items, FEATURES))) @ mix + 3.0
    return torch.from_numpy(rows.astype(np.float32))[:, None], torch.from_numpy(target)


def objective(weight: np.ndarray, bias: np.ndarray, rows: np.ndarray, target: np.ndarray, strength: float) -> float:
    """w'w / 2 + C * squared hinges of the one-vs-all problems, written down anew."""
    sign = np.where(np.arange(CLASSES)[:, None] == target, 1.0, -1.0)
    hinges = np.maximum(0.0, 1.0 - sign * (weight @ rows.T + bias[:, None]))
    return 0.5 * float((weight**2).sum()) + strength * float((hinges**2).sum())


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_logistic_regression_is_scikit_learns(strength: float):
    features, target = made_up()
    probe = LinearProbeProblem(features, target, CLASSES, "logistic").fit(strength, 500)
    rows = StandardScaler().fit_transform(features[:, 0].numpy().astype(np.float64))
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(rows, target.numpy())
    assert np.allclose(probe.weight.numpy(), model.coef_, atol=5e-3 * np.abs(model.coef_).max())
    assert np.allclose(probe.compute_scores(features).numpy(), model.predict_proba(rows), atol=2e-3)


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_the_svm_is_as_near_its_minimum_as_liblinear(strength: float):
    """Liblinear penalises the bias a little, so the objective is compared, and the answers."""
    features, target = made_up()
    probe = LinearProbeProblem(features, target, CLASSES, "svm").fit(strength, 500)
    rows = StandardScaler().fit_transform(features[:, 0].numpy().astype(np.float64))
    model = LinearSVC(C=strength, tol=1e-8, max_iter=100_000, intercept_scaling=100.0).fit(rows, target.numpy())
    ours = objective(probe.weight.numpy(), probe.bias[:, 0].numpy(), rows, target.numpy(), strength)
    assert ours <= 1.0005 * objective(model.coef_, model.intercept_, rows, target.numpy(), strength)
    assert (probe.predict(features) == model.predict(rows)).mean() >= 0.99


def test_features_that_are_no_numbers_answer_nothing():
    features, target = made_up()
    probe = LinearProbeProblem(features, target, CLASSES, "logistic").fit(0.01, 50)
    features[7, 0, 3] = float("nan")
    with pytest.raises(DataError, match="scores are NaN"):
        probe.predict(features)
    with pytest.raises(DataError, match="scores are NaN"):
        predict_top_classes(probe, features, 2)


def test_a_score_is_the_mean_over_the_windows():
    features, target = made_up()
    probe = LinearProbeProblem(features, target, CLASSES, "svm").fit(0.01, 200)
    two = torch.stack([features[:50, 0], features[50:100, 0]], dim=1)
    expected = (probe.compute_scores(features[:50]) + probe.compute_scores(features[50:100])) / 2
    assert torch.allclose(probe.compute_scores(two), expected, atol=1e-5)


def test_a_window_trains_as_if_by_itself():
    features, target = made_up()
    together = LinearProbeProblem(features.reshape(150, 2, FEATURES), target[::2], CLASSES, "svm")
    apart = LinearProbeProblem(features, target[::2].repeat_interleave(2), CLASSES, "svm")
    assert torch.equal(together.fit(0.01, 100).weight, apart.fit(0.01, 100).weight)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_scale_and_place_of_a_feature_do_not_matter(classifier: str):
    features, target = made_up()
    changed = features * torch.logspace(-3, 3, FEATURES) + torch.linspace(-1, 1, FEATURES)
    plain = LinearProbeProblem(features, target, CLASSES, classifier).fit(0.01, 300)
    other = LinearProbeProblem(changed, target, CLASSES, classifier).fit(0.01, 300)
    assert torch.allclose(plain.compute_scores(features), other.compute_scores(changed), atol=5e-3)


def test_a_dead_feature_is_ignored():
    features, target = made_up()
    dead = torch.cat([features, torch.full((ITEMS, 1, 3), 7.0)], dim=2)
    probe = LinearProbeProblem(dead, target, CLASSES, "svm").fit(0.01, 200)
    assert torch.isfinite(probe.compute_scores(dead)).all()
    assert probe.weight[:, -3:].abs().max() < 1e-4


def test_the_choice_of_c_is_the_one_of_a_plain_search():
    """Noise in many dimensions wants a strong penalty; the choice must be the best of all on the held-out folds."""
    rng = np.random.default_rng(1)
    target = torch.arange(120) % 2
    rows = rng.normal(size=(120, 1, 200)).astype(np.float32)
    rows[:, 0, 0] += 1.5 * (2 * target.numpy() - 1)
    features, folds = torch.from_numpy(rows), np.arange(120) // 30
    problem = partial(LinearProbeProblem, classes=2, classifier="logistic")
    chosen = choose_c(features, target, folds, [0, 1, 2, 3], problem, [1e-4, 1e-3, 10.0])
    right = {}
    for strength in (1e-4, 1e-3, 10.0):
        answers = np.empty(120)
        for fold in range(4):
            scaler = StandardScaler().fit(rows[folds != fold, 0])
            model = LogisticRegression(C=strength, max_iter=5000)
            model.fit(scaler.transform(rows[folds != fold, 0]), target[folds != fold])
            answers[folds == fold] = model.predict(scaler.transform(rows[folds == fold, 0]))
        right[strength] = int((answers == target.numpy()).sum())
    assert right[chosen] == max(right.values())
    assert right[chosen] > right[10.0]


def test_the_same_probe_again():
    features, target = made_up()
    folds = np.arange(ITEMS) % 3
    first, again = (fit_probe(features, target, folds, [0, 1, 2], CLASSES, "svm") for _ in range(2))
    assert first.C == again.C
    assert torch.equal(first.weight, again.weight)


def test_more_features_than_items_is_scikit_learns_too():
    """Fewer rows than features are fitted in coordinates of their span; weights and answers are those of all."""
    rng = np.random.default_rng(3)
    target = torch.arange(40) % 4
    rows = rng.normal(size=(40, 300)).astype(np.float32)
    rows[:, :4] += 2 * np.eye(4, dtype=np.float32)[target.numpy()]
    found = LinearProbeProblem(torch.from_numpy(rows)[:, None], target, 4, "logistic").fit(0.01, 300)
    scaler = StandardScaler().fit(rows)
    theirs = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8).fit(scaler.transform(rows), target.numpy())
    np.testing.assert_allclose(found.weight.numpy(), theirs.coef_, atol=2e-4)
    unseen = rng.normal(size=(50, 300)).astype(np.float32)
    probabilities = theirs.predict_proba(scaler.transform(unseen))
    np.testing.assert_allclose(
        found.compute_scores(torch.from_numpy(unseen)[:, None]).numpy(), probabilities, atol=1e-3
    )


def test_a_fold_that_holds_nothing_is_said():
    features, target = made_up(20)
    with pytest.raises(ValueError, match="fold 5 holds 0 of the 20"):
        fit_probe(features, target, np.zeros(20, dtype=int), [5], CLASSES, "svm")
