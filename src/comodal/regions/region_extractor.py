"""What every source of regions is: a picture in, its boxes with features out, whoever finds the boxes.

A picture at a time: detectors that pad a batch with zeros answer otherwise beside other pictures. Two stores can be
read by one model if their fingerprints are the same; where the boxes of a picture are is another matter, for a model
that was trained on a detector's boxes may well be asked about given ones (VCR, RefCOCO+).
"""

import hashlib
import json
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from comodal.data.regions.box_units import BoxUnitsError, check_box_units
from comodal.data.regions.region_store import Regions
from comodal.errors import MediaError

TOO_THIN, BOX_OUTSIDE_IMAGE = "too thin", "box outside the picture"
MAX_ASPECT_RATIO = 50  # long side to short side: beyond, a network that scales the short side up would need gigabytes


@runtime_checkable
class RegionExtractor(Protocol):
    """A source of regions.

    Attributes:
        name: What it is, for people.
        size: Short side of the pictures as its network sees them.
        feature_dim: Features of a region.
        num_classes: Classes of its probabilities, "nothing" first; 0 where it has none.
        finds_boxes: It has boxes of its own.
        takes_boxes: It can tell the features of boxes that are given.
        fingerprint: Of its weights and of every setting that changes the features of a box.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def feature_dim(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def finds_boxes(self) -> bool: ...
    @property
    def takes_boxes(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...

    def __call__(
        self, picture: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The regions of a picture that stands upright.

        Args:
            picture: As `comodal.media.image.read_image` reads it.
            boxes: Left, top, right, bottom in pixels of it, or None for the source's own boxes.

        Returns:
            Features, boxes in pixels, and class probabilities or None; given boxes in their order.
        """
        ...


def fingerprint_extractor(weights: str, settings: dict[str, Any]) -> str:
    """Of weights and settings together."""
    return hashlib.sha256((weights + json.dumps(settings, sort_keys=True, default=str)).encode()).hexdigest()[:16]


def check_image_shape(picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Refuses a picture that is all edge; the path is "the picture", for the caller to replace.

    Raises:
        MediaError: It is more than 50 times as long as wide.
    """
    height, width = picture.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError("the picture", TOO_THIN, f"{width} x {height} pixels, the limit is 1 to {MAX_ASPECT_RATIO}")


def clip_boxes(boxes: Float32[np.ndarray, "regions 4"], width: int, height: int) -> Float32[np.ndarray, "regions 4"]:
    """Boxes cut off at the edges of the picture.

    Raises:
        MediaError: They are no corners in pixels, or nothing is left of one of them: they are of another picture, or of
            one that was turned.
    """
    try:
        check_box_units(boxes, width, height)
    except BoxUnitsError as error:
        raise MediaError("the picture", error.reason, str(error)) from None
    cut = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    empty = (cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1])
    if empty.any():
        sides = ", ".join(f"{side:g}" for side in boxes[empty][0])
        raise MediaError(
            "the picture", BOX_OUTSIDE_IMAGE, f"[{sides}] in {width} x {height} pixels (the picture upright)"
        )
    return cut
