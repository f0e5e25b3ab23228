"""One BERT over tokens and regions: the single-stream baselines of the ViLBERT paper (sections 2.2 and 4).

Both modalities share all layers. A region is its feature with its spatials, as in the baseline of table 1
(jiasenlu/vilbert_beta, `vilbert/basebert.py`), or a visual token (`comodal prepare tokens`), as in the approach that
section 2.2 describes. As in BERT, one pooled output stands for the pair: that of [CLS], with tanh.
It has ViLBERT's forward and heads, so that the same code trains and evaluates both.

The embedding that `basebert.py` adds to every region to tell regions from text is part of the bias of the features.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import check_number
from comodal.models.pretrained import PretrainedModel
from comodal.models.vilbert.embeddings import RegionEmbeddings, TextEmbeddings
from comodal.models.vilbert.heads import AlignmentHead, PooledFusion, RegionHead, TokenHead
from comodal.models.vilbert.streams import OutputIndices, UnimodalEncoding, ViLBERTOutput, prepend_first_index
from comodal.models.vilbert.transformer import Index, Mask, TransformerLayer, init_weights, to_bool_mask
from comodal.models.vilbert.vilbert_config import (
    MAX_FEATURES,
    StreamConfig,
    check_embedding_sizes,
    check_output_sizes,
)

BERT_BASE = StreamConfig(768, 12, 12, 3072)


@dataclass(frozen=True)
class SingleStreamConfig:
    """The defaults are the baseline of the paper: BERT-base on features of 2,048, with 1,601 classes to predict.

    Args:
        vocabulary: Size of the vocabulary.
        positions: Number of text positions.
        first_position: Position of the first token: 0 in BERT, 2 in RoBERTa.
        num_token_types: Number of token types (segments).
        text: Sizes of the stream.
        region_feature_dim: Length of a region's feature.
        region_targets: Number of outputs of the region head.
        num_visual_tokens: Number of visual tokens, including the special ones (data.batch.TokenInput), if regions are
            visual tokens; 0 for features.
        initializer_range: Std of the initial weights.
    """

    vocabulary: int = 30_522
    positions: int = 512
    first_position: int = 0
    num_token_types: int = 2
    text: StreamConfig = BERT_BASE
    region_feature_dim: int = 2048
    region_targets: int = 1601
    num_visual_tokens: int = 0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_embedding_sizes(self.vocabulary, self.positions, self.first_position, self.num_token_types)
        check_output_sizes(self.joint_dim, self.region_targets, self.num_visual_tokens, self.initializer_range)
        check_number("region_feature_dim", self.region_feature_dim, 0, MAX_FEATURES)

    @property
    def vision(self) -> StreamConfig:
        """The sizes of the regions' states: the stream's."""
        return self.text

    @property
    def joint_dim(self) -> int:
        """The width of the pooled output: the stream's."""
        return self.text.dim

    @property
    def fusion(self) -> PooledFusion:
        """Always `single`: there is one pooled output."""
        return "single"

    @property
    def task_tokens(self) -> int:
        """Always 0: the model has no task tokens."""
        return 0


class SingleStream(PretrainedModel, nn.Module):
    """Tokens and regions in one sequence; a region has spatials instead of a position.

    Both pooled outputs of its `ViLBERTOutput` are the pooled [CLS].
    """

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.text_embeddings = TextEmbeddings(
            text.dim,
            config.vocabulary,
            config.positions,
            config.first_position,
            config.num_token_types,
            0,
            text.dropout,
            text.norm_eps,
        )
        self.region_embeddings = RegionEmbeddings(
            text.dim, config.region_feature_dim, config.num_visual_tokens, text.dropout, text.norm_eps
        )
        self.text_layers = nn.ModuleList(
            TransformerLayer(
                text.dim,
                text.dim,
                text.dim,
                text.heads,
                text.intermediate,
                text.activation,
                text.dropout,
                text.attention_dropout,
                text.norm_eps,
            )
            for _ in range(text.layers)
        )
        self.pooler = nn.Sequential(nn.Linear(text.dim, text.dim), nn.Tanh())
        self.token_head = TokenHead(text.dim, config.vocabulary, text.activation, text.norm_eps)
        self.region_head = RegionHead(text.dim, config.region_targets, text.activation)
        self.alignment_head = AlignmentHead(config.joint_dim, config.fusion, 0.0)  # no dropout, as in BERT
        self.apply(partial(init_weights, std=config.initializer_range))

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        token_mask: Mask,
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Mask,
    ) -> ViLBERTOutput:
        """Encodes text and regions. Masks are True (or 1) for tokens that are not padding; None means no padding."""
        return self.fuse(
            self.encode_text(token_ids, token_types, token_mask),
            self.encode_image(region_features, spatials, region_mask),
        )

    def encode_text(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        token_mask: Mask,
        task_ids: Int64[Tensor, "batch"] | None = None,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The unimodal encoding of texts: their embeddings only, since both modalities share the first layer.

        With an index of the unpadded tokens, and one of the unpadded regions, `fuse` skips padding.
        """
        if task_ids is not None:
            raise ValueError("task_ids are given, and a single stream has no task tokens")
        return UnimodalEncoding(
            self.text_embeddings(token_ids, token_types), to_bool_mask(token_mask, token_ids), index
        )

    def encode_image(
        self,
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The unimodal encoding of images."""
        return UnimodalEncoding(
            self.region_embeddings(region_features, spatials), to_bool_mask(region_mask, region_features), index
        )

    def fuse(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, output_indices: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Runs all layers on pairs of unimodal encodings.

        Only the tokens of `output_indices` and the first ones are computed in the last layer; the others are zeros.
        """
        x, mask, index = self.run_layers(text, vision, len(self.text_layers) - 1)
        last_index = index
        if output_indices is not None:
            last_index = merge_stream_indices(
                text,
                vision,
                prepend_first_index(text, output_indices.token_indices),
                prepend_first_index(vision, output_indices.region_indices),
            )
        for layer in self.text_layers[-1:]:
            x = layer(x, x, mask, None, last_index, index)
        token_states, region_states = x.split([text.hidden_states.shape[1], vision.hidden_states.shape[1]], 1)
        pooled = self.pooler(token_states[:, 0])
        return ViLBERTOutput(token_states, region_states, pooled, pooled)

    def fuse_pooled(
        self, text: UnimodalEncoding, vision: UnimodalEncoding
    ) -> tuple[Float[Tensor, "batch joint"], Float[Tensor, "batch joint"]]:
        """The pooled outputs of `fuse`; faster, since the last layer is only computed for the first token."""
        x, mask, _ = self.run_layers(text, vision, len(self.text_layers) - 1)
        first = x[:, :1]
        for layer in self.text_layers[-1:]:
            first = layer(first, x, mask)
        pooled = self.pooler(first[:, 0])
        return pooled, pooled

    def run_layers(self, text: UnimodalEncoding, vision: UnimodalEncoding, layers: int) -> UnimodalEncoding:
        """Concatenates both modalities and runs the first layers; returns the sequence and its mask."""
        x = torch.cat([text.hidden_states, vision.hidden_states], 1)
        mask = None
        if text.mask is not None or vision.mask is not None:
            masks = (
                stream.hidden_states.new_ones(stream.hidden_states.shape[:2], dtype=torch.bool)
                if stream.mask is None
                else stream.mask
                for stream in (text, vision)
            )
            mask = torch.cat(list(masks), 1)
        index = merge_stream_indices(text, vision, text.unpadded_index, vision.unpadded_index)
        for layer in self.text_layers[:layers]:
            x = layer(x, x, mask, None, index, index)
        return UnimodalEncoding(x, mask, index)

    def compute_token_logits(self, x: Float[Tensor, "positions dim"]) -> Float[Tensor, "positions vocabulary"]:
        """Logits over the vocabulary at some positions of the text."""
        return self.token_head(x, self.text_embeddings.tokens.weight)


def merge_stream_indices(
    text: UnimodalEncoding, vision: UnimodalEncoding, token_index: Index, region_index: Index
) -> Index:
    """Merges the indices of tokens and of regions into an index of the joint sequence; None if both are."""
    if token_index is None and region_index is None:
        return None
    (batch, text_length), vision_length = text.hidden_states.shape[:2], vision.hidden_states.shape[1]
    positions = torch.arange(batch * (text_length + vision_length), device=text.hidden_states.device).view(batch, -1)
    stream_positions = positions[:, :text_length].flatten(), positions[:, text_length:].flatten()
    return torch.cat(
        [
            stream if index is None else stream[index]
            for stream, index in zip(stream_positions, (token_index, region_index), strict=True)
        ]
    )
