"""Token and region masking (ViLBERT, section 3.2), as functions of uniform draws.

The random numbers are arguments in [0, 1), one for each token and each region, so these functions are deterministic.
One draw decides whether a token is chosen and, by its position below 15 %, whether it is masked, replaced or kept. The
original does the same (concept_cap_dataset.py, random_word and random_region), and its draws give the same result here.

The original draws a random token from the whole vocabulary, including special and unused ids; here the candidates are
an argument. It also does not mask the regions that overlap a chosen one, although 12-in-1 (section 3.1) says so and
the original computes them: `find_overlapping_boxes` returns them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

MASKING_PROBABILITY = 0.15
MASK_TOKEN_THRESHOLD = 0.8
RANDOM_TOKEN_THRESHOLD = 0.9  # masked, or replaced by a random token; the rest are unchanged
ZEROED_REGION_FRACTION = 0.9  # of regions
MASKING_IOU_THRESHOLD = 0.4  # 12-in-1, section 3.1


class MaskedTokens(NamedTuple):
    """Token ids as the model sees them, and which positions it has to predict."""

    words: Int64[np.ndarray, "words"]
    chosen: Bool[np.ndarray, "words"]


class MaskedRegions(NamedTuple):
    """Which regions the model has to predict, and which have their features zeroed; the two differ."""

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
    """Choose 15 % of the maskable tokens; of these, 80 % become [MASK], 10 % a random token, 10 % are unchanged.

    Args:
        words: Token ids, of one text or of many concatenated.
        maskable: False at [CLS], [SEP] and padding.
        draws: A uniform draw for each token.
        replacements: The random token id for each position.
        mask: The token id of [MASK].
        chosen_share: Fraction of the maskable tokens to choose.
    """
    chosen = maskable & (draws < chosen_share)
    part = _rescale_draws(draws, chosen_share)
    masked = chosen & (part < MASK_TOKEN_THRESHOLD)
    replaced = chosen & ~masked & (part < RANDOM_TOKEN_THRESHOLD)
    return MaskedTokens(np.where(masked, mask, np.where(replaced, replacements, words)), chosen)


def mask_regions(draws: Float[np.ndarray, "regions"], chosen_share: float = MASKING_PROBABILITY) -> MaskedRegions:
    """Choose 15 % of the regions; of these, 90 % are zeroed, 10 % are unchanged."""
    chosen = draws < chosen_share
    return MaskedRegions(chosen, chosen & (_rescale_draws(draws, chosen_share) < ZEROED_REGION_FRACTION))


def find_overlapping_boxes(
    boxes: Float[np.ndarray, "regions 4"], chosen: Bool[np.ndarray, "regions"], threshold: float = MASKING_IOU_THRESHOLD
) -> Bool[np.ndarray, "regions"]:
    """The regions whose IoU with a chosen one is above the threshold, including the chosen ones."""
    return np.any(compute_pixel_iou(boxes[chosen], boxes) > threshold, axis=0)


def compute_pixel_iou(
    boxes: Float[np.ndarray, "boxes 4"], others: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, "boxes others"]:
    """IoU of boxes (left, top, right, bottom in pixels) whose last pixel is included.

    So a box from 3 to 5 is 3 pixels wide. This is the original's convention; it makes small boxes overlap slightly
    more.
    """
    least, most = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    common = np.clip(most - least + 1, 0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=-1)
    other_areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=-1)
    return common / (areas[:, None] + other_areas - common)


def _rescale_draws(draws: Float[np.ndarray, "draws"], chosen_share: float) -> Float[np.ndarray, "draws"]:
    """The draws of the chosen, rescaled from [0, chosen_share) to [0, 1), so that they serve as a second draw."""
    return draws / chosen_share if chosen_share else draws
