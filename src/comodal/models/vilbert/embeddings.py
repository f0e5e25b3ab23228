"""Embeddings of tokens and of image regions, the inputs of the two streams (ViLBERT, section 3.1)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class TextEmbeddings(nn.Module):
    """Sum of token, position and segment embeddings; a task token is inserted after the first token.

    RoBERTa counts positions after its padding token: `first_position` is 2 there, and the id of the padding token is 1.
    """

    def __init__(
        self,
        dim: int,
        vocabulary: int,
        positions: int,
        first_position: int = 0,
        segments: int = 2,
        task_tokens: int = 0,
        dropout: float = 0.1,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.first_position = first_position
        self.words = nn.Embedding(vocabulary, dim, padding_idx=max(first_position - 1, 0))
        self.positions = nn.Embedding(positions, dim)
        self.segments = nn.Embedding(segments, dim)
        if task_tokens:
            self.tasks = nn.Embedding(task_tokens, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        words: Int64[Tensor, "batch words"],
        segments: Int64[Tensor, "batch words"],
        tasks: Int64[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        longest = self.positions.num_embeddings - self.first_position
        if words.shape[1] > longest:
            raise ValueError(f"a text of {words.shape[1]} words; this model has positions for {longest}")
        positions = self.positions.weight[self.first_position : self.first_position + words.shape[1]]
        x = self.words(words) + positions + self.segments(segments)
        if tasks is not None:
            x = torch.cat([x[:, :1], self.tasks(tasks).unsqueeze(1), x[:, 1:]], 1)
        return self.dropout(self.norm(x))


class RegionEmbeddings(nn.Module):
    """Sum of the embeddings of a region's feature (or visual token) and of its location in the image."""

    def __init__(self, dim: int, features: int, tokens: int = 0, dropout: float = 0.1, norm_eps: float = 1e-12) -> None:
        super().__init__()
        self.reads_tokens = tokens > 0
        if self.reads_tokens:
            self.tokens = nn.Embedding(tokens, dim)
        else:
            self.features = nn.Linear(features, dim)
        self.locations = nn.Linear(5, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        regions: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
    ) -> Float[Tensor, "batch regions dim"]:
        seen = self.tokens(regions) if self.reads_tokens else self.features(regions)
        return self.dropout(self.norm(seen + self.locations(locations)))
