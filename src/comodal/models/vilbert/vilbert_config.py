"""Configuration of ViLBERT, and the sizes of the paper's models (ViLBERT, section 3.1)."""

from dataclasses import dataclass

from comodal.errors import check_number
from comodal.models.vilbert.heads import Fusion
from comodal.models.vilbert.transformer import Activation

MAX_DIM = 1 << 14  # widths; the widest published text encoders have 12,288
MAX_LAYERS, MAX_HEADS = 256, 1024
MAX_POSITIONS, MAX_SEGMENTS, MAX_TASKS = 1 << 16, 1024, 1024
MAX_TOKENS = 1 << 20  # vocabularies, visual tokens and region targets; the largest vocabularies have 2**18 tokens
MAX_FEATURES = 1 << 16


@dataclass(frozen=True)
class StreamConfig:
    """The sizes of one stream.

    Args:
        dim: Width of the stream.
        layers: Number of layers, without co-attention layers.
        heads: Number of attention heads.
        intermediate: Units of the feed-forward networks.
        activation: Activation of the feed-forward networks.
        dropout: Dropout before each residual connection.
        attention_dropout: Dropout of the attention weights.
        norm_eps: Epsilon of layer normalization.
    """

    dim: int
    layers: int
    heads: int
    intermediate: int
    activation: Activation = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_number("dim", self.dim, 1, MAX_DIM)
        check_number("layers", self.layers, 0, MAX_LAYERS)
        check_number("heads", self.heads, 1, MAX_HEADS)
        check_number("intermediate", self.intermediate, 1, MAX_FEATURES)
        check_number("dropout", self.dropout, 0, 1)
        check_number("attention_dropout", self.attention_dropout, 0, 1)
        check_number("norm_eps", self.norm_eps, 0, 1)


def check_embedding_sizes(vocabulary: int, positions: int, first_position: int, segments: int) -> None:
    """Checks the sizes of the embeddings of a text stream; raises a ValueError with the name of a wrong one."""
    check_number("vocabulary", vocabulary, 1, MAX_TOKENS)
    check_number("positions", positions, 1, MAX_POSITIONS)
    check_number("first_position", first_position, 0, positions - 1)
    check_number("num_token_types", segments, 1, MAX_SEGMENTS)


def check_output_sizes(joint_dim: int, region_targets: int, region_tokens: int, initializer_range: float) -> None:
    """Checks the sizes of the heads and of visual tokens; raises a ValueError with the name of a wrong one."""
    check_number("joint_dim", joint_dim, 1, MAX_DIM)
    check_number("region_targets", region_targets, 0, MAX_TOKENS)
    check_number("num_visual_tokens", region_tokens, 0, MAX_TOKENS)
    check_number("initializer_range", initializer_range, 0, 100)


def make_co_attention_schedule(text_layers: int, count: int) -> tuple[tuple[int, int], ...]:
    """The paper's co-attention layers: one before each of the last text layers and of the first vision layers."""
    return tuple((i, text_layers - count + i) for i in range(count))


@dataclass(frozen=True)
class ViLBERTConfig:
    """The defaults are the paper's base model with six co-attention layers.

    Args:
        vocabulary: Size of the vocabulary.
        positions: Number of text positions.
        first_position: Position of the first token: 0 in BERT, 2 in RoBERTa.
        num_token_types: Number of token types (segments).
        text: Sizes of the text stream.
        vision: Sizes of the vision stream; its feed-forward network is as wide as the stream.
        joint_dim: Width of queries, keys and values in co-attention, and of the pooled streams.
        joint_heads: Number of attention heads of co-attention.
        co_attention_layers: For each co-attention layer, the layers before which it is inserted: (of vision, of text).
        region_feature_dim: Length of a region's feature.
        region_targets: Number of outputs of the region head.
        fusion: Fusion of the pooled streams in the alignment head.
        dynamic_attention: Whether the text gates the attention between regions.
        co_attention: Whether there are co-attention layers; without them the text stream is a BERT.
        task_tokens: Number of task tokens, inserted after the first token; 0 for none (12-in-1).
        frozen_text_layers: Number of first text layers that are frozen.
        frozen_vision_layers: Number of first vision layers that are frozen.
        num_visual_tokens: Number of visual tokens if regions are visual tokens; 0 for features.
        initializer_range: Std of the initial weights. 0.02 suits streams of width 768.
        contrastive_dim: Width of the embedding space of the contrastive loss; 0 without it.
    """

    vocabulary: int = 30_522
    positions: int = 512
    first_position: int = 0
    num_token_types: int = 2
    text: StreamConfig = StreamConfig(768, 12, 12, 3072)
    vision: StreamConfig = StreamConfig(1024, 6, 8, 1024)
    joint_dim: int = 1024
    joint_heads: int = 8
    co_attention_layers: tuple[tuple[int, ...], ...] = make_co_attention_schedule(12, 6)
    region_feature_dim: int = 2048
    region_targets: int = 1601
    fusion: Fusion = "mul"
    dynamic_attention: bool = False
    co_attention: bool = True
    task_tokens: int = 0
    frozen_text_layers: int = 0
    frozen_vision_layers: int = 0
    num_visual_tokens: int = 0
    initializer_range: float = 0.02
    contrastive_dim: int = 0

    def __post_init__(self) -> None:
        check_embedding_sizes(self.vocabulary, self.positions, self.first_position, self.num_token_types)
        check_output_sizes(self.joint_dim, self.region_targets, self.num_visual_tokens, self.initializer_range)
        check_number("joint_heads", self.joint_heads, 1, MAX_HEADS)
        check_number("region_feature_dim", self.region_feature_dim, 0, MAX_FEATURES)
        check_number("task_tokens", self.task_tokens, 0, MAX_TASKS)
        check_number("contrastive_dim", self.contrastive_dim, 0, MAX_FEATURES)
        self.check_schedule()

    def check_schedule(self) -> None:
        """Checks the co-attention layers and the number of frozen layers.

        Raises:
            ValueError: They do not fit the layers of the streams.
        """
        before = (0, 0)
        for pair in self.co_attention_layers:
            if len(pair) != 2:
                raise ValueError(f"co_attention_layers has the entry {pair}; each entry is (vision layer, text layer)")
            if not (before[0] <= pair[0] < self.vision.layers and before[1] <= pair[1] < self.text.layers):
                raise ValueError(
                    f"co_attention_layers {self.co_attention_layers} must be sorted, within {self.vision.layers} "
                    f"layers of vision "
                    f"and {self.text.layers} of text"
                )
            before = (pair[0], pair[1])
        if min(self.frozen_vision_layers, self.frozen_text_layers) < 0:
            raise ValueError(
                f"frozen_vision_layers ({self.frozen_vision_layers}) and frozen_text_layers "
                f"({self.frozen_text_layers}) must not be negative"
            )
        if (
            self.frozen_vision_layers > self.layers_before_co_attention[0]
            or self.frozen_text_layers > self.layers_before_co_attention[1]
        ):
            raise ValueError(
                f"only layers before the first co-attention {self.layers_before_co_attention} can be frozen"
            )

    @property
    def layers_before_co_attention(self) -> tuple[int, int]:
        """Number of vision layers and of text layers that only depend on their own stream."""
        if not self.co_attention_layers:
            return self.vision.layers, self.text.layers
        return self.co_attention_layers[0][0], self.co_attention_layers[0][1]


def make_base_config(count: int = 6) -> ViLBERTConfig:
    """The paper's base models with 2, 4, 6 or 8 co-attention layers."""
    return ViLBERTConfig(
        vision=StreamConfig(1024, count, 8, 1024), co_attention_layers=make_co_attention_schedule(12, count)
    )


def make_large_config(count: int = 6) -> ViLBERTConfig:
    """BERT-large with 2, 4 or 6 co-attention layers, as in the original's configurations."""
    return ViLBERTConfig(
        text=StreamConfig(1024, 24, 16, 4096),
        vision=StreamConfig(1024, count, 8, 1024),
        co_attention_layers=make_co_attention_schedule(24, count),
    )


def make_small_vilbert_config(
    vocabulary: int = 30_522, region_feature_dim: int = 512, region_targets: int = 512
) -> ViLBERTConfig:
    """A model that trains on two CPU cores: four text layers, two vision layers, two co-attention layers.

    Narrow streams need larger initial weights: 0.05 is to 128 what 0.02 is to 768. With 0.02 training takes three times
    as many steps until co-attention contributes.
    """
    return ViLBERTConfig(
        vocabulary=vocabulary,
        positions=64,
        text=StreamConfig(128, 4, 4, 512),
        vision=StreamConfig(128, 2, 4, 256),
        joint_dim=128,
        joint_heads=4,
        co_attention_layers=make_co_attention_schedule(4, 2),
        region_feature_dim=region_feature_dim,
        region_targets=region_targets,
        initializer_range=0.05,
    )
