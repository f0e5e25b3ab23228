"""The interface of region extractors: from an image to boxes with features.

Images are processed one at a time, because detectors that pad a batch with zeros give other results for it. A model can
read two stores if their fingerprints are equal. The source of the boxes is not part of the fingerprint: a model that
was trained on a detector's boxes may be evaluated on given ones (VCR, RefCOCO+).
"""

import hashlib
import json
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from comodal.data.regions.box_units import BoxUnitsError, check_box_units
from comodal.data.regions.region_store import Regions
from comodal.errors import MediaError

TOO_THIN, BOX_OUTSIDE_IMAGE = "too thin", "box outside the image"
MAX_ASPECT_RATIO = 50  # long side over short side; more would need gigabytes once the short side is scaled up


@runtime_checkable
class RegionExtractor(Protocol):
    """A region extractor.

    Attributes:
        name: Display name.
        size: Short side of its network's input images.
        feature_dim: Features of a region.
        num_classes: Number of its classes, background first; 0 without class probabilities.
        has_own_boxes: Whether it has boxes of its own.
        accepts_boxes: Whether it computes features of given boxes.
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
    def has_own_boxes(self) -> bool: ...
    @property
    def accepts_boxes(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The regions of an upright image.

        Args:
            image: An image as read by `comodal.media.image.read_image`.
            boxes: Left, top, right, bottom in its pixels, or None for the extractor's own boxes.

        Returns:
            Features, boxes in pixels, and class probabilities or None; given boxes keep their order.
        """
        ...


def fingerprint_extractor(weights: str, settings: dict[str, Any]) -> str:
    """A fingerprint of weights and settings."""
    return hashlib.sha256((weights + json.dumps(settings, sort_keys=True, default=str)).encode()).hexdigest()[:16]


def check_image_shape(image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Rejects an image that is too narrow; the path in the error is "the image", for the caller to replace.

    Raises:
        MediaError: Its long side is more than 50 times its short side.
    """
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError("the image", TOO_THIN, f"{width} x {height} pixels, the limit is 1 to {MAX_ASPECT_RATIO}")


def clip_boxes(boxes: Float32[np.ndarray, "regions 4"], width: int, height: int) -> Float32[np.ndarray, "regions 4"]:
    """Boxes clipped to the image.

    Raises:
        MediaError: They are not corners in pixels, or one of them lies outside the image: they are of another image, or
            of a rotated one.
    """
    try:
        check_box_units(boxes, width, height)
    except BoxUnitsError as error:
        raise MediaError("the image", error.reason, str(error)) from None
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    empty = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    if empty.any():
        sides = ", ".join(f"{side:g}" for side in boxes[empty][0])
        raise MediaError("the image", BOX_OUTSIDE_IMAGE, f"[{sides}] in {width} x {height} pixels (the image upright)")
    return clipped
