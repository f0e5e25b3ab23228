"""Boxes are left, top, right, bottom in pixels; boxes in other units are detected and refused.

Normalized boxes lie within the first pixel of a large image. Boxes of left, top, width, height (xywh), read as corners,
often end before they begin, but not always: the decision is made for all images of a source.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from comodal.errors import DataError

BoxFault = Literal["boxes are fractions", "boxes are not corners"]
BOXES_ARE_FRACTIONS: BoxFault = "boxes are fractions"
BOXES_ARE_NOT_CORNERS: BoxFault = "boxes are not corners"
MAX_BOX_FRACTION = 1.01  # of normalized boxes that were rounded
MIN_IMAGE_PIXELS = 32  # of a side: in larger images, boxes that end within the first pixel are normalized
MAX_FAULTY_FRACTION = 0.25  # of the images: fewer are faults of single images


class BoxUnitsError(ValueError):
    """Boxes that are not left, top, right, bottom in pixels.

    Args:
        reason: FRACTIONS or CORNERS.
        detail: What was found.
    """

    def __init__(self, reason: BoxFault, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def has_inverted_box(boxes: Float[np.ndarray, "regions 4"]) -> bool:
    """Whether a box, read as corners, ends before it begins."""
    return bool((boxes[:, 2:] < boxes[:, :2]).any())


def has_normalized_boxes(boxes: Float[np.ndarray, "regions 4"]) -> bool:
    """Whether there are boxes, none is empty, and none ends beyond the first pixel."""
    return len(boxes) > 0 and bool((boxes[:, 2:] > boxes[:, :2]).all()) and float(boxes.max()) <= MAX_BOX_FRACTION


def check_box_units(boxes: Float[np.ndarray, "regions 4"], width: int, height: int) -> None:
    """Check that the boxes of one image are corners in pixels, as far as they show it.

    Raises:
        BoxUnitsError: They are normalized, or end before they begin.
    """
    if has_inverted_box(boxes):
        detail = (
            "a box ends before it begins; boxes are left, top, right, bottom, these may be left, top, width, height"
        )
        raise BoxUnitsError(BOXES_ARE_NOT_CORNERS, detail)
    if has_normalized_boxes(boxes) and min(width, height) >= MIN_IMAGE_PIXELS:
        detail = f"no value of the boxes is above 1 in an image of {width} x {height} pixels; multiply them by its size"
        raise BoxUnitsError(BOXES_ARE_FRACTIONS, detail)


def check_source_units(source: Path, faults: Mapping[str, int], num_valid: int) -> None:
    """Check the boxes of a whole source: if many are in other units, the others only look valid.

    Args:
        source: The file or folder, for the error.
        faults: The number of images whose boxes are normalized, or not corners.
        num_valid: The number of images whose boxes are valid.

    Raises:
        DataError: They are normalized, or most likely left, top, width, height.
    """
    fractions, corners = faults.get(BOXES_ARE_FRACTIONS, 0), faults.get(BOXES_ARE_NOT_CORNERS, 0)
    total = num_valid + fractions + corners
    if fractions > MAX_FAULTY_FRACTION * total:
        raise DataError(
            f"{source}: normalized boxes: in {fractions:,} of {total:,} records no value is above 1 in an image of "
            f"many "
            "pixels; multiply them by the width and height of their image"
        )
    if corners > MAX_FAULTY_FRACTION * total:
        raise DataError(
            f"{source}: boxes of left, top, width, height (xywh): in {corners:,} of {total:,} records a box ends "
            f"before "
            "it begins when read as left, top, right, bottom; add left and top to width and height"
        )
