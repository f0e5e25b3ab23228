"""Vision networks that compute feature maps of any image: an L3-Net's image tower, or EfficientNet-Lite0.

Images are scaled so that their short side is the network's input size and both sides are multiples of its stride.
Region features are pooled from the last map in boxes. Grid features serve vision-and-language models nearly as well as
a detector's (Jiang et al., "In Defense of Grid Features for Visual Question Answering", CVPR 2020). Earlier maps keep
information on colors, materials and small objects that the last map has lost (hypercolumns: Hariharan et al., CVPR
2015).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor, nn

from comodal.data.regions.region_store import Regions
from comodal.errors import CheckpointError
from comodal.models.checkpoint import compute_weights_checksum
from comodal.models.detectors.pooling import pool_boxes
from comodal.models.efficientnet_lite0 import LITE0, LITE0_STRIDE, build_efficientnet_lite0
from comodal.models.l3net.l3net import L3Net
from comodal.regions.detector_files import NetworkFiles
from comodal.regions.region_extractor import ExtractorSource, Maps, fingerprint_extractor

L3NET_STRIDE = 8
LITE0_SIZE = 256


@dataclass(frozen=True)
class Backbone:
    """A vision network, in evaluation mode.

    Args:
        name: Display name.
        fingerprint: Of its weights; features with different fingerprints are not compatible.
        feature_maps: Function from bytes (images, 3, height, width) to maps (images, channels, rows, columns) in order.
        size: Short side of its input images.
        stride: Pixels per cell of its last map.
        device: Device of its weights.
    """

    name: str
    fingerprint: str
    feature_maps: Callable[[Tensor], list[Tensor]]
    size: int
    stride: int
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(
        self, images: UInt8[np.ndarray, "images height width 3"]
    ) -> list[Float[Tensor, "images _channels _rows _columns"]]:
        """The maps of images that `scale_image` returned, on the network's device."""
        pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(self.device)
        return [feature_map.float() for feature_map in self.feature_maps(pixels)]

    def scale_image(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "new_height new_width 3"]:
        """An image scaled to the network's short side, with both sides multiples of its stride."""
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        rows, columns = (max(1, round(side * scale / self.stride)) for side in (height, width))
        new_size = (columns * self.stride, rows * self.stride)
        if new_size == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(new_size, Image.Resampling.BILINEAR))


class ScaledImage(NamedTuple):
    """A scaled image, boxes in pixels of the original image, and the original size."""

    image: UInt8[np.ndarray, "_ _ 3"]
    boxes: Float32[np.ndarray, "regions 4"]
    width: int
    height: int


class PooledRegions:
    """A region extractor without a detector: given boxes, with features pooled from a network's maps.

    Args:
        backbone: The network.
        cells: A box is divided into this number of rows and columns, whose features are concatenated.
        maps: The last map, or those of all stages, concatenated from the first to the last.
    """

    def __init__(self, backbone: Backbone, cells: int = 1, maps: Maps = "last") -> None:
        self.backbone, self.cells, self.first_map = backbone, cells, 0 if maps == "all" else -1
        self.name, self.size = backbone.name, backbone.size
        self.has_own_boxes, self.accepts_boxes, self.num_classes = False, True, 0
        zero_image = backbone.scale_image(np.zeros((backbone.size, backbone.size, 3), np.uint8))
        self.feature_dim = sum(feature_map.shape[1] for feature_map in self.compute_maps(zero_image[None])) * cells**2
        settings = {"size": backbone.size, "cells": cells} | ({"maps": maps} if maps != "last" else {})
        self.fingerprint = fingerprint_extractor(backbone.fingerprint, settings)

    def compute_maps(
        self, images: UInt8[np.ndarray, "images height width 3"]
    ) -> list[Float[Tensor, "images _channels _rows _columns"]]:
        """The maps that are pooled."""
        return self.backbone(images)[self.first_map :]

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """Features of boxes in pixels."""
        return self.extract_batch([self.scale_image(image, boxes)])[0]

    def scale_image(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None
    ) -> ScaledImage:
        """An image scaled for the network, with its boxes."""
        if boxes is None:
            raise ValueError(f"{self.name} has no boxes of its own; boxes are required")
        height, width = image.shape[:2]
        return ScaledImage(self.backbone.scale_image(image), boxes, width, height)

    def extract_batch(self, images: Sequence[ScaledImage]) -> list[Regions]:
        """The regions of several images; those of one size are computed in one batch."""
        regions_by_index: dict[int, Regions] = {}
        for shape in dict.fromkeys(image.image.shape for image in images):
            same_size = {i: image for i, image in enumerate(images) if image.image.shape == shape}
            boxes = [
                torch.from_numpy(image.boxes / np.array([image.width, image.height] * 2, np.float32))
                for image in same_size.values()
            ]
            maps = self.compute_maps(np.stack([image.image for image in same_size.values()]))
            features = torch.cat([pool_boxes(feature_map, boxes, self.cells) for feature_map in maps], 1).cpu().numpy()
            ends = np.cumsum([len(image_boxes) for image_boxes in boxes])
            for (i, image), rows in zip(same_size.items(), np.split(features, ends[:-1]), strict=True):
                regions_by_index[i] = Regions(rows, image.boxes, None, None, image.width, image.height)
        return [regions_by_index[i] for i in range(len(images))]


def load_lite0_extractor(source: ExtractorSource, _: NetworkFiles, device: str) -> PooledRegions | None:
    """EfficientNet-Lite0, which has a name and no files of its own."""
    return load_pooled_regions(source, device) if source.detector == LITE0 else None


def load_l3net_extractor(source: ExtractorSource, files: NetworkFiles, device: str) -> PooledRegions | None:
    """The image tower of an L3-Net, from a run or model folder."""
    return load_pooled_regions(source, device) if files.model_class == L3Net.__name__ else None


def load_pooled_regions(source: ExtractorSource, device: str) -> PooledRegions:
    """The extractor of a vision network."""
    return PooledRegions(load_backbone(source.detector, source.size, device), source.cells, source.maps or "last")


def load_backbone(network: str, size: int | None = None, device: str = "cpu") -> Backbone:
    """Loads a vision network by name or from a folder.

    Args:
        network: `efficientnet_lite0`, or the folder of an L3-Net run or model.
        size: Short side of the images; by default 256 for EfficientNet-Lite0, twice the training size of an L3-Net,
            which was trained on images of one large object while images with captions have several.
        device: PyTorch device, such as cuda.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        DataError: A package is not installed.
    """
    if network == LITE0:
        model = build_efficientnet_lite0()
        fingerprint, model = fingerprint_weights(model), model.to(device)
        return Backbone(LITE0, fingerprint, make_lite0_maps(model), size or LITE0_SIZE, LITE0_STRIDE, device)
    path = Path(network)
    if not path.exists():
        raise CheckpointError(f"{network}: not the folder of an L3-Net; the supported name is {LITE0}")
    l3net = L3Net.from_pretrained(path)
    fingerprint, l3net, size = fingerprint_weights(l3net), l3net.to(device), size or 2 * l3net.config.image_size
    return Backbone("L3-Net", fingerprint, partial(compute_l3net_maps, l3net), size, L3NET_STRIDE, device)


def fingerprint_weights(model: nn.Module) -> str:
    """A fingerprint of the weights that does not depend on their path."""
    return hashlib.sha256(str(compute_weights_checksum(model.state_dict())).encode()).hexdigest()[:16]


def make_lite0_maps(model: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    """The first map at each stride (16, 24, 40 and 112 channels), and the last one (1,280); bytes are normalized to
    (x - 127) / 128, as in its training.
    """
    extract, stage_inputs = model.extract_features, list[Tensor]()
    assert callable(extract)

    def record_stage_input(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[2] < inputs[0].shape[2]:
            stage_inputs.append(inputs[0])

    for block in model.get_submodule("_blocks").children():
        block.register_forward_hook(record_stage_input)

    def compute_maps(image: Tensor) -> list[Tensor]:
        stage_inputs.clear()
        last = extract((image.float() - 127) / 128)
        return [*stage_inputs, last]

    return compute_maps


def compute_l3net_maps(model: L3Net, images: UInt8[Tensor, "images 3 height width"]) -> list[Tensor]:
    """The maps of its four blocks; the embeddings pool the last one."""
    maps = model.image_tower.compute_stage_maps(model.normalize_image(images))
    return maps if model.config.embedding == "relu" else [*maps[:-1], model.compute_image_map(images)]
