"""Post-processing of the C4 detector: from proposals to the regions of an image, as in Caffe and as in LXMERT.

Caffe computed ViLBERT's features (tools/generate_tsv.py and lib/fast_rcnn/test.py of jiasenlu/bottom-up-attention). A
region is a proposal without box refinement. Its score is the highest class score that is left after NMS within each
class. LXMERT (modeling_frcnn.py of huggingface/transformers-research-projects): a region has the features of a proposal
and the box refined for its likeliest class, and NMS ignores classes. Images are processed one at a time: in both
originals the result depends on the other images of a batch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from comodal.models.detectors.box_ops import nms
from comodal.models.detectors.detector_boxes import (
    clip_boxes_to_image,
    compute_resize_scale,
    decode_caffe,
    decode_detectron2,
    nms_inclusive,
    resize_like_opencv,
    select_top_proposals,
    tile_anchors,
    to_centered_bgr,
)
from comodal.models.detectors.detector_c4 import C4, C4_STRIDE

MAX_BOX_CLASS_PAIRS = 20_000  # above it, NMS class by class is faster


@dataclass(frozen=True)
class C4Postprocessing:
    """Post-processing parameters; the defaults are ViLBERT's.

    Args:
        size: Short side of the network's input in pixels.
        longest: Maximum of its long side.
        min_proposal_side: Minimum side of a proposal, in pixels of the original image.
        pre_nms_top_k: Proposals before NMS.
        post_nms_top_k: Maximum number of proposals after NMS.
        nms_threshold: IoU threshold of NMS between proposals.
        class_nms_threshold: IoU threshold of NMS between regions, within a class.
        min_regions: Minimum number of regions.
        max_regions: Maximum number of regions.
        score_threshold: Score threshold, applied between the minimum and the maximum number.
    """

    size: int = 600
    longest: int = 1000
    min_proposal_side: int = 16
    pre_nms_top_k: int = 6000
    post_nms_top_k: int = 300
    nms_threshold: float = 0.7
    class_nms_threshold: float = 0.3
    min_regions: int = 36
    max_regions: int = 36
    score_threshold: float = 0.2


@dataclass(frozen=True)
class LXMERTPostprocessing:
    """LXMERT's post-processing parameters.

    Args:
        size: Short side of the network's input in pixels.
        longest: Maximum of its long side.
        pre_nms_top_k: Proposals before NMS.
        post_nms_top_k: Maximum number of proposals after NMS.
        nms_threshold: IoU threshold of NMS between proposals.
        class_nms_thresholds: IoU thresholds of class-agnostic NMS of regions; the first that leaves enough is used.
        min_regions: Number of regions that is enough.
        max_regions: Maximum number of regions.
    """

    size: int = 600
    longest: int = 1000
    pre_nms_top_k: int = 6000
    post_nms_top_k: int = 300
    nms_threshold: float = 0.7
    class_nms_thresholds: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    min_regions: int = 36
    max_regions: int = 36

    def __post_init__(self) -> None:
        if not self.class_nms_thresholds:
            raise ValueError("class_nms_thresholds must not be empty")


class C4Detections(NamedTuple):
    """The regions of an image: boxes in its own pixels, and the indices of their proposals."""

    boxes: Float[Tensor, "regions 4"]
    features: Float[Tensor, "regions features"]
    classes: Float[Tensor, "regions classes"]  # probabilities, background first
    attributes: Float[Tensor, "regions attributes"]  # probabilities; LXMERT's without "none"
    proposal_indices: Int64[Tensor, " regions"]


class C4FeatureMap(NamedTuple):
    """The feature map of an image, and the scale from its pixels to the network's input."""

    values: Float[Tensor, "1 channels rows columns"]
    height: int
    width: int
    scale: Float[Tensor, " 4"]


def compute_caffe_feature_map(
    model: C4, image: UInt8[Tensor, "height width 3"], postprocessing: C4Postprocessing
) -> C4FeatureMap:
    """Subtracts the mean first, then resizes as OpenCV (lib/fast_rcnn/test.py, _get_image_blob)."""
    height, width, _ = image.shape
    scale = compute_resize_scale(height, width, postprocessing.size, postprocessing.longest)
    pixels = resize_like_opencv(to_centered_bgr(image), scale)
    return compute_c4_feature_map(model, pixels, torch.full((4,), scale))


def compute_lxmert_feature_map(
    model: C4, image: UInt8[Tensor, "height width 3"], postprocessing: LXMERTPostprocessing
) -> C4FeatureMap:
    """Rounds both sides and scales each separately (processing_image.py, Preprocess)."""
    height, width = image.shape[:2]
    scale = postprocessing.size / min(height, width)
    scale = min(scale, postprocessing.longest / max(height, width))
    rows, columns = math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
    pixels = F.interpolate(to_centered_bgr(image)[None], (rows, columns), mode="bilinear", align_corners=False)[0]
    return compute_c4_feature_map(model, pixels, torch.tensor([columns / width, rows / height] * 2))


def compute_c4_feature_map(
    model: C4, pixels: Float[Tensor, "3 height width"], scale: Float[Tensor, " 4"]
) -> C4FeatureMap:
    """The feature map of pixels."""
    _, height, width = pixels.shape
    laid_out = pixels[None].contiguous(memory_format=torch.channels_last)
    return C4FeatureMap(model.compute_feature_map(laid_out), height, width, scale.to(pixels))


def make_map_anchors(model: C4, feature_map: C4FeatureMap) -> Float[Tensor, "anchors 4"]:
    """The anchors of all cells."""
    _, _, rows, columns = feature_map.values.shape
    return tile_anchors(model.cell_anchors, rows, columns, C4_STRIDE)


def propose_caffe(
    model: C4, feature_map: C4FeatureMap, postprocessing: C4Postprocessing
) -> Float[Tensor, "proposals 4"]:
    """Caffe's ProposalLayer: the top boxes in pixels of the network's input."""
    scores, deltas = model.propose(feature_map.values)
    anchors = make_map_anchors(model, feature_map)
    boxes = clip_boxes_to_image(decode_caffe(anchors, deltas), feature_map.width - 1, feature_map.height - 1)
    min_side = postprocessing.min_proposal_side * feature_map.scale[0].item()
    return boxes[
        select_top_proposals(
            boxes,
            scores,
            min_side,
            postprocessing.pre_nms_top_k,
            postprocessing.nms_threshold,
            postprocessing.post_nms_top_k,
        )
    ]


def propose_lxmert(
    model: C4, feature_map: C4FeatureMap, postprocessing: LXMERTPostprocessing
) -> Float[Tensor, "proposals 4"]:
    """Detectron2's proposals: clipped to the size; empty boxes are dropped after the top ones were selected."""
    scores, deltas = model.propose(feature_map.values)
    anchors = make_map_anchors(model, feature_map)
    order = scores.argsort(descending=True, stable=True)[: postprocessing.pre_nms_top_k]
    boxes = clip_boxes_to_image(decode_detectron2(anchors[order], deltas[order]), feature_map.width, feature_map.height)
    filled = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores = boxes[filled], scores[order][filled]
    return boxes[nms(boxes, scores, postprocessing.nms_threshold)[: postprocessing.post_nms_top_k]]


@torch.inference_mode()
def detect_caffe_regions(
    model: C4,
    image: UInt8[Tensor, "height width 3"],
    postprocessing: C4Postprocessing,
    input_boxes: Float[Tensor, "regions 4"] | None = None,
) -> C4Detections:
    """Detects the regions of an image as in ViLBERT's features.

    Args:
        model: The network.
        image: RGB image.
        postprocessing: Post-processing parameters.
        input_boxes: Boxes in pixels of the image; features and predictions are computed for all, in their order
            (test_gt.prototxt).
    """
    feature_map = compute_caffe_feature_map(model, image, postprocessing)
    boxes = (
        propose_caffe(model, feature_map, postprocessing) if input_boxes is None else input_boxes * feature_map.scale
    )
    features = model.compute_features(feature_map.values, boxes)
    predictions = model.predict(features)
    boxes = boxes / feature_map.scale if input_boxes is None else input_boxes
    all_indices = torch.arange(len(boxes), device=boxes.device)
    selected = (
        all_indices if input_boxes is not None else select_caffe_regions(boxes, predictions.classes, postprocessing)
    )
    attributes = predictions.attributes.softmax(1)
    return C4Detections(
        boxes[selected], features[selected], predictions.classes[selected], attributes[selected], selected
    )


@torch.inference_mode()
def detect_lxmert_regions(
    model: C4,
    image: UInt8[Tensor, "height width 3"],
    postprocessing: LXMERTPostprocessing,
    input_boxes: Float[Tensor, "regions 4"] | None = None,
) -> C4Detections:
    """Detects the regions of an image as LXMERT does; also supports given boxes, which LXMERT does not."""
    feature_map = compute_lxmert_feature_map(model, image, postprocessing)
    proposals = (
        propose_lxmert(model, feature_map, postprocessing) if input_boxes is None else input_boxes * feature_map.scale
    )
    features = model.compute_features(feature_map.values, proposals)
    predictions = model.predict(features)
    attributes = predictions.attributes[:, 1:].softmax(1)
    if input_boxes is not None:
        return C4Detections(
            input_boxes,
            features,
            predictions.classes,
            attributes,
            torch.arange(len(input_boxes), device=input_boxes.device),
        )
    top_classes = predictions.classes[:, 1:].max(1)
    deltas = predictions.deltas.unflatten(1, (-1, 4))[
        torch.arange(len(proposals), device=proposals.device), top_classes.indices + 1
    ]
    boxes = clip_boxes_to_image(decode_detectron2(proposals, deltas), feature_map.width, feature_map.height)
    for threshold in postprocessing.class_nms_thresholds:
        selected = nms(boxes, top_classes.values, threshold)[: postprocessing.max_regions]
        if len(selected) >= postprocessing.min_regions:
            break
    return C4Detections(
        boxes[selected] / feature_map.scale,
        features[selected],
        predictions.classes[selected],
        attributes[selected],
        selected,
    )


def select_caffe_regions(
    boxes: Float[Tensor, "boxes 4"], classes: Float[Tensor, "boxes classes"], postprocessing: C4Postprocessing
) -> Int64[Tensor, " regions"]:
    """Selects the proposals that are regions (generate_tsv.py): all above the score threshold in their order, or the
    top ones if these are too few or too many."""
    max_scores = compute_max_class_scores(boxes, classes, postprocessing)
    confident = (max_scores >= postprocessing.score_threshold).nonzero().flatten()
    if postprocessing.min_regions <= len(confident) <= postprocessing.max_regions:
        return confident
    count = postprocessing.min_regions if len(confident) < postprocessing.min_regions else postprocessing.max_regions
    return max_scores.argsort(descending=True, stable=True)[:count]


def compute_max_class_scores(
    boxes: Float[Tensor, "boxes 4"], classes: Float[Tensor, "boxes classes"], postprocessing: C4Postprocessing
) -> Float[Tensor, " boxes"]:
    """The highest class score of each box after NMS within each class; exact for the selected boxes.

    Only pairs of box and class above a score threshold are compared, for all classes at once. The threshold is lowered
    until enough boxes are found. Pairs below it cannot suppress pairs above it, so the selected boxes and their order
    are exact.
    """
    scores, min_found = classes[:, 1:], min(postprocessing.min_regions, len(boxes))
    pairs = 4 * max(postprocessing.max_regions, 1)
    while pairs < min(scores.numel(), MAX_BOX_CLASS_PAIRS):
        threshold = min(postprocessing.score_threshold, scores.flatten().topk(pairs).values[-1].item())
        max_scores = compute_unsuppressed_scores(boxes, scores, threshold, postprocessing.class_nms_threshold)
        if int((max_scores > 0).sum()) >= min_found:
            return max_scores
        pairs *= 4
    max_scores = boxes.new_zeros(len(boxes))
    for column in scores.T:
        selected = nms_inclusive(boxes, column, postprocessing.class_nms_threshold)
        max_scores[selected] = torch.maximum(max_scores[selected], column[selected])
    return max_scores


def compute_unsuppressed_scores(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, "boxes classes"], threshold: float, nms_threshold: float
) -> Float[Tensor, " boxes"]:
    """The highest unsuppressed class score of each box among the pairs above a threshold; 0 where there is none."""
    pairs = (scores >= threshold).nonzero()
    pair_boxes, pair_scores = boxes[pairs[:, 0]].double(), scores[pairs[:, 0], pairs[:, 1]]
    class_offsets = pairs[:, 1:] * (pair_boxes.max() + 2)  # moves classes apart; exact in double precision
    selected = nms_inclusive(pair_boxes + class_offsets, pair_scores.double(), nms_threshold)
    max_scores = boxes.new_zeros(len(boxes))
    return max_scores.scatter_reduce(0, pairs[selected, 0], pair_scores[selected], "amax")
