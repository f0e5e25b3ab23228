"""Contrastive learning within a batch, in both directions (InfoNCE).

Each row's positive is compared with the other rows of the batch. The loss of B indistinguishable rows is log B.
Negatives come from the batch of one process.
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
    scores: Float[Tensor, "batch batch"], negatives: Bool[Tensor, "batch batch"], counted: Bool[Tensor, "batch"]
) -> ContrastiveLoss:
    """Cross-entropy of the diagonal within its row and within its column.

    Args:
        scores: Score of every row's first modality with every row's second one; the diagonal holds the positives.
        negatives: Which scores a positive is compared with. The rows that it excludes must be symmetric.
        counted: Rows whose loss is counted. Without any the loss is a zero that carries gradients.
    """
    positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    compared = scores.float().masked_fill(~(negatives | positives), -torch.inf)
    log_odds = torch.stack([compared.log_softmax(dim).diagonal() for dim in (1, 0)])
    found = torch.stack([compared.diagonal() >= compared.amax(dim) for dim in (1, 0)])
    rows = 2 * counted.sum().clamp(min=1)
    return ContrastiveLoss(-(log_odds * counted).sum() / rows, (found & counted).sum() / rows)
