"""One BERT over tokens and visual tokens: the single-stream baseline of the ViLBERT paper (section 2.2).

Regions are quantized (`comodal prepare tokens`) and their tokens are appended to the vocabulary, so that both
modalities share all layers. It has ViLBERT's forward and heads, so that the same code trains and evaluates both.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.pretrained import PretrainedModel
from comodal.models.vilbert.embeddings import RegionEmbeddings, TextEmbeddings
from comodal.models.vilbert.heads import AlignmentHead, Fusion, RegionHead, TokenHead
from comodal.models.vilbert.streams import OutputIndices, UnimodalEncoding, ViLBERTOutput, prepend_first_index
from comodal.models.vilbert.transformer import Index, Mask, TransformerLayer, init_weights, to_bool_mask
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, check_embedding_sizes, check_output_sizes

BERT_BASE = StreamConfig(768, 12, 12, 3072)


@dataclass(frozen=True)
class SingleStreamConfig:
    """The defaults are BERT-base, 1,600 visual tokens, and tokens for padding, the whole image and a masked region.

    Args:
        vocabulary: Size of the vocabulary.
        positions: Number of text positions.
        first_position: Position of the first token: 0 in BERT, 2 in RoBERTa.
        segments: Number of segment types.
        text: Sizes of the stream.
        region_tokens: Number of visual tokens, including the special ones (data.batch.TokenInput).
        region_targets: Number of outputs of the region head.
        joint_dim: Width of the pooled text and of the pooled regions.
        fusion: Fusion of the two in the alignment head.
        initializer_range: Std of the initial weights.
    """

    vocabulary: int = 30_522
    positions: int = 512
    first_position: int = 0
    segments: int = 2
    text: StreamConfig = BERT_BASE
    region_tokens: int = 1603
    region_targets: int = 1600
    joint_dim: int = 1024
    fusion: Fusion = "mul"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_embedding_sizes(self.vocabulary, self.positions, self.first_position, self.segments)
        check_output_sizes(self.joint_dim, self.region_targets, self.region_tokens, self.initializer_range)

    @property
    def task_tokens(self) -> int:
        """Always 0: the model has no task tokens."""
        return 0

    @property
    def region_features(self) -> int:
        """Always 0: the model takes visual tokens."""
        return 0


class SingleStream(PretrainedModel, nn.Module):
    """Tokens and visual tokens in one sequence; a visual token has a location embedding for its position."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        if config.region_tokens < 1:
            raise ValueError("a single stream reads visual tokens: region_tokens must be positive")
        self.config = config
        text = config.text
        self.text_embeddings = TextEmbeddings(
            text.dim,
            config.vocabulary,
            config.positions,
            config.first_position,
            config.segments,
            0,
            text.dropout,
            text.norm_eps,
        )
        self.region_embeddings = RegionEmbeddings(text.dim, 0, config.region_tokens, text.dropout, text.norm_eps)
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
        self.text_pooler = nn.Sequential(nn.Linear(text.dim, config.joint_dim), nn.ReLU())
        self.vision_pooler = nn.Sequential(nn.Linear(text.dim, config.joint_dim), nn.ReLU())
        self.word_scores = TokenHead(text.dim, config.vocabulary, text.activation, text.norm_eps)
        self.region_head = RegionHead(text.dim, config.region_targets, text.activation)
        self.alignment_head = AlignmentHead(config.joint_dim, config.fusion, text.dropout)
        self.apply(partial(init_weights, deviation=config.initializer_range))

    def forward(
        self,
        words: Int64[Tensor, "batch words"],
        segments: Int64[Tensor, "batch words"],
        words_attended: Mask,
        regions: Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
        regions_attended: Mask,
    ) -> ViLBERTOutput:
        """Encodes text and regions. Masks are True (or 1) for tokens that are not padding; None means no padding."""
        return self.join(
            self.text_prefix(words, segments, words_attended),
            self.vision_prefix(regions, locations, regions_attended),
        )

    def text_prefix(
        self,
        words: Int64[Tensor, "batch words"],
        segments: Int64[Tensor, "batch words"],
        attended: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The unimodal encoding of texts: their embeddings only, since both modalities share the first layer.

        With an index of the unpadded tokens, and one of the unpadded regions, `join` skips padding.
        """
        return UnimodalEncoding(self.text_embeddings(words, segments), to_bool_mask(attended), index)

    def vision_prefix(
        self,
        regions: Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
        attended: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The unimodal encoding of images."""
        return UnimodalEncoding(self.region_embeddings(regions, locations), to_bool_mask(attended), index)

    def join(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, wanted: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Runs all layers on pairs of unimodal encodings.

        Only the `wanted` tokens and the first ones are computed in the last layer; the others are zeros.
        """
        x, attended, index = self.through(text, vision, len(self.text_layers) - 1)
        last = index
        if wanted is not None:
            last = merge_stream_indices(
                text, vision, prepend_first_index(text, wanted.words), prepend_first_index(vision, wanted.regions)
            )
        for layer in self.text_layers[-1:]:
            x = layer(x, x, attended, None, last, index)
        words, regions = x.split([text.tokens.shape[1], vision.tokens.shape[1]], 1)
        return ViLBERTOutput(words, regions, self.text_pooler(words[:, 0]), self.vision_pooler(regions[:, 0]))

    def join_pooled(
        self, text: UnimodalEncoding, vision: UnimodalEncoding
    ) -> tuple[Float[Tensor, "batch joint"], Float[Tensor, "batch joint"]]:
        """The `text` and `vision` of `join`; faster, since the last layer is only computed for the first tokens."""
        x, attended, _ = self.through(text, vision, len(self.text_layers) - 1)
        first = x[:, [0, text.tokens.shape[1]]]
        for layer in self.text_layers[-1:]:
            first = layer(first, x, attended)
        return self.text_pooler(first[:, 0]), self.vision_pooler(first[:, 1])

    def through(self, text: UnimodalEncoding, vision: UnimodalEncoding, layers: int) -> UnimodalEncoding:
        """Concatenates both modalities and runs the first layers; returns the sequence and its mask."""
        x = torch.cat([text.tokens, vision.tokens], 1)
        attended = None
        if text.attended is not None or vision.attended is not None:
            masks = (
                side.tokens.new_ones(side.tokens.shape[:2], dtype=torch.bool)
                if side.attended is None
                else side.attended
                for side in (text, vision)
            )
            attended = torch.cat(list(masks), 1)
        index = merge_stream_indices(text, vision, text.chosen, vision.chosen)
        for layer in self.text_layers[:layers]:
            x = layer(x, x, attended, None, index, index)
        return UnimodalEncoding(x, attended, index)

    def word_head(self, x: Float[Tensor, "places dim"]) -> Float[Tensor, "places vocabulary"]:
        """Logits over the vocabulary at some positions of the text."""
        return self.word_scores(x, self.text_embeddings.words.weight)


def merge_stream_indices(text: UnimodalEncoding, vision: UnimodalEncoding, words: Index, regions: Index) -> Index:
    """Merges the indices of tokens and of regions into an index of the joint sequence; None if both are."""
    if words is None and regions is None:
        return None
    (batch, of_text), of_vision = text.tokens.shape[:2], vision.tokens.shape[1]
    every = torch.arange(batch * (of_text + of_vision), device=text.tokens.device).view(batch, -1)
    places = every[:, :of_text].flatten(), every[:, of_text:].flatten()
    return torch.cat(
        [here if index is None else here[index] for here, index in zip(places, (words, regions), strict=True)]
    )


def load_pretrained(path: Path) -> ViLBERT | SingleStream:
    """Loads a ViLBERT or a single-stream model from a run folder or model folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, ViLBERT | SingleStream):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a ViLBERT")
    return model
