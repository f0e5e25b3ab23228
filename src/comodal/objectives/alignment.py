"""Image-text alignment: does this caption describe this image? (ViLBERT, section 3.2)"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


class AlignmentLoss(NamedTuple):
    """Cross-entropy and accuracy."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def compute_alignment_loss(scores: Float[Tensor, "batch 2"], is_match: Bool[Tensor, "batch"]) -> AlignmentLoss:
    """Cross-entropy over two classes: 0 is a matched pair, 1 a mismatched pair, as in the original."""
    scores, target = scores.float(), (~is_match).long()
    return AlignmentLoss(F.cross_entropy(scores, target), (scores.argmax(1) == target).float().mean())
