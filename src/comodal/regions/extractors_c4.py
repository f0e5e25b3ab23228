"""The Visual Genome detector of bottom-up attention as a region extractor: the source of ViLBERT's and LXMERT's
features.

Its weights are published in five formats (models/convert/convert_c4.py). The default post-processing is Caffe's, as
for the features that ViLBERT was trained on. LXMERT's post-processing is for models trained on LXMERT's features.
"""

from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from comodal.data.regions.region_store import Regions
from comodal.errors import MediaError
from comodal.hardware import DTYPES
from comodal.models.detectors.detector_c4 import C4, optimize_c4_layout
from comodal.models.detectors.detector_rules import (
    C4Postprocessing,
    LXMERTPostprocessing,
    detect_caffe_regions,
    detect_lxmert_regions,
)
from comodal.regions.backbones import fingerprint_weights
from comodal.regions.region_extractor import fingerprint_extractor

RuleNames = Literal["caffe", "lxmert"]
HeadTypes = Literal["fp32", "bf16"]
NO_REGIONS = "no regions"
MAX_SIDES_RATIO = 5 / 3  # maximum of long side over short side: 1000 to 600
BOX_SETTINGS = (
    "fewest",
    "most",
    "sure",
    "before",
    "proposals",
    "overlap",
    "class_overlap",
    "class_overlaps",
    "smallest",
)


class C4Extractor:
    """Extracts regions by a C4 detector.

    Args:
        model: In evaluation mode.
        rules: The post-processing.
        head: Precision of the last stage, nine tenths of the computation; bf16 features have a cosine of 0.9999 with
            fp32.
        device: PyTorch device.
    """

    def __init__(
        self, model: C4, rules: C4Postprocessing | LXMERTPostprocessing, head: HeadTypes = "fp32", device: str = "cpu"
    ) -> None:
        way = "ViLBERT's" if isinstance(rules, C4Postprocessing) else "LXMERT's"
        self.name = f"bottom-up attention (Visual Genome, ResNet C4), {way} rules"
        self.finds_boxes, self.takes_boxes = True, True
        self.rules, self.size, self.device = rules, rules.size, device
        self.feature_dim, self.num_classes = model.config.feature_dim, model.config.classes
        settings = {name: value for name, value in asdict(rules).items() if name not in BOX_SETTINGS}
        settings |= {"rules": way, "head": head}
        self.fingerprint = fingerprint_extractor(fingerprint_weights(model), settings)
        self.model = optimize_c4_layout(model, DTYPES[head]).to(device)

    def __call__(
        self, picture: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The detector's regions or those of given boxes, with features and class probabilities.

        Raises:
            MediaError: The image is smaller than the smallest region.
        """
        height, width = picture.shape[:2]
        pixels = torch.from_numpy(picture.copy()).to(self.device)
        given = None if boxes is None else torch.from_numpy(boxes).to(self.device)
        if isinstance(self.rules, C4Postprocessing):
            found = detect_caffe_regions(self.model, pixels, self.rules, given)
        else:
            found = detect_lxmert_regions(self.model, pixels, self.rules, given)
        if not len(found.boxes) and boxes is None:
            raise MediaError("the picture", NO_REGIONS, f"{width} x {height} pixels; Caffe's regions have sides of 16")
        features, places, classes = (tensor.cpu().numpy() for tensor in (found.features, found.boxes, found.classes))
        return Regions(features, places, classes, None, width, height)


def build_c4_postprocessing(
    rules: RuleNames | None = None, size: int | None = None, fewest: int | None = None, most: int = 36
) -> C4Postprocessing | LXMERTPostprocessing:
    """The post-processing with a caller's settings.

    Args:
        rules: ViLBERT's (Caffe's) by default.
        size: Short side of the images; by default 600. The long side is limited to 5/3 of it.
        fewest: Minimum number of own regions; by default the maximum.
        most: Maximum number of own regions.

    Raises:
        ValueError: The minimum exceeds the maximum.
    """
    fewest = most if fewest is None else fewest
    if fewest > most:
        raise ValueError(f"at least {fewest} regions and at most {most}: --fewest is the smaller number")
    build = LXMERTPostprocessing if rules == "lxmert" else C4Postprocessing
    size = size or build.size
    return build(size=size, longest=round(size * MAX_SIDES_RATIO), fewest=fewest, most=most)
