"""A dual encoder: one vector for a text and one for an image, in a common space (CLIP; LiT).

The text encoder is a BERT. An image is given by features of its regions, from any frozen network, or by its pixels,
which an image network of the model reads. Each is pooled to one vector, and a projection head maps it to the common
space. The cosine of two embeddings is their similarity.
(CLIP: Radford et al., arXiv 2103.00020; LiT: Zhai et al., arXiv 2111.07991.)
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import check_number
from comodal.models.dual_encoder.image_backbones import build_image_backbone
from comodal.models.l3net.l3net import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from comodal.models.pretrained import PretrainedModel
from comodal.models.vilbert.embeddings import TextEmbeddings
from comodal.models.vilbert.heads import compute_mean_encoding
from comodal.models.vilbert.transformer import Mask, init_weights, to_bool_mask
from comodal.models.vilbert.vilbert import make_transformer_layer
from comodal.models.vilbert.vilbert_config import MAX_DIM, MAX_FEATURES, StreamConfig, check_embedding_sizes

ImagePooling = Literal["mean", "attention"]
MIN_TEMPERATURE = 0.01  # CLIP, section 2.5: logits are scaled by at most 100


@dataclass(frozen=True)
class DualEncoderConfig:
    """The sizes of a dual encoder.

    Args:
        text: Sizes of the BERT.
        vocabulary: Size of the vocabulary.
        positions: Number of text positions.
        first_position: Position of the first token: 0 in BERT, 2 in RoBERTa.
        num_token_types: Number of token types (segments) of the BERT.
        region_feature_dim: Length of a region's feature, or of the features of the image network.
        embedding_dim: Dimensions of the common space.
        image_pooling: mean over the regions, or a learned attention over them.
        head_dropout: Dropout of the pooled features before the projection.
        initial_temperature: Initial value of the temperature.
        is_temperature_learned: Whether the temperature is trained.
        is_text_frozen: Whether the BERT is frozen.
        image_backbone: The image network, efficientnet_lite0 or timm/NAME; empty for features of regions.
        image_size: Height and width of its images.
        is_image_frozen: Whether it is frozen.
    """

    text: StreamConfig
    vocabulary: int
    positions: int
    first_position: int
    num_token_types: int
    region_feature_dim: int
    embedding_dim: int = 256
    image_pooling: ImagePooling = "mean"
    head_dropout: float = 0.5
    initial_temperature: float = 0.07
    is_temperature_learned: bool = True
    is_text_frozen: bool = True
    image_backbone: str = ""
    image_size: int = 224
    is_image_frozen: bool = True

    def __post_init__(self) -> None:
        check_embedding_sizes(self.vocabulary, self.positions, self.first_position, self.num_token_types)
        check_number("region_feature_dim", self.region_feature_dim, 1, MAX_FEATURES)
        check_number("embedding_dim", self.embedding_dim, 1, MAX_DIM)
        check_number("head_dropout", self.head_dropout, 0, 1)
        check_number("initial_temperature", self.initial_temperature, MIN_TEMPERATURE, 100)
        check_number("image_size", self.image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        if self.image_backbone and self.image_pooling != "mean":
            raise ValueError(f"image_pooling {self.image_pooling} is for regions; an image network pools its own map")

    @property
    def num_visual_tokens(self) -> int:
        """0: regions are features, not visual tokens."""
        return 0

    @property
    def task_tokens(self) -> int:
        """0: texts have no task tokens."""
        return 0


class PairEmbeddings(NamedTuple):
    """Embeddings of length one; row i of both is a pair."""

    text: Float[Tensor, "batch dim"]
    image: Float[Tensor, "batch dim"]


class ProjectionHead(nn.Module):
    """Standardizes each vector (layer normalization without weights), drops features, and projects to length one."""

    def __init__(self, features: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, embedding_dim)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch dim"]:
        return F.normalize(self.linear(self.dropout(self.norm(features))).float(), dim=1)


class RegionAttention(nn.Module):
    """Pools regions by one learned attention: softmax of a linear score of each standardized region."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.score = nn.Linear(features, 1)

    def forward(
        self, region_features: Float[Tensor, "batch regions features"], region_mask: Mask
    ) -> Float[Tensor, "batch features"]:
        scores = self.score(self.norm(region_features)).squeeze(2).float()
        is_present = to_bool_mask(region_mask, region_features)
        if is_present is not None:
            scores = scores.masked_fill(~is_present, -torch.inf)
        return (scores.softmax(1).unsqueeze(2) * region_features).sum(1)


class Temperature(nn.Module):
    """The temperature that divides the cosines in training, as its logarithm."""

    def __init__(self, initial: float, is_learned: bool) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)), requires_grad=is_learned)

    def forward(self) -> Float[Tensor, ""]:
        """The logarithm of the temperature, which is at least that of MIN_TEMPERATURE."""
        return self.log_temperature.clamp(min=math.log(MIN_TEMPERATURE))


class DualEncoder(PretrainedModel, nn.Module):
    """Embeds texts and images separately. Regions are features; row 0 is the whole image, the mean of the others."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.text_embeddings = TextEmbeddings(
            text.dim,
            config.vocabulary,
            config.positions,
            config.first_position,
            config.num_token_types,
            dropout=text.dropout,
            norm_eps=text.norm_eps,
        )
        self.text_layers = nn.ModuleList(
            make_transformer_layer(text, text, text.dim, text.heads) for _ in range(text.layers)
        )
        attends = config.image_pooling == "attention"
        self.region_attention = RegionAttention(config.region_feature_dim) if attends else None
        self.apply(partial(init_weights, std=0.02))
        self.text_head = ProjectionHead(text.dim, config.embedding_dim, config.head_dropout)
        self.image_head = ProjectionHead(config.region_feature_dim, config.embedding_dim, config.head_dropout)
        self.temperature = Temperature(config.initial_temperature, config.is_temperature_learned)
        if config.is_text_frozen:
            self.text_embeddings.requires_grad_(False)
            self.text_layers.requires_grad_(False)
        self.image_tower = build_image_backbone(config.image_backbone) if config.image_backbone else None
        if self.image_tower is not None and config.is_image_frozen:
            self.image_tower.requires_grad_(False)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Sets the mode; a frozen BERT or image network stays in evaluation mode."""
        super().train(mode)
        if self.config.is_text_frozen:
            self.text_embeddings.eval()
            self.text_layers.eval()
        if self.image_tower is not None and self.config.is_image_frozen:
            self.image_tower.eval()
        return self

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_mask: Mask,
        region_features: Float[Tensor, "batch regions features"],
        region_mask: Mask,
    ) -> PairEmbeddings:
        """The embeddings of texts and images. Masks are True (or 1) where there is no padding; None: no padding."""
        return PairEmbeddings(
            self.embed_text_features(self.compute_text_features(token_ids, token_mask)),
            self.embed_image(region_features, region_mask),
        )

    def compute_text_features(
        self, token_ids: Int64[Tensor, "batch length"], token_mask: Mask
    ) -> Float[Tensor, "batch features"]:
        """The mean of the BERT's last layer over the tokens, [CLS] and [SEP] included."""
        mask = to_bool_mask(token_mask, token_ids)
        x = self.text_embeddings(token_ids, torch.zeros_like(token_ids))
        for layer in self.text_layers:
            x = layer(x, x, mask, None, None, None)
        return compute_mean_encoding(x, mask)

    def embed_text_features(self, text_features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch dim"]:
        """The embeddings of texts, from the result of `compute_text_features`."""
        return self.text_head(text_features)

    def embed_image(
        self, region_features: Float[Tensor, "batch regions features"], region_mask: Mask
    ) -> Float[Tensor, "batch dim"]:
        """The embeddings of images."""
        if self.region_attention is None:
            return self.image_head(region_features[:, 0])
        return self.image_head(self.region_attention(region_features, region_mask))

    def compute_image_features(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch image_features"]:
        """The pooled features of the image network, from bytes."""
        assert self.image_tower is not None
        return self.image_tower(pixels)

    def embed_image_features(self, image_features: Float[Tensor, "batch image_features"]) -> Float[Tensor, "batch dim"]:
        """The embeddings of images, from the result of `compute_image_features`."""
        return self.image_head(image_features)
