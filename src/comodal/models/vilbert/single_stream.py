"""One BERT over words and visual tokens: the baseline that ViLBERT argues against (section 2.2).

Regions are quantised (`comodal prepare tokens`) and their tokens are appended to the vocabulary, so that both
modalities pass through the same layers from the start. Forward and heads are ViLBERT's, so that whatever trains or
measures the one does the other.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.vilbert.embeddings import RegionEmbeddings, TextEmbeddings
from comodal.models.vilbert.heads import AlignmentHead, Fusion, RegionHead, TokenHead
from comodal.models.vilbert.streams import OutputIndices, UnimodalEncoding, ViLBERTOutput, prepend_first_index
from comodal.models.vilbert.transformer import Index, Mask, TransformerLayer, init_weights, to_bool_mask
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig

BERT_BASE = StreamConfig(768, 12, 12, 3072)


@dataclass(frozen=True)
class SingleStreamConfig:
    """The defaults are BERT-base and 1,600 visual tokens beside padding, the whole image and a hidden region.

    Args:
        vocabulary: Words.
        positions: Positions of words.
        first_position: Position of the first word: 0 in BERT, 2 in RoBERTa.
        segments: Kinds of text.
        text: Sizes of the stream.
        region_tokens: Visual tokens, with those that stand where there is none (data.batch.TokenInput).
        region_targets: Numbers that the region head gives.
        joint_dim: Features of the pooled words and of the pooled regions.
        fusion: How they meet in the alignment head.
        initializer_range: Deviation of the first weights.
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

    @property
    def task_tokens(self) -> int:
        """It has no embeddings of tasks."""
        return 0

    @property
    def region_features(self) -> int:
        """It reads visual tokens, not features."""
        return 0


class SingleStream(nn.Module):
    """Words and visual tokens in one sequence; a token's location stands where a word has its position."""

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
        """Words and regions. Masks are True (or 1) where there is a token, None where nothing is padding."""
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
        """What does not depend on the image: the embeddings alone, since both meet in the first layer.

        With an index of the attended words, and one of the attended regions, `join` does not compute padding.
        """
        return UnimodalEncoding(self.text_embeddings(words, segments), to_bool_mask(attended), index)

    def vision_prefix(
        self,
        regions: Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
        attended: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """What does not depend on the text."""
        return UnimodalEncoding(self.region_embeddings(regions, locations), to_bool_mask(attended), index)

    def join(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, wanted: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Every layer, for pairs of prefixes.

        Only the `wanted` tokens and the first ones come out of the last layer; the others are zeros.
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
        """The `text` and `vision` of `join`, for less: the last layer is computed for the first tokens alone."""
        x, attended, _ = self.through(text, vision, len(self.text_layers) - 1)
        first = x[:, [0, text.tokens.shape[1]]]
        for layer in self.text_layers[-1:]:
            first = layer(first, x, attended)
        return self.text_pooler(first[:, 0]), self.vision_pooler(first[:, 1])

    def through(self, text: UnimodalEncoding, vision: UnimodalEncoding, layers: int) -> UnimodalEncoding:
        """Both as one sequence after the first layers, and which of its tokens are there."""
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
        """Scores of every word at some places of the text."""
        return self.word_scores(x, self.text_embeddings.words.weight)


def merge_stream_indices(text: UnimodalEncoding, vision: UnimodalEncoding, words: Index, regions: Index) -> Index:
    """The index of words and the index of regions in the sequence of both; None if both are."""
    if words is None and regions is None:
        return None
    (batch, of_text), of_vision = text.tokens.shape[:2], vision.tokens.shape[1]
    every = torch.arange(batch * (of_text + of_vision), device=text.tokens.device).view(batch, -1)
    places = every[:, :of_text].flatten(), every[:, of_text:].flatten()
    return torch.cat(
        [here if index is None else here[index] for here, index in zip(places, (words, regions), strict=True)]
    )


def load_pretrained(path: Path) -> ViLBERT | SingleStream:
    """Reads a ViLBERT or a single stream from a run's or a model's folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, ViLBERT | SingleStream):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a ViLBERT")
    return model
