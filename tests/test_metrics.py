"""Metrics against numbers worked by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from comodal.tasks.metrics import accuracy, bootstrap_interval, confusion_matrix, per_class

TRUTH = np.array([0, 0, 0, 1, 1, 2])
ANSWERS = np.array([0, 0, 1, 1, 0, 2])


def test_worked_by_hand():
    assert accuracy(ANSWERS, TRUTH) == pytest.approx(4 / 6)
    assert confusion_matrix(ANSWERS, TRUTH, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_as_scikit_learn_counts():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(7, size=500), rng.integers(7, size=500)
    confusion = confusion_matrix(answers, truth, 7)
    assert np.array_equal(confusion, theirs.confusion_matrix(truth, answers))
    found = per_class(confusion)
    assert np.allclose(found.recall, theirs.recall_score(truth, answers, average=None))
    assert np.allclose(found.precision, theirs.precision_score(truth, answers, average=None))
    assert np.array_equal(found.counts, np.bincount(truth))


def test_a_class_that_never_occurs_has_no_recall():
    found = per_class(confusion_matrix(ANSWERS, TRUTH, 4))
    assert found.counts[3] == found.recall[3] == found.precision[3] == 0


def test_interval_is_that_of_the_normal_approximation():
    """For 1,000 answers, 800 right: 0.8 +- 1.96 * sqrt(0.8 * 0.2 / 1000)."""
    correct = np.arange(1000) < 800
    low, high = bootstrap_interval(correct, np.random.default_rng(0), resamples=20_000)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.002)
    assert high == pytest.approx(0.8 + half, abs=0.002)


def test_interval_of_certainty_is_a_point():
    assert bootstrap_interval(np.ones(50, dtype=bool), np.random.default_rng(0)) == (1.0, 1.0)


def test_nothing_has_no_accuracy():
    with pytest.raises(ValueError, match="no items"):
        accuracy(np.array([], dtype=int), np.array([], dtype=int))
