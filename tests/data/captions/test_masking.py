"""What is hidden of words and regions."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from comodal.data.captions.masking import find_overlapping_boxes, mask_regions, mask_tokens
from comodal.data.regions.box_iou import compute_inclusive_iou
from tests.support.paths import FIXTURES

FIXTURE = json.loads((FIXTURES / "vilbert/data/masking.json").read_text())
BOXES = np.array(FIXTURE["boxes"])
PADDING, START, END, MASK, SIZE = 0, 101, 102, 103, 30522
WORDS_OF_CAPTIONS = (8, 8, 9)


def original_draws(sample: dict) -> tuple[bool, Iterator[float], np.random.RandomState]:
    """The draws in the order in which the original makes them, up to those for words and regions."""
    chance, numbers = random.Random(sample["seed"]), np.random.RandomState(sample["seed"])
    mismatched = False
    if sample["objective"] != 2 and chance.random() > 0.5:
        chance.randint(0, len(WORDS_OF_CAPTIONS) - 1)
        mismatched = True
    return mismatched, iter(chance.random, None), numbers


@pytest.mark.parametrize("sample", FIXTURE["samples"], ids=lambda sample: f"{sample['seed']}-{sample['objective']}")
def test_with_the_originals_draws_its_decisions_are_made(sample):
    """12 seeds by 3 objectives, made by the original's own code."""
    mismatched, uniform, numbers = original_draws(sample)
    assert mismatched == sample["is_next"]
    seen, labels = np.array(sample["input_ids"]), np.array(sample["lm_label_ids"])
    words = np.where(labels >= 0, labels, seen)
    maskable = ~np.isin(words, [PADDING, START, END])
    draws, replacements = np.ones(len(words)), np.zeros(len(words), np.int64)
    for place in np.flatnonzero(maskable):
        draws[place] = next(uniform)
        if 0.8 <= draws[place] / 0.15 < 0.9:
            replacements[place] = numbers.randint(SIZE)
    hidden = mask_tokens(words, maskable, draws, replacements, MASK)
    assert np.array_equal(hidden.token_ids, seen)
    assert np.array_equal(hidden.is_chosen, labels >= 0)
    regions = mask_regions(np.array([next(uniform) for _ in BOXES]))
    assert np.array_equal(regions.is_chosen, np.array(sample["image_label"]) == 1)
    assert np.flatnonzero(regions.is_zeroed).tolist() == sample["zeroed_regions"]
    assert np.flatnonzero(find_overlapping_boxes(BOXES, regions.is_chosen)).tolist() == sample["masked_label_iou04"]


def test_iou_is_the_originals():
    assert np.allclose(compute_inclusive_iou(BOXES, BOXES), np.array(FIXTURE["iou"]), atol=1e-6)


def test_iou_is_torchvisions_of_boxes_that_are_a_pixel_longer():
    """Another implementation, which takes a box to end before its last pixel."""
    longer = torch.from_numpy(BOXES + np.array([0, 0, 1, 1]))
    assert np.allclose(compute_inclusive_iou(BOXES, BOXES[:5]), box_iou(longer, longer[:5]).numpy())


def test_iou_by_hand():
    # 10 x 10 pixels and 10 x 10 pixels that share 5 x 10: 50 of 150
    boxes = np.array([[0.0, 0, 9, 9], [5, 0, 14, 9], [50, 50, 50, 50]])
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    assert np.allclose(compute_inclusive_iou(boxes, boxes), expected)


def test_nothing_overlaps_what_was_not_chosen():
    assert not find_overlapping_boxes(BOXES, np.zeros(36, bool)).any()
    assert find_overlapping_boxes(np.zeros((0, 4)), np.zeros(0, bool)).shape == (0,)


def test_shares_of_words_are_those_of_the_paper():
    """15 % of the words; of these 80 % masked, 10 % random, 10 % as they were (BERT's rule)."""
    n = 200_000
    rng = np.random.default_rng(5)
    words, replacements = np.full(n, 2000), np.full(n, 3000)
    hidden = mask_tokens(words, np.ones(n, bool), rng.random(n), replacements, MASK)
    chosen = hidden.is_chosen.sum()
    assert chosen / n == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / n) ** 0.5)
    for word, share in ((MASK, 0.8), (3000, 0.1), (2000, 0.1)):
        spread = (share * (1 - share) / chosen) ** 0.5
        assert (hidden.token_ids[hidden.is_chosen] == word).sum() / chosen == pytest.approx(share, abs=4 * spread)
    assert (hidden.token_ids[~hidden.is_chosen] == 2000).all()


def test_shares_of_regions_are_those_of_the_paper():
    n = 200_000
    regions = mask_regions(np.random.default_rng(6).random(n))
    assert regions.is_chosen.mean() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / n) ** 0.5)
    assert regions.is_zeroed.sum() / regions.is_chosen.sum() == pytest.approx(0.9, abs=4 * (0.09 / 30_000) ** 0.5)
    assert not (regions.is_zeroed & ~regions.is_chosen).any()


def test_what_may_not_be_masked_is_not():
    words, draws = np.array([START, 2000, END, PADDING]), np.zeros(4)
    hidden = mask_tokens(words, np.array([False, True, False, False]), draws, np.zeros(4, np.int64), MASK)
    assert hidden.token_ids.tolist() == [START, MASK, END, PADDING]
    assert hidden.is_chosen.tolist() == [False, True, False, False]


def test_a_share_of_nothing_hides_nothing_and_of_everything_all():
    words, everything = np.full(50, 2000), np.ones(50, bool)
    draws = np.random.default_rng(7).random(50)
    assert not mask_tokens(words, everything, draws, words, MASK, 0.0).is_chosen.any()
    assert mask_tokens(words, everything, draws, words, MASK, 1.0).is_chosen.all()
    assert not mask_regions(draws, 0.0).is_chosen.any() and mask_regions(draws, 1.0).is_chosen.all()
