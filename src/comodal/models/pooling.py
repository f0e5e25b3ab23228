"""Features of boxes in a picture, pooled from a network's feature map (RoIAlign: Mask R-CNN, section 3)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align


def pool_boxes(
    feature_map: Float[Tensor, "channels rows columns"], boxes: Float[Tensor, "regions 4"], cells: int
) -> Float[Tensor, "regions features"]:
    """The mean of the map in each cell of a box, in the order (row, column, channel).

    Args:
        feature_map: Of the whole picture.
        boxes: Left, top, right, bottom as fractions of the picture.
        cells: A box is cut into so many rows and columns.
    """
    rows, columns = feature_map.shape[1:]
    scaled = boxes * torch.tensor([columns, rows, columns, rows], dtype=boxes.dtype)
    pooled = roi_align(feature_map[None].float(), [scaled.float()], cells, aligned=True)
    return pooled.permute(0, 2, 3, 1).flatten(1)


def grid_boxes(rows: int, columns: int) -> Float[Tensor, "cells 4"]:
    """The cells of a grid as left, top, right, bottom, in fractions of the picture, row by row."""
    top, left = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows], -1).flatten(0, 1)
