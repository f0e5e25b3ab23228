"""ViLBERT: a text stream and a vision stream with co-attention layers (NeurIPS 2019, section 3.1).

The function equals that of facebookresearch/vilbert-multi-task, verified with its outputs on the same weights. Its
`q_dense1` and `q_dense2`, which no output depends on, are left out.
"""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

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

    Both directions take the streams as they were before the layer; neither uses the other's update. The dropout of
    attention weights is that of the stream that is attended to, as in the original.
    """

    def __init__(self, config: ViLBERTConfig) -> None:
        super().__init__()
        text, vision, joint = config.text, config.vision, (config.joint_dim, config.joint_heads)
        self.text = make_transformer_layer(text, vision, *joint)
        self.vision = make_transformer_layer(vision, text, *joint)

    def forward(self, text: UnimodalEncoding, vision: UnimodalEncoding) -> tuple[Tensor, Tensor]:
        """Returns the updated text and vision streams."""
        updated_text = self.text(
            text.hidden_states, vision.hidden_states, vision.mask, None, text.unpadded_index, vision.unpadded_index
        )
        return updated_text, self.vision(
            vision.hidden_states, text.hidden_states, text.mask, None, vision.unpadded_index, text.unpadded_index
        )


def make_transformer_layer(stream: StreamConfig, context: StreamConfig, inner_dim: int, heads: int) -> TransformerLayer:
    """A layer that updates one stream by attention to another, or to itself."""
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
    """The two-stream model. Regions are features (or visual tokens) with spatials; row 0 is the whole image.

    `token_head`, `region_head` and `alignment_head` are the heads of the three pretraining tasks.
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
            config.num_token_types,
            config.task_tokens,
            text.dropout,
            text.norm_eps,
        )
        dropout = text.dropout  # the text stream's, as in the original
        self.region_embeddings = RegionEmbeddings(
            vision.dim, config.region_feature_dim, config.num_visual_tokens, dropout, vision.norm_eps
        )
        self.text_layers = nn.ModuleList(
            make_transformer_layer(text, text, text.dim, text.heads) for _ in range(text.layers)
        )
        self.vision_layers = nn.ModuleList(
            make_transformer_layer(vision, vision, vision.dim, vision.heads) for _ in range(vision.layers)
        )
        gated = vision.layers if config.dynamic_attention else 0
        self.vision_gates = nn.ModuleList(TextGates(text.dim, vision.dim) for _ in range(gated))
        self.co_layers = nn.ModuleList(CoAttention(config) for _ in config.co_attention_layers if config.co_attention)
        self.text_pooler = make_pooler(text.dim, config.joint_dim)
        self.vision_pooler = make_pooler(vision.dim, config.joint_dim)
        self.token_head = TokenHead(text.dim, config.vocabulary, text.activation, text.norm_eps)
        self.region_head = RegionHead(vision.dim, config.region_targets, text.activation)
        self.alignment_head = AlignmentHead(config.joint_dim, config.fusion, text.dropout)
        self.apply(partial(init_weights, std=config.initializer_range))
        dims = text.dim, vision.dim, config.contrastive_dim
        # initialized last, so that all other initial weights are the same with and without it
        self.contrastive_head = ContrastiveHead(*dims) if config.contrastive_dim else None
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
                parameter.requires_grad_(name == "tokens.weight")

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        token_mask: Mask,
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Mask,
        task_ids: Int64[Tensor, "batch"] | None = None,
    ) -> ViLBERTOutput:
        """Encodes text and regions. Masks are True (or 1) for tokens that are not padding; None means no padding."""
        return self.fuse(
            self.encode_text(token_ids, token_types, token_mask, task_ids),
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
        """The unimodal encoding of texts: the text stream up to the first co-attention layer, independent of the image.

        With an index of the unpadded tokens, padding is not computed, here and in `fuse`.
        """
        assert task_ids is None or index is None, "an index requires a model without task tokens"
        if (task_ids is not None) != (self.config.task_tokens > 0):
            raise ValueError(f"task_ids are required only if the model has task tokens ({self.config.task_tokens})")
        frozen, first, token_mask = (
            self.config.frozen_text_layers,
            self.config.layers_before_co_attention[1],
            to_bool_mask(token_mask, token_ids),
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = self.text_embeddings(token_ids, token_types, task_ids)
            if task_ids is not None and token_mask is not None:
                token_mask = torch.cat([token_mask.new_ones(token_mask.shape[0], 1), token_mask], 1)
            for layer in self.text_layers[:frozen]:
                x = layer(x, x, token_mask, None, index, index)
        for layer in self.text_layers[frozen:first]:
            x = layer(x, x, token_mask, None, index, index)
        return UnimodalEncoding(x, token_mask, index)

    def encode_image(
        self,
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Mask,
        index: Index = None,
    ) -> UnimodalEncoding:
        """The unimodal encoding of images: the vision stream up to the first layer that depends on the text.

        That is the first co-attention layer, or the first layer with dynamic attention. With an index of the unpadded
        regions, padding is not computed, here and in `fuse`.
        """
        frozen, first, region_mask = (
            self.config.frozen_vision_layers,
            self.vision_layers_before_text,
            to_bool_mask(region_mask, region_features),
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = self.region_embeddings(region_features, spatials)
            for layer in self.vision_layers[: min(frozen, first)]:
                x = layer(x, x, region_mask, None, index, index)
        for layer in self.vision_layers[frozen:first]:
            x = layer(x, x, region_mask, None, index, index)
        return UnimodalEncoding(x, region_mask, index)

    @property
    def vision_layers_before_text(self) -> int:
        """Number of vision layers that do not depend on the text."""
        return 0 if self.config.dynamic_attention else self.config.layers_before_co_attention[0]

    def fuse(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, output_indices: OutputIndices | None = None
    ) -> ViLBERTOutput:
        """Runs all layers from the first co-attention layer on, for pairs of unimodal encodings.

        Only the tokens of `output_indices` and the first ones are computed in the last layers; the others are zeros.
        """
        text, vision = self.run_co_attention(text, vision)
        vision_done, text_done = self.layers_before_last_co_attention
        token_index = (
            text.unpadded_index if output_indices is None else prepend_first_index(text, output_indices.token_indices)
        )
        region_index = (
            vision.unpadded_index
            if output_indices is None
            else prepend_first_index(vision, output_indices.region_indices)
        )
        region_states = self.run_vision_layers(
            vision, text, vision_done, self.config.vision.layers, last_index=region_index
        )
        token_states = self.run_text_layers(text, text_done, self.config.text.layers, last_index=token_index)
        return ViLBERTOutput(
            token_states, region_states, self.text_pooler(token_states[:, 0]), self.vision_pooler(region_states[:, 0])
        )

    def fuse_pooled(
        self, text: UnimodalEncoding, vision: UnimodalEncoding
    ) -> tuple[Float[Tensor, "batch joint"], Float[Tensor, "batch joint"]]:
        """The pooled outputs of `fuse`; faster, since the last layers are only computed for the first tokens."""
        text, vision = self.run_co_attention(text, vision)
        vision_done, text_done = self.layers_before_last_co_attention
        num_layers = max(self.config.vision.layers - 1, vision_done)
        region_states = self.run_vision_layers(vision, text, vision_done, num_layers)
        first_regions = self.run_vision_layers(
            UnimodalEncoding(region_states, vision.mask), text, num_layers, self.config.vision.layers, 1
        )
        num_layers = max(self.config.text.layers - 1, text_done)
        text_before_last = UnimodalEncoding(self.run_text_layers(text, text_done, num_layers), text.mask)
        first_tokens = self.run_text_layers(text_before_last, num_layers, self.config.text.layers, 1)
        return self.text_pooler(first_tokens[:, 0]), self.vision_pooler(first_regions[:, 0])

    @property
    def layers_before_last_co_attention(self) -> tuple[int, int]:
        """Number of vision layers and of text layers before the last co-attention layer."""
        if not self.config.co_attention_layers:
            return self.vision_layers_before_text, self.config.layers_before_co_attention[1]
        return self.config.co_attention_layers[-1][0], self.config.co_attention_layers[-1][1]

    def run_co_attention(
        self, text: UnimodalEncoding, vision: UnimodalEncoding
    ) -> tuple[UnimodalEncoding, UnimodalEncoding]:
        """Both streams after the last co-attention layer."""
        vision_done, text_done = self.vision_layers_before_text, self.config.layers_before_co_attention[1]
        for i, (vision_layer, text_layer) in enumerate(self.config.co_attention_layers):
            text = text._replace(hidden_states=self.run_text_layers(text, text_done, text_layer))
            vision = vision._replace(hidden_states=self.run_vision_layers(vision, text, vision_done, vision_layer))
            vision_done, text_done = vision_layer, text_layer
            if self.config.co_attention:
                token_states, region_states = self.co_layers[i](text, vision)
                text, vision = text._replace(hidden_states=token_states), vision._replace(hidden_states=region_states)
        return text, vision

    def run_text_layers(
        self, text: UnimodalEncoding, start: int, stop: int, num_queries: int | None = None, last_index: Index = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Runs some layers of the text stream.

        `num_queries` is the number of leading tokens to compute in the last layer, `last_index` its index of tokens.
        """
        x = text.hidden_states
        for i in range(start, stop):
            index = text.unpadded_index if last_index is None or i < stop - 1 else last_index
            x = self.text_layers[i](x[:, :num_queries], x, text.mask, None, index, text.unpadded_index)
        return x

    def run_vision_layers(
        self,
        vision: UnimodalEncoding,
        text: UnimodalEncoding,
        start: int,
        stop: int,
        num_queries: int | None = None,
        last_index: Index = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Runs some layers of the vision stream, gated by the text in dynamic attention; arguments as in
        `run_text_layers`."""
        x = vision.hidden_states
        for i in range(start, stop):
            gates: AttentionGates | None = (
                self.vision_gates[i](text.hidden_states, text.mask) if self.vision_gates else None
            )
            index = vision.unpadded_index if last_index is None or i < stop - 1 else last_index
            frozen = i < self.config.frozen_vision_layers
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self.vision_layers[i](x[:, :num_queries], x, vision.mask, gates, index, vision.unpadded_index)
        return x

    def compute_token_logits(self, x: Float[Tensor, "positions dim"]) -> Float[Tensor, "positions vocabulary"]:
        """Logits over the vocabulary at some positions of the text stream."""
        return self.token_head(x, self.text_embeddings.tokens.weight)
