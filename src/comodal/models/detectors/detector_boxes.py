"""Box operations of the detectors: anchors, box decoding, suppression, pyramid levels, and image resizing.

Faster R-CNN in Caffe (Ren et al., NIPS 2015: generate_anchors.py, proposal_layer.py, bbox_transform.py, test.py),
maskrcnn-benchmark and Detectron2 use the same operations with different pixel conventions. In the first two the ends of
a box are inclusive, so that [0, 0, 9, 9] is ten pixels wide. In torchvision they are not; its suppression is used for
all three, with the ends of boxes shifted by that pixel. Boxes are left, top, right, bottom.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from comodal.models.detectors.box_ops import nms

BGR_MEAN = (102.9801, 115.9465, 122.7717)  # ImageNet, 0..255 (py-faster-rcnn's config.py)
MAX_LOG_SCALE = math.log(1000 / 16)  # maskrcnn-benchmark's and Detectron2's limit of growth
Weights: TypeAlias = tuple[int | float, int | float, int | float, int | float]
UNIT_BOX_WEIGHTS = (1, 1, 1, 1)
LEVEL_4_PIXELS = 224  # side of a box that is assigned to P4 (FPN: Lin et al., CVPR 2017, equation 1)


def make_cell_anchors(
    stride: int, scales: Sequence[int | float], ratios: Sequence[int | float] = (0.5, 1, 2)
) -> Float[Tensor, "all 4"]:
    """Anchors of the first cell of a map, ordered by aspect ratio first; sides are rounded as in Caffe.

    Args:
        stride: Side of the square that is the first cell, [0, 0, stride - 1, stride - 1].
        scales: Anchor sizes as multiples of that square.
        ratios: Aspect ratios (height to width).
    """
    center = (stride - 1) / 2
    anchors = []
    for ratio in ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        for scale in scales:
            across, down = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append([center - across, center - down, center + across, center + down])
    return torch.tensor(anchors)


def tile_anchors(cell: Float[Tensor, "anchors 4"], rows: int, columns: int, stride: int) -> Float[Tensor, "all 4"]:
    """Anchors of every cell of a map, row by row; the anchors of a cell are adjacent."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    shifts = torch.stack([across, down, across, down], -1).to(cell) * stride
    return (shifts[:, :, None] + cell).flatten(0, 2)


def decode_caffe(boxes: Float[Tensor, "boxes 4"], deltas: Float[Tensor, "boxes fours"]) -> Float[Tensor, "boxes fours"]:
    """Decodes boxes from deltas as Caffe does: right and bottom are one pixel too large, growth is unlimited."""
    return decode_deltas(boxes, deltas, 1.0, 0.0, UNIT_BOX_WEIGHTS, math.inf)


def decode_mask_rcnn(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    weights: Weights = UNIT_BOX_WEIGHTS,
) -> Float[Tensor, "boxes fours"]:
    """Decodes boxes as maskrcnn-benchmark does: inclusive ends; deltas are divided by the weights."""
    return decode_deltas(boxes, deltas, 1.0, 1.0, weights, MAX_LOG_SCALE)


def decode_detectron2(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    weights: Weights = UNIT_BOX_WEIGHTS,
) -> Float[Tensor, "boxes fours"]:
    """Decodes boxes as Detectron2 does: ends are coordinates; deltas are divided by the weights."""
    return decode_deltas(boxes, deltas, 0.0, 0.0, weights, MAX_LOG_SCALE)


def decode_deltas(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    inclusive_offset: float,
    end_offset: float,
    weights: Weights,
    max_log_scale: float,
) -> Float[Tensor, "boxes fours"]:
    """Decodes boxes from deltas.

    Args:
        boxes: Boxes to transform (anchors or proposals).
        deltas: Shifts of the center in units of the sides, and logarithms of the scales of the sides.
        inclusive_offset: 1 if the ends are inclusive: added to the difference of the ends.
        end_offset: Subtracted from right and bottom.
        weights: Divisors of the deltas.
        max_log_scale: Upper limit of the logarithms.
    """
    corner, sides = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2] + inclusive_offset
    shift, growth = (deltas.unflatten(1, (-1, 4)) / deltas.new_tensor(weights)).split(2, -1)
    centers, halves = corner + sides / 2 + shift * sides, growth.clamp(max=max_log_scale).exp() * sides / 2
    return torch.cat([centers - halves, centers + halves - end_offset], -1).flatten(1)


def clip_boxes_to_image(
    boxes: Float[Tensor, "boxes fours"], right: int | float, bottom: int | float
) -> Float[Tensor, "boxes fours"]:
    """Clips boxes to the image: to 0 and size - 1 with inclusive ends, else to 0 and size."""
    limits = boxes.new_tensor([right, bottom, right, bottom])
    return torch.minimum(boxes.unflatten(1, (-1, 4)).clamp(min=0), limits).flatten(1)


def nms_inclusive(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], threshold: float
) -> Int64[Tensor, " kept"]:
    """Non-maximum suppression with inclusive box ends; returns indices by descending score.

    A box whose overlap equals the threshold is kept, as both originals do on a GPU; on a CPU they drop it.
    """
    return nms(boxes + boxes.new_tensor([0, 0, 1, 1]), scores, threshold)


def select_top_proposals(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    min_side: int | float,
    pre_nms_top_k: int,
    threshold: float,
    post_nms_top_k: int,
) -> Int64[Tensor, " kept"]:
    """Selects proposals as Caffe's ProposalLayer does, by descending score.

    Args:
        boxes: Decoded and clipped boxes.
        scores: Objectness scores.
        min_side: Minimum length of both sides, in pixels of the network's input; applied first.
        pre_nms_top_k: Number of proposals before NMS.
        threshold: IoU threshold of NMS.
        post_nms_top_k: Number of proposals after NMS.
    """
    large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= min_side).all(1).nonzero().flatten()
    order = large[scores[large].argsort(descending=True, stable=True)[:pre_nms_top_k]]
    return order[nms_inclusive(boxes[order], scores[order], threshold)[:post_nms_top_k]]


def assign_fpn_levels(boxes: Float[Tensor, "boxes 4"], lowest: int = 2, highest: int = 5) -> Int64[Tensor, " boxes"]:
    """Assigns boxes to levels of the feature pyramid (maskrcnn-benchmark's LevelMapper: inclusive ends)."""
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1).sqrt()
    return (4 + torch.log2(sides / LEVEL_4_PIXELS + 1e-6)).floor().clamp(lowest, highest).long()


def compute_resize_scale(height: int, width: int, size: int, longest: int) -> float:
    """The scale that makes the short side `size`, or less if the long side would exceed `longest`."""
    scale = size / min(height, width)
    return longest / max(height, width) if round(scale * max(height, width)) > longest else scale


def to_centered_bgr(image: UInt8[Tensor, "height width 3"]) -> Float32[Tensor, "3 height width"]:
    """Converts an RGB image to BGR and subtracts the mean, as in the training of the networks."""
    return image.flip(2).permute(2, 0, 1).float() - torch.tensor(BGR_MEAN, device=image.device)[:, None, None]


def resize_like_opencv(
    image: Float32[Tensor, "channels height width"], scale: float
) -> Float32[Tensor, "channels new_height new_width"]:
    """Resizes an image by a factor as OpenCV's INTER_LINEAR does: bilinear without antialiasing, at positions given by
    the factor and not by the rounded size."""
    for axis in (2, 1):
        low, high, weight = find_interpolation_neighbors(image.shape[axis], scale)
        weight = weight.to(image).unsqueeze(1 if axis == 1 else 0)
        low, high = low.to(image.device), high.to(image.device)
        image = image.index_select(axis, low) * (1 - weight) + image.index_select(axis, high) * weight
    return image


def find_interpolation_neighbors(
    length: int, scale: float
) -> tuple[Int64[Tensor, " new"], Int64[Tensor, " new"], Float64[Tensor, " new"]]:
    """The two source pixels of each target pixel of a side, and the weight of the second."""
    positions = (torch.arange(max(1, round(length * scale)), dtype=torch.float64) + 0.5) / scale - 0.5
    positions = positions.clamp(0, length - 1)
    low = positions.floor().long()
    return low, (low + 1).clamp(max=length - 1), positions - low
