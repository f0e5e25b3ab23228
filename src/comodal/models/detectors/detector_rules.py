"""Post-processing of the C4 detector: from proposals to the regions of an image, as in Caffe and as in LXMERT.

Caffe computed ViLBERT's features (tools/generate_tsv.py and lib/fast_rcnn/test.py of jiasenlu/bottom-up-attention): a
region is a proposal without box refinement, and its score is the highest class score that is left after NMS within each
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
        smallest: Minimum side of a proposal, in pixels of the original image.
        before: Proposals before NMS.
        proposals: Maximum number of proposals after NMS.
        overlap: IoU threshold of NMS between proposals.
        class_overlap: IoU threshold of NMS between regions, within a class.
        fewest: Minimum number of regions.
        most: Maximum number of regions.
        sure: Score threshold, applied between the minimum and the maximum number.
    """

    size: int = 600
    longest: int = 1000
    smallest: int = 16
    before: int = 6000
    proposals: int = 300
    overlap: float = 0.7
    class_overlap: float = 0.3
    fewest: int = 36
    most: int = 36
    sure: float = 0.2


@dataclass(frozen=True)
class LXMERTPostprocessing:
    """LXMERT's post-processing parameters.

    Args:
        size: Short side of the network's input in pixels.
        longest: Maximum of its long side.
        before: Proposals before NMS.
        proposals: Maximum number of proposals after NMS.
        overlap: IoU threshold of NMS between proposals.
        class_overlaps: IoU thresholds of class-agnostic NMS between regions; the first that leaves enough is used.
        fewest: Number of regions that is enough.
        most: Maximum number of regions.
    """

    size: int = 600
    longest: int = 1000
    before: int = 6000
    proposals: int = 300
    overlap: float = 0.7
    class_overlaps: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    fewest: int = 36
    most: int = 36

    def __post_init__(self) -> None:
        if not self.class_overlaps:
            raise ValueError("class_overlaps is empty: one at least says what regions may overlap")


class C4Detections(NamedTuple):
    """The regions of an image: boxes in its own pixels, and the indices of their proposals."""

    boxes: Float[Tensor, "regions 4"]
    features: Float[Tensor, "regions features"]
    classes: Float[Tensor, "regions classes"]  # probabilities, background first
    attributes: Float[Tensor, "regions attributes"]  # probabilities; LXMERT's without "none"
    kept: Int64[Tensor, " regions"]


class C4FeatureMap(NamedTuple):
    """The feature map of an image, and the scale from its pixels to the network's input."""

    feature_map: Float[Tensor, "1 channels rows columns"]
    height: int
    width: int
    scale: Float[Tensor, " 4"]


def compute_caffe_feature_map(
    model: C4, picture: UInt8[Tensor, "height width 3"], rules: C4Postprocessing
) -> C4FeatureMap:
    """Subtracts the mean first, then resizes as OpenCV (lib/fast_rcnn/test.py, _get_image_blob)."""
    height, width, _ = picture.shape
    scale = compute_resize_scale(height, width, rules.size, rules.longest)
    pixels = resize_like_opencv(to_centered_bgr(picture), scale)
    return compute_c4_feature_map(model, pixels, torch.full((4,), scale))


def compute_lxmert_feature_map(
    model: C4, picture: UInt8[Tensor, "height width 3"], rules: LXMERTPostprocessing
) -> C4FeatureMap:
    """Rounds both sides and scales each separately (processing_image.py, Preprocess)."""
    height, width = picture.shape[:2]
    scale = rules.size / min(height, width)
    scale = min(scale, rules.longest / max(height, width))
    rows, columns = math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
    pixels = F.interpolate(to_centered_bgr(picture)[None], (rows, columns), mode="bilinear", align_corners=False)[0]
    return compute_c4_feature_map(model, pixels, torch.tensor([columns / width, rows / height] * 2))


def compute_c4_feature_map(
    model: C4, pixels: Float[Tensor, "3 height width"], scale: Float[Tensor, " 4"]
) -> C4FeatureMap:
    """The feature map of pixels."""
    _, height, width = pixels.shape
    laid_out = pixels[None].contiguous(memory_format=torch.channels_last)
    return C4FeatureMap(model.feature_map(laid_out), height, width, scale.to(pixels))


def make_map_anchors(model: C4, seen: C4FeatureMap) -> Float[Tensor, "anchors 4"]:
    """The anchors of all cells."""
    _, _, rows, columns = seen.feature_map.shape
    return tile_anchors(model.cell_anchors, rows, columns, C4_STRIDE)


def propose_caffe(model: C4, seen: C4FeatureMap, rules: C4Postprocessing) -> Float[Tensor, "proposals 4"]:
    """Caffe's ProposalLayer: the top boxes in pixels of the network's input."""
    scores, deltas = model.proposed(seen.feature_map)
    anchors = make_map_anchors(model, seen)
    boxes = clip_boxes_to_image(decode_caffe(anchors, deltas), seen.width - 1, seen.height - 1)
    smallest = rules.smallest * seen.scale[0].item()
    return boxes[select_top_proposals(boxes, scores, smallest, rules.before, rules.overlap, rules.proposals)]


def propose_lxmert(model: C4, seen: C4FeatureMap, rules: LXMERTPostprocessing) -> Float[Tensor, "proposals 4"]:
    """Detectron2's proposals: clipped to the size; empty boxes are dropped after the top ones were selected."""
    scores, deltas = model.proposed(seen.feature_map)
    anchors = make_map_anchors(model, seen)
    order = scores.argsort(descending=True, stable=True)[: rules.before]
    boxes = clip_boxes_to_image(decode_detectron2(anchors[order], deltas[order]), seen.width, seen.height)
    filled = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores = boxes[filled], scores[order][filled]
    return boxes[nms(boxes, scores, rules.overlap)[: rules.proposals]]


@torch.inference_mode()
def detect_caffe_regions(
    model: C4,
    picture: UInt8[Tensor, "height width 3"],
    rules: C4Postprocessing,
    given: Float[Tensor, "regions 4"] | None = None,
) -> C4Detections:
    """Detects the regions of an image as in ViLBERT's features.

    Args:
        model: The network.
        picture: RGB image.
        rules: Post-processing parameters.
        given: Boxes in pixels of the image; features and predictions are computed for all, in their order
            (test_gt.prototxt).
    """
    seen = compute_caffe_feature_map(model, picture, rules)
    boxes = propose_caffe(model, seen, rules) if given is None else given * seen.scale
    features = model.features(seen.feature_map, boxes)
    told = model.told(features)
    boxes = boxes / seen.scale if given is None else given
    everything = torch.arange(len(boxes), device=boxes.device)
    kept = everything if given is not None else select_caffe_regions(boxes, told.classes, rules)
    attributes = told.attributes.softmax(1)
    return C4Detections(boxes[kept], features[kept], told.classes[kept], attributes[kept], kept)


@torch.inference_mode()
def detect_lxmert_regions(
    model: C4,
    picture: UInt8[Tensor, "height width 3"],
    rules: LXMERTPostprocessing,
    given: Float[Tensor, "regions 4"] | None = None,
) -> C4Detections:
    """Detects the regions of an image as LXMERT does; also supports given boxes, which LXMERT does not."""
    seen = compute_lxmert_feature_map(model, picture, rules)
    proposals = propose_lxmert(model, seen, rules) if given is None else given * seen.scale
    features = model.features(seen.feature_map, proposals)
    told = model.told(features)
    attributes = told.attributes[:, 1:].softmax(1)
    if given is not None:
        return C4Detections(given, features, told.classes, attributes, torch.arange(len(given), device=given.device))
    surest = told.classes[:, 1:].max(1)
    deltas = told.deltas.unflatten(1, (-1, 4))[
        torch.arange(len(proposals), device=proposals.device), surest.indices + 1
    ]
    boxes = clip_boxes_to_image(decode_detectron2(proposals, deltas), seen.width, seen.height)
    for overlap in rules.class_overlaps:
        kept = nms(boxes, surest.values, overlap)[: rules.most]
        if len(kept) >= rules.fewest:
            break
    return C4Detections(boxes[kept] / seen.scale, features[kept], told.classes[kept], attributes[kept], kept)


def select_caffe_regions(
    boxes: Float[Tensor, "boxes 4"], classes: Float[Tensor, "boxes classes"], rules: C4Postprocessing
) -> Int64[Tensor, " regions"]:
    """Selects the proposals that are regions (generate_tsv.py): all above the score threshold in their order, or the
    top ones if these are too few or too many."""
    sureness = compute_max_class_scores(boxes, classes, rules)
    sure = (sureness >= rules.sure).nonzero().flatten()
    if rules.fewest <= len(sure) <= rules.most:
        return sure
    wanted = rules.fewest if len(sure) < rules.fewest else rules.most
    return sureness.argsort(descending=True, stable=True)[:wanted]


def compute_max_class_scores(
    boxes: Float[Tensor, "boxes 4"], classes: Float[Tensor, "boxes classes"], rules: C4Postprocessing
) -> Float[Tensor, " boxes"]:
    """The highest class score of each box after NMS within each class; exact for what `chosen` selects.

    Only pairs of box and class above a score threshold are compared, for all classes at once. The threshold is lowered
    until enough boxes are found. Pairs below it cannot suppress pairs above it, so the selected boxes and their order
    are exact.
    """
    scores, enough = classes[:, 1:], min(rules.fewest, len(boxes))
    pairs = 4 * max(rules.most, 1)
    while pairs < min(scores.numel(), MAX_BOX_CLASS_PAIRS):
        threshold = min(rules.sure, scores.flatten().topk(pairs).values[-1].item())
        found = compute_unsuppressed_scores(boxes, scores, threshold, rules.class_overlap)
        if int((found > 0).sum()) >= enough:
            return found
        pairs *= 4
    found = boxes.new_zeros(len(boxes))
    for column in scores.T:
        kept = nms_inclusive(boxes, column, rules.class_overlap)
        found[kept] = torch.maximum(found[kept], column[kept])
    return found


def compute_unsuppressed_scores(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, "boxes classes"], threshold: float, overlap: float
) -> Float[Tensor, " boxes"]:
    """The highest unsuppressed class score of each box among the pairs above a threshold; 0 where there is none."""
    pairs = (scores >= threshold).nonzero()
    places, sureness = boxes[pairs[:, 0]].double(), scores[pairs[:, 0], pairs[:, 1]]
    apart = pairs[:, 1:] * (places.max() + 2)  # moves classes apart; exact in double precision
    kept = nms_inclusive(places + apart, sureness.double(), overlap)
    found = boxes.new_zeros(len(boxes))
    return found.scatter_reduce(0, pairs[kept, 0], sureness[kept], "amax")
