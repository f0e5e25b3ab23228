"""ViLBERT: a text stream and a vision stream with co-attention layers (NeurIPS 2019, section 3.1).

The function equals that of facebookresearch/vilbert-multi-task, verified with its outputs on the same weights. Its
`q_dense1` and `q_dense2`, which no output depends on, are left out.
"""

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.pretrained import PretrainedModel
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
    """One co-attention layer (ViLBERT, figure 2b): each stream attends to the other.

    Both directions take the streams as they were before the layer; neither sees the other's update. The dropout of
    attention weights is that of the stream that is attended to, as in the original.
    """

    def __init__(self, config: ViLBERTConfig) -> None:
        super().__init__()
        text, vision, joint = config.text, config.vision, (config.joint_dim, config.joint_heads)
        self.text = make_co_attention_layer(text, vision, *joint)
        self.vision = make_co_attention_layer(vision, text, *joint)

    def forward(self, words: UnimodalEncoding, regions: UnimodalEncoding) -> tuple[Tensor, Tensor]:
        """Returns the updated text and vision streams."""
        text = self.text(words.tokens, regions.tokens, regions.attended, None, words.chosen, regions.chosen)
        return text, self.vision(regions.tokens, words.tokens, words.attended, None, regions.chosen, words.chosen)


def make_co_attention_layer(
    stream: StreamConfig, context: StreamConfig, inner_dim: int, heads: int
) -> TransformerLayer:
    """A layer that updates one stream by attention to another."""
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
    """Pools the first token with a linear layer and ReLU; BERT's pooler uses tanh."""
    return nn.Sequential(nn.Linear(dim, joint_dim), nn.ReLU())


class ViLBERT(PretrainedModel, nn.Module):
    """The two-stream model. Regions are features (or visual tokens) with locations; row 0 is the whole image.

    `word_head`, `region_head` and `alignment_head` are the heads of the three pretraining tasks.
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
        dropout = text.dropout  # the text stream's, as in the original
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
        self.contrastive_head = ContrastiveHead(*dims) if config.contrastive_dim else None  # drawn last
        self.freeze()

    def freeze(self) -> None:
        """Disables gradients of the frozen layers, and of everything below them that only they depend on.

        Token embeddings are still trained: they are the weights of the token head.
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
        """Encodes text and regions. Masks are True (or 1) for tokens that are not padding; None means no padding."""
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
        """The unimodal encoding of texts: the text stream up to the first co-attention layer, independent of the image.

        With an index of the unpadded tokens, padding is not computed, here and in `join`.
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
        """The unimodal encoding of images: the vision stream up to the first layer that depends on the text.

        That is the first co-attention layer, or the first layer with dynamic attention. With an index of the unpadded
        regions, padding is not computed, here and in `join`.
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
        """Number of vision layers that do not depend on the text."""
        return 0 if self.config.dynamic_attention else self.config.first_meeting[0]

    def join(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, wanted: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Runs all layers from the first co-attention layer on, for pairs of unimodal encodings.

        Only the `wanted` tokens and the first ones are computed in the last layers; the others are zeros.
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
        """The `text` and `vision` of `join`; faster, since the last layers are only computed for the first tokens."""
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
        """Number of vision layers and of text layers before the last co-attention layer."""
        if not self.config.schedule:
            return self.vision_layers_before_text, self.config.first_meeting[1]
        return self.config.schedule[-1][0], self.config.schedule[-1][1]

    def met(self, text: UnimodalEncoding, vision: UnimodalEncoding) -> tuple[UnimodalEncoding, UnimodalEncoding]:
        """Both streams after the last co-attention layer."""
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
        """Runs some layers of the text stream.

        `rows` is the number of leading tokens to compute in the last of these layers, `last` its index of tokens.
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
        """Runs some layers of the vision stream, gated by the text in dynamic attention; arguments as in
        `through_text`."""
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
        """Logits over the vocabulary at some positions of the text stream."""
        return self.word_scores(x, self.text_embeddings.words.weight)


def load_vilbert(path: Path) -> ViLBERT:
    """Loads a ViLBERT from a run folder or model folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, ViLBERT):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a ViLBERT")
    return model
