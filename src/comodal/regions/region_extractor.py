"""The interface of region extractors, from an image to boxes with features, and their settings.

Images are processed one at a time, because detectors that pad a batch with zeros give other results for it. A model can
read two stores if their fingerprints are equal. The source of the boxes is not part of the fingerprint: a model that
was trained on a detector's boxes may be evaluated on given ones (VCR, RefCOCO+).
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from comodal.data.regions.box_units import BoxUnitsError, check_box_units
from comodal.data.regions.region_store import Regions
from comodal.errors import MediaError
from comodal.hardware import Precision

TOO_THIN, BOX_OUTSIDE_IMAGE = "too thin", "box outside the image"
BoxSource = Literal["own", "grid", "selective", "given"]
PostprocessingName = Literal["caffe", "lxmert"]
Maps = Literal["last", "all"]
DEFAULT_MAX_REGIONS = 36  # the regions of an image in ViLBERT's own features
MAX_ASPECT_RATIO = 50  # long side over short side; more would need gigabytes once the short side is scaled up


@dataclass(frozen=True, kw_only=True)
class RegionSettings:
    """The settings of an extractor besides its network and the source of its boxes.

    Args:
        grid: Rows and columns of the grid.
        cells: For a vision network: a box is divided into this number of rows and columns, whose features are
            concatenated.
        size: Short side of the images as the network's input; by default the network's own.
        max_regions: Maximum number of regions per image, for own boxes and selective search; the most confident are
            kept.
        min_regions: For bottom-up attention's detector: minimum of regions; between minimum and maximum the confident
            ones are kept (10 and 100 in the published features of COCO). By default equal to the maximum.
        postprocessing: For the same: caffe (the default: that of ViLBERT's features) or lxmert (Hugging Face's).
        precision: auto and fp32 compute in fp32 on every machine, so that regions do not depend on it. bf16 is for
            bottom-up attention's detector: its last stage, faster where the hardware computes it natively.
        maps: For a vision network: last (the default), or all: also those of earlier stages, which represent colors and
            small objects better.
    """

    grid: int = 6
    cells: int = 1
    size: int | None = None
    max_regions: int = DEFAULT_MAX_REGIONS
    min_regions: int | None = None
    postprocessing: PostprocessingName | None = None
    precision: Precision = "auto"
    maps: Maps | None = None


@dataclass(frozen=True)
class ExtractorSource(RegionSettings):
    """All that another machine needs to make the same regions: the network, the source of the boxes, the settings.

    Args:
        detector: Name of an extractor in the registry, or path of the network.
        boxes: Source of the boxes where none are given; None for the default: own, or a grid for vision networks.
    """

    detector: str
    boxes: BoxSource | None = None


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
