"""ViLBERT's pretraining losses as they are plainly computed: step by step, full padding, heads at every place, fp32.

So the original computes them, and so the fast path is checked and timed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn import functional as F

from comodal.data.batch import CaptionBatch
from comodal.models.vilbert.vilbert import ViLBERT

NOTHING = -1  # no loss at this place


def plain_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scores, softmax, dropout, sum: one after the other. The mask is added as the original adds it."""
    bias = 0.0 if mask is None else (1.0 - mask.to(queries.dtype)) * -10_000.0
    weights = (queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]) + bias).softmax(-1)
    return F.dropout(weights, dropout) @ values


def plain_gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """By the error function, as the original has it."""
    assert approximate == "none"
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def plain_layer_norm(
    x: torch.Tensor, _shape: Sequence[int], weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Of the last dimension, as the original has it."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)) + bias


@contextmanager
def step_by_step() -> Iterator[None]:
    """Attention, GELU and normalisation are computed plainly inside."""
    plain = {"scaled_dot_product_attention": plain_attention, "gelu": plain_gelu, "layer_norm": plain_layer_norm}
    with mock.patch.multiple(F, **plain):
        yield


def padded(x: torch.Tensor, length: int) -> torch.Tensor:
    """More columns of nothing."""
    return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], 1)


def moved(places: torch.Tensor, columns: int, length: int) -> torch.Tensor:
    """Flat places of a matrix after it was padded."""
    return places // columns * length + places % columns


def plain_losses(model: ViLBERT, batch: CaptionBatch, words: int = 36, rows: int = 37) -> dict[str, torch.Tensor]:
    """The losses of masked words, of masked regions (class probabilities) and of alignment, and their sum."""
    lengths = batch.token_ids.shape[1], batch.region_features.shape[1]
    with step_by_step():
        output = model(
            padded(batch.token_ids, words),
            padded(batch.token_types, words),
            padded(batch.token_mask, words),
            padded(batch.region_features, rows),
            padded(batch.spatials, rows),
            padded(batch.region_mask, rows),
        )
    count = len(batch.token_ids)
    labels = torch.full((count * words,), NOTHING)
    labels[moved(batch.masked_token_indices, lengths[0], words)] = batch.token_targets
    scores = model.compute_token_logits(output.token_states.flatten(0, 1))
    token_loss = F.cross_entropy(scores, labels, ignore_index=NOTHING)
    targets = torch.zeros(count * rows, batch.class_targets.shape[1])
    masked = torch.zeros(count * rows, 1)
    here = moved(batch.masked_region_indices, lengths[1], rows)
    targets[here], masked[here] = batch.class_targets, 1.0
    predicted = model.region_head(output.region_states.flatten(0, 1)).log_softmax(-1)
    region_loss = (F.kl_div(predicted, targets, reduction="none") * masked).sum() / masked.sum()
    aligned = model.alignment_head(output.pooled_text, output.pooled_vision)
    alignment_loss = F.cross_entropy(aligned, (~batch.is_match).long())
    return {
        "loss": token_loss + region_loss + alignment_loss,
        "token_loss": token_loss,
        "region_loss": region_loss,
        "alignment_loss": alignment_loss,
    }
