"""Converts published weights of the ResNeXt-152-32x8d-FPN detector (vqa-maskrcnn-benchmark: 12-in-1, MMF) to FPN.

Supports any widths, depths and groups, inferred from the shapes. Loading is strict: every tensor of the network,
including the anchors, must come from the file. Further layers of the network's own parts are refused, and other unused
tensors, such as a mask head, are reported. The original's loader matches suffixes of names and leaves parameters
randomly initialized where no name matches.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.convert.convert_c4 import get_required_c4_tensor
from comodal.models.convert.state_dicts import (
    LoadReport,
    check_weight_tensor,
    copy_matching_weights,
    exclude_names,
    refuse_surplus_weights,
)
from comodal.models.detectors.detector_fpn import FPN, FPN_STRIDES, FPNConfig

FPN_MARKER = "backbone.fpn.fpn_inner1.weight"
BODY, HEAD = r"backbone\.body\.", r"roi_heads\.box\.(?:feature_extractor|predictor)\."
TRAINING_COUNTER = ".num_batches_tracked"  # of a norm; not used in the forward pass
FPN_PREFIXES = ("backbone.", "rpn.", "roi_heads.box.")  # of its own layers
FPN_RENAMES = (  # theirs, ours, and the offset of our stage or map number
    (BODY + r"stem\.conv1\.(\w+)", "stem.0.{}", 0),
    (BODY + r"stem\.bn1\.(\w+)", "stem.1.{}", 0),
    (BODY + r"layer([1-4])\.(\d+)\.(conv\d)\.(\w+)", "res{}.{}.{}.0.{}", 1),
    (BODY + r"layer([1-4])\.(\d+)\.bn(\d)\.(\w+)", "res{}.{}.conv{}.1.{}", 1),
    (BODY + r"layer([1-4])\.(\d+)\.downsample\.([01]\.\w+)", "res{}.{}.shortcut.{}", 1),
    (r"backbone\.fpn\.fpn_inner([1-4])\.(\w+)", "across.{}.{}", -1),
    (r"backbone\.fpn\.fpn_layer([1-4])\.(\w+)", "smooth.{}.{}", -1),
    (r"rpn\.head\.conv\.(\w+)", "proposal.{}", 0),
    (r"rpn\.head\.cls_logits\.(\w+)", "proposal_scores.{}", 0),
    (r"rpn\.head\.bbox_pred\.(\w+)", "proposal_deltas.{}", 0),
    (r"rpn\.anchor_generator\.cell_anchors\.([0-4])", "cell_anchors.{}", 0),
    (HEAD + r"(fc[67]\.\w+)", "{}", 0),
    (HEAD + r"cls_score\.(\w+)", "class_scores.{}", 0),
    (HEAD + r"bbox_pred\.(\w+)", "box_deltas.{}", 0),
)


def is_fpn_state_dict(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of maskrcnn-benchmark's feature pyramid."""
    return FPN_MARKER in state


def build_fpn(state: Mapping[str, Tensor], path: Path) -> tuple[FPN, LoadReport]:
    """Builds the network from a file.

    Args:
        state: Tensors under maskrcnn-benchmark's names.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: It is another network, or a tensor is missing or of another shape.
    """
    renames = {
        source_name: comodal_name
        for source_name in state
        if (comodal_name := rename_fpn_tensor(source_name)) is not None
    }
    for source_name in renames:
        if not source_name.endswith(TRAINING_COUNTER):
            check_weight_tensor(source_name, state[source_name], path)
    tensors = merge_anchors(
        {comodal_name: state[source_name].float() for source_name, comodal_name in renames.items()}, path
    )
    config = infer_fpn_config(tensors, path)
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
        model = FPN(config).eval()
    names = {name: name for name in model.state_dict()}
    report = copy_matching_weights(model, tensors, names, path)
    if report.new:
        raise CheckpointError(f"{path}: a tensor is missing: {report.new[0]} ({len(report.new)} in all)")
    unused = exclude_names(state, renames)
    refuse_surplus_weights(unused, FPN_PREFIXES, path)
    refuse_surplus_weights((name for name in report.unused if not name.endswith(TRAINING_COUNTER)), "", path)
    return model, LoadReport(report.filled, (), unused)


def rename_fpn_tensor(source_name: str) -> str | None:
    """The name of the original's tensor in our network (a norm follows its convolution), or None."""
    for pattern, template, index_offset in FPN_RENAMES:
        if match := re.fullmatch(pattern, source_name):
            first, *rest = match.groups()
            return template.format(int(first) + index_offset if index_offset else first, *rest)
    return None


def merge_anchors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Merges the anchors of the five maps."""
    remaining = {name: tensor for name, tensor in tensors.items() if not name.startswith("cell_anchors.")}
    anchors = [get_required_c4_tensor(tensors, f"cell_anchors.{level}", path) for level in range(len(FPN_STRIDES))]
    shapes = {tuple(one.shape) for one in anchors}
    if len(shapes) > 1:
        raise CheckpointError(f"{path}: the maps have anchors of several shapes, {sorted(shapes)}")
    return remaining | {"cell_anchors": torch.stack(anchors)}


def infer_fpn_config(tensors: Mapping[str, Tensor], path: Path) -> FPNConfig:
    """Infers the configuration from the shapes.

    Raises:
        CheckpointError: The shapes are of another kind of network.
    """
    blocks = tuple(
        1 + max((int(name.split(".")[1]) for name in tensors if name.startswith(f"res{stage}.")), default=-1)
        for stage in (2, 3, 4, 5)
    )
    if 0 in blocks:
        raise CheckpointError(f"{path}: not a ResNeXt of four stages; their blocks are {blocks}")
    inside, in_group = get_tensor_shape(tensors, "res2.0.conv2.0.weight", 4, path)[:2]
    groups = inside // max(in_group, 1)
    if groups < 2 or groups * in_group != inside:
        raise CheckpointError(
            f"{path}: not a ResNeXt: its convolutions have {groups} groups, so that strides may differ"
        )
    return FPNConfig(
        blocks=blocks,
        stem=get_tensor_shape(tensors, "stem.0.weight", 4, path)[0],
        groups=groups,
        group_width=in_group,
        channels=get_tensor_shape(tensors, "res2.0.conv3.0.weight", 4, path)[0],
        pyramid=get_tensor_shape(tensors, "across.0.weight", 4, path)[0],
        anchors=get_tensor_shape(tensors, "cell_anchors", 3, path)[1],
        dense=get_tensor_shape(tensors, "fc6.weight", 2, path)[0],
        classes=get_tensor_shape(tensors, "class_scores.weight", 2, path)[0],
    )


def get_tensor_shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> torch.Size:
    """Returns the shape of a required tensor.

    Raises:
        CheckpointError: It is missing, empty, or has the wrong number of dimensions.
    """
    shape = get_required_c4_tensor(tensors, name, path).shape
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f"{path}: {name} has the shape {tuple(shape)}, not {dimensions} sides")
    return shape
