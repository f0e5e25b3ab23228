"""Box features pooled from a network's feature map of an image (RoIAlign: Mask R-CNN, section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from comodal.models.detectors.box_ops import roi_align


def pool_boxes(
    feature_maps: Float[Tensor, "images channels rows columns"], boxes: Sequence[Float[Tensor, "_ 4"]], cells: int
) -> Float[Tensor, "regions features"]:
    """Returns the mean of a map in each cell of a box, in the order (row, column, channel).

    Args:
        feature_maps: Feature maps of whole images.
        boxes: Boxes of each image: left, top, right, bottom as fractions of it.
        cells: Rows and columns of the grid on a box.
    """
    rows, columns = feature_maps.shape[2:]
    sides = boxes[0].new_tensor([columns, rows, columns, rows])
    scaled = [(image_boxes * sides).to(feature_maps.device, torch.float32) for image_boxes in boxes]
    pooled = roi_align(feature_maps.float(), scaled, cells)
    return pooled.permute(0, 2, 3, 1).flatten(1)


def make_unit_grid_boxes(rows: int, columns: int) -> Float[Tensor, "cells 4"]:
    """Returns the cells of a grid as left, top, right, bottom, in fractions of the image, row by row."""
    top, left = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows], -1).flatten(0, 1)
