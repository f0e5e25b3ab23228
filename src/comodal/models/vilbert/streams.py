"""What the parts of a model of two streams give each other: prefixes, chosen tokens, and both streams at the end."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from comodal.models.vilbert.transformer import Index


class ViLBERTOutput(NamedTuple):
    """Both streams after their last layers, and each pooled at its first token."""

    words: Float[Tensor, "batch words text_dim"]
    regions: Float[Tensor, "batch regions vision_dim"]
    text: Float[Tensor, "batch joint"]
    vision: Float[Tensor, "batch joint"]


class UnimodalEncoding(NamedTuple):
    """A stream before it meets the other, and which of its tokens are there: to be kept, repeated and joined."""

    tokens: Float[Tensor, "batch tokens dim"]
    attended: Bool[Tensor, "batch tokens"] | None  # None: all of them
    chosen: Index = None  # the attended tokens, where the others are not computed and hold zeros

    def take(self, rows: Int64[Tensor, "chosen"]) -> "UnimodalEncoding":
        """Some rows, each as often as it is named."""
        return UnimodalEncoding(self.tokens[rows], None if self.attended is None else self.attended[rows])


class OutputIndices(NamedTuple):
    """Tokens whose last layer is wanted, beside the first ones, which always are: row x length + column, each once."""

    words: Int64[Tensor, "chosen_words"]
    regions: Int64[Tensor, "chosen_regions"]


def prepend_first_index(stream: UnimodalEncoding, index: Int64[Tensor, "chosen"]) -> Int64[Tensor, "chosen_and_first"]:
    """The index of the first tokens, and of these others."""
    batch, length = stream.tokens.shape[:2]
    return torch.cat([torch.arange(0, batch * length, length, device=index.device), index])
