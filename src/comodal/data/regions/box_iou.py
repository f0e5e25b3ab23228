"""Intersection over union of boxes."""

import numpy as np
from jaxtyping import Float


def compute_inclusive_iou(
    boxes: Float[np.ndarray, "boxes 4"], other_boxes: Float[np.ndarray, "other_boxes 4"]
) -> Float[np.ndarray, "boxes other_boxes"]:
    """IoU of boxes (left, top, right, bottom in pixels) whose last pixel is included.

    So a box from 3 to 5 is 3 pixels wide. This is the convention of ViLBERT's code; it makes small boxes overlap
    slightly more.
    """
    top_left, bottom_right = (
        np.maximum(boxes[:, None, :2], other_boxes[:, :2]),
        np.minimum(boxes[:, None, 2:], other_boxes[:, 2:]),
    )
    intersection = np.clip(bottom_right - top_left + 1, 0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=-1)
    other_areas = (other_boxes[:, 2:] - other_boxes[:, :2] + 1).prod(axis=-1)
    return intersection / (areas[:, None] + other_areas - intersection)
