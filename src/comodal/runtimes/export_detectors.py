"""The exportable networks of the region detectors: one for the image, and one for the cells of its regions.

Between the two are proposals, suppression and pooling. They have no weights, each runtime implements them differently,
and features are only compatible with one implementation (models/detectors/detector_rules.py, roi_pooling.py).
"""

import torch
import torchvision  # noqa: F401, registers the shapes of its kernels, which an export needs
from jaxtyping import Float
from torch import Tensor, nn

from comodal.models.detectors import detector_fpn
from comodal.models.detectors.detector_c4 import C4, C4_ROI_CELLS
from comodal.models.detectors.detector_fpn import FPN, SIZE_DIVISOR
from comodal.runtimes.exportable import ExportableNetwork, Sizes, copy_without_parts

IMAGE_SIZE_LIMITS: dict[str, tuple[int, int | None]] = {"height": (64, None), "width": (64, None)}
TRIED_IMAGE_SIZES = tuple({"height": height, "width": width} for height, width in ((96, 128), (67, 150), (200, 133)))
C4_IMAGE_PARTS = ("stem", "res2", "res3", "res4", "proposal", "proposal_scores", "proposal_deltas")
C4_REGION_PARTS = ("res5", "class_scores", "box_deltas", "class_embedding", "attribute", "attribute_scores")
TRIED_REGION_COUNTS = tuple({"regions": count} for count in (3, 1, 7))
FPN_IMAGE_PARTS = ("res5", "across", "smooth", *C4_IMAGE_PARTS)
FPN_REGION_PARTS = ("fc6", "fc7", "class_scores", "box_deltas")
TRIED_MAP_SIZES = tuple({"rows": rows, "columns": columns} for rows, columns in ((4, 5), (3, 6), (7, 4)))  # times 32
MAP_SIZE_LIMITS: dict[str, tuple[int, int | None]] = {"rows": (2, None), "columns": (2, None)}
PIXEL_SCALE = 128.0  # inputs are bytes minus the channel means


class C4MapNetwork(nn.Module):
    """From an image as returned by `to_centered_bgr` to its map, and scores and deltas of all anchors."""

    def __init__(self, model: C4) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "1 3 height width"]) -> tuple[Tensor, ...]:
        feature_map = self.model.compute_feature_map(pixels)
        return feature_map, *self.model.propose(feature_map)


class C4RegionNetwork(nn.Module):
    """From the cells of regions (max-pooled) to features, classes, deltas and attributes."""

    def __init__(self, model: C4) -> None:
        super().__init__()
        self.model = model

    def forward(self, cells: Float[Tensor, "regions channels rows columns"]) -> tuple[Tensor, ...]:
        features = self.model.res5(cells).mean((2, 3))
        return features, *self.model.predict(features)


class FPNMapNetwork(nn.Module):
    """From an image padded to multiples of 32 to its five maps, and scores and deltas of all anchors of each."""

    def __init__(self, model: FPN) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "1 3 height width"]) -> tuple[Tensor, ...]:
        maps = self.model.compute_maps(pixels)
        scores, deltas = zip(*map(self.model.propose, maps), strict=True)
        return (*maps, *scores, *deltas)


class FPNRegionNetwork(nn.Module):
    """From the cells of regions to features, class scores and deltas."""

    def __init__(self, model: FPN) -> None:
        super().__init__()
        self.model = model

    def forward(self, cells: Float[Tensor, "regions pyramid rows columns"]) -> tuple[Tensor, ...]:
        return tuple(self.model.predict_from_cells(cells))


def list_fpn_networks(model: FPN) -> list[ExportableNetwork]:
    """The two networks of the ResNeXt detector."""

    def make_pixels(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        height, width = SIZE_DIVISOR * sizes["rows"], SIZE_DIVISOR * sizes["columns"]
        return (PIXEL_SCALE * torch.randn(1, 3, height, width, generator=generator),)

    def make_cells(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        side = detector_fpn.FPN_ROI_CELLS
        return (torch.rand(sizes["regions"], model.config.pyramid, side, side, generator=generator),)

    levels = range(2, 2 + len(detector_fpn.FPN_STRIDES))
    outputs = tuple(f"{kind}{level}" for kind in ("map", "scores", "deltas") for level in levels)
    image_network, region_network = (
        FPNMapNetwork(copy_without_parts(model, *FPN_REGION_PARTS)),
        FPNRegionNetwork(copy_without_parts(model, *FPN_IMAGE_PARTS)),
    )
    sides = {"pixels": ("", "", f"{SIZE_DIVISOR}*rows", f"{SIZE_DIVISOR}*columns")}
    region_outputs = ("features", "fc7", "scores", "deltas")
    return [
        ExportableNetwork(
            "image", image_network, image_network, sides, outputs, make_pixels, TRIED_MAP_SIZES, MAP_SIZE_LIMITS
        ),
        ExportableNetwork(
            "regions",
            region_network,
            region_network,
            {"cells": ("regions", "", "", "")},
            region_outputs,
            make_cells,
            TRIED_REGION_COUNTS,
            {},
        ),
    ]


def list_c4_networks(model: C4) -> list[ExportableNetwork]:
    """The two networks of the C4 detector."""
    channels = 16 * model.config.width

    def make_pixels(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        return (PIXEL_SCALE * torch.randn(1, 3, sizes["height"], sizes["width"], generator=generator),)

    def make_cells(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        return (torch.rand(sizes["regions"], channels, C4_ROI_CELLS, C4_ROI_CELLS, generator=generator),)

    image_network, region_network = (
        C4MapNetwork(copy_without_parts(model, *C4_REGION_PARTS)),
        C4RegionNetwork(copy_without_parts(model, *C4_IMAGE_PARTS)),
    )
    region_outputs = ("features", "classes", "deltas", "attributes")
    return [
        ExportableNetwork(
            "image", image_network, image_network, {"pixels": ("", "", "height", "width")}, ("map", "scores", "deltas"),
            make_pixels, TRIED_IMAGE_SIZES, IMAGE_SIZE_LIMITS,
        ),
        ExportableNetwork(
            "regions", region_network, region_network, {"cells": ("regions", "", "", "")}, region_outputs, make_cells,
            TRIED_REGION_COUNTS, {},
        ),
    ]  # fmt: skip
