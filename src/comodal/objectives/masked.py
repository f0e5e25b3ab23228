"""Losses of masked tokens and masked regions (ViLBERT, sections 2.1 and 3.2).

Each loss is a mean over masked positions and is computed only there. Without masked positions it is a zero that carries
gradients, because distributed training needs a gradient for every parameter in every process.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

RegionTarget = Literal["classes", "features", "contrast", "tokens"]
ACROSS, INSIDE = 0.7, 0.3  # fractions of negatives from other images and from the same image (the original's code)


class MaskedLoss(NamedTuple):
    """Loss and accuracy; both are means over the masked positions, 0 without any."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def make_masked_loss(total: Float[Tensor, ""], is_correct: Bool[Tensor, "positions"]) -> MaskedLoss:
    """Returns the means, given the sum of the losses."""
    count = max(len(is_correct), 1)
    return MaskedLoss(total / count, is_correct.sum().float() / count)


def compute_masked_class_loss(
    scores: Float[Tensor, "positions classes"], target: Int64[Tensor, "positions"]
) -> MaskedLoss:
    """Cross-entropy of masked tokens, or of the visual tokens of masked regions."""
    scores = scores.float()
    return make_masked_loss(F.cross_entropy(scores, target, reduction="sum"), scores.argmax(1) == target)


def compute_masked_distribution_loss(
    scores: Float[Tensor, "positions classes"], target: Float[Tensor, "positions classes"]
) -> MaskedLoss:
    """KL divergence from the detector's class probabilities (the paper's target); accuracy of its likeliest class."""
    scores = scores.float()
    total = F.kl_div(scores.log_softmax(1), target.float(), reduction="sum")
    return make_masked_loss(total, scores.argmax(1) == target.argmax(1))


def compute_masked_feature_loss(
    predicted: Float[Tensor, "positions features"], target: Float[Tensor, "positions features"]
) -> MaskedLoss:
    """Mean squared error; a prediction is correct if its own region is the nearest of all masked regions."""
    predicted, target = predicted.float(), target.float()
    total = F.mse_loss(predicted, target, reduction="sum") / target.shape[1]
    if len(target) == 0:
        return make_masked_loss(total, torch.zeros(0, dtype=torch.bool, device=target.device))
    with torch.no_grad():
        distances = target.square().sum(1) - 2 * predicted @ target.T  # less the same for all of a row
        nearest = distances.argmin(1)
    return make_masked_loss(total, nearest == torch.arange(len(target), device=target.device))


class RegionNegatives(NamedTuple):
    """Negatives of each prediction, as rows of all regions, and which of them exist."""

    rows: Int64[Tensor, "positions negatives"]
    exists: Bool[Tensor, "positions negatives"]


def compute_masked_contrastive_loss(
    predicted: Float[Tensor, "positions features"],
    region_features: Float[Tensor, "rows features"],
    positives: Int64[Tensor, "positions"],
    negatives: RegionNegatives,
) -> MaskedLoss:
    """Cross-entropy of identifying the masked region among negatives by the dot product with their features.

    Args:
        predicted: Prediction at each masked position.
        region_features: Features of all regions of the batch, without masking.
        positives: Row of `region_features` that was masked at each position.
        negatives: Rows that it is compared with.
    """
    scores = predicted.float() @ region_features.float().T
    rows = torch.cat([positives.unsqueeze(1), negatives.rows], 1)
    chosen = scores.gather(1, rows)
    missing = F.pad(~negatives.exists, (1, 0))
    return compute_masked_class_loss(chosen.masked_fill(missing, -torch.inf), torch.zeros_like(positives))


def draw_region_negatives(
    positions: Int64[Tensor, "positions"],
    candidates: Bool[Tensor, "batch regions"],
    count: int,
    generator: torch.Generator,
) -> RegionNegatives:
    """Draws regions of other images (70 %) and other regions of the same image (30 %), each uniformly.

    Departs from the original, which also draws padding and fails on a batch of one image. Here an image without others
    has negatives only from itself.

    Args:
        positions: Flat indices of the masked regions in `candidates`; all of them must be candidates.
        candidates: Regions that can be drawn.
        count: Negatives of a position; both parts are rounded down.
        generator: Random generator on the CPU, so that every device draws the same. No shape depends on a value, so
            that the CPU never waits for a GPU.
    """
    available = candidates.flatten()
    rows = (~available).byte().argsort(stable=True)  # the candidates in their order, then all others
    total = available.sum()
    rank = available.cumsum(0) - 1  # index of a flat position among the candidates
    sizes = candidates.sum(1)
    image = positions // candidates.shape[1]
    size = sizes[image].unsqueeze(1)
    first = (sizes.cumsum(0) - sizes)[image].unsqueeze(1)
    own = rank[positions].unsqueeze(1)
    across = draw_bounded_integers(total - size, int(count * ACROSS), generator)
    across = torch.where(across >= first, across + size, across)  # skips the position's own image
    inside = first + draw_bounded_integers(size - 1, int(count * INSIDE), generator)
    inside = torch.where(inside >= own, inside + 1, inside)  # skips the position itself
    exist = torch.cat([(total > size).expand_as(across), (size > 1).expand_as(inside)], 1)
    chosen = torch.cat([across, inside], 1).minimum((total - 1).clamp(min=0))
    return RegionNegatives(rows[chosen], exist)


def draw_bounded_integers(
    sizes: Int64[Tensor, "positions 1"], count: int, generator: torch.Generator
) -> Int64[Tensor, "positions count"]:
    """Draws integers from 0 up to each size, exclusive; 0 where the size is 0."""
    draws = torch.rand(len(sizes), count, generator=generator, dtype=torch.float64)
    if sizes.device.type == "mps":  # MPS has no float64
        return (draws * sizes.cpu()).long().to(sizes.device)
    return (draws.to(sizes.device, non_blocking=True) * sizes).long()
