"""Loads any region extractor of the registry by name or path: vision networks, torchvision's Faster R-CNN, Hugging
Face's DETR, the Visual Genome detectors, and those of other packages.

An extractor has a network for the features and a source of boxes: the network's own, a grid, selective search, or given
boxes. All combinations are supported except two: a vision network has no boxes of its own, and DETR takes no given
boxes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from comodal.data.regions.region_compatibility import describe_regions
from comodal.data.regions.region_store import Regions
from comodal.errors import CheckpointError, DataError, check_number
from comodal.hardware import Precision, find_device
from comodal.models.detectors.pooling import make_unit_grid_boxes
from comodal.regions.backbones import PooledRegions
from comodal.regions.detector_files import NetworkFiles
from comodal.regions.extractors_c4 import C4Extractor
from comodal.regions.extractors_selective import run_selective_search
from comodal.regions.region_extractor import (
    BoxSource,
    ExtractorSource,
    Maps,
    PostprocessingName,
    RegionExtractor,
    check_image_shape,
    clip_boxes,
)
from comodal.registry import REGION_EXTRACTORS, check_region_extractor, import_object

BoxFinder: TypeAlias = Callable[[UInt8[np.ndarray, "height width 3"]], Float32[np.ndarray, "regions 4"]]
MAX_SETTINGS = {
    "grid": 100,
    "cells": 32,
    "size": 4096,
    "max_regions": 10_000,
    "min_regions": 10_000,
}  # each with its maximum
SETTING_CHOICES = {
    "postprocessing": get_args(PostprocessingName),
    "precision": get_args(Precision),
    "maps": get_args(Maps),
}
OPTIONAL_SETTINGS = ("min_regions", "postprocessing", "maps")  # stores of other networks lack them
OLD_PRECISION_SETTING = "head"  # its name in stores of earlier versions


@dataclass(frozen=True)
class LoadedExtractor:
    """A region extractor with its network and its source of boxes.

    Args:
        source: The settings, with all defaults resolved.
        network: The network that computes the features.
        box_finder: Function from an image to boxes; None for the network's own.
    """

    source: ExtractorSource
    network: RegionExtractor
    box_finder: BoxFinder | None

    @property
    def about(self) -> dict[str, Any]:
        """Metadata of the features, for a store and for models that are trained on it."""
        return asdict(self.source) | {"name": self.network.name, "fingerprint": self.network.fingerprint}

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The regions of an upright image, in given boxes (clipped to the image) or its own.

        Raises:
            MediaError: The image is too narrow, a box lies outside it, or the boxes are not corners in pixels.
            DataError: There are no boxes.
        """
        return self.network(image, self.get_boxes(image, boxes))

    def get_boxes(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None
    ) -> Float32[np.ndarray, "regions 4"] | None:
        """The boxes of an image; None where the network finds its own. Raises the same errors as a call."""
        check_image_shape(image)
        if boxes is not None:
            boxes = clip_boxes(boxes, image.shape[1], image.shape[0])
        elif self.source.boxes == "given":
            raise DataError(f"{self.network.name} uses given boxes: pass the boxes of the objects with --boxes")
        elif self.box_finder is not None:
            boxes = self.box_finder(image)
        return boxes


def load_extractor(source: ExtractorSource, device: str = "auto") -> LoadedExtractor:
    """Loads the network of a source.

    Args:
        source: The settings.
        device: PyTorch device: auto or its name.

    Raises:
        CheckpointError: There is no such network, or it is damaged.
        DataError: A package is not installed.
        ValueError: The settings are inconsistent.
    """
    check_source_values(source)
    network = load_region_network(source, str(find_device(device)))
    boxes: BoxSource = source.boxes or ("own" if network.has_own_boxes else "grid")
    if boxes == "own" and not network.has_own_boxes:
        raise ValueError(f"{source.detector} has no boxes of its own: use a grid, selective search or given ones")
    if boxes != "own" and not network.accepts_boxes:
        raise ValueError(f"{network.name} has its own boxes and does not support given ones")
    if (source.cells != 1 or source.maps) and not isinstance(network, PooledRegions):
        raise ValueError(f"cells and maps are for a vision network, not for {network.name}")
    if not isinstance(network, C4Extractor) and any((source.min_regions, source.postprocessing)):
        raise ValueError(
            f"min_regions and postprocessing are for bottom-up attention's detector, not for {network.name}"
        )
    if not isinstance(network, C4Extractor) and source.precision == "bf16":
        raise ValueError(f"precision bf16 is for bottom-up attention's detector; {network.name} computes in fp32")
    box_finders: dict[str, BoxFinder] = {
        "grid": partial(make_grid_boxes, grid=source.grid),
        "selective": partial(run_selective_search, max_regions=source.max_regions),
    }
    return LoadedExtractor(replace(source, boxes=boxes, size=network.size), network, box_finders.get(boxes))


def load_region_network(source: ExtractorSource, device: str) -> RegionExtractor:
    """The network that computes the features, from the first extractor of the registry that recognizes its files.

    Raises:
        CheckpointError: None does, or the files are damaged.
    """
    check_region_extractor(source.detector)
    files = NetworkFiles(Path(source.detector))
    names = [source.detector] if source.detector in REGION_EXTRACTORS else REGION_EXTRACTORS
    for name in names:
        network = import_object(REGION_EXTRACTORS[name].target)(source, files, device)
        if network is not None:
            assert isinstance(network, RegionExtractor), f"{name} is not a region extractor"
            return network
    raise CheckpointError(f"{source.detector}: not a network of {', '.join(names)}; it has {files.describe_contents()}")


def parse_extractor_source(provenance: dict[str, Any]) -> ExtractorSource:
    """The extractor settings of a store, to extract regions of the same kind.

    Raises:
        DataError: The features were extracted by other software.
    """
    try:
        names = set(ExtractorSource.__dataclass_fields__) - {*OPTIONAL_SETTINGS, "precision"}
        values = {name: provenance[name] for name in names}
    except KeyError as error:
        raise DataError(f"regions of {describe_regions(provenance)}: its detector is unknown") from error
    values |= {name: provenance.get(name) for name in OPTIONAL_SETTINGS}
    values["precision"] = provenance.get("precision", provenance.get(OLD_PRECISION_SETTING) or "auto")
    is_valid = values["boxes"] in get_args(BoxSource) and isinstance(values["min_regions"], int | None)
    is_valid = is_valid and all(isinstance(values[name], int) for name in MAX_SETTINGS if name != "min_regions")
    if not is_valid or any(values[name] not in (None, *choices) for name, choices in SETTING_CHOICES.items()):
        raise DataError(f"{values} are not valid extractor settings; they were edited")
    return ExtractorSource(**{**values, "detector": str(values["detector"])})


def load_extractor_like(
    provenance: dict[str, Any], detector: str | None = None, boxes: BoxSource | None = None, device: str = "auto"
) -> LoadedExtractor:
    """Loads an extractor of the same kind as that of a store, which may be from another machine or have another path.

    Args:
        provenance: The metadata of the regions, from the store or from a model that was trained on it.
        detector: Path of the network; by default its original path.
        boxes: Source of the boxes; by default the original one.
        device: PyTorch device: auto or its name.

    Raises:
        CheckpointError: There is no such network, or it is another one.
        DataError: The features were extracted by other software.
    """
    source = parse_extractor_source(provenance)
    source = replace(source, detector=detector or source.detector, boxes=boxes or source.boxes)
    extractor = load_extractor(source, device)
    if extractor.network.fingerprint != provenance.get("fingerprint"):
        raise CheckpointError(f"{source.detector} is not the network of these regions, {describe_regions(provenance)}")
    return extractor


def check_source_values(source: ExtractorSource) -> None:
    """Checks that all integers are positive and below their limits."""
    for name, maximum in MAX_SETTINGS.items():
        value = getattr(source, name)
        if value is not None:
            check_number(name, value, 1, maximum)


def make_grid_boxes(image: UInt8[np.ndarray, "height width 3"], grid: int) -> Float32[np.ndarray, "cells 4"]:
    """The cells of a grid in pixels."""
    height, width = image.shape[:2]
    return make_unit_grid_boxes(grid, grid).numpy() * np.array([width, height, width, height], np.float32)
