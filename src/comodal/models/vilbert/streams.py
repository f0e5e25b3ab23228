"""Outputs of the parts of a two-stream model: unimodal encodings, output indices, and both final streams."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from comodal.models.vilbert.transformer import Index


class ViLBERTOutput(NamedTuple):
    """Both streams after their last layers, and the pooled first token of each."""

    token_states: Float[Tensor, "batch length text_dim"]
    region_states: Float[Tensor, "batch regions vision_dim"]
    pooled_text: Float[Tensor, "batch joint"]
    pooled_vision: Float[Tensor, "batch joint"]


class UnimodalEncoding(NamedTuple):
    """A stream before the first co-attention layer, with its mask. It can be cached and paired with others."""

    hidden_states: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"] | None  # None: all of them
    unpadded_index: Index = None  # index of the unpadded tokens, if padding is not computed (zeros)

    def select_rows(self, rows: Int64[Tensor, "chosen"]) -> "UnimodalEncoding":
        """Selects rows by index, with repetitions."""
        return UnimodalEncoding(self.hidden_states[rows], None if self.mask is None else self.mask[rows])


class OutputIndices(NamedTuple):
    """Tokens to compute in the last layer, besides the first ones: row x length + column, without repetitions."""

    token_indices: Int64[Tensor, "chosen_tokens"]
    region_indices: Int64[Tensor, "chosen_regions"]


def prepend_first_index(stream: UnimodalEncoding, index: Int64[Tensor, "chosen"]) -> Int64[Tensor, "chosen_and_first"]:
    """Prepends the index of the first tokens to an index."""
    batch, length = stream.hidden_states.shape[:2]
    return torch.cat([torch.arange(0, batch * length, length, device=index.device), index])
