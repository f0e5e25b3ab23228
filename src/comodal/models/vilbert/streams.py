"""Outputs of the parts of a two-stream model: unimodal encodings, output indices, and both final streams."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from comodal.models.vilbert.transformer import Index


class ViLBERTOutput(NamedTuple):
    """Both streams after their last layers, and the pooled first token of each."""

    words: Float[Tensor, "batch words text_dim"]
    regions: Float[Tensor, "batch regions vision_dim"]
    text: Float[Tensor, "batch joint"]
    vision: Float[Tensor, "batch joint"]


class UnimodalEncoding(NamedTuple):
    """A stream before the first co-attention layer, with its mask. It can be cached and paired with others."""

    tokens: Float[Tensor, "batch tokens dim"]
    attended: Bool[Tensor, "batch tokens"] | None  # None: all of them
    chosen: Index = None  # index of the unpadded tokens, if padding is not computed (zeros)

    def take(self, rows: Int64[Tensor, "chosen"]) -> "UnimodalEncoding":
        """Selects rows by index, with repetitions."""
        return UnimodalEncoding(self.tokens[rows], None if self.attended is None else self.attended[rows])


class OutputIndices(NamedTuple):
    """Tokens to compute in the last layer, besides the first ones: row x length + column, without repetitions."""

    words: Int64[Tensor, "chosen_words"]
    regions: Int64[Tensor, "chosen_regions"]


def prepend_first_index(stream: UnimodalEncoding, index: Int64[Tensor, "chosen"]) -> Int64[Tensor, "chosen_and_first"]:
    """Prepends the index of the first tokens to an index."""
    batch, length = stream.tokens.shape[:2]
    return torch.cat([torch.arange(0, batch * length, length, device=index.device), index])
