"""Sizes of ViLBERT: the configuration, and those of the paper's models (ViLBERT, section 3.1)."""

from dataclasses import dataclass

from comodal.models.vilbert.heads import Fusion
from comodal.models.vilbert.transformer import (
    Activation,
)


@dataclass(frozen=True)
class StreamConfig:
    """The sizes of one stream.

    Args:
        dim: Features of a token.
        layers: Layers of its own, co-attention not counted.
        heads: Heads of attention.
        intermediate: Units of the feed-forward networks.
        activation: Of the feed-forward networks.
        dropout: Of what the layers add to the stream.
        attention_dropout: Of the attention weights.
        norm_eps: Added to the variance in normalisation.
    """

    dim: int
    layers: int
    heads: int
    intermediate: int
    activation: Activation = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12


def make_co_attention_schedule(text_layers: int, count: int) -> tuple[tuple[int, int], ...]:
    """The paper's schedule: a co-attention layer before each of the last layers of text, and of the first of vision."""
    return tuple((i, text_layers - count + i) for i in range(count))


@dataclass(frozen=True)
class ViLBERTConfig:
    """The defaults are the paper's base model with six co-attention layers.

    Args:
        vocabulary: Words.
        positions: Positions of words.
        first_position: Position of the first word: 0 in BERT, 2 in RoBERTa.
        segments: Kinds of text.
        text: Sizes of the text stream.
        vision: Sizes of the vision stream; its feed-forward network is as wide as the stream.
        joint_dim: Features of queries, keys and values in co-attention, and of the pooled streams.
        joint_heads: Heads of co-attention.
        schedule: For each co-attention layer, the layers before which it stands: (of vision, of text).
        region_features: Features of a region.
        region_targets: Numbers that the region head gives.
        fusion: How the pooled streams meet in the alignment head.
        dynamic_attention: Attention between regions is gated by the text.
        co_attention: Without it the streams never meet (the text stream is then a BERT).
        task_tokens: Embeddings of tasks that stand after the first word; 0 for none (12-in-1).
        frozen_text_layers: The first layers of text that keep their weights.
        frozen_vision_layers: The first layers of vision that keep their weights.
        region_tokens: Regions are visual tokens, so many of them, and not features; 0 for features.
        initializer_range: Deviation of the first weights. 0.02 suits streams that are some 768 wide.
        contrastive_dim: Features of the space of texts and images of the contrastive loss; 0 without it.
    """

    vocabulary: int = 30_522
    positions: int = 512
    first_position: int = 0
    segments: int = 2
    text: StreamConfig = StreamConfig(768, 12, 12, 3072)
    vision: StreamConfig = StreamConfig(1024, 6, 8, 1024)
    joint_dim: int = 1024
    joint_heads: int = 8
    schedule: tuple[tuple[int, ...], ...] = make_co_attention_schedule(12, 6)
    region_features: int = 2048
    region_targets: int = 1601
    fusion: Fusion = "mul"
    dynamic_attention: bool = False
    co_attention: bool = True
    task_tokens: int = 0
    frozen_text_layers: int = 0
    frozen_vision_layers: int = 0
    region_tokens: int = 0
    initializer_range: float = 0.02
    contrastive_dim: int = 0

    def __post_init__(self) -> None:
        before = (0, 0)
        for pair in self.schedule:
            if len(pair) != 2:
                raise ValueError(f"schedule holds {pair}; each entry is (vision layer, text layer)")
            if not (before[0] <= pair[0] < self.vision.layers and before[1] <= pair[1] < self.text.layers):
                raise ValueError(
                    f"schedule {self.schedule} must not go back, nor beyond {self.vision.layers} layers of vision "
                    f"and {self.text.layers} of text"
                )
            before = (pair[0], pair[1])
        if self.frozen_vision_layers > self.first_meeting[0] or self.frozen_text_layers > self.first_meeting[1]:
            raise ValueError(f"only layers before the first co-attention {self.first_meeting} can be frozen")

    @property
    def first_meeting(self) -> tuple[int, int]:
        """How many layers of vision and of text depend on nothing but their own stream."""
        if not self.schedule:
            return self.vision.layers, self.text.layers
        return self.schedule[0][0], self.schedule[0][1]


def make_base_config(count: int = 6) -> ViLBERTConfig:
    """The paper's base models of 2, 4, 6 or 8 co-attention layers."""
    return ViLBERTConfig(vision=StreamConfig(1024, count, 8, 1024), schedule=make_co_attention_schedule(12, count))


def make_large_config(count: int = 6) -> ViLBERTConfig:
    """BERT-large with 2, 4 or 6 co-attention layers, as in the original's configurations."""
    return ViLBERTConfig(
        text=StreamConfig(1024, 24, 16, 4096),
        vision=StreamConfig(1024, count, 8, 1024),
        schedule=make_co_attention_schedule(24, count),
    )


def make_small_vilbert_config(
    vocabulary: int = 30_522, region_features: int = 512, region_targets: int = 512
) -> ViLBERTConfig:
    """A model that learns on two cores: four layers of text, two of vision, two co-attention layers.

    Narrow streams need larger first weights: 0.05 is to 128 what 0.02 is to 768. With 0.02 it takes three times as many
    steps until the two streams begin to meet.
    """
    return ViLBERTConfig(
        vocabulary=vocabulary,
        positions=64,
        text=StreamConfig(128, 4, 4, 512),
        vision=StreamConfig(128, 2, 4, 256),
        joint_dim=128,
        joint_heads=4,
        schedule=make_co_attention_schedule(4, 2),
        region_features=region_features,
        region_targets=region_targets,
        initializer_range=0.05,
    )
