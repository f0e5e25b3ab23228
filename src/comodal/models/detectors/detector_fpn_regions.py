"""Post-processing of the ResNeXt-FPN detector as in 12-in-1: from proposals to the regions of an image.

A region is a proposal without box refinement. Its score is the highest class score that is left after NMS within each
class (vilbert-multi-task, script/extract_features.py); the 100 highest are kept. Proposals are clipped to the padded
image and not to the image, so that some lie partly outside it: vqa-maskrcnn-benchmark (structures/image_list.py) uses
the size after padding, and published features were computed from such boxes. Images are processed one at a time: in the
original the result depends on the other images of a batch.
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
    """Post-processing parameters; the defaults are 12-in-1's.

    Args:
        size: Short side of the network's input in pixels.
        longest: Maximum of its long side.
        before: Proposals of a map before NMS.
        of_a_map: Maximum number of proposals of a map after NMS.
        proposals: Maximum number of proposals of all maps.
        overlap: IoU threshold of NMS between proposals of a map.
        class_overlap: IoU threshold of NMS between regions, within a class.
        most: Maximum number of regions.
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
    """The feature maps of an image."""

    maps: list[Float[Tensor, "1 pyramid _rows _columns"]]  # P2 to P6
    height: int  # with padding
    width: int
    scale: float  # pixels of the network's input per pixel of the image


class ProposalBoxes(NamedTuple):
    """Boxes in pixels of the network's input, by descending score."""

    boxes: Float[Tensor, "proposals 4"]
    sureness: Float[Tensor, " proposals"]


class FPNDetections(NamedTuple):
    """The regions of an image: boxes in its own pixels, and the indices of their proposals."""

    boxes: Float[Tensor, "regions 4"]
    features: Float[Tensor, "regions dense"]
    classes: Float[Tensor, "regions classes"]  # probabilities, background first
    kept: Int64[Tensor, " regions"]


def compute_fpn_feature_maps(
    model: FPN, picture: UInt8[Tensor, "height width 3"], rules: FPNPostprocessing
) -> FPNFeatureMaps:
    """Subtracts the mean, resizes as OpenCV, pads with zeros to multiples of 32, and runs the backbone."""
    height, width, _ = picture.shape
    scale = compute_resize_scale(height, width, rules.size, rules.longest)
    pixels = resize_like_opencv(to_centered_bgr(picture), scale)
    _, rows, columns = pixels.shape
    filled = F.pad(pixels, (0, -columns % SIZE_DIVISOR, 0, -rows % SIZE_DIVISOR))[None]
    return FPNFeatureMaps(model.maps(filled), filled.shape[2], filled.shape[3], scale)


def propose_fpn_boxes(model: FPN, seen: FPNFeatureMaps, rules: FPNPostprocessing) -> ProposalBoxes:
    """The top proposals of each map, and of those the top ones over all maps."""
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
    """Detects the regions of an image as 12-in-1 does.

    Args:
        model: The network.
        picture: RGB image.
        rules: Post-processing parameters.
        given: Boxes in pixels of the image; features and predictions are computed for all, in their order.
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
