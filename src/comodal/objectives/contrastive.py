"""Contrastive learning within a batch: every row is to be told from the others, in both directions (InfoNCE).

The loss of B indistinguishable rows is log B. Negatives come from the batch of one process.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_TEMPERATURE = 0.07  # CLIP's and ALBEF's
MAX_SCALE = 100.0  # of the similarities, CLIP's: a temperature of 0.01


class Contrast(NamedTuple):
    """A loss, and how often a row's own score is its highest; both are means over both directions, 0 without rows."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def contrast(
    scores: Float[Tensor, "batch batch"], negatives: Bool[Tensor, "batch batch"], counted: Bool[Tensor, "batch"]
) -> Contrast:
    """Cross-entropy of the diagonal, within its row and within its column.

    Args:
        scores: Of every row's first modality with every row's second one; the diagonal holds the positives.
        negatives: Which scores a positive is compared with. Must be symmetric in which rows it leaves out.
        counted: Rows whose loss is counted. Without any the loss is a zero that gradients can flow through.
    """
    positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    compared = scores.float().masked_fill(~(negatives | positives), -torch.inf)
    log_odds = torch.stack([compared.log_softmax(dim).diagonal() for dim in (1, 0)])
    found = torch.stack([compared.diagonal() >= compared.amax(dim) for dim in (1, 0)])
    rows = 2 * counted.sum().clamp(min=1)
    return Contrast(-(log_odds * counted).sum() / rows, (found & counted).sum() / rows)


class EncodingContrast(nn.Module):
    """Contrast of the encodings of two modalities (the image-text contrastive loss of ALBEF, section 3.2).

    Both are projected linearly to one space and compared by the cosine over a learned temperature.
    """

    def __init__(self, first_dim: int, second_dim: int, dim: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(first_dim, dim)
        self.second = nn.Linear(second_dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def forward(
        self,
        first: Float[Tensor, "batch first_dim"],
        second: Float[Tensor, "batch second_dim"],
        negatives: Bool[Tensor, "batch batch"],
        counted: Bool[Tensor, "batch"],
    ) -> Contrast:
        similarities = F.normalize(self.first(first).float()) @ F.normalize(self.second(second).float()).T
        return contrast(self.log_scale.exp().clamp(max=MAX_SCALE) * similarities, negatives, counted)


def mean_encoding(
    tokens: Float[Tensor, "batch tokens dim"], attended: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch dim"]:
    """The mean over the tokens that are there; None says that all are."""
    if attended is None:
        return tokens.mean(1)
    present = attended.unsqueeze(2).to(tokens.dtype)
    return (tokens * present).sum(1) / present.sum(1).clamp(min=1)
