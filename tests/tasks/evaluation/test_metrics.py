"""Metrics against numbers worked by hand and against scikit-learn."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn import metrics as theirs

from comodal.errors import DataError
from comodal.tasks.evaluation.metrics import (
    check_finite_scores,
    compute_accuracy,
    compute_bootstrap_interval,
    compute_per_class,
    count_confusions,
    describe_intervals,
)

TRUTH = np.array([0, 0, 0, 1, 1, 2])
ANSWERS = np.array([0, 0, 1, 1, 0, 2])


def test_worked_by_hand():
    assert compute_accuracy(ANSWERS, TRUTH) == pytest.approx(4 / 6)
    assert count_confusions(ANSWERS, TRUTH, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_as_scikit_learn_counts():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(7, size=500), rng.integers(7, size=500)
    confusion = count_confusions(answers, truth, 7)
    assert np.array_equal(confusion, theirs.confusion_matrix(truth, answers))
    found = compute_per_class(confusion)
    assert np.allclose(found.recall, theirs.recall_score(truth, answers, average=None))
    assert np.allclose(found.precision, theirs.precision_score(truth, answers, average=None))
    assert np.array_equal(found.counts, np.bincount(truth))


def test_a_class_that_never_occurs_has_no_recall():
    found = compute_per_class(count_confusions(ANSWERS, TRUTH, 4))
    assert found.counts[3] == found.recall[3] == found.precision[3] == 0


def test_interval_is_that_of_the_normal_approximation():
    """For 1,000 answers, 800 right: 0.8 +- 1.96 * sqrt(0.8 * 0.2 / 1000)."""
    correct = np.arange(1000) < 800
    low, high = compute_bootstrap_interval(correct, np.random.default_rng(0))
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.002)
    assert high == pytest.approx(0.8 + half, abs=0.002)


@pytest.mark.parametrize(("right", "items"), [(0, 19), (1, 19), (19, 19), (140, 140), (0, 150), (37, 80)])
def test_interval_of_independent_answers_is_wilsons(right: int, items: int):
    """Against scipy's binomial test, and the closed form at the ends: z^2 / (n + z^2)."""
    theirs_found = binomtest(right, items).proportion_ci(0.95, method="wilson")
    low, high = compute_bootstrap_interval(np.arange(items) < right, np.random.default_rng(0))
    assert (low, high) == pytest.approx((theirs_found.low, theirs_found.high), abs=1e-12)
    if right == 0:
        assert high == pytest.approx(1.959964**2 / (items + 1.959964**2), abs=1e-6)


def test_groups_of_one_item_change_nothing():
    correct = np.arange(80) < 37
    alone = compute_bootstrap_interval(correct, np.random.default_rng(0), groups=[f"image{i}" for i in range(80)])
    assert alone == compute_bootstrap_interval(correct, np.random.default_rng(0))


def test_copies_of_an_item_tell_nothing_more():
    """Every answer five times over: the interval is about that of the answers alone, not of five times as many."""
    correct = np.random.default_rng(1).random(200) < 0.4
    once = compute_bootstrap_interval(correct, np.random.default_rng(0))
    copied = compute_bootstrap_interval(
        np.repeat(correct, 5), np.random.default_rng(0), groups=np.repeat(np.arange(200), 5)
    )
    assert copied == pytest.approx(once, abs=0.006)


@pytest.mark.parametrize("right", [False, True])
def test_where_all_groups_agree_each_counts_once(right: bool):
    found = compute_bootstrap_interval(np.full(95, right), np.random.default_rng(0), groups=np.repeat(np.arange(19), 5))
    assert found == pytest.approx((0.8318, 1.0) if right else (0.0, 0.1682), abs=1e-4)


def test_groups_are_covered_as_often_as_promised():
    """200 images of five captions each, alike within an image (tetrachoric correlation of 0.45), R@1 of 0.58."""
    rng, threshold, covered = np.random.default_rng(2), norm.ppf(0.42), {"captions": 0, "images": 0}
    groups = np.repeat(np.arange(200), 5)
    for _ in range(300):
        noise = rng.normal(size=(200, 1)) * np.sqrt(0.45) + rng.normal(size=(200, 5)) * np.sqrt(0.55)
        found = (noise > threshold).ravel()
        for name, some in (("captions", None), ("images", groups)):
            low, high = compute_bootstrap_interval(found, rng, resamples=300, groups=some)
            covered[name] += low <= 0.58 <= high
    assert covered["captions"] / 300 < 0.88  # of captions as if they were independent: too narrow
    assert 0.92 <= covered["images"] / 300 <= 0.985  # 0.95, give or take three deviations of 300 draws


def test_graded_values_of_groups_have_the_interval_of_their_groups_means():
    """40 images of equal numbers of questions: the mean of the images' means, by the normal approximation."""
    rng = np.random.default_rng(3)
    values = (rng.integers(0, 4, size=(40, 1)) + rng.integers(0, 8, size=(40, 6))) / 10
    low, high = compute_bootstrap_interval(values.ravel(), rng, resamples=8000, groups=np.repeat(np.arange(40), 6))
    half = 1.96 * values.mean(1).std() / np.sqrt(40)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)


def test_what_is_not_finite_is_no_score():
    with pytest.raises(DataError, match=r"head: 1 of 3 scores"):
        check_finite_scores(np.array([0.0, np.nan, 1.0]), "head")
    with pytest.raises(DataError, match=r"2 of 2"):
        compute_bootstrap_interval(np.array([np.inf, np.nan]), np.random.default_rng(0))


def test_an_interval_says_how_it_came_about():
    """The text is compared with intervals that are computed, not with what would be expected of the task."""

    def say(values: np.ndarray, groups: np.ndarray, is_graded: bool = False) -> str | None:
        low, high = compute_bootstrap_interval(values, np.random.default_rng(0), groups=groups)
        return describe_intervals(
            {"a": float(values.mean()), "a.low": low, "a.high": high}, groups, "images", is_graded
        )

    alone, five = np.arange(40), np.arange(200) % 40
    rng = np.random.default_rng(0)
    assert say(rng.random(40) < 0.5, alone) == "Wilson, 40 independent items"
    assert say(np.zeros(40, bool), alone) == "Wilson, 40 independent items"
    assert say(rng.random(200) < 0.5, five) == (
        "Wilson, 200 items in 40 images, which are resampled for the design effect"
    )
    assert say(rng.choice([0.3, 1.0], 200), five, is_graded=True) == "bootstrap, 40 images resampled"
    assert say(rng.choice([0.3, 1.0], 40), alone, is_graded=True) == "bootstrap, 40 images resampled"
    for value in (0.0, 1.0):
        assert say(np.full(200, value), five) == "Wilson, 40 images, all with the same score"
    assert say(np.full(200, 0.3), five, is_graded=True) == "Wilson, 40 images, all with the same score"
    assert describe_intervals({"a": 0.5}, five, "images") is None


def test_nothing_has_no_accuracy():
    with pytest.raises(ValueError, match="needs at least one item"):
        compute_accuracy(np.array([], dtype=int), np.array([], dtype=int))
