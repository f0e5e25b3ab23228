"""Boxes are left, top, right, bottom in pixels; boxes in other units are detected and refused.

A single image rarely shows the units of its boxes, so all images of a source are judged together:

- Normalized boxes lie within the first pixel of a large image.
- Boxes of left, top, width, height (xywh), read as corners, often end before they begin, but not always.
- Boxes of top, left, bottom, right (yxyx) leave images that are not square, and fit them with both axes exchanged.
- Boxes from 0 to 1000, or of an enlarged image, leave their images.
- Boxes from 0 to 100, or of a reduced image, never reach the rest of their images, although they fill their range.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from comodal.errors import DataError

BoxFault = Literal["boxes are fractions", "boxes are not corners", "boxes leave the image", "boxes fit if exchanged"]
BOXES_ARE_FRACTIONS: BoxFault = "boxes are fractions"
BOXES_ARE_NOT_CORNERS: BoxFault = "boxes are not corners"
BOXES_LEAVE_IMAGE: BoxFault = "boxes leave the image"
BOXES_FIT_EXCHANGED: BoxFault = "boxes fit if exchanged"  # top, left, bottom, right
MAX_BOX_FRACTION = 1.01  # of normalized boxes that were rounded
MIN_IMAGE_PIXELS = 32  # of a side: in larger images, boxes that end within the first pixel are normalized
MAX_FAULTY_FRACTION = 0.25  # of the images: fewer are faults of single images
MIN_EXCHANGED_FRACTION = 0.05  # of the images: boxes of most images fit either way
MAX_OUTSIDE_FRACTION = 0.01  # a box may leave its image by this part of a side, and two pixels: detectors round
MAX_LOG_PROBABILITY = np.log(1e-9)  # that boxes anywhere in their images end where these do
MIN_JUDGED_IMAGES = 3
MAX_JUDGED_IMAGES = 4096  # of a source, evenly spaced
MAX_INDEPENDENT_BOXES = 4  # of an image: its boxes are correlated
MAX_REDUCED_FRACTION = 0.6  # of a side that boxes of a reduced image reach
FULL_SCALE = 1000.0  # boxes from 0 to 1000 are usual, and images may be larger
MIN_FULL_SCALE_FRACTION = 0.9  # that such boxes reach
MAX_FIRST_FRACTION = 0.15  # of the range: the first box begins before
MIN_SPREAD_FRACTION = 0.1  # of the range: standard deviation of the centers


class BoxUnitsError(ValueError):
    """Boxes that are not left, top, right, bottom in pixels.

    Args:
        reason: The fault.
        detail: What was found.
    """

    def __init__(self, reason: BoxFault, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SizedBoxes(NamedTuple):
    """The boxes of an image of known size."""

    boxes: Float[np.ndarray, "regions 4"]
    width: int
    height: int


def has_inverted_box(boxes: Float[np.ndarray, "regions 4"]) -> bool:
    """Whether a box, read as corners, ends before it begins."""
    return bool((boxes[:, 2:] < boxes[:, :2]).any())


def has_normalized_boxes(boxes: Float[np.ndarray, "regions 4"]) -> bool:
    """Whether there are boxes, none is empty, and none ends beyond the first pixel."""
    return len(boxes) > 0 and bool((boxes[:, 2:] > boxes[:, :2]).all()) and float(boxes.max()) <= MAX_BOX_FRACTION


def has_outside_box(boxes: Float[np.ndarray, "regions 4"], width: int, height: int) -> bool:
    """Whether a box leaves its image by more than rounding."""
    sides = np.array([width, height])
    slack, corners = 2 + MAX_OUTSIDE_FRACTION * sides, boxes.reshape(-1, 2)
    return bool((corners < -slack).any() or (corners > sides + slack).any())


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


def check_boxes_within_image(boxes: Float[np.ndarray, "regions 4"], width: int, height: int) -> None:
    """Check that the boxes of one image are within it.

    Raises:
        BoxUnitsError: One is not.
    """
    if has_outside_box(boxes, width, height):
        fault = BOXES_LEAVE_IMAGE if has_outside_box(boxes, height, width) else BOXES_FIT_EXCHANGED
        raise BoxUnitsError(fault, f"boxes leave the image of {width} x {height} pixels")


def find_sized_box_fault(image: SizedBoxes) -> BoxFault | None:
    """The fault of the boxes of one image, if they have one."""
    try:
        check_box_units(*image)
        check_boxes_within_image(*image)
    except BoxUnitsError as error:
        return error.reason
    return None


def sample_evenly(count: int) -> list[int]:
    """Indices of the images of a source that are judged: all, or MAX_JUDGED_IMAGES of them."""
    judged = min(count, MAX_JUDGED_IMAGES)
    return [index * count // judged for index in range(judged)]


def check_source_units(
    source: Path, faults: Mapping[str, int], valid: Sequence[SizedBoxes], num_valid: int, records: str = "records"
) -> None:
    """Check the boxes of a whole source: if many are in other units, the others only look valid.

    Args:
        source: The file or folder, for the error.
        faults: The number of images by the fault of their boxes.
        valid: Images whose boxes are valid by themselves, or a sample of them.
        num_valid: The number of all images whose boxes are valid by themselves.
        records: What was judged, for the error: all records, or some of them.

    Raises:
        DataError: They are most likely in other units, which the message names.
    """
    fractions, corners = faults.get(BOXES_ARE_FRACTIONS, 0), faults.get(BOXES_ARE_NOT_CORNERS, 0)
    exchanged, outside = faults.get(BOXES_FIT_EXCHANGED, 0), faults.get(BOXES_LEAVE_IMAGE, 0)
    total = num_valid + fractions + corners + exchanged + outside
    if fractions > MAX_FAULTY_FRACTION * total:
        raise DataError(
            f"{source}: normalized boxes: in {fractions:,} of {total:,} {records} no value is above 1 in an image of "
            "many pixels; multiply them by the width and height of their image"
        )
    if corners > MAX_FAULTY_FRACTION * total:
        raise DataError(
            f"{source}: boxes of left, top, width, height (xywh): in {corners:,} of {total:,} {records} a box ends "
            "before it begins when read as left, top, right, bottom; add left and top to width and height"
        )
    only_as_corners = sum(has_outside_box(one.boxes, one.height, one.width) for one in valid)
    num_only_as_corners = only_as_corners * num_valid / max(len(valid), 1)
    if exchanged > max(outside, num_only_as_corners, MIN_EXCHANGED_FRACTION * total):
        raise DataError(
            f"{source}: boxes of top, left, bottom, right (yxyx): in {exchanged:,} of {total:,} {records} they leave "
            "their image, and fit it with both axes exchanged; write them as left, top, right, bottom"
        )
    if exchanged + outside > max(MAX_FAULTY_FRACTION * total, MIN_JUDGED_IMAGES - 1):
        raise DataError(
            f"{source}: boxes of other units: in {exchanged + outside:,} of {total:,} {records} a box leaves its "
            "image; they are from 0 to 1000, or in pixels of an image of another size; scale them to the width and "
            "height of their record"
        )
    if (reach := find_unused_range(valid)) is not None:
        raise DataError(
            f"{source}: boxes of other units: in {len(valid):,} {records} of larger images they fill the range from "
            f"0 to {reach}, and none goes beyond; they are from 0 to 100 or 1000, or in pixels of an image of another "
            "size; scale them to the width and height of their record"
        )


def find_unused_range(images: Sequence[SizedBoxes]) -> str | None:
    """The range that boxes fill if they are most likely in units of a smaller image, as text; None if they are not.

    Boxes anywhere in an image end before a fraction of its width and height with at most the product of both
    fractions. Boxes of a part of the image (a logo in its corner) do not fill their range, or do not begin at 0.
    """
    judged = [one for one in images if len(one.boxes) and min(one.width, one.height) >= MIN_IMAGE_PIXELS]
    if len(judged) < MIN_JUDGED_IMAGES:
        return None
    counts = np.array([len(one.boxes) for one in judged])
    sides = np.array([(one.width, one.height) for one in judged], np.float64)
    corners = np.concatenate([one.boxes for one in judged]).astype(np.float64).reshape(-1, 2, 2)
    scaled = corners / np.repeat(sides, counts, axis=0)[:, None]
    reach, scaled_reach = corners[:, 1].max(0), scaled[:, 1].max(0)
    is_full_scale = MIN_FULL_SCALE_FRACTION <= reach.min() / FULL_SCALE <= reach.max() / FULL_SCALE <= MAX_BOX_FRACTION
    for values, limits, fractions, name in (
        (corners, reach, np.clip(reach.max() / sides, 1e-6, 1.0), f"{reach.max():.0f}"),
        (scaled, scaled_reach, np.full_like(sides, scaled_reach.max()), f"{scaled_reach.max():.2f} of each side"),
    ):
        is_reduced = np.median(fractions, axis=0).max() <= MAX_REDUCED_FRACTION
        probability = (np.minimum(counts, MAX_INDEPENDENT_BOXES)[:, None] * np.log(np.clip(fractions, 1e-6, 1.0))).sum()
        if (is_reduced or is_full_scale) and probability <= MAX_LOG_PROBABILITY and fills_range(values, limits):
            return name
    return None


def fills_range(corners: Float[np.ndarray, "regions 2 2"], reach: Float[np.ndarray, "2"]) -> bool:
    """Whether boxes begin near 0 and are spread over the whole range to their last end, in both axes."""
    first, spread = corners[:, 0].min(0), corners.mean(1).std(0)
    return bool((first <= MAX_FIRST_FRACTION * reach).all() and (spread >= MIN_SPREAD_FRACTION * reach).all())
