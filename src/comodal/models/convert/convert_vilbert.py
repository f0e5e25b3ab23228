"""Converts configurations and weights of facebookresearch/vilbert-multi-task, in both directions.

The conversion is defined by the tables of names below. In the original, index 1 is vision and index 2 is text, so that
`key1` holds the keys which the text attends to.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.checkpoint import parse_config_value
from comodal.models.convert.state_dicts import (
    LoadReport,
    check_encoder_complete,
    check_weight_tensor,
    copy_matching_weights,
    exclude_names,
)
from comodal.models.vilbert.heads import Head, TaskHeads, make_twelve_in_one_heads
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.text_files import read_json_object

LAYER_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.0": "intermediate.dense",
    "feed_forward.2": "output.dense",
    "norm": "output.LayerNorm",
}
CO_ATTENTION_NAMES = {
    "vision.attention.query": "biattention.query1",
    "vision.attention.key": "biattention.key2",
    "vision.attention.value": "biattention.value2",
    "vision.attention.output": "biOutput.dense1",
    "vision.attention_norm": "biOutput.LayerNorm1",
    "vision.feed_forward.0": "v_intermediate.dense",
    "vision.feed_forward.2": "v_output.dense",
    "vision.norm": "v_output.LayerNorm",
    "text.attention.query": "biattention.query2",
    "text.attention.key": "biattention.key1",
    "text.attention.value": "biattention.value1",
    "text.attention.output": "biOutput.dense2",
    "text.attention_norm": "biOutput.LayerNorm2",
    "text.feed_forward.0": "t_intermediate.dense",
    "text.feed_forward.2": "t_output.dense",
    "text.norm": "t_output.LayerNorm",
}
GATE_NAMES = {"query": "attention.self.dyLinear_q", "key": "attention.self.dyLinear_k"}
LAYER_STACKS = {
    "text_layers": ("bert.encoder.layer", LAYER_NAMES),
    "vision_layers": ("bert.encoder.v_layer", LAYER_NAMES),
    "vision_gates": ("bert.encoder.v_layer", GATE_NAMES),
    "co_layers": ("bert.encoder.c_layer", CO_ATTENTION_NAMES),
}
SINGLE_MODULE_NAMES = {
    "text_embeddings.tokens": "bert.embeddings.word_embeddings",
    "text_embeddings.positions": "bert.embeddings.position_embeddings",
    "text_embeddings.token_types": "bert.embeddings.token_type_embeddings",
    "text_embeddings.tasks": "bert.embeddings.task_embeddings",
    "text_embeddings.norm": "bert.embeddings.LayerNorm",
    "region_embeddings.features": "bert.v_embeddings.image_embeddings",
    "region_embeddings.spatials": "bert.v_embeddings.image_location_embeddings",
    "region_embeddings.norm": "bert.v_embeddings.LayerNorm",
    "text_pooler.0": "bert.t_pooler.dense",
    "vision_pooler.0": "bert.v_pooler.dense",
    "token_head.transform.0": "cls.predictions.transform.dense",
    "token_head.transform.2": "cls.predictions.transform.LayerNorm",
    "token_head": "cls.predictions",
    "region_head.transform.0": "cls.imagePredictions.transform.dense",
    "region_head.transform.2": "cls.imagePredictions.transform.LayerNorm",
    "region_head.decoder": "cls.imagePredictions.decoder",
    "alignment_head.classifier": "cls.bi_seq_relationship",
}
SINGLE_STREAM_NAMES = {  # of basebert.py, where they differ
    "region_embeddings.features": "bert.image_embeddings.image_embeddings",
    "region_embeddings.spatials": "bert.image_embeddings.image_location_embeddings",
    "region_embeddings.norm": "bert.image_embeddings.LayerNorm",
    "pooler.0": "bert.pooler.dense",
    "alignment_head.classifier": "cls.seq_relationship",
}
TASK_HEAD_NAMES = {
    "vqa": "vil_prediction.logit_fc",
    "gqa": "vil_prediction_gqa.logit_fc",
    "pairs": "vil_binary_prediction.logit_fc",
    "score": "vil_logit",
    "entailment": "vil_tri_prediction",
    "regions": "vision_logit",
    "tokens": "linguisic_logit",
}
TIED_WEIGHTS = {  # tied copy -> its source
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
UNUSED_LAYERS = {"q_dense1": "dense1", "q_dense2": "dense2"}  # in biOutput; shaped like the layer next to them


def map_names_to_original(model: torch.nn.Module) -> dict[str, str]:
    """Our name -> the original's, for each parameter of a ViLBERT or a single stream."""
    modules = SINGLE_MODULE_NAMES | (SINGLE_STREAM_NAMES if isinstance(model, SingleStream) else {})
    return {
        comodal_name: original_name
        for comodal_name in model.state_dict()
        if (original_name := get_original_name(comodal_name, modules))
    }


def get_original_name(comodal_name: str, modules: Mapping[str, str]) -> str:
    """The original's name of a parameter, or "" if it has none; `modules` has the names of single modules."""
    module, leaf = comodal_name.rsplit(".", 1)
    if stacked := re.fullmatch(r"(\w+)\.(\d+)\.(.+)", module):
        stack, layer_index, part = stacked.groups()
        if stack in LAYER_STACKS:
            original_stack, parts = LAYER_STACKS[stack]
            return f"{original_stack}.{layer_index}.{parts[part]}.{leaf}"
    return f"{modules[module]}.{leaf}" if module in modules else ""


def map_task_heads_to_original(heads: TaskHeads) -> dict[str, str]:
    """Our name -> the original's, for the heads of 12-in-1."""
    parts = {comodal_name: comodal_name.split(".", 1) for comodal_name in heads.state_dict()}
    return {comodal_name: f"{TASK_HEAD_NAMES[head]}.{rest}" for comodal_name, (head, rest) in parts.items()}


def find_task_heads(state: Mapping[str, Tensor]) -> tuple[Head, ...]:
    """The heads of 12-in-1 whose weights a state dict holds, with their sizes."""
    heads = []
    for head in make_twelve_in_one_heads(1):
        last = f"{TASK_HEAD_NAMES[head.name]}.3.weight" if head.hidden else f"{TASK_HEAD_NAMES[head.name]}.weight"
        if last in state:
            outputs, inputs = state[last].shape
            has_no_norm = head.hidden and f"{TASK_HEAD_NAMES[head.name]}.2.weight" not in state
            sized = replace(head, outputs=outputs, hidden=inputs if head.hidden else 0)
            heads.append(replace(sized, activation="relu") if has_no_norm else sized)
    return tuple(heads)


VILBERT_BETA_HEAD = "vil_prediction.main"  # vilbert_beta's: linear, relu, dropout, linear, weights normalized
MMF_HEAD_NAMES = {  # a head of two layers under MMF's names
    "classifier.0.dense": "vil_prediction.logit_fc.0",
    "classifier.0.LayerNorm": "vil_prediction.logit_fc.2",
    "classifier.1": "vil_prediction.logit_fc.3",
}


def rename_to_multi_task(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Renames a state dict of vilbert_beta or MMF to the names of vilbert-multi-task.

    vilbert_beta normalizes the weights of its answer head: each matrix is `weight_v` times `weight_g` over its norm.

    Raises:
        CheckpointError: Such a weight is quantized or not finite, or its norm is missing or not one number.
    """
    renamed = dict(state)
    for original_name in list(renamed):
        module, _, leaf = original_name.rpartition(".")
        if module in MMF_HEAD_NAMES:
            renamed[f"{MMF_HEAD_NAMES[module]}.{leaf}"] = renamed.pop(original_name)
        elif module.startswith(VILBERT_BETA_HEAD):
            multi_task_module = module.replace(VILBERT_BETA_HEAD, TASK_HEAD_NAMES["vqa"])
            if leaf == "weight_v":
                direction, norm = renamed.pop(original_name), renamed.get(f"{module}.weight_g")
                check_weight_tensor(original_name, direction, path)
                if norm is None or norm.numel() != 1:
                    raise CheckpointError(f"{path}: {module}.weight_g is not one number, the norm of {original_name}")
                check_weight_tensor(f"{module}.weight_g", norm, path)
                renamed[f"{multi_task_module}.weight"] = direction * (norm.reshape(()) / direction.norm())
            elif leaf == "bias":
                renamed[f"{multi_task_module}.bias"] = renamed.pop(original_name)
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(VILBERT_BETA_HEAD)}


def load_original_weights(
    model: ViLBERT | SingleStream,
    state: Mapping[str, Tensor],
    path: Path,
    heads: TaskHeads | None = None,
    allow_missing: bool = False,
) -> LoadReport:
    """Copies the original's weights into a model, and into task heads if there are any.

    Args:
        model: Model with the state dict's configuration.
        state: State dict, as returned by `read_tensors`.
        path: Path of the file, for messages.
        heads: The heads of 12-in-1.
        allow_missing: Leave tensors of the encoder that the state dict lacks randomly initialized.

    Raises:
        CheckpointError: The state dict is of another configuration, lacks a tensor of the encoder, or is not a
            ViLBERT's.
    """
    state = drop_tied_copies(state)
    report = copy_matching_weights(model, state, map_names_to_original(model), path)
    if not report.filled:
        raise CheckpointError(f"{path}: none of its names is a ViLBERT's; it begins with {list(state)[:3]}")
    check_encoder_complete(report, map_names_to_original(model), path, allow_missing)
    if heads is None:
        return report
    names = map_task_heads_to_original(heads)
    tasks = copy_matching_weights(heads, state, names, path)
    new = report.new + tuple(f"tasks.{name}" for name in tasks.new)
    filled = report.filled + tuple(f"tasks.{name}" for name in tasks.filled)
    return LoadReport(filled, new, exclude_names(report.unused, names.values()))


def drop_tied_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops tied copies, such as the token head's copy of the embeddings; a copy that differs is kept."""
    untied = dict(state)
    for tied_name, name in TIED_WEIGHTS.items():
        if tied_name in untied and (name not in untied or is_same_tensor(untied[tied_name], untied[name])):
            untied[name] = untied.pop(tied_name)
    return untied


def is_same_tensor(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have one data type and the same values."""
    return first.dtype == second.dtype and torch.equal(first, second)


def export_original_state(
    model: ViLBERT | SingleStream, heads: TaskHeads | None = None, source: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Exports a state dict that the original's code loads.

    Args:
        model: Model to export.
        heads: The heads of 12-in-1.
        source: Original state dict of the model: its tensors without a counterpart are kept. Without it the layers that
            the original never uses are zeros.
    """
    own = model.state_dict()
    state = {original_name: own[comodal_name] for comodal_name, original_name in map_names_to_original(model).items()}
    if heads is not None:
        tasks = heads.state_dict()
        state |= {
            original_name: tasks[comodal_name]
            for comodal_name, original_name in map_task_heads_to_original(heads).items()
        }
    for name in list(state):
        for unused, sibling in UNUSED_LAYERS.items():
            if f".biOutput.{sibling}." in name:
                state[name.replace(f".{sibling}.", f".{unused}.")] = torch.zeros_like(state[name])
    tied_name = "cls.predictions.decoder.weight"
    state[tied_name] = state[TIED_WEIGHTS[tied_name]]
    carried_over = {
        name: tensor for name, tensor in (source or {}).items() if name not in state or is_unused_parameter(name)
    }
    return {name: tensor.detach().clone() for name, tensor in (state | carried_over).items()}


def is_unused_parameter(name: str) -> bool:
    """Whether no output of the original depends on a parameter."""
    return any(f".biOutput.{unused}." in name for unused in UNUSED_LAYERS)


class OriginalConfig(NamedTuple):
    """A configuration of the original, and the keys of its file that the original's model does not read."""

    config: ViLBERTConfig
    ignored: tuple[str, ...]


ORIGINAL_STREAM_KEYS = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
MODEL_CONFIG_KEYS = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "joint_dim": "bi_hidden_size",
    "joint_heads": "bi_num_attention_heads",
    "region_feature_dim": "v_feature_size",
    "region_targets": "v_target_size",
    "fusion": "fusion_method",
    "dynamic_attention": "dynamic_attention",
    "co_attention": "with_coattention",
    "frozen_text_layers": "fixed_t_layer",
    "frozen_vision_layers": "fixed_v_layer",
    "initializer_range": "initializer_range",
}
CO_ATTENTION_SCHEDULE_KEYS = ("v_biattention_id", "t_biattention_id")
TASK_TOKENS_KEY = "task_specific_tokens"
NUM_TASK_TOKENS = 20  # hard-coded in the original
ORIGINAL_CONFIG_DEFAULTS: dict[str, object] = {
    "fusion_method": "mul",
    "dynamic_attention": False,
    "with_coattention": True,
    TASK_TOKENS_KEY: False,
    "fixed_t_layer": 0,
    "fixed_v_layer": 0,
    "initializer_range": 0.02,
}
# Read by the original's model but no part of its function: how it is called, trained, or drawn at first. `model`
# chooses RoBERTa, whose positions the original counts from 0 all the same.
IGNORED_CONFIG_KEYS = {
    "model",
    "fast_mode",
    "in_batch_pairs",
    "visualization",
    "visual_target",
    "num_negative",
}


def read_original_config(path: Path) -> OriginalConfig:
    """Reads a JSON configuration of the original.

    Raises:
        CheckpointError: A key is missing, or the sizes are inconsistent.
    """
    return parse_original_config(read_json_object(path, CheckpointError), path)


def parse_original_config(content: Mapping[str, object], path: Path) -> OriginalConfig:
    """Parses the content of the original's JSON configuration.

    Raises:
        CheckpointError: A key is missing, or the sizes are inconsistent.
    """
    values = ORIGINAL_CONFIG_DEFAULTS | dict(content)
    required_keys = {
        *MODEL_CONFIG_KEYS.values(),
        *ORIGINAL_STREAM_KEYS.values(),
        *(f"v_{key}" for key in ORIGINAL_STREAM_KEYS.values()),
        *CO_ATTENTION_SCHEDULE_KEYS,
        TASK_TOKENS_KEY,
    }
    if missing := sorted(required_keys - values.keys()):
        raise CheckpointError(f"{path}: not a configuration of ViLBERT, it lacks {missing}")
    vision_layers, text_layers = (values[key] for key in CO_ATTENTION_SCHEDULE_KEYS)
    if not (isinstance(vision_layers, list) and isinstance(text_layers, list)):
        raise CheckpointError(f"{path}: {' and '.join(CO_ATTENTION_SCHEDULE_KEYS)} must be lists")
    if len(vision_layers) != len(text_layers):
        raise CheckpointError(f"{path}: {' and '.join(CO_ATTENTION_SCHEDULE_KEYS)} must have one length")
    described = {field: values[original_key] for field, original_key in MODEL_CONFIG_KEYS.items()} | {
        "text": {field: values[original_key] for field, original_key in ORIGINAL_STREAM_KEYS.items()}
        | {"norm_eps": 1e-12},
        "vision": {field: values[f"v_{original_key}"] for field, original_key in ORIGINAL_STREAM_KEYS.items()}
        | {"norm_eps": 1e-12},
        "co_attention_layers": [list(pair) for pair in zip(vision_layers, text_layers, strict=True)],
        "task_tokens": NUM_TASK_TOKENS if values[TASK_TOKENS_KEY] else 0,
        "first_position": 0,
        "num_visual_tokens": 0,
        "contrastive_dim": 0,
    }
    config = parse_config_value(ViLBERTConfig, described, str(path))
    return OriginalConfig(config, exclude_names(values, required_keys | IGNORED_CONFIG_KEYS))


def to_original_config(config: ViLBERTConfig) -> dict[str, object]:
    """Converts a configuration to the original's JSON format.

    Raises:
        ValueError: The original has no such model.
    """
    if config.num_visual_tokens or config.first_position or config.task_tokens not in (0, NUM_TASK_TOKENS):
        raise ValueError("the original has no visual tokens as input, no RoBERTa positions, and 20 task tokens or none")
    if config.contrastive_dim:
        raise ValueError("the original has no contrastive head (--contrastive-weight)")
    values: dict[str, object] = {
        original_key: getattr(config, field) for field, original_key in MODEL_CONFIG_KEYS.items()
    }
    values |= {original_key: getattr(config.text, field) for field, original_key in ORIGINAL_STREAM_KEYS.items()}
    values |= {
        f"v_{original_key}": getattr(config.vision, field) for field, original_key in ORIGINAL_STREAM_KEYS.items()
    }
    values |= {
        key: [pair[side] for pair in config.co_attention_layers] for side, key in enumerate(CO_ATTENTION_SCHEDULE_KEYS)
    }
    return values | {TASK_TOKENS_KEY: config.task_tokens > 0}
