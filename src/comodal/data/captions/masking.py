"""Token and region masking (ViLBERT, section 3.2), as functions of uniform draws.

The random numbers are arguments in [0, 1), one for each token and each region, so these functions are deterministic.
One draw decides whether a token is chosen and, by its position below 15 %, whether it is masked, replaced or kept. The
original does the same (concept_cap_dataset.py, random_word and random_region), and its draws give the same result here.

The original draws a random token from the whole vocabulary, including special and unused ids; here the candidates are
an argument. It also does not mask the regions that overlap a chosen one, although 12-in-1 (section 3.1) does so and
the original computes them: `find_overlapping_boxes` returns them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from comodal.data.regions.box_iou import compute_inclusive_iou

MASKING_PROBABILITY = 0.15
MASK_TOKEN_THRESHOLD = 0.8
RANDOM_TOKEN_THRESHOLD = 0.9  # masked, or replaced by a random token; the rest are unchanged
ZEROED_REGION_FRACTION = 0.9  # of regions
MASKING_IOU_THRESHOLD = 0.4  # 12-in-1, section 3.1


class MaskedTokens(NamedTuple):
    """The model's input token ids, and the positions that it has to predict."""

    token_ids: Int64[np.ndarray, "tokens"]
    is_chosen: Bool[np.ndarray, "tokens"]


class MaskedRegions(NamedTuple):
    """Which regions the model has to predict, and which have their features zeroed; the two differ."""

    is_chosen: Bool[np.ndarray, "regions"]
    is_zeroed: Bool[np.ndarray, "regions"]


def mask_tokens(
    token_ids: Int64[np.ndarray, "tokens"],
    maskable: Bool[np.ndarray, "tokens"],
    draws: Float[np.ndarray, "tokens"],
    replacements: Int64[np.ndarray, "tokens"],
    mask_id: int,
    masking_probability: float = MASKING_PROBABILITY,
) -> MaskedTokens:
    """Choose 15 % of the maskable tokens; of these, 80 % become [MASK], 10 % a random token, 10 % are unchanged.

    Args:
        token_ids: Token ids, of one text or of many concatenated.
        maskable: False at [CLS], [SEP] and padding.
        draws: A uniform draw for each token.
        replacements: The random token id for each position.
        mask_id: The token id of [MASK].
        masking_probability: Fraction of the maskable tokens to choose.
    """
    is_chosen = maskable & (draws < masking_probability)
    rescaled = _rescale_draws(draws, masking_probability)
    masked = is_chosen & (rescaled < MASK_TOKEN_THRESHOLD)
    replaced = is_chosen & ~masked & (rescaled < RANDOM_TOKEN_THRESHOLD)
    return MaskedTokens(np.where(masked, mask_id, np.where(replaced, replacements, token_ids)), is_chosen)


def mask_regions(
    draws: Float[np.ndarray, "regions"], masking_probability: float = MASKING_PROBABILITY
) -> MaskedRegions:
    """Choose 15 % of the regions; of these, 90 % are zeroed, 10 % are unchanged."""
    is_chosen = draws < masking_probability
    return MaskedRegions(is_chosen, is_chosen & (_rescale_draws(draws, masking_probability) < ZEROED_REGION_FRACTION))


def find_overlapping_boxes(
    boxes: Float[np.ndarray, "regions 4"],
    is_chosen: Bool[np.ndarray, "regions"],
    threshold: float = MASKING_IOU_THRESHOLD,
) -> Bool[np.ndarray, "regions"]:
    """The regions whose IoU with a chosen one is above the threshold, including the chosen ones."""
    return np.any(compute_inclusive_iou(boxes[is_chosen], boxes) > threshold, axis=0)


def _rescale_draws(draws: Float[np.ndarray, "draws"], masking_probability: float) -> Float[np.ndarray, "draws"]:
    """Rescales the draws of the chosen from [0, masking_probability) to [0, 1), to serve as a second draw."""
    return draws / masking_probability if masking_probability else draws
