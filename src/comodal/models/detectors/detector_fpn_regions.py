"""What becomes regions of a picture in the ResNeXt's detector: the way of 12-in-1.

Regions are proposals as they were proposed, each as sure as the surest class in which no surer proposal overlaps it
(vilbert-multi-task, script/extract_features.py); the hundred surest. Proposals end where the picture ends that was
filled up with zeros, so that some lie partly outside the picture: vqa-maskrcnn-benchmark (structures/image_list.py)
takes the size after padding, and features have been learnt from such boxes. A picture at a time: in the original what
a picture gives depends on those beside it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from comodal.models.detectors.detector_boxes import (
    clip_boxes_to_image,
    compute_resize_scale,
    decode_mask_rcnn,
    resize_like_opencv,
    select_top_proposals,
    tile_anchors,
    to_centered_bgr,
)
from comodal.models.detectors.detector_fpn import FPN, FPN_STRIDES, SIZE_DIVISOR
from comodal.models.detectors.detector_rules import C4Postprocessing, select_caffe_regions


@dataclass(frozen=True)
class FPNPostprocessing:
    """How regions are found; the defaults are 12-in-1's.

    Args:
        size: Short side of the picture as the network sees it.
        longest: Its long side at most.
        before: So many of the surest proposals of a map are compared.
        of_a_map: So many at most are left of it.
        proposals: So many of all maps.
        overlap: Which may overlap a surer one of the same map by this.
        class_overlap: The same of regions, within a class.
        most: Regions at most.
    """

    size: int = 800
    longest: int = 1333
    before: int = 1000
    of_a_map: int = 1000
    proposals: int = 1000
    overlap: float = 0.7
    class_overlap: float = 0.5
    most: int = 100


class FPNFeatureMaps(NamedTuple):
    """A picture as the network sees it."""

    maps: list[Float[Tensor, "1 pyramid _rows _columns"]]  # P2 to P6
    height: int  # filled up
    width: int
    scale: float  # pixels of what the network sees to a pixel of the picture


class ProposalBoxes(NamedTuple):
    """Boxes in pixels of what the network sees, the surest first."""

    boxes: Float[Tensor, "proposals 4"]
    sureness: Float[Tensor, " proposals"]


class FPNDetections(NamedTuple):
    """The regions of a picture: boxes in its own pixels, and which proposals they are."""

    boxes: Float[Tensor, "regions 4"]
    features: Float[Tensor, "regions dense"]
    classes: Float[Tensor, "regions classes"]  # probabilities, "nothing" first
    kept: Int64[Tensor, " regions"]


def compute_fpn_feature_maps(
    model: FPN, picture: UInt8[Tensor, "height width 3"], rules: FPNPostprocessing
) -> FPNFeatureMaps:
    """The mean is taken off, OpenCV scales, and zeros fill up to multiples of 32 on the right and at the bottom."""
    height, width, _ = picture.shape
    scale = compute_resize_scale(height, width, rules.size, rules.longest)
    pixels = resize_like_opencv(to_centered_bgr(picture), scale)
    _, rows, columns = pixels.shape
    filled = F.pad(pixels, (0, -columns % SIZE_DIVISOR, 0, -rows % SIZE_DIVISOR))[None]
    return FPNFeatureMaps(model.maps(filled), filled.shape[2], filled.shape[3], scale)


def propose_fpn_boxes(model: FPN, seen: FPNFeatureMaps, rules: FPNPostprocessing) -> ProposalBoxes:
    """The surest boxes of each map, and of those the surest of all."""
    boxes, sureness = [], []
    for feature_map, cell, stride in zip(seen.maps, model.cell_anchors, FPN_STRIDES, strict=True):
        logits, deltas = model.proposed(feature_map)
        scores = logits.sigmoid()
        anchors = tile_anchors(cell, feature_map.shape[2], feature_map.shape[3], stride)
        found = clip_boxes_to_image(decode_mask_rcnn(anchors, deltas), seen.width - 1, seen.height - 1)
        kept = select_top_proposals(found, scores, 0, rules.before, rules.overlap, rules.of_a_map)
        boxes.append(found[kept])
        sureness.append(scores[kept])
    together, scores = torch.cat(boxes), torch.cat(sureness)
    order = scores.argsort(descending=True, stable=True)[: rules.proposals]
    return ProposalBoxes(together[order], scores[order])


@torch.inference_mode()
def detect_fpn_regions(
    model: FPN,
    picture: UInt8[Tensor, "height width 3"],
    rules: FPNPostprocessing,
    given: Float[Tensor, "regions 4"] | None = None,
) -> FPNDetections:
    """The regions of a picture as 12-in-1's were made.

    Args:
        model: The network.
        picture: Red, green, blue.
        rules: How they are found.
        given: Boxes in pixels of the picture: all are described, in their order.
    """
    seen = compute_fpn_feature_maps(model, picture, rules)
    boxes = propose_fpn_boxes(model, seen, rules).boxes if given is None else given * seen.scale
    told = model.told(seen.maps, boxes)
    classes = told.scores.softmax(1)
    if given is not None:
        return FPNDetections(given, told.fc6, classes, torch.arange(len(given), device=given.device))
    boxes = boxes / seen.scale
    surest = C4Postprocessing(class_overlap=rules.class_overlap, fewest=rules.most, most=rules.most, sure=math.inf)
    kept = select_caffe_regions(boxes, classes, surest)
    return FPNDetections(boxes[kept], told.fc6[kept], classes[kept], kept)
