"""The backbones of the ViLBERT paper by name, sized for a BERT and for the regions of a store."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from comodal.models.convert.convert_bert import derive_config_from_bert
from comodal.models.vilbert.single_stream import SingleStreamConfig
from comodal.models.vilbert.vilbert_config import (
    ViLBERTConfig,
    make_base_config,
    make_large_config,
    make_small_vilbert_config,
)

ViLBERTVariant = Literal[
    "base_2", "base_4", "base_6", "base_8", "large_2", "large_4", "large_6", "small", "single_stream",
    "small_single_stream",
]  # fmt: skip
VILBERT_VARIANTS: dict[str, ViLBERTConfig] = (
    {f"base_{count}": make_base_config(count) for count in (2, 4, 6, 8)}
    | {f"large_{n}": make_large_config(n) for n in (2, 4, 6)}
    | {"single_stream": make_base_config(0)}  # its text stream
    | dict.fromkeys(("small", "small_single_stream"), make_small_vilbert_config())
)


class RegionSizes(NamedTuple):
    """The sizes of a region: of its feature, of its prediction, and of the visual tokens; 0 tokens for features."""

    feature_dim: int
    targets: int
    visual_tokens: int


def is_single_stream_variant(variant: ViLBERTVariant) -> bool:
    """Whether a variant has one stream for both modalities."""
    return variant.endswith("single_stream")


def build_backbone_config(
    variant: ViLBERTVariant, bert: Path | None, vocabulary: int, regions: RegionSizes
) -> ViLBERTConfig | SingleStreamConfig:
    """The configuration of a backbone.

    Args:
        variant: Its name.
        bert: Hugging Face BERT whose sizes the text stream (or the single stream) has; without it the variant's.
        vocabulary: Size of the vocabulary without a BERT.
        regions: Sizes of a region.

    Raises:
        CheckpointError: The BERT has no configuration, or is too small for the variant.
    """
    template = VILBERT_VARIANTS[variant]
    config = derive_config_from_bert(bert, template=template) if bert else replace(template, vocabulary=vocabulary)
    if is_single_stream_variant(variant):
        sizes = (config.vocabulary, config.positions, config.first_position, config.num_token_types, config.text)
        return SingleStreamConfig(*sizes, *regions, config.initializer_range)
    return replace(
        config,
        region_feature_dim=regions.feature_dim,
        region_targets=regions.targets,
        num_visual_tokens=regions.visual_tokens,
    )
