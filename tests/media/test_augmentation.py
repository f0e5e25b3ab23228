"""Random changes of pictures and sounds."""

import colorsys

import numpy as np
import pytest

from comodal.media.augmentation import jitter_color, jitter_gain, random_crop, random_horizontal_flip


class Chance(np.random.Generator):
    """A generator that gives the numbers it is told to."""

    def __init__(self, *values: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = list(values)

    def uniform(self, low: float, high: float) -> float:
        value = self.values.pop(0)
        assert low <= value <= high
        return value


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def test_crops_are_windows_of_the_picture_and_every_place_occurs(picture):
    rng = np.random.default_rng(1)
    windows = {picture[y : y + 7, x : x + 7].tobytes() for y in range(3) for x in range(6)}
    assert {random_crop(picture, 7, rng).tobytes() for _ in range(500)} == windows
    with pytest.raises(ValueError, match="10 pixels does not fit into an image of 12 x 9"):
        random_crop(picture, 10, rng)


def test_a_flip_mirrors_left_and_right_half_of_the_time(picture):
    rng = np.random.default_rng(2)
    flips = [random_horizontal_flip(picture, rng) for _ in range(400)]
    mirrored = sum(np.array_equal(flip, np.fliplr(picture)) for flip in flips)
    assert mirrored + sum(np.array_equal(flip, picture) for flip in flips) == 400
    assert abs(mirrored - 200) < 4.5 * 10


def test_colour_is_scaled_about_grey_and_moved(picture):
    grey = picture @ np.array([0.299, 0.587, 0.114])
    expected = np.clip(1.3 * picture - 0.3 * grey[..., None] - 255 * 0.1, 0, 255)
    found = jitter_color(picture, 0.2, 0.5, Chance(1.3, -0.1))
    assert np.abs(found - expected).max() <= 0.5 + 1e-3  # rounded, not cut off


def test_no_change_of_colour_is_no_change(picture):
    assert np.array_equal(jitter_color(picture, 0.0, 0.0, Chance(1.0, 0.0)), picture)


def test_grey_has_no_saturation_and_hue_stays():
    grey = np.full((4, 4, 3), 77, np.uint8)
    assert np.array_equal(jitter_color(grey, 0.0, 0.5, Chance(0.5, 0.0)), grey)
    colour = np.full((4, 4, 3), (120, 90, 60), np.uint8)
    paler = jitter_color(colour, 0.0, 0.5, Chance(0.5, 0.0))[0, 0]
    before, after = colorsys.rgb_to_hsv(120, 90, 60), colorsys.rgb_to_hsv(*(int(value) for value in paler))
    assert after[0] == pytest.approx(before[0], abs=0.02)
    assert after[1] < 0.7 * before[1]


def test_gain_is_one_factor_within_its_range():
    sound = np.linspace(-0.5, 0.5, 101, dtype=np.float32)
    rng = np.random.default_rng(3)
    gains = [jitter_gain(sound, 0.1, rng)[-1] / 0.5 for _ in range(1000)]
    assert 0.9 <= min(gains) < 0.91 and 1.09 < max(gains) <= 1.1 + 1e-6
    assert np.allclose(jitter_gain(sound, 0.5, Chance(1.5)), sound * 1.5)


def test_the_same_generator_gives_the_same_change(picture):
    results = [jitter_color(random_crop(picture, 5, rng), 0.1, 0.5, rng) for rng in map(np.random.default_rng, (7, 7))]
    assert np.array_equal(*results)
