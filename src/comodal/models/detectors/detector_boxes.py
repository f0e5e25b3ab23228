"""Boxes as the detectors of region features reckon them: anchors, decoding, suppression, levels, and their resizing.

Faster R-CNN in Caffe (Ren et al., NIPS 2015: generate_anchors.py, proposal_layer.py, bbox_transform.py, test.py),
maskrcnn-benchmark and Detectron2 agree on what these are and differ in pixels: the first two count both ends of a box,
so that [0, 0, 9, 9] is ten pixels wide. torchvision's own detectors do not; its suppression serves all three, with
boxes moved by that pixel. Boxes are left, top, right, bottom.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from comodal.models.detectors.box_ops import nms

BGR_MEAN = (102.9801, 115.9465, 122.7717)  # of ImageNet's blue, green and red, in bytes (py-faster-rcnn's config.py)
MAX_LOG_SCALE = math.log(1000 / 16)  # how much a box may grow: maskrcnn-benchmark and Detectron2; Caffe has no limit
Weights: TypeAlias = tuple[int | float, int | float, int | float, int | float]
UNIT_BOX_WEIGHTS = (1, 1, 1, 1)
LEVEL_4_PIXELS = 224  # side of a box that belongs to P4 (FPN: Lin et al., CVPR 2017, equation 1)


def make_cell_anchors(
    stride: int, scales: Sequence[int | float], ratios: Sequence[int | float] = (0.5, 1, 2)
) -> Float[Tensor, "all 4"]:
    """Anchors of the first cell of a map, the ratios (height to width) outermost, sides rounded as in Caffe.

    Args:
        stride: Side of the square that is the first cell, [0, 0, stride - 1, stride - 1].
        scales: How many times as large as that square anchors are.
        ratios: Of the shapes.
    """
    centre = (stride - 1) / 2
    anchors = []
    for ratio in ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        for scale in scales:
            across, down = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append([centre - across, centre - down, centre + across, centre + down])
    return torch.tensor(anchors)


def tile_anchors(cell: Float[Tensor, "anchors 4"], rows: int, columns: int, stride: int) -> Float[Tensor, "all 4"]:
    """Anchors of every cell of a map, row by row, those of a cell together."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    shifts = torch.stack([across, down, across, down], -1).to(cell) * stride
    return (shifts[:, :, None] + cell).flatten(0, 2)


def decode_caffe(boxes: Float[Tensor, "boxes 4"], deltas: Float[Tensor, "boxes fours"]) -> Float[Tensor, "boxes fours"]:
    """Boxes moved and scaled by deltas (of one class after the other) as in Caffe: right and bottom come out one pixel
    too far, and how much a box grows has no limit."""
    return decode_deltas(boxes, deltas, 1.0, 0.0, UNIT_BOX_WEIGHTS, math.inf)


def decode_mask_rcnn(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    weights: Weights = UNIT_BOX_WEIGHTS,
) -> Float[Tensor, "boxes fours"]:
    """As in maskrcnn-benchmark: both ends count, before and after; deltas are divided by the weights."""
    return decode_deltas(boxes, deltas, 1.0, 1.0, weights, MAX_LOG_SCALE)


def decode_detectron2(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    weights: Weights = UNIT_BOX_WEIGHTS,
) -> Float[Tensor, "boxes fours"]:
    """As in Detectron2: the ends of a box are coordinates; deltas are divided by the weights."""
    return decode_deltas(boxes, deltas, 0.0, 0.0, weights, MAX_LOG_SCALE)


def decode_deltas(
    boxes: Float[Tensor, "boxes 4"],
    deltas: Float[Tensor, "boxes fours"],
    counted: float,
    end: float,
    weights: Weights,
    largest: float,
) -> Float[Tensor, "boxes fours"]:
    """What the three have in common.

    Args:
        boxes: Before.
        deltas: Of the centre in sides of the box, and of the logarithms of the sides.
        counted: The sides are so much longer than the difference of the ends.
        end: Is taken off the right and the bottom.
        weights: Deltas are so many times what they mean.
        largest: Limit of the logarithms.
    """
    corner, sides = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2] + counted
    shift, growth = (deltas.unflatten(1, (-1, 4)) / deltas.new_tensor(weights)).split(2, -1)
    centres, halves = corner + sides / 2 + shift * sides, growth.clamp(max=largest).exp() * sides / 2
    return torch.cat([centres - halves, centres + halves - end], -1).flatten(1)


def clip_boxes_to_image(
    boxes: Float[Tensor, "boxes fours"], right: int | float, bottom: int | float
) -> Float[Tensor, "boxes fours"]:
    """Boxes cut off at 0 and at the two ends: size - 1 where both ends count, else size."""
    limits = boxes.new_tensor([right, bottom, right, bottom])
    return torch.minimum(boxes.unflatten(1, (-1, 4)).clamp(min=0), limits).flatten(1)


def nms_inclusive(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], threshold: float
) -> Int64[Tensor, " kept"]:
    """Suppression where both ends of a box count; the surest first.

    An overlap of exactly the threshold stays, as in both originals on a GPU; on a CPU they drop it.
    """
    return nms(boxes + boxes.new_tensor([0, 0, 1, 1]), scores, threshold)


def select_top_proposals(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    smallest: int | float,
    before: int,
    threshold: float,
    after: int,
) -> Int64[Tensor, " kept"]:
    """Which boxes Caffe's ProposalLayer proposes, the surest first.

    Args:
        boxes: Decoded and cut off at the edges.
        scores: Of each.
        smallest: Both sides are at least so long, in pixels of what the network sees; asked before anything is counted.
        before: So many are compared,
        threshold: of which those stay that overlap a surer one by no more than this,
        after: and of these so many.
    """
    large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= smallest).all(1).nonzero().flatten()
    order = large[scores[large].argsort(descending=True, stable=True)[:before]]
    return order[nms_inclusive(boxes[order], scores[order], threshold)[:after]]


def assign_fpn_levels(boxes: Float[Tensor, "boxes 4"], lowest: int = 2, highest: int = 5) -> Int64[Tensor, " boxes"]:
    """To which map of a feature pyramid a box belongs (maskrcnn-benchmark's LevelMapper: both ends count)."""
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1).sqrt()
    return (4 + torch.log2(sides / LEVEL_4_PIXELS + 1e-6)).floor().clamp(lowest, highest).long()


def compute_resize_scale(height: int, width: int, size: int, longest: int) -> float:
    """What makes the short side `size`, or less, so that the long side does not pass `longest`."""
    scale = size / min(height, width)
    return longest / max(height, width) if round(scale * max(height, width)) > longest else scale


def to_centered_bgr(picture: UInt8[Tensor, "height width 3"]) -> Float32[Tensor, "3 height width"]:
    """A picture (red, green, blue) as the networks were trained with: blue first, less the mean."""
    return picture.flip(2).permute(2, 0, 1).float() - torch.tensor(BGR_MEAN, device=picture.device)[:, None, None]


def resize_like_opencv(
    picture: Float32[Tensor, "channels height width"], scale: float
) -> Float32[Tensor, "channels new_height new_width"]:
    """A picture scaled as OpenCV's INTER_LINEAR scales it by a factor: of the two nearest pixels, also where it
    shrinks, at places that the factor decides and not the rounded size."""
    for axis in (2, 1):
        low, high, share = find_interpolation_neighbors(picture.shape[axis], scale)
        share = share.to(picture).unsqueeze(1 if axis == 1 else 0)
        low, high = low.to(picture.device), high.to(picture.device)
        picture = picture.index_select(axis, low) * (1 - share) + picture.index_select(axis, high) * share
    return picture


def find_interpolation_neighbors(
    length: int, scale: float
) -> tuple[Int64[Tensor, " new"], Int64[Tensor, " new"], Float64[Tensor, " new"]]:
    """Of each new pixel of a side the two old ones, and the share of the second."""
    places = (torch.arange(max(1, round(length * scale)), dtype=torch.float64) + 0.5) / scale - 0.5
    places = places.clamp(0, length - 1)
    low = places.floor().long()
    return low, (low + 1).clamp(max=length - 1), places - low
