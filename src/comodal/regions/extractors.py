"""Loads any region extractor by name or path: vision networks, torchvision's Faster R-CNN, Hugging Face's DETR, and the
Visual Genome detectors.

An extractor has a network for the features and a source of boxes: the network's own, a grid, selective search, or given
boxes. All combinations are supported except two: a vision network has no boxes of its own, and DETR takes no given
boxes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from torch import nn

from comodal.data.regions.region_compatibility import describe_regions
from comodal.data.regions.region_store import Regions
from comodal.errors import CheckpointError, DataError, check_number
from comodal.hardware import find_device
from comodal.models.checkpoint import MODEL_CONFIG_FILE, find_model_folder, load_model
from comodal.models.convert.convert_c4 import build_c4, is_c4_state_dict
from comodal.models.convert.convert_fpn import build_fpn, is_fpn_state_dict
from comodal.models.convert.state_dicts import WEIGHT_FILE_NAMES
from comodal.models.detectors.detector_c4 import C4
from comodal.models.detectors.detector_fpn import FPN
from comodal.models.detectors.pooling import make_unit_grid_boxes
from comodal.regions.backbones import LITE0, Maps, PooledRegions, load_backbone
from comodal.regions.detector_files import CAFFEMODEL_SUFFIX, CLASS_SCORES_KEY, load_detector, read_detector
from comodal.regions.extractors_c4 import C4Extractor, HeadTypes, PostprocessingName, build_c4_postprocessing
from comodal.regions.extractors_detr import load_detr
from comodal.regions.extractors_fpn import FPNExtractor, build_fpn_postprocessing
from comodal.regions.extractors_selective import run_selective_search
from comodal.regions.region_extractor import RegionExtractor, check_image_shape, clip_boxes
from comodal.registry import import_object
from comodal.text_files import read_json_object

BoxSource = Literal["own", "grid", "selective", "given"]
BoxFinder: TypeAlias = Callable[[UInt8[np.ndarray, "height width 3"]], Float32[np.ndarray, "regions 4"]]
MAX_SETTINGS = {
    "grid": 100,
    "cells": 32,
    "size": 4096,
    "max_regions": 10_000,
    "min_regions": 10_000,
}  # each with its maximum
SETTING_CHOICES = {"postprocessing": get_args(PostprocessingName), "head": get_args(HeadTypes), "maps": get_args(Maps)}
DETECTOR_CLASSES = ("C4", "FPN")
OPTIONAL_SETTINGS = ("min_regions", "postprocessing", "head", "maps")  # stores of other networks lack them
DEFAULT_MAX_REGIONS = 36  # the regions of an image in ViLBERT's own features


@dataclass(frozen=True)
class ExtractorSource:
    """The settings of an extractor: everything that another machine needs to make the same regions.

    Args:
        detector: efficientnet_lite0, or the path of the network.
        boxes: Source of the boxes where none are given; None for the default: own, or a grid for vision networks.
        grid: Rows and columns of a grid.
        cells: For a vision network: number of rows and columns that a box is divided into.
        size: Short side of the images as the network's input; None for the default.
        max_regions: Maximum number of own boxes and of those of selective search; the most confident are kept.
        min_regions: Minimum number of own boxes of bottom-up attention's detector; None: equal to the maximum.
        postprocessing: For the same: post-processing; None for ViLBERT's.
        head: For the same: precision of its last stage; None for fp32.
        maps: For a vision network: the maps that are pooled; None for the last one.
    """

    detector: str
    boxes: BoxSource | None = None
    grid: int = 6
    cells: int = 1
    size: int | None = None
    max_regions: int = DEFAULT_MAX_REGIONS
    min_regions: int | None = None
    postprocessing: PostprocessingName | None = None
    head: HeadTypes | None = None
    maps: Maps | None = None


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
    if not isinstance(network, C4Extractor) and any((source.min_regions, source.postprocessing, source.head)):
        raise ValueError(
            f"min_regions, postprocessing and head are for bottom-up attention's detector, not for {network.name}"
        )
    box_finders: dict[str, BoxFinder] = {
        "grid": partial(make_grid_boxes, grid=source.grid),
        "selective": partial(run_selective_search, max_regions=source.max_regions),
    }
    return LoadedExtractor(replace(source, boxes=boxes, size=network.size), network, box_finders.get(boxes))


def load_region_network(source: ExtractorSource, device: str) -> RegionExtractor:
    """The network that computes the features, recognized by its files."""
    path = Path(source.detector)
    if source.detector == LITE0:
        return PooledRegions(load_backbone(LITE0, source.size, device), source.cells, source.maps or "last")
    if not path.exists():
        raise CheckpointError(f"{source.detector}: no such file or folder; the supported name is {LITE0}")
    if path.is_dir() and (
        (path / MODEL_CONFIG_FILE).is_file() or not any((path / name).is_file() for name in WEIGHT_FILE_NAMES)
    ):
        if (path / MODEL_CONFIG_FILE).is_file() and "model_type" in read_json_object(path / MODEL_CONFIG_FILE):
            return load_detr(path, source.size, source.max_regions, device)
        if read_json_object(find_model_folder(path) / MODEL_CONFIG_FILE).get("class") in DETECTOR_CLASSES:
            return create_detector_extractor(source, load_model(path), device)
        return PooledRegions(load_backbone(source.detector, source.size, device), source.cells, source.maps or "last")
    if path.suffix == CAFFEMODEL_SUFFIX:
        return create_detector_extractor(source, load_detector(path)[0], device)
    state = read_detector(path)
    if is_c4_state_dict(state):
        return create_detector_extractor(source, build_c4(state, path)[0], device)
    if is_fpn_state_dict(state):
        return create_detector_extractor(source, build_fpn(state, path)[0], device)
    if CLASS_SCORES_KEY not in state:
        raise CheckpointError(
            f"{path}: not the weights of torchvision's Faster R-CNN or of a Visual Genome detector; "
            f"it begins with {list(state)[:3]}"
        )
    load_faster_rcnn = import_object("comodal.regions.extractors_torchvision:load_faster_rcnn")
    return load_faster_rcnn(path, state, source.size, source.max_regions, device)


def create_detector_extractor(source: ExtractorSource, model: nn.Module, device: str) -> C4Extractor | FPNExtractor:
    """The extractor of a Visual Genome detector with the settings of a source."""
    if isinstance(model, FPN):
        return FPNExtractor(model, build_fpn_postprocessing(source.size, source.max_regions), device)
    assert isinstance(model, C4)
    postprocessing = build_c4_postprocessing(source.postprocessing, source.size, source.min_regions, source.max_regions)
    return C4Extractor(model, postprocessing, source.head or "fp32", device)


def parse_extractor_source(provenance: dict[str, Any]) -> ExtractorSource:
    """The extractor settings of a store, to extract regions of the same kind.

    Raises:
        DataError: The features were extracted by other software.
    """
    try:
        values = {
            name: provenance[name] for name in ExtractorSource.__dataclass_fields__ if name not in OPTIONAL_SETTINGS
        }
    except KeyError as error:
        raise DataError(f"regions of {describe_regions(provenance)}: its detector is unknown") from error
    values |= {name: provenance.get(name) for name in OPTIONAL_SETTINGS}
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
