"""Converts configurations and weights of e-bug/volta's ViLBERT to the names of facebookresearch/vilbert-multi-task.

VOLTA (Bugliarello et al., "Multimodal Pretraining Unmasked", TACL 2021) numbers sub-layers (attention or feed-forward),
and its configuration lists which modality attends to which in each. Attention within text and within regions is a layer
of a stream; attention between text and regions is a co-attention layer. In a sub-layer the regions' weights start with
`v_`.

Departs from VOLTA where co-attention is narrower than the pooled streams (its controlled setup: 12 heads of 64, and
1,024 units). The original's configuration cannot express this, so co-attention is padded with heads of zeros. They add
nothing to any output, and receive no gradient.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from comodal.errors import CheckpointError

ATTENTION_SUBLAYER_KEYS = ("tt_attn_sublayers", "vv_attn_sublayers", "tv_attn_sublayers", "vt_attn_sublayers")
FEED_FORWARD_SUBLAYER_KEYS = ("t_ff_sublayers", "v_ff_sublayers")
WIDTHS, CO_ATTENTION_HEADS_KEY = (
    "sublayer2attn_hidden_size",
    "sublayer2num_attention_heads",
)  # where they are not the stream's
VILBERT_CONFIG_VALUES: dict[str, object] = {  # VOLTA's other models differ in one of these
    "image_embeddings": "vilbert",
    "num_locs": 5,
    "add_global_imgfeat": "first",
    "fusion_act": "relu",
    "image_head_ln": True,
    "itm_dim": 2,
    "layer_norm_eps": 1e-12,
    "shared_sublayers": [],
    "single_ln_sublayers": [],
    "sublayer2intermediate_size": {},
    "sublayer2v_attn_hidden_size": {},
    "sublayer2v_num_attention_heads": {},
    "sublayer2v_intermediate_size": {},
}
OPTIONAL_CONFIG_KEYS = {
    "fusion_act",
    "image_head_ln",
    "itm_dim",
    "layer_norm_eps",
}  # VOLTA's own defaults are those above
IGNORED_VOLTA_KEYS = {  # initialization, training, and sizes that are inferred from the weights
    *("bert_layer2attn_sublayer", "bert_layer2ff_sublayer", "bert_model", "v_pooler_size", "clf_hidden_size"),
    *("v_initializer_range", "visual_target_weights"),
}
VOLTA_TASK_HEADS = {  # VOLTA's task ids -> the original's heads
    "vil_prediction": (1, 2),
    "vil_prediction_gqa": (15,),
    "vil_binary_prediction": (12, 16),
    "vil_logit": (3, 5, 6, 7, 8, 20),
    "vil_tri_prediction": (13, 14, 19),
    "vision_logit": (4, 9, 10, 11, 17, 18),
}
TASK_HEAD_PATTERN = re.compile(r"clfs_dict\.TASK(\d+)\.(logit_fc\.\d\.\w+|weight|bias)")
DECODER_PATTERN = re.compile(r"cls\.imagePredictions\.decoder_dict\.\d+\.(\w+)")


class AttentionIndices(NamedTuple):
    """For each layer the index of its attention sub-layer; its feed-forward sub-layer is the next one."""

    text: tuple[int, ...]
    vision: tuple[int, ...]
    joint: tuple[int, ...]
    schedule: tuple[tuple[int, int], ...]


def is_volta_config(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is VOLTA's."""
    return ATTENTION_SUBLAYER_KEYS[0] in values


def convert_volta_to_vilbert(
    values: Mapping[str, Any], state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Converts a configuration and weights to those of vilbert-multi-task.

    Args:
        values: Content of VOLTA's JSON configuration.
        state: State dict, as returned by `read_tensors`.
        path: Path of the configuration, for messages.

    Raises:
        CheckpointError: It is another of VOLTA's models, or is incomplete.
    """
    check_volta_architecture(values, path)
    check_config_types(values, path)
    sublayers = parse_sublayer_indices(values, path)
    width, heads = infer_co_attention_size(values, sublayers, path)
    joint, head = int(values["pooler_size"]), width // heads
    if width % heads or width > joint or joint % head:
        raise CheckpointError(
            f"{path}: co-attention of {heads} heads and {width} units does not match pooled streams of {joint}"
        )
    handled_keys = {
        *ATTENTION_SUBLAYER_KEYS,
        *FEED_FORWARD_SUBLAYER_KEYS,
        WIDTHS,
        CO_ATTENTION_HEADS_KEY,
        "pooler_size",
        *VILBERT_CONFIG_VALUES,
        *IGNORED_VOLTA_KEYS,
    }
    described = {name: value for name, value in values.items() if name not in handled_keys} | {
        "num_hidden_layers": len(sublayers.text),
        "v_num_hidden_layers": len(sublayers.vision),
        "bi_hidden_size": joint,
        "bi_num_attention_heads": joint // head,
        "v_biattention_id": [vision for vision, _ in sublayers.schedule],
        "t_biattention_id": [text for _, text in sublayers.schedule],
        "v_target_size": 1601,  # where there is a decoder, its own number counts
    }
    names = dict(iterate_module_names(sublayers)) | map_volta_head_names(state)
    renamed = {}
    for volta_name, tensor in state.items():
        module, _, leaf = volta_name.rpartition(".")
        name = names.get(volta_name) or (f"{names[module]}.{leaf}" if module in names else volta_name)
        renamed[name] = pad_co_attention_heads(name, tensor, joint - width)
    return described, renamed


def check_config_types(values: Mapping[str, Any], path: Path) -> None:
    """Checks the types: sizes are integers, positions lists of integers, and per-layer values objects of integers."""
    for name in (
        "hidden_size",
        "num_attention_heads",
        "pooler_size",
        *ATTENTION_SUBLAYER_KEYS,
        *FEED_FORWARD_SUBLAYER_KEYS,
        WIDTHS,
        CO_ATTENTION_HEADS_KEY,
    ):
        value, minimum = values.get(name, {}), 0
        if name in (WIDTHS, CO_ATTENTION_HEADS_KEY):
            sizes, minimum = [*value.values()] if isinstance(value, dict) else [None], 1
        elif name in (*ATTENTION_SUBLAYER_KEYS, *FEED_FORWARD_SUBLAYER_KEYS):
            sizes = value if isinstance(value, list) else [None]
        else:
            sizes, minimum = [value], 1
        if not all(type(size) is int and size >= minimum for size in sizes):
            raise CheckpointError(f"{path}: {name} is {value!r}, not an integer (or integers)")


def check_volta_architecture(values: Mapping[str, Any], path: Path) -> None:
    """Raises an error for VOLTA's other models (LXMERT, UNITER, VisualBERT, VL-BERT, multilingual ones)."""
    required_keys = {
        *ATTENTION_SUBLAYER_KEYS,
        *FEED_FORWARD_SUBLAYER_KEYS,
        "pooler_size",
        "hidden_size",
        "num_attention_heads",
        *VILBERT_CONFIG_VALUES,
    } - OPTIONAL_CONFIG_KEYS
    if missing := sorted(required_keys - values.keys()):
        raise CheckpointError(f"{path}: an incomplete VOLTA configuration, it lacks {missing}")
    for name, expected in VILBERT_CONFIG_VALUES.items():
        if values.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}, and {expected!r} in VOLTA's ViLBERT")
    if "roberta" in str(values.get("bert_model")):
        raise CheckpointError(f"{path}: bert_model is {values['bert_model']!r}; VOLTA's ViLBERT starts from a BERT")


def parse_sublayer_indices(values: Mapping[str, Any], path: Path) -> AttentionIndices:
    """Maps sub-layers to layers."""
    lists: dict[str, list[int]] = {
        name: values[name] for name in (*ATTENTION_SUBLAYER_KEYS, *FEED_FORWARD_SUBLAYER_KEYS)
    }
    text: list[int] = []
    vision: list[int] = []
    joint: list[int] = []
    schedule: list[tuple[int, int]] = []
    feed_forward = {sublayer - 1 for name in FEED_FORWARD_SUBLAYER_KEYS for sublayer in lists[name]}
    for sublayer in sorted(feed_forward.union(*(lists[name] for name in ATTENTION_SUBLAYER_KEYS))):
        has_text_attention, has_vision_attention, has_text_to_vision, has_vision_to_text = (
            sublayer in lists[name] for name in ATTENTION_SUBLAYER_KEYS
        )
        after = [sublayer + 1 in lists[name] for name in FEED_FORWARD_SUBLAYER_KEYS]
        if (
            has_text_to_vision
            and has_vision_to_text
            and not has_text_attention
            and not has_vision_attention
            and after == [True, True]
        ):
            joint.append(sublayer)
            schedule.append((len(vision), len(text)))
        elif (
            not has_text_to_vision
            and not has_vision_to_text
            and after == [has_text_attention, has_vision_attention]
            and any(after)
        ):
            text += [sublayer] if has_text_attention else []
            vision += [sublayer] if has_vision_attention else []
        else:
            raise CheckpointError(f"{path}: sub-layers {sublayer} and {sublayer + 1} are not a layer of ViLBERT")
    return AttentionIndices(tuple(text), tuple(vision), tuple(joint), tuple(schedule))


def infer_co_attention_size(values: Mapping[str, Any], sublayers: AttentionIndices, path: Path) -> tuple[int, int]:
    """Infers width and heads of co-attention, which must be the same in all of its layers."""
    result = []
    for name, stream in ((WIDTHS, "hidden_size"), (CO_ATTENTION_HEADS_KEY, "num_attention_heads")):
        own_sizes = dict(values.get(name, {}))
        sizes = {own_sizes.pop(str(sublayer), values[stream]) for sublayer in sublayers.joint} or {values[stream]}
        if own_sizes or len(sizes) > 1:
            raise CheckpointError(
                f"{path}: {name} is {values[name]}; only all layers of co-attention can have their own"
            )
        result.append(int(sizes.pop()))
    return result[0], result[1]


def iterate_module_names(sublayers: AttentionIndices) -> Iterator[tuple[str, str]]:
    """VOLTA's modules -> the original's."""
    for stack, prefix, sublayer_indices in (("layer", "", sublayers.text), ("v_layer", "v_", sublayers.vision)):
        for index, sublayer in enumerate(sublayer_indices):
            first, second = f"bert.encoder.layer.{sublayer}", f"bert.encoder.layer.{sublayer + 1}"
            target = f"bert.encoder.{stack}.{index}"
            for part in ("query", "key", "value"):
                yield f"{first}.attention_self.{prefix}{part}", f"{target}.attention.self.{part}"
            for part in ("dense", "LayerNorm"):
                yield f"{first}.attention_output.{prefix}{part}", f"{target}.attention.output.{part}"
                yield f"{second}.output.{prefix}{part}", f"{target}.output.{part}"
            yield f"{second}.intermediate.{prefix}dense", f"{target}.intermediate.dense"
    for index, sublayer in enumerate(sublayers.joint):
        first, second = f"bert.encoder.layer.{sublayer}", f"bert.encoder.layer.{sublayer + 1}"
        target = f"bert.encoder.c_layer.{index}"
        for prefix, stream, side in (("v_", "v", 1), ("", "t", 2)):
            for part in ("query", "key", "value"):
                yield f"{first}.attention_self.{prefix}{part}", f"{target}.biattention.{part}{side}"
            for part in ("dense", "LayerNorm"):
                yield f"{first}.attention_output.{prefix}{part}", f"{target}.biOutput.{part}{side}"
                yield f"{second}.output.{prefix}{part}", f"{target}.{stream}_output.{part}"
            yield f"{second}.intermediate.{prefix}dense", f"{target}.{stream}_intermediate.dense"


def map_volta_head_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """VOLTA's parameters -> the original's, for task heads and the first region decoder."""
    names: dict[str, str] = {}
    for volta_name in sorted(state):
        original_name = ""
        if match := TASK_HEAD_PATTERN.fullmatch(volta_name):
            original_name = next(
                (f"{head}.{match[2]}" for head, task_ids in VOLTA_TASK_HEADS.items() if int(match[1]) in task_ids), ""
            )
        elif match := DECODER_PATTERN.fullmatch(volta_name):
            original_name = f"cls.imagePredictions.decoder.{match[1]}"
        if original_name and original_name not in names.values():
            names[volta_name] = original_name
    return names


def pad_co_attention_heads(name: str, tensor: Tensor, num_zeros: int) -> Tensor:
    """Pads a co-attention weight with heads of zeros; other weights are returned unchanged."""
    if num_zeros and re.search(r"\.biattention\.\w+\.(weight|bias)", name):
        return F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, num_zeros))
    if num_zeros and re.search(r"\.biOutput\.dense\d\.weight", name):
        return F.pad(tensor, (0, num_zeros))
    return tensor
