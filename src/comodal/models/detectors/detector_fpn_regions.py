"""Post-processing of the ResNeXt-FPN detector as in 12-in-1: from proposals to the regions of an image.

A region is a proposal without box refinement. Its score is the highest class score that is left after NMS within each
class (vilbert-multi-task, script/extract_features.py); the 100 highest are kept. Proposals are clipped to the padded
image and not to the image, so that some are partly outside it. vqa-maskrcnn-benchmark (structures/image_list.py) uses
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
        pre_nms_top_k: Proposals of a map before NMS.
        map_post_nms_top_k: Maximum number of proposals of a map after NMS.
        post_nms_top_k: Maximum number of proposals of all maps.
        nms_threshold: IoU threshold of NMS between proposals of a map.
        class_nms_threshold: IoU threshold of NMS between regions, within a class.
        max_regions: Maximum number of regions.
    """

    size: int = 800
    longest: int = 1333
    pre_nms_top_k: int = 1000
    map_post_nms_top_k: int = 1000
    post_nms_top_k: int = 1000
    nms_threshold: float = 0.7
    class_nms_threshold: float = 0.5
    max_regions: int = 100


class FPNFeatureMaps(NamedTuple):
    """The feature maps of an image."""

    maps: list[Float[Tensor, "1 pyramid _rows _columns"]]  # P2 to P6
    height: int  # with padding
    width: int
    scale: float  # pixels of the network's input per pixel of the image


class ProposalBoxes(NamedTuple):
    """Boxes in pixels of the network's input, by descending score."""

    boxes: Float[Tensor, "proposals 4"]
    scores: Float[Tensor, " proposals"]


class FPNDetections(NamedTuple):
    """The regions of an image: boxes in its own pixels, and the indices of their proposals."""

    boxes: Float[Tensor, "regions 4"]
    features: Float[Tensor, "regions dense"]
    classes: Float[Tensor, "regions classes"]  # probabilities, background first
    proposal_indices: Int64[Tensor, " regions"]


def compute_fpn_feature_maps(
    model: FPN, image: UInt8[Tensor, "height width 3"], postprocessing: FPNPostprocessing
) -> FPNFeatureMaps:
    """Subtracts the mean, resizes as OpenCV, pads with zeros to multiples of 32, and runs the backbone."""
    height, width, _ = image.shape
    scale = compute_resize_scale(height, width, postprocessing.size, postprocessing.longest)
    pixels = resize_like_opencv(to_centered_bgr(image), scale)
    _, rows, columns = pixels.shape
    filled = F.pad(pixels, (0, -columns % SIZE_DIVISOR, 0, -rows % SIZE_DIVISOR))[None]
    return FPNFeatureMaps(model.compute_maps(filled), filled.shape[2], filled.shape[3], scale)


def propose_fpn_boxes(model: FPN, feature_maps: FPNFeatureMaps, postprocessing: FPNPostprocessing) -> ProposalBoxes:
    """The top proposals of each map, and of those the top ones over all maps."""
    boxes, box_scores = [], []
    for feature_map, cell, stride in zip(feature_maps.maps, model.cell_anchors, FPN_STRIDES, strict=True):
        logits, deltas = model.propose(feature_map)
        scores = logits.sigmoid()
        anchors = tile_anchors(cell, feature_map.shape[2], feature_map.shape[3], stride)
        map_boxes = clip_boxes_to_image(
            decode_mask_rcnn(anchors, deltas), feature_maps.width - 1, feature_maps.height - 1
        )
        selected = select_top_proposals(
            map_boxes,
            scores,
            0,
            postprocessing.pre_nms_top_k,
            postprocessing.nms_threshold,
            postprocessing.map_post_nms_top_k,
        )
        boxes.append(map_boxes[selected])
        box_scores.append(scores[selected])
    all_boxes, scores = torch.cat(boxes), torch.cat(box_scores)
    order = scores.argsort(descending=True, stable=True)[: postprocessing.post_nms_top_k]
    return ProposalBoxes(all_boxes[order], scores[order])


@torch.inference_mode()
def detect_fpn_regions(
    model: FPN,
    image: UInt8[Tensor, "height width 3"],
    postprocessing: FPNPostprocessing,
    input_boxes: Float[Tensor, "regions 4"] | None = None,
) -> FPNDetections:
    """Detects the regions of an image as 12-in-1 does.

    Args:
        model: The network.
        image: RGB image.
        postprocessing: Post-processing parameters.
        input_boxes: Boxes in pixels of the image; features and predictions are computed for all, in their order.
    """
    feature_maps = compute_fpn_feature_maps(model, image, postprocessing)
    boxes = (
        propose_fpn_boxes(model, feature_maps, postprocessing).boxes
        if input_boxes is None
        else input_boxes * feature_maps.scale
    )
    predictions = model.predict(feature_maps.maps, boxes)
    classes = predictions.scores.softmax(1)
    if input_boxes is not None:
        return FPNDetections(
            input_boxes, predictions.fc6, classes, torch.arange(len(input_boxes), device=input_boxes.device)
        )
    boxes = boxes / feature_maps.scale
    top_postprocessing = C4Postprocessing(
        class_nms_threshold=postprocessing.class_nms_threshold,
        min_regions=postprocessing.max_regions,
        max_regions=postprocessing.max_regions,
        score_threshold=math.inf,
    )
    selected = select_caffe_regions(boxes, classes, top_postprocessing)
    return FPNDetections(boxes[selected], predictions.fc6[selected], classes[selected], selected)
