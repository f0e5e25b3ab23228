"""What is hidden from the model: words and regions (ViLBERT, section 3.2), as functions of uniform draws.

Chance comes in as numbers in [0, 1), one a word and one a region, so that these functions decide and draw nothing. One
draw says both whether a word is chosen and, by where it falls below 15 %, what becomes of it; so the original does it
(concept_cap_dataset.py, random_word and random_region), and with its draws these functions decide as it did.

The original takes a random word from all numbers of the vocabulary, special and unused ones included; which words may
be taken is an argument here. Nor does it hide the regions that overlap a chosen one, though 12-in-1 (section 3.1) says
so and the original computes them: `overlapping` is there to do it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

MASKING_PROBABILITY = 0.15
MASK_TOKEN_THRESHOLD = 0.8
RANDOM_TOKEN_THRESHOLD = 0.9  # masked, or replaced by a random word; the rest stay as they are
ZEROED_REGION_FRACTION = 0.9  # of regions
MASKING_IOU_THRESHOLD = 0.4  # 12-in-1, section 3.1


class MaskedTokens(NamedTuple):
    """Words as the model sees them, and which of them it is to tell."""

    words: Int64[np.ndarray, "words"]
    chosen: Bool[np.ndarray, "words"]


class MaskedRegions(NamedTuple):
    """Which regions the model is to tell, and which it cannot see: not quite the same ones."""

    chosen: Bool[np.ndarray, "regions"]
    hidden: Bool[np.ndarray, "regions"]


def mask_tokens(
    words: Int64[np.ndarray, "words"],
    maskable: Bool[np.ndarray, "words"],
    draws: Float[np.ndarray, "words"],
    replacements: Int64[np.ndarray, "words"],
    mask: int,
    chosen_share: float = MASKING_PROBABILITY,
) -> MaskedTokens:
    """Of the maskable words 15 % are chosen; of these 80 % become [MASK], 10 % a random word, 10 % stay.

    Args:
        words: Numbers of word pieces, of one text or of many in a row.
        maskable: False at [CLS], [SEP] and padding.
        draws: A uniform draw a word.
        replacements: The random word that may stand at each place.
        mask: The number of [MASK].
        chosen_share: Of the maskable words.
    """
    chosen = maskable & (draws < chosen_share)
    part = _rescale_draws(draws, chosen_share)
    masked = chosen & (part < MASK_TOKEN_THRESHOLD)
    replaced = chosen & ~masked & (part < RANDOM_TOKEN_THRESHOLD)
    return MaskedTokens(np.where(masked, mask, np.where(replaced, replacements, words)), chosen)


def mask_regions(draws: Float[np.ndarray, "regions"], chosen_share: float = MASKING_PROBABILITY) -> MaskedRegions:
    """Of the regions 15 % are chosen; of these 90 % are hidden, 10 % stay."""
    chosen = draws < chosen_share
    return MaskedRegions(chosen, chosen & (_rescale_draws(draws, chosen_share) < ZEROED_REGION_FRACTION))


def find_overlapping_boxes(
    boxes: Float[np.ndarray, "regions 4"], chosen: Bool[np.ndarray, "regions"], threshold: float = MASKING_IOU_THRESHOLD
) -> Bool[np.ndarray, "regions"]:
    """The regions whose IoU with a chosen one is above the threshold; the chosen ones are among them."""
    return np.any(compute_pixel_iou(boxes[chosen], boxes) > threshold, axis=0)


def compute_pixel_iou(
    boxes: Float[np.ndarray, "boxes 4"], others: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, "boxes others"]:
    """IoU of boxes (left, top, right, bottom in pixels) that end with a pixel, not before it.

    So a box from 3 to 5 is 3 pixels wide: the original's convention, which makes small boxes overlap a little more.
    """
    least, most = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    common = np.clip(most - least + 1, 0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=-1)
    other_areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=-1)
    return common / (areas[:, None] + other_areas - common)


def _rescale_draws(draws: Float[np.ndarray, "draws"], chosen_share: float) -> Float[np.ndarray, "draws"]:
    """Among the chosen, where in [0, chosen_share) a draw fell is as good as another draw."""
    return draws / chosen_share if chosen_share else draws
