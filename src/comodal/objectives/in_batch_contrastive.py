"""Contrastive learning in a common space, with the negatives of all processes (InfoNCE; CLIP, section 2.3).

Every process gathers the embeddings of the whole batch and counts the loss of its own rows. Gradients of gathered rows
flow back to the process that computed them. The mean over the processes has the gradients of one process with the whole
batch.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from comodal import distributed
from comodal.distributed import all_gather_rows
from comodal.objectives.contrastive import ContrastiveLoss, compute_contrastive_loss


def compute_in_batch_contrastive_loss(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    groups: Int64[Tensor, "batch"],
    log_temperature: Float[Tensor, ""],
) -> ContrastiveLoss:
    """Cross-entropy of each row's pair against the rows of the whole batch, in both directions.

    Args:
        first: Embeddings of length one of one modality; those of one process.
        second: Embeddings of the other modality; row i is the positive of row i.
        groups: Rows of one group (captions of one image) are not negatives of each other.
        log_temperature: Logarithm of the temperature that divides the cosines.
    """
    rows = len(first)
    gathered = all_gather_rows(torch.cat([first, second], 1).float())
    all_first, all_second = gathered.split(first.shape[1], 1)
    all_groups = all_gather_rows(groups)
    scores = all_first @ all_second.T * (-log_temperature).exp()
    own = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    start = distributed.get_process_rank() * rows
    own[start : start + rows] = True
    return compute_contrastive_loss(scores, all_groups[:, None] != all_groups, own)
