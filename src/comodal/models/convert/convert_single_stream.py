"""Converts configurations and weights of ViLBERT's single-stream baseline (jiasenlu/vilbert_beta, `basebert.py`).

The baseline of table 1 is one BERT over tokens and region features. Its names are those of BERT (`SINGLE_STREAM_NAMES`
in convert_vilbert.py). It adds the second of two type embeddings to every region. Only the sum of this embedding and
the bias of the features has an effect, and our model has this sum as its bias.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.checkpoint import parse_config_value
from comodal.models.convert.convert_vilbert import ORIGINAL_STREAM_KEYS
from comodal.models.convert.state_dicts import check_weight_tensor, exclude_names
from comodal.models.vilbert.single_stream import SingleStreamConfig

BASELINE_KEYS = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "initializer_range": "initializer_range",
}
REGION_TYPES_KEY = "bert.image_embeddings.token_type_embeddings.weight"
REGION_PROJECTION = "bert.image_embeddings.image_embeddings"
REGION_TYPE = 1  # the type of regions; that of text, 0, is not used


class BaselineConfig(NamedTuple):
    """A configuration of the baseline, and the keys of its file that the original's model does not read."""

    config: SingleStreamConfig
    ignored: tuple[str, ...]


def is_single_stream_config(values: Mapping[str, object]) -> bool:
    """Whether a configuration is a BERT's, without a vision stream."""
    return "num_hidden_layers" in values and not any(key.startswith("v_") for key in values)


def parse_single_stream_config(values: Mapping[str, object], state: Mapping[str, Tensor], path: Path) -> BaselineConfig:
    """Parses the content of bert_base_baseline.json; the sizes that the original's code fixes are those of the weights.

    Args:
        values: Content of the file.
        state: State dict of the weights.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: A key is missing, or no model has these sizes.
    """
    values = {"initializer_range": 0.02} | dict(values)
    required_keys = {*BASELINE_KEYS.values(), *ORIGINAL_STREAM_KEYS.values()}
    if missing := sorted(required_keys - values.keys()):
        raise CheckpointError(f"{path}: not a configuration of the single-stream baseline, it lacks {missing}")
    stream = {field: values[key] for field, key in ORIGINAL_STREAM_KEYS.items()} | {"norm_eps": 1e-12}
    described = {field: values[key] for field, key in BASELINE_KEYS.items()} | {"text": stream, "first_position": 0}
    paper = SingleStreamConfig()
    projection, decoder = (
        state.get(f"{module}.weight") for module in (REGION_PROJECTION, "cls.imagePredictions.decoder")
    )
    config = parse_config_value(
        SingleStreamConfig,
        described
        | {
            "region_feature_dim": paper.region_feature_dim if projection is None else projection.shape[-1],
            "region_targets": paper.region_targets if decoder is None else len(decoder),
            "num_visual_tokens": 0,
        },
        str(path),
    )
    return BaselineConfig(config, exclude_names(values, required_keys))


def fold_region_type(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Adds the type embedding of regions to the bias of their features.

    Raises:
        CheckpointError: One of them is quantized, not finite or of another shape.
    """
    folded = dict(state)
    types, bias = folded.pop(REGION_TYPES_KEY, None), f"{REGION_PROJECTION}.bias"
    if types is not None and bias in folded:
        check_weight_tensor(REGION_TYPES_KEY, types, path)
        check_weight_tensor(bias, folded[bias], path)
        if types.dim() != 2 or len(types) <= REGION_TYPE or types.shape[1:] != folded[bias].shape:
            raise CheckpointError(f"{path}: {REGION_TYPES_KEY} has the shape {tuple(types.shape)}")
        folded[bias] = folded[bias].float() + types[REGION_TYPE].float()
    return folded


def add_region_types(state: Mapping[str, Tensor], num_token_types: int) -> dict[str, Tensor]:
    """Adds the type embeddings that the original requires; they are zeros."""
    return dict(state) | {REGION_TYPES_KEY: torch.zeros(num_token_types, len(state[f"{REGION_PROJECTION}.bias"]))}


def to_single_stream_config(config: SingleStreamConfig) -> dict[str, object]:
    """Converts a configuration to the original's JSON format.

    Raises:
        ValueError: The original has no such model.
    """
    fixed = replace(SingleStreamConfig(), text=config.text, vocabulary=config.vocabulary, positions=config.positions)
    fixed = replace(fixed, num_token_types=config.num_token_types, initializer_range=config.initializer_range)
    if config != fixed:
        raise ValueError(
            f"the original's baseline reads features of {fixed.region_feature_dim:,}, predicts "
            f"{fixed.region_targets:,} classes of regions, and has neither visual tokens nor RoBERTa's positions"
        )
    values: dict[str, object] = {key: getattr(config, field) for field, key in BASELINE_KEYS.items()}
    return values | {key: getattr(config.text, field) for field, key in ORIGINAL_STREAM_KEYS.items()}
