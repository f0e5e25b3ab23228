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
    lengths = batch.words.shape[1], batch.regions.shape[1]
    with step_by_step():
        output = model(
            padded(batch.words, words),
            padded(batch.segments, words),
            padded(batch.words_attended, words),
            padded(batch.regions, rows),
            padded(batch.locations, rows),
            padded(batch.regions_attended, rows),
        )
    count = len(batch.words)
    labels = torch.full((count * words,), NOTHING)
    labels[moved(batch.masked_words, lengths[0], words)] = batch.word_targets
    scores = model.word_head(output.words.flatten(0, 1))
    word_loss = F.cross_entropy(scores, labels, ignore_index=NOTHING)
    targets = torch.zeros(count * rows, batch.region_classes.shape[1])
    masked = torch.zeros(count * rows, 1)
    here = moved(batch.masked_regions, lengths[1], rows)
    targets[here], masked[here] = batch.region_classes, 1.0
    predicted = model.region_head(output.regions.flatten(0, 1)).log_softmax(-1)
    region_loss = (F.kl_div(predicted, targets, reduction="none") * masked).sum() / masked.sum()
    aligned = model.alignment_head(output.text, output.vision)
    alignment_loss = F.cross_entropy(aligned, batch.mismatched.long())
    return {
        "loss": word_loss + region_loss + alignment_loss,
        "word_loss": word_loss,
        "region_loss": region_loss,
        "alignment_loss": alignment_loss,
    }
