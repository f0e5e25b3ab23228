"""The baselines that choose a region, where geometry, words or both decide, and ridge regression by itself."""

import weakref
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from comodal.tasks.baselines.region_choice import Candidates, RegionItem, fit_and_choose, fit_ridge

COLORS = ("blue", "green", "red", "white")
SIDE = 100.0


def color_at(image: int, place: int) -> int:
    """Four regions side by side, each of another color, in another order in every image."""
    return int(np.random.default_rng(image).permutation(4)[place])


def read(image: str) -> Candidates | None:
    """Row 0 is the whole image, the others are from left to right; "none" is missing."""
    if image == "none":
        return None
    rng = np.random.default_rng([1, int(image)])
    boxes = np.array([[0, 0, SIDE, SIDE], *([25.0 * place, 0, 25 * place + 24, 50] for place in range(4))], np.float32)
    features = rng.normal(0, 0.1, (5, 8)).astype(np.float32)
    for place in range(4):
        features[place + 1, color_at(int(image), place)] += 2
    features[0] = features[1:].mean(0)
    fractions = boxes / SIDE
    areas = (fractions[:, 2] - fractions[:, 0]) * (fractions[:, 3] - fractions[:, 1])
    return Candidates(features, np.column_stack([fractions, areas]).astype(np.float32), boxes)


def item(image: int, text: str, place: int) -> RegionItem:
    return RegionItem(text, str(image), (25.0 * place, 0.0, 25.0 * place + 24, 50.0))


def ask_last(image: int) -> RegionItem:
    """The rightmost region, whatever the text is."""
    return item(image, f"the {COLORS[image % 4]} one", 3)


def ask_color(image: int) -> RegionItem:
    """The region of a color, wherever it is."""
    place = image % 4
    return item(image, f"the {COLORS[color_at(image, place)]} one", place)


def ask_side(image: int) -> RegionItem:
    """The text names the side: each word decides among equal boxes."""
    return item(image, *(("the left one", 0) if image % 2 else ("the right one", 3)))


@pytest.mark.parametrize(("ask", "geometry"), [(ask_last, 1.0), (ask_color, 1 / 4), (ask_side, 1 / 2)])
def test_geometry_words_or_both_decide(ask: Callable[[int], RegionItem], geometry: float):
    evaluated = [ask(image) for image in range(160, 200)]
    found = fit_and_choose([ask(image) for image in range(160)], evaluated, read, read).rows
    accuracy = {
        name: np.mean([row == int(one.box[0] // 25) + 1 for row, one in zip(rows, evaluated, strict=True) if one.box])
        for name, rows in found.items()
    }
    assert accuracy["box_geometry"] == geometry  # one place for all images: the places are equally frequent
    assert accuracy["words_times_regions"] >= 0.95  # the fit of a line to the rightmost of five leaves little margin


def test_ridge_is_scikit_learns_on_centered_blocks():
    rng = np.random.default_rng(0)
    blocks = [(rng.normal(size=(rows, 4)), rng.random(rows) < 0.4) for rows in (3, 5, 2, 7)]
    inputs = np.concatenate([one - one.mean(0) for one, _ in blocks])
    targets = np.concatenate([one - one.mean() for _, one in blocks])
    expected = Ridge(alpha=2.0, fit_intercept=False).fit(inputs, targets).coef_
    np.testing.assert_allclose(fit_ridge(blocks, 2.0), expected, rtol=1e-9)


def test_a_missing_image_has_no_choice_and_an_evaluated_image_is_not_trained_on():
    training = [ask_last(image) for image in range(20)]
    evaluated = [ask_last(19), RegionItem("the red one", "none", (0.0, 0.0, 9.0, 9.0))]
    found = fit_and_choose(training, evaluated, read, read)
    assert found.rows == {"box_geometry": [4, None], "words_times_regions": [4, None]}
    assert found.about == "fitted on 19 of 20 training texts"


def test_nothing_to_fit_on_is_said():
    evaluated = [ask_last(0)]
    assert fit_and_choose(evaluated, evaluated, read, read).about.startswith("not fitted: no training text")
    nowhere = [RegionItem("the red one", "1", (0.0, 90.0, 5.0, 99.0))]  # no region has this box
    assert fit_and_choose(nowhere, evaluated, read, read).rows == {}
    silent = fit_and_choose([item(1, "...", 3)], evaluated, read, read)
    assert list(silent.rows) == ["box_geometry"] and "no words" in silent.about


def test_few_images_are_in_memory_at_a_time():
    """20,000 texts with 101 regions of 2,048 features would take 16.5 GB."""
    alive: list[weakref.ref[np.ndarray]] = []
    peak = 0

    def read_counted(image: str) -> Candidates | None:
        nonlocal peak
        candidates = read(image)
        assert candidates is not None
        alive[:] = [one for one in alive if one() is not None]
        alive.append(weakref.ref(candidates.features))
        peak = max(peak, len(alive))
        return candidates

    fit_and_choose([ask_last(i) for i in range(50)], [ask_last(i) for i in range(50, 90)], read_counted, read_counted)
    assert peak <= 3
