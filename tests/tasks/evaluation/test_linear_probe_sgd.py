"""Mini-batches reach the minimum of scikit-learn, whatever the blocks; the order is the seed's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from comodal.tasks.evaluation import linear_probe_sgd
from comodal.tasks.evaluation.linear_probe_sgd import FeatureRows, SGDConfig, choose_c_with_sgd, fit_sgd_probe

ITEMS, FEATURES, CLASSES = 1200, 16, 4
CPU = torch.device("cpu")


def made_up(items: int = ITEMS) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of four overlapping classes, in an order without meaning."""
    rng = np.random.default_rng(0)
    target = rng.integers(CLASSES, size=items)
    centres, mix = rng.normal(size=(CLASSES, FEATURES)), rng.normal(size=(FEATURES, FEATURES))
    rows = (0.7 * centres[target] + rng.normal(size=(items, FEATURES))) @ mix + 3.0
    return rows.astype(np.float16)[:, None], target


def everything(target: np.ndarray) -> np.ndarray:
    return np.ones(len(target), dtype=bool)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_logistic_regression_is_scikit_learns(solver: str):
    features, target = made_up()
    steps = SGDConfig(solver, 60, 64, CPU, 0)
    probe = fit_sgd_probe(FeatureRows([features], target, everything(target)), CLASSES, "logistic", 0.01, steps)
    rows = StandardScaler().fit_transform(features[:, 0].astype(np.float64))
    model = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(rows, target)
    assert np.allclose(probe.weight.numpy(), model.coef_, atol=0.03 * np.abs(model.coef_).max())
    scores = probe.compute_scores(torch.from_numpy(features.astype(np.float32))).numpy()
    assert np.allclose(scores, model.predict_proba(rows), atol=0.01)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_the_svm_answers_as_liblinear_does(solver: str):
    features, target = made_up()
    steps = SGDConfig(solver, 30, 64, CPU, 0)
    probe = fit_sgd_probe(FeatureRows([features], target, everything(target)), CLASSES, "svm", 0.01, steps)
    rows = StandardScaler().fit_transform(features[:, 0].astype(np.float64))
    model = LinearSVC(C=0.01, tol=1e-8, max_iter=100_000, intercept_scaling=100.0).fit(rows, target)
    assert (probe.predict(torch.from_numpy(features.astype(np.float32))) == model.predict(rows)).mean() >= 0.985


def test_blocks_hold_every_chosen_row_once_in_the_order_of_the_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear_probe_sgd, "MAX_BLOCK_BYTES", 2 * FEATURES * 100)  # a hundred rows
    features, target = made_up(250)
    features[:, 0, 0] = np.arange(250)
    chosen = np.arange(250) % 3 > 0
    rows = FeatureRows([features], target, chosen)

    def numbers(seed: int) -> list[float]:
        return [n for block, _ in rows.blocks(0, np.random.default_rng(seed)) for n in block[:, 0].tolist()]

    assert sorted(numbers(0)) == np.flatnonzero(chosen).tolist()
    assert numbers(0) == numbers(0) != numbers(1)
    for block, classes in rows.blocks(0, np.random.default_rng(0)):
        assert target[block[:, 0].int().numpy()].tolist() == classes.tolist()


def test_the_standardisation_is_that_of_all_chosen_rows_of_all_views(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear_probe_sgd, "MAX_BLOCK_BYTES", 2 * FEATURES * 100)
    features, target = made_up(250)
    features[:, 0, 3] = 7.0
    chosen = np.arange(250) % 3 > 0
    mean, scale = FeatureRows([features, features * 2], target, chosen).standardization
    every = np.concatenate([features[chosen, 0], features[chosen, 0] * 2]).astype(np.float64)
    scaler = StandardScaler().fit(every)
    assert np.allclose(mean, scaler.mean_, rtol=1e-5, atol=1e-5)
    assert np.allclose(scale, scaler.scale_, rtol=1e-5)
    assert float(FeatureRows([features], target, chosen).standardization[1][3]) == 1.0


def test_epochs_read_the_views_in_turn():
    features, target = made_up(64)
    rows = FeatureRows([features, features + 100], target, everything(target))
    means = [
        float(batch.mean()) for batch, _ in linear_probe_sgd.iterate_batches(rows, SGDConfig("adam", 4, 64, CPU, 0))
    ]
    assert [mean > 50 for mean in means] == [False, True, False, True]


def test_the_choice_of_c_sees_the_training_part_alone():
    """Noise in many dimensions wants a strong penalty; labels of what is held out are answered, never fitted."""
    rng = np.random.default_rng(1)
    target = rng.integers(2, size=160)
    rows = rng.normal(size=(160, 1, 200)).astype(np.float16)
    rows[:, 0, 0] += (1.5 * (2 * target - 1)).astype(np.float16)
    held_out = np.arange(160) % 4 == 0
    steps = SGDConfig("adam", 80, 40, CPU, 0)
    chosen = choose_c_with_sgd([rows], target, ~held_out, held_out, 2, "logistic", steps, [1e-4, 1e-3, 10.0])
    assert chosen < 1.0
