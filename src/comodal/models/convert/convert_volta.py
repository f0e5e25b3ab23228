"""Converts configurations and weights of e-bug/volta's ViLBERT to the names of facebookresearch/vilbert-multi-task.

VOLTA (Bugliarello et al., "Multimodal Pretraining Unmasked", TACL 2021) numbers sub-layers (attention or feed-forward),
and its configuration lists which modality attends to which in each. Attention within text and within regions is a layer
of a stream; attention between text and regions is a co-attention layer. In a sub-layer the regions' weights start with
`v_`.

Departs from VOLTA where co-attention is narrower than the pooled streams (its controlled setup: 12 heads of 64, and
1,024 units), which the original's configuration cannot express: co-attention is padded with heads of zeros. They add
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
    places = parse_sublayer_indices(values, path)
    width, heads = infer_co_attention_size(values, places, path)
    joint, head = int(values["pooler_size"]), width // heads
    if width % heads or width > joint or joint % head:
        raise CheckpointError(
            f"{path}: co-attention of {heads} heads and {width} units beside pooled streams of {joint}"
        )
    known = {
        *ATTENTION_SUBLAYER_KEYS,
        *FEED_FORWARD_SUBLAYER_KEYS,
        WIDTHS,
        CO_ATTENTION_HEADS_KEY,
        "pooler_size",
        *VILBERT_CONFIG_VALUES,
        *IGNORED_VOLTA_KEYS,
    }
    described = {name: value for name, value in values.items() if name not in known} | {
        "num_hidden_layers": len(places.text),
        "v_num_hidden_layers": len(places.vision),
        "bi_hidden_size": joint,
        "bi_num_attention_heads": joint // head,
        "v_biattention_id": [vision for vision, _ in places.schedule],
        "t_biattention_id": [text for _, text in places.schedule],
        "v_target_size": 1601,  # where there is a decoder, its own number counts
    }
    names = dict(iterate_module_names(places)) | map_volta_head_names(state)
    renamed = {}
    for theirs, tensor in state.items():
        module, _, leaf = theirs.rpartition(".")
        name = names.get(theirs) or (f"{names[module]}.{leaf}" if module in names else theirs)
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
        found, least = values.get(name, {}), 0
        if name in (WIDTHS, CO_ATTENTION_HEADS_KEY):
            numbers, least = [*found.values()] if isinstance(found, dict) else [None], 1
        elif name in (*ATTENTION_SUBLAYER_KEYS, *FEED_FORWARD_SUBLAYER_KEYS):
            numbers = found if isinstance(found, list) else [None]
        else:
            numbers, least = [found], 1
        if not all(type(number) is int and number >= least for number in numbers):
            raise CheckpointError(f"{path}: {name} is {found!r}: VOLTA has whole numbers there")


def check_volta_architecture(values: Mapping[str, Any], path: Path) -> None:
    """Raises an error for VOLTA's other models (LXMERT, UNITER, VisualBERT, VL-BERT, multilingual ones)."""
    needed = {
        *ATTENTION_SUBLAYER_KEYS,
        *FEED_FORWARD_SUBLAYER_KEYS,
        "pooler_size",
        "hidden_size",
        "num_attention_heads",
        *VILBERT_CONFIG_VALUES,
    } - OPTIONAL_CONFIG_KEYS
    if missing := sorted(needed - values.keys()):
        raise CheckpointError(f"{path}: not a whole configuration of VOLTA, it lacks {missing}")
    for name, wanted in VILBERT_CONFIG_VALUES.items():
        if values.get(name, wanted) != wanted:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}, and {wanted!r} in VOLTA's ViLBERT")
    if "roberta" in str(values.get("bert_model")):
        raise CheckpointError(f"{path}: bert_model is {values['bert_model']!r}; VOLTA's ViLBERT begins with a BERT")


def parse_sublayer_indices(values: Mapping[str, Any], path: Path) -> AttentionIndices:
    """Maps sub-layers to layers."""
    lists: dict[str, list[int]] = {
        name: values[name] for name in (*ATTENTION_SUBLAYER_KEYS, *FEED_FORWARD_SUBLAYER_KEYS)
    }
    text: list[int] = []
    vision: list[int] = []
    joint: list[int] = []
    schedule: list[tuple[int, int]] = []
    feed_forward = {number - 1 for name in FEED_FORWARD_SUBLAYER_KEYS for number in lists[name]}
    for number in sorted(feed_forward.union(*(lists[name] for name in ATTENTION_SUBLAYER_KEYS))):
        words, regions, to_regions, to_words = (number in lists[name] for name in ATTENTION_SUBLAYER_KEYS)
        after = [number + 1 in lists[name] for name in FEED_FORWARD_SUBLAYER_KEYS]
        if to_regions and to_words and not words and not regions and after == [True, True]:
            joint.append(number)
            schedule.append((len(vision), len(text)))
        elif not to_regions and not to_words and after == [words, regions] and any(after):
            text += [number] if words else []
            vision += [number] if regions else []
        else:
            raise CheckpointError(f"{path}: sub-layers {number} and {number + 1} are not a layer of ViLBERT")
    return AttentionIndices(tuple(text), tuple(vision), tuple(joint), tuple(schedule))


def infer_co_attention_size(values: Mapping[str, Any], places: AttentionIndices, path: Path) -> tuple[int, int]:
    """Infers width and heads of co-attention, which must be the same in all of its layers."""
    found = []
    for name, stream in ((WIDTHS, "hidden_size"), (CO_ATTENTION_HEADS_KEY, "num_attention_heads")):
        others = dict(values.get(name, {}))
        sizes = {others.pop(str(number), values[stream]) for number in places.joint} or {values[stream]}
        if others or len(sizes) > 1:
            raise CheckpointError(
                f"{path}: {name} is {values[name]}; only all layers of co-attention can have their own"
            )
        found.append(int(sizes.pop()))
    return found[0], found[1]


def iterate_module_names(places: AttentionIndices) -> Iterator[tuple[str, str]]:
    """VOLTA's modules -> the original's."""
    for stack, prefix, numbers in (("layer", "", places.text), ("v_layer", "v_", places.vision)):
        for index, number in enumerate(numbers):
            first, second = f"bert.encoder.layer.{number}", f"bert.encoder.layer.{number + 1}"
            ours = f"bert.encoder.{stack}.{index}"
            for part in ("query", "key", "value"):
                yield f"{first}.attention_self.{prefix}{part}", f"{ours}.attention.self.{part}"
            for part in ("dense", "LayerNorm"):
                yield f"{first}.attention_output.{prefix}{part}", f"{ours}.attention.output.{part}"
                yield f"{second}.output.{prefix}{part}", f"{ours}.output.{part}"
            yield f"{second}.intermediate.{prefix}dense", f"{ours}.intermediate.dense"
    for index, number in enumerate(places.joint):
        first, second = f"bert.encoder.layer.{number}", f"bert.encoder.layer.{number + 1}"
        ours = f"bert.encoder.c_layer.{index}"
        for prefix, stream, side in (("v_", "v", 1), ("", "t", 2)):
            for part in ("query", "key", "value"):
                yield f"{first}.attention_self.{prefix}{part}", f"{ours}.biattention.{part}{side}"
            for part in ("dense", "LayerNorm"):
                yield f"{first}.attention_output.{prefix}{part}", f"{ours}.biOutput.{part}{side}"
                yield f"{second}.output.{prefix}{part}", f"{ours}.{stream}_output.{part}"
            yield f"{second}.intermediate.{prefix}dense", f"{ours}.{stream}_intermediate.dense"


def map_volta_head_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """VOLTA's parameters -> the original's, for task heads and the first region decoder."""
    names: dict[str, str] = {}
    for theirs in sorted(state):
        ours = ""
        if found := TASK_HEAD_PATTERN.fullmatch(theirs):
            ours = next(
                (f"{head}.{found[2]}" for head, numbers in VOLTA_TASK_HEADS.items() if int(found[1]) in numbers), ""
            )
        elif found := DECODER_PATTERN.fullmatch(theirs):
            ours = f"cls.imagePredictions.decoder.{found[1]}"
        if ours and ours not in names.values():
            names[theirs] = ours
    return names


def pad_co_attention_heads(name: str, tensor: Tensor, more: int) -> Tensor:
    """Pads a co-attention weight with heads of zeros; other weights are returned unchanged."""
    if more and re.search(r"\.biattention\.\w+\.(weight|bias)", name):
        return F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, more))
    if more and re.search(r"\.biOutput\.dense\d\.weight", name):
        return F.pad(tensor, (0, more))
    return tensor
