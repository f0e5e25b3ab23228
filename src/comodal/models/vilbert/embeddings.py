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
        num_token_types: int = 2,
        task_tokens: int = 0,
        dropout: float = 0.1,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.first_position = first_position
        self.tokens = nn.Embedding(vocabulary, dim, padding_idx=max(first_position - 1, 0))
        self.positions = nn.Embedding(positions, dim)
        self.token_types = nn.Embedding(num_token_types, dim)
        if task_tokens:
            self.tasks = nn.Embedding(task_tokens, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        task_ids: Int64[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        max_tokens = self.positions.num_embeddings - self.first_position
        if token_ids.shape[1] > max_tokens:
            raise ValueError(f"a text of {token_ids.shape[1]} tokens; this model has positions for {max_tokens}")
        positions = self.positions.weight[self.first_position : self.first_position + token_ids.shape[1]]
        x = self.tokens(token_ids) + positions + self.token_types(token_types)
        if task_ids is not None:
            x = torch.cat([x[:, :1], self.tasks(task_ids).unsqueeze(1), x[:, 1:]], 1)
        return self.dropout(self.norm(x))


class RegionEmbeddings(nn.Module):
    """Sum of the embeddings of a region's feature (or visual token) and of its spatials (location in the image)."""

    def __init__(
        self, dim: int, feature_dim: int, num_visual_tokens: int = 0, dropout: float = 0.1, norm_eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.uses_visual_tokens = num_visual_tokens > 0
        if self.uses_visual_tokens:
            self.visual_tokens = nn.Embedding(num_visual_tokens, dim)
        else:
            self.features = nn.Linear(feature_dim, dim)
        self.spatials = nn.Linear(5, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
    ) -> Float[Tensor, "batch regions dim"]:
        embedded = self.visual_tokens(region_features) if self.uses_visual_tokens else self.features(region_features)
        return self.dropout(self.norm(embedded + self.spatials(spatials)))
