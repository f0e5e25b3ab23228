"""Contrastive learning in a common space, with the negatives of all processes (InfoNCE; CLIP, section 2.3).

Every process gathers the embeddings of the whole batch and counts the loss of its own rows. Gradients of gathered rows
flow back to the process that computed them. The mean over the processes has the gradients of one process with the whole
batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from comodal import distributed
from comodal.objectives.contrastive import ContrastiveLoss, compute_contrastive_loss


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes in the order of their ranks; sums their gradients."""

    @staticmethod
    def forward(_context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.count_processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(distributed.count_processes())[distributed.get_process_rank()]


def gather_rows(rows: Float[Tensor, "batch dim"] | Int64[Tensor, "batch"]) -> Tensor:
    """The rows of all processes, which have the same number of rows each; gradients flow to where a row came from."""
    if distributed.count_processes() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


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
    gathered = gather_rows(torch.cat([first, second], 1).float())
    all_first, all_second = gathered.split(first.shape[1], 1)
    all_groups = gather_rows(groups)
    scores = all_first @ all_second.T * (-log_temperature).exp()
    own = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    start = distributed.get_process_rank() * rows
    own[start : start + rows] = True
    return compute_contrastive_loss(scores, all_groups[:, None] != all_groups, own)
