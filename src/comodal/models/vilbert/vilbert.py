"""ViLBERT: a stream of words and a stream of image regions that meet in co-attention (NeurIPS 2019, section 3.1).

The function is that of facebookresearch/vilbert-multi-task, proven by its own outputs on the same weights. Its
`q_dense1` and `q_dense2`, which no output depends on, are not held.
"""

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.vilbert.embeddings import RegionEmbeddings, TextEmbeddings
from comodal.models.vilbert.heads import AlignmentHead, ContrastiveHead, RegionHead, TokenHead
from comodal.models.vilbert.streams import OutputIndices, UnimodalEncoding, ViLBERTOutput, prepend_first_index
from comodal.models.vilbert.transformer import (
    AttentionGates,
    Index,
    Mask,
    TextGates,
    TransformerLayer,
    init_weights,
    to_bool_mask,
)
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig


class CoAttention(nn.Module):
    """One co-attention layer (ViLBERT, figure 2b): each stream queries the other.

    Both directions read the streams as they came in; neither sees the other's update. Attention weights are dropped
    out as the stream that is attended to has it, in the original too.
    """

    def __init__(self, config: ViLBERTConfig) -> None:
        super().__init__()
        text, vision, joint = config.text, config.vision, (config.joint_dim, config.joint_heads)
        self.text = make_co_attention_layer(text, vision, *joint)
        self.vision = make_co_attention_layer(vision, text, *joint)

    def forward(self, words: UnimodalEncoding, regions: UnimodalEncoding) -> tuple[Tensor, Tensor]:
        """Words and regions after they met."""
        text = self.text(words.tokens, regions.tokens, regions.attended, None, words.chosen, regions.chosen)
        return text, self.vision(regions.tokens, words.tokens, words.attended, None, regions.chosen, words.chosen)


def make_co_attention_layer(
    stream: StreamConfig, context: StreamConfig, inner_dim: int, heads: int
) -> TransformerLayer:
    """A layer that changes one stream by what it finds in another."""
    return TransformerLayer(
        stream.dim,
        context.dim,
        inner_dim,
        heads,
        stream.intermediate,
        stream.activation,
        stream.dropout,
        context.attention_dropout,
        stream.norm_eps,
    )


def make_pooler(dim: int, joint_dim: int) -> nn.Sequential:
    """Of the first token; BERT's is a tanh."""
    return nn.Sequential(nn.Linear(dim, joint_dim), nn.ReLU())


class ViLBERT(nn.Module):
    """Regions are features (or visual tokens) beside their locations; row 0 is the whole image.

    `word_head`, `region_head` and `alignment_head` give the scores of the three pretext tasks.
    """

    def __init__(self, config: ViLBERTConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = config.text, config.vision
        self.text_embeddings = TextEmbeddings(
            text.dim,
            config.vocabulary,
            config.positions,
            config.first_position,
            config.segments,
            config.task_tokens,
            text.dropout,
            text.norm_eps,
        )
        dropout = text.dropout  # the text's, in the original too
        self.region_embeddings = RegionEmbeddings(
            vision.dim, config.region_features, config.region_tokens, dropout, vision.norm_eps
        )
        self.text_layers = nn.ModuleList(
            make_co_attention_layer(text, text, text.dim, text.heads) for _ in range(text.layers)
        )
        self.vision_layers = nn.ModuleList(
            make_co_attention_layer(vision, vision, vision.dim, vision.heads) for _ in range(vision.layers)
        )
        gated = vision.layers if config.dynamic_attention else 0
        self.vision_gates = nn.ModuleList(TextGates(text.dim, vision.dim) for _ in range(gated))
        self.co_layers = nn.ModuleList(CoAttention(config) for _ in config.schedule if config.co_attention)
        self.text_pooler = make_pooler(text.dim, config.joint_dim)
        self.vision_pooler = make_pooler(vision.dim, config.joint_dim)
        self.word_scores = TokenHead(text.dim, config.vocabulary, text.activation, text.norm_eps)
        self.region_head = RegionHead(vision.dim, config.region_targets, text.activation)
        self.alignment_head = AlignmentHead(config.joint_dim, config.fusion, text.dropout)
        self.apply(partial(init_weights, deviation=config.initializer_range))
        dims = text.dim, vision.dim, config.contrastive_dim
        self.contrastive_head = ContrastiveHead(*dims) if config.contrastive_dim else None  # changes no other weight
        self.freeze()

    def freeze(self) -> None:
        """Takes the frozen layers out of training, and with them what only they would carry a gradient to.

        Word embeddings still learn: they are the word head's weights.
        """
        text, vision = self.config.frozen_text_layers, self.config.frozen_vision_layers
        frozen = [*self.text_layers[:text], *self.vision_layers[:vision], *self.vision_gates[:vision]]
        frozen += [self.region_embeddings] if vision else []
        for module in frozen:
            module.requires_grad_(False)
        if text:
            for name, parameter in self.text_embeddings.named_parameters():
                parameter.requires_grad_(name == "words.weight")

    def forward(
        self,
        words: Int64[Tensor, "batch words"],
        segments: Int64[Tensor, "batch words"],
        words_attended: Mask,
        regions: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
        regions_attended: Mask,
        tasks: Int64[Tensor, "batch"] | None = None,
    ) -> ViLBERTOutput:
        """Both streams. Masks are True (or 1) where there is a token, None where nothing is padding."""
        return self.join(
            self.text_prefix(words, segments, words_attended, tasks),
            self.vision_prefix(regions, locations, regions_attended),
        )

    def text_prefix(
        self,
        words: Int64[Tensor, "batch words"],
        segments: Int64[Tensor, "batch words"],
        attended: Mask,
        tasks: Int64[Tensor, "batch"] | None = None,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The text stream up to the first co-attention layer: it does not depend on the image.

        With an index of the attended words, padding is not computed, here and in `join`.
        """
        assert tasks is None or index is None, "an index is of words without task tokens"
        if (tasks is not None) != (self.config.task_tokens > 0):
            raise ValueError(f"tasks must be given exactly when the model has task tokens ({self.config.task_tokens})")
        frozen, first, attended = self.config.frozen_text_layers, self.config.first_meeting[1], to_bool_mask(attended)
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = self.text_embeddings(words, segments, tasks)
            if tasks is not None and attended is not None:
                attended = torch.cat([attended.new_ones(attended.shape[0], 1), attended], 1)
            for layer in self.text_layers[:frozen]:
                x = layer(x, x, attended, None, index, index)
        for layer in self.text_layers[frozen:first]:
            x = layer(x, x, attended, None, index, index)
        return UnimodalEncoding(x, attended, index)

    def vision_prefix(
        self,
        regions: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        locations: Float[Tensor, "batch regions 5"],
        attended: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The vision stream up to where it depends on the text: the first co-attention layer, or dynamic attention.

        With an index of the attended regions, padding is not computed, here and in `join`.
        """
        frozen, first, attended = (
            self.config.frozen_vision_layers,
            self.vision_layers_before_text,
            to_bool_mask(attended),
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = self.region_embeddings(regions, locations)
            for layer in self.vision_layers[: min(frozen, first)]:
                x = layer(x, x, attended, None, index, index)
        for layer in self.vision_layers[frozen:first]:
            x = layer(x, x, attended, None, index, index)
        return UnimodalEncoding(x, attended, index)

    @property
    def vision_layers_before_text(self) -> int:
        """How many layers of vision do not depend on the text."""
        return 0 if self.config.dynamic_attention else self.config.first_meeting[0]

    def join(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, wanted: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Everything from the first co-attention layer on, for pairs of prefixes.

        Only the `wanted` tokens and the first ones come out of the last layers; the others are zeros.
        """
        text, vision = self.met(text, vision)
        vision_done, text_done = self.last_meeting
        of_words = text.chosen if wanted is None else prepend_first_index(text, wanted.words)
        of_regions = vision.chosen if wanted is None else prepend_first_index(vision, wanted.regions)
        regions = self.through_vision(vision, text, vision_done, self.config.vision.layers, last=of_regions)
        words = self.through_text(text, text_done, self.config.text.layers, last=of_words)
        return ViLBERTOutput(words, regions, self.text_pooler(words[:, 0]), self.vision_pooler(regions[:, 0]))

    def join_pooled(
        self, text: UnimodalEncoding, vision: UnimodalEncoding
    ) -> tuple[Float[Tensor, "batch joint"], Float[Tensor, "batch joint"]]:
        """The `text` and `vision` of `join`, for less: the last layers are computed for the first tokens alone."""
        text, vision = self.met(text, vision)
        vision_done, text_done = self.last_meeting
        before = max(self.config.vision.layers - 1, vision_done)
        regions = self.through_vision(vision, text, vision_done, before)
        first = self.through_vision(
            UnimodalEncoding(regions, vision.attended), text, before, self.config.vision.layers, 1
        )
        before = max(self.config.text.layers - 1, text_done)
        words = UnimodalEncoding(self.through_text(text, text_done, before), text.attended)
        words_first = self.through_text(words, before, self.config.text.layers, 1)
        return self.text_pooler(words_first[:, 0]), self.vision_pooler(first[:, 0])

    @property
    def last_meeting(self) -> tuple[int, int]:
        """How many layers of vision and of text stand before the last co-attention layer."""
        if not self.config.schedule:
            return self.vision_layers_before_text, self.config.first_meeting[1]
        return self.config.schedule[-1][0], self.config.schedule[-1][1]

    def met(self, text: UnimodalEncoding, vision: UnimodalEncoding) -> tuple[UnimodalEncoding, UnimodalEncoding]:
        """Text and vision after the last co-attention layer."""
        vision_done, text_done = self.vision_layers_before_text, self.config.first_meeting[1]
        for i, (vision_layer, text_layer) in enumerate(self.config.schedule):
            text = text._replace(tokens=self.through_text(text, text_done, text_layer))
            vision = vision._replace(tokens=self.through_vision(vision, text, vision_done, vision_layer))
            vision_done, text_done = vision_layer, text_layer
            if self.config.co_attention:
                words, regions = self.co_layers[i](text, vision)
                text, vision = text._replace(tokens=words), vision._replace(tokens=regions)
        return text, vision

    def through_text(
        self, text: UnimodalEncoding, start: int, stop: int, rows: int | None = None, last: Index = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Words through some of their own layers.

        `rows` is how many of the first tokens are wanted of each, `last` what the last of these layers computes.
        """
        x = text.tokens
        for i in range(start, stop):
            index = text.chosen if last is None or i < stop - 1 else last
            x = self.text_layers[i](x[:, :rows], x, text.attended, None, index, text.chosen)
        return x

    def through_vision(
        self,
        vision: UnimodalEncoding,
        text: UnimodalEncoding,
        start: int,
        stop: int,
        rows: int | None = None,
        last: Index = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Regions through some of their own layers, which the text gates in dynamic attention; as `through_text`."""
        x = vision.tokens
        for i in range(start, stop):
            gates: AttentionGates | None = (
                self.vision_gates[i](text.tokens, text.attended) if self.vision_gates else None
            )
            index = vision.chosen if last is None or i < stop - 1 else last
            frozen = i < self.config.frozen_vision_layers
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self.vision_layers[i](x[:, :rows], x, vision.attended, gates, index, vision.chosen)
        return x

    def word_head(self, x: Float[Tensor, "places dim"]) -> Float[Tensor, "places vocabulary"]:
        """Scores of every word at some places of the text stream."""
        return self.word_scores(x, self.text_embeddings.words.weight)


def load_vilbert(path: Path) -> ViLBERT:
    """Reads a ViLBERT from a run's or a model's folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, ViLBERT):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a ViLBERT")
    return model
