"""Converts published weights of the Visual Genome Faster R-CNN to C4, from all of its file formats.

There are three naming schemes of one network: Caffe's layers (peteanderson80, jiasenlu), and Detectron2's names, either
with background last and box deltas ten and five times as large (Hugging Face's frcnn-vg-finetuned, airsplay's
py-bottom-up-attention) or with Caffe's values (MILVLG's bottom-up-attention.pytorch). Ours has background first,
unscaled deltas, one objectness score per anchor, and batch normalization folded into the convolutions. Loading is
strict: every tensor of the network must come from the file. Further layers of the network's own parts are refused, and
other unused tensors, such as a mask head, are reported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.convert.state_dicts import (
    LoadReport,
    check_weight_tensor,
    copy_matching_weights,
    exclude_names,
    refuse_surplus_weights,
    translate_shape_errors,
)
from comodal.models.detectors.detector_boxes import make_cell_anchors
from comodal.models.detectors.detector_c4 import C4, C4_STRIDE, C4Config

C4_NORM_EPS = 1e-5  # caffe.proto's BatchNormParameter, and Detectron2's FrozenBatchNorm2d
BOX_DELTA_SCALES = (0.1, 0.1, 0.2, 0.2)  # the inverse of Detectron2's box weights
CAFFE_ANCHOR_SCALES = (4, 8, 16, 32)  # of anchors (experiments/cfgs/faster_rcnn_end2end_resnet.yml)
STEM, HEAD = "backbone.stem.conv1", "roi_heads.box_predictor"
C4_NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
C4_RENAMES = (  # Detectron2's modules -> ours
    (r"backbone\.stem\.conv1", "stem"),
    (r"(?:backbone|roi_heads)\.(res[2-5]\.\d+\.\w+)", r"\1"),
    (r"proposal_generator\.rpn_head\.conv", "proposal"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "proposal_scores"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "proposal_deltas"),
    (r"roi_heads\.box_predictor\.cls_score", "class_scores"),
    (r"roi_heads\.box_predictor\.bbox_pred", "box_deltas"),
    (r"roi_heads\.box_predictor\.(?:cls_embedding|cls_embed)", "class_embedding"),
    (r"roi_heads\.box_predictor\.(?:fc_attr|attr_linear1)", "attribute"),
    (r"roi_heads\.box_predictor\.(?:attr_score|attr_linear2)", "attribute_scores"),
)
C4_PREFIXES = ("backbone.", "proposal_generator.", "roi_heads.res", "roi_heads.box_predictor.")  # of its own layers
CAFFE_PREFIXES = ("res", "bn", "scale", "conv", "rpn_", "cls_", "bbox_", "attr_", "fc_")
ANCHORS_PATTERN = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors(?:\.0)?")
CAFFE_LAYERS = {  # Caffe's layers -> ours
    "conv1": "stem",
    "rpn_conv/3x3": "proposal",
    "rpn_cls_score": "proposal_scores",
    "rpn_bbox_pred": "proposal_deltas",
    "cls_score": "class_scores",
    "bbox_pred": "box_deltas",
    "cls_embedding": "class_embedding",
    "fc_attr": "attribute",
    "attr_score": "attribute_scores",
}
CAFFE_BLOCK_PATTERN = re.compile(r"([2-5])([a-z])(\d*)_branch(1|2[abc])")
CAFFE_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
IGNORED_NAMES_PATTERN = re.compile(r".*\.num_batches_tracked|pixel_mean|pixel_std")  # not used in the forward pass


@dataclass(frozen=True)
class C4StateDict:
    """A file's tensors by our names: `stem.weight`, `res2.0.conv1.norm.running_mean`, `cell_anchors`.

    Args:
        tensors: Our name -> tensor.
        unused: Names of the file's tensors that have no counterpart.
    """

    tensors: dict[str, Tensor]
    unused: tuple[str, ...]


def is_c4_state_dict(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of Detectron2's C4 with an attribute head."""
    return f"{STEM}.weight" in state and f"{HEAD}.cls_score.weight" in state


def build_c4(state: Mapping[str, Tensor], path: Path) -> tuple[C4, LoadReport]:
    """Builds the network from a file with Detectron2's names.

    Raises:
        CheckpointError: It is another network, or a tensor is missing or of another shape.
    """
    with translate_shape_errors(path):
        parts = rename_from_detectron2(state, path)
        refuse_surplus_weights(parts.unused, C4_PREFIXES, path)
        return build_c4_network(parts, path)


def build_c4_from_caffe(
    layers: Mapping[str, list[Tensor]], path: Path, scales: tuple[int, ...] = CAFFE_ANCHOR_SCALES
) -> tuple[C4, LoadReport]:
    """Builds the network from a `.caffemodel`, which does not contain its anchors.

    Args:
        layers: Tensors by layer.
        path: Path of the file, for messages.
        scales: Scales of the anchors, in cells.

    Raises:
        CheckpointError: It is another network, or a tensor is missing or of another shape.
    """
    with translate_shape_errors(path):
        parts = rename_from_caffe(layers, path, scales)
        refuse_surplus_weights(parts.unused, CAFFE_PREFIXES, path)
        return build_c4_network(parts, path)


def rename_from_detectron2(state: Mapping[str, Tensor], path: Path) -> C4StateDict:
    """Renames Detectron2's tensors; norms are called `norm` there, too.

    Raises:
        CheckpointError: A tensor is not floating point or not finite, or two names denote the same weights.
    """
    tensors, unused = {}, []
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        bare = module.removesuffix(".norm")
        comodal_module = next(
            (re.sub(pattern, replacement, bare) for pattern, replacement in C4_RENAMES if re.fullmatch(pattern, bare)),
            None,
        )
        comodal_name = "cell_anchors" if ANCHORS_PATTERN.fullmatch(name) else ""
        if comodal_module is not None and last != "num_batches_tracked":
            comodal_name = f"{comodal_module}{module[len(bare) :]}.{last}"
        if not comodal_name:
            unused.append(name)
            continue
        if comodal_name in tensors:
            raise CheckpointError(f"{path}: {name} is {comodal_name}, which another of its names denotes as well")
        check_weight_tensor(name, tensor, path)
        tensors[comodal_name] = tensor.float()
    return C4StateDict(tensors, tuple(name for name in unused if not IGNORED_NAMES_PATTERN.fullmatch(name)))


def rename_from_caffe(layers: Mapping[str, list[Tensor]], path: Path, scales: tuple[int, ...]) -> C4StateDict:
    """Renames Caffe's tensors: `res2a_branch2a`, `bn2a_branch2a` and `scale2a_branch2a` are a convolution and its norm.

    Raises:
        CheckpointError: A layer has the wrong number of tensors for its kind, or one that is not finite.
    """
    tensors, unused = {"cell_anchors": make_cell_anchors(C4_STRIDE, scales)}, []
    for name, blobs in layers.items():
        kind, module = parse_caffe_layer_name(name)
        parameter_names = {"bn": ("mean", "variance", "factor"), "scale": ("weight", "bias")}.get(
            kind, ("weight", "bias")
        )
        if module is None:
            unused.append(name)
            continue
        if len(blobs) > len(parameter_names) or (kind and len(blobs) != len(parameter_names)):
            raise CheckpointError(f"{path}: layer {name} has {len(blobs)} tensors, not {len(parameter_names)}")
        for blob in blobs:
            check_weight_tensor(f"layer {name}", blob, path)
        if kind == "bn":
            if blobs[2].numel() != 1:
                raise CheckpointError(f"{path}: the third tensor of layer {name} is not one number")
            factor = blobs[2].item()
            inverse_factor = 1 / factor if factor else 0.0  # as Caffe's BatchNormLayer does
            tensors[f"{module}.norm.running_mean"] = blobs[0].flatten() * inverse_factor
            tensors[f"{module}.norm.running_var"] = blobs[1].flatten() * inverse_factor
        else:
            norm = ".norm" if kind == "scale" else ""
            for last, tensor in zip(parameter_names, blobs, strict=False):
                flat = tensor.flatten() if last == "bias" or norm else squeeze_dense_weight(tensor, module)
                tensors[f"{module}{norm}.{last}"] = flat
    return C4StateDict(tensors, tuple(unused))


def parse_caffe_layer_name(name: str) -> tuple[str, str | None]:
    """The kind of a Caffe layer (bn, scale, or neither), and its module in our network."""
    for kind in ("bn", "scale"):
        if name == f"{kind}_conv1":
            return kind, "stem"
        if (match := CAFFE_BLOCK_PATTERN.fullmatch(name.removeprefix(kind))) and name.startswith(kind):
            return kind, parse_caffe_block(match)
    if name.startswith("res") and (match := CAFFE_BLOCK_PATTERN.fullmatch(name.removeprefix("res"))):
        return "", parse_caffe_block(match)
    return "", CAFFE_LAYERS.get(name)


def parse_caffe_block(match: re.Match[str]) -> str:
    """`4b22_branch2a` is the first convolution of the 23rd block of res4: a, b1, b2, ..., or a, b, c."""
    stage, letter, digits, branch = match.groups()
    block = int(digits) if digits else ord(letter) - ord("a")
    return f"res{stage}.{block}.{CAFFE_BRANCHES[branch]}"


def squeeze_dense_weight(weight: Tensor, module: str) -> Tensor:
    """Squeezes dense weights, which have four dimensions in old files, the first two of them 1."""
    dense = module in ("class_scores", "box_deltas", "class_embedding", "attribute", "attribute_scores")
    return weight.reshape(weight.shape[-2:]) if dense and weight.ndim > 2 else weight


def build_c4_network(parts: C4StateDict, path: Path) -> tuple[C4, LoadReport]:
    """Builds the network from the shapes of a file, with its weights."""
    tensors = move_background_first(merge_objectness_scores(parts.tensors, path), path)
    folded = fold_batch_norms(tensors, path)
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
        model = C4(infer_c4_config(folded, path)).eval()
    names = {name: name for name in model.state_dict()}
    report = copy_matching_weights(model, folded, names, path)
    if report.new:
        raise CheckpointError(f"{path}: a tensor is missing: {report.new[0]} ({len(report.new)} in all)")
    refuse_surplus_weights(exclude_names(report.unused, names), "", path)
    return model, LoadReport(report.filled, (), parts.unused)


def get_required_c4_tensor(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """Returns a required tensor."""
    if name not in tensors:
        raise CheckpointError(f"{path}: a tensor is missing: {name}")
    return tensors[name]


def merge_objectness_scores(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Merges Caffe's two scores per anchor (background, object) into their difference, for a sigmoid."""
    tensors, anchors = dict(tensors), len(get_required_c4_tensor(tensors, "cell_anchors", path))
    for name in ("proposal_scores.weight", "proposal_scores.bias"):
        scores = get_required_c4_tensor(tensors, name, path)
        if len(scores) == 2 * anchors:
            tensors[name] = scores[anchors:] - scores[:anchors]
    return tensors


def move_background_first(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Moves background from last to first, and rescales deltas, if background has no box (Detectron2)."""
    tensors = dict(tensors)
    boxes, classes = (
        get_required_c4_tensor(tensors, "box_deltas.weight", path),
        get_required_c4_tensor(tensors, "class_scores.weight", path),
    )
    if len(boxes) != 4 * (len(classes) - 1):
        return tensors
    for module in ("class_scores", "class_embedding", "attribute_scores"):
        for name in (f"{module}.weight", f"{module}.bias"):
            if name in tensors:
                tensors[name] = tensors[name].roll(1, 0)
    scales = torch.tensor(BOX_DELTA_SCALES).repeat(len(classes) - 1)
    bias = get_required_c4_tensor(tensors, "box_deltas.bias", path)
    if bias.shape != boxes.shape[:1]:
        raise CheckpointError(f"{path}: the bias of the box deltas has the shape {tuple(bias.shape)}, not {len(boxes)}")
    weight, bias = boxes * scales[:, None], bias * scales
    tensors["box_deltas.weight"] = torch.cat([torch.zeros(4, weight.shape[1]), weight])
    tensors["box_deltas.bias"] = torch.cat([torch.zeros(4), bias])
    return tensors


def fold_batch_norms(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Folds batch normalization into the convolutions, in double precision."""
    folded = {name: tensor for name, tensor in tensors.items() if ".norm." not in name}
    modules = {name.partition(".norm.")[0] for name in tensors if ".norm." in name}
    for module in modules | {name.removesuffix(".weight") for name in folded if re.match(r"stem\.|res\d", name)}:
        weight, bias, mean, variance = (
            get_required_c4_tensor(tensors, f"{module}.norm.{last}", path).double() for last in C4_NORM_PARAMETERS
        )
        kernel = get_required_c4_tensor(tensors, f"{module}.weight", path)
        if not weight.shape == bias.shape == mean.shape == variance.shape == kernel.shape[:1]:
            raise CheckpointError(
                f"{path}: the norm of {module} does not have the {len(kernel)} channels of its convolution"
            )
        scale = weight / (variance + C4_NORM_EPS).sqrt()
        folded[f"{module}.weight"] = (kernel.double() * scale[:, None, None, None]).float()
        folded[f"{module}.bias"] = (bias - mean * scale).float()
    return folded


def infer_c4_config(tensors: Mapping[str, Tensor], path: Path) -> C4Config:
    """Infers the configuration from the shapes."""
    blocks = tuple(
        1 + max((int(name.split(".")[1]) for name in tensors if name.startswith(f"res{stage}.")), default=-1)
        for stage in (2, 3, 4, 5)
    )
    if 0 in blocks:
        raise CheckpointError(f"{path}: not a ResNet's Faster R-CNN of four stages; their blocks are {blocks}")
    classes, embedding = get_required_c4_tensor(tensors, "class_embedding.weight", path).shape
    attributes, channels = get_required_c4_tensor(tensors, "attribute_scores.weight", path).shape
    return C4Config(
        blocks=blocks,
        stem=len(get_required_c4_tensor(tensors, "stem.weight", path)),
        width=len(get_required_c4_tensor(tensors, "res2.0.conv1.weight", path)),
        proposal_channels=len(get_required_c4_tensor(tensors, "proposal.weight", path)),
        anchors=len(get_required_c4_tensor(tensors, "cell_anchors", path)),
        classes=classes,
        attributes=attributes,
        embedding=embedding,
        attribute_channels=channels,
    )
