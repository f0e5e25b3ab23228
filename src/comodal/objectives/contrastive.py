"""Contrastive learning within a batch, in both directions (InfoNCE).

Each row's positive is compared with the other rows of the batch. The loss of B indistinguishable rows is log B.
Whether negatives come from one process or from all is up to the objective.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class ContrastiveLoss(NamedTuple):
    """The loss, and the fraction of rows whose positive scores highest; means over both directions, 0 without rows."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def compute_contrastive_loss(
    scores: Float[Tensor, "batch batch"], negatives: Bool[Tensor, "batch batch"], counted_rows: Bool[Tensor, "batch"]
) -> ContrastiveLoss:
    """Cross-entropy of the diagonal within its row and within its column.

    Args:
        scores: Score of every row's first modality with every row's second one; the diagonal holds the positives.
        negatives: Which scores a positive is compared with. The rows that it excludes must be symmetric.
        counted_rows: Rows whose loss is counted. Without any the loss is a zero that carries gradients.
    """
    positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    candidate_scores = scores.float().masked_fill(~(negatives | positives), -torch.inf)
    log_odds = torch.stack([candidate_scores.log_softmax(dim).diagonal() for dim in (1, 0)])
    is_highest = torch.stack([candidate_scores.diagonal() >= candidate_scores.amax(dim) for dim in (1, 0)])
    rows = 2 * counted_rows.sum().clamp(min=1)
    return ContrastiveLoss(-(log_odds * counted_rows).sum() / rows, (is_highest & counted_rows).sum() / rows)
