"""The Visual Genome detector of bottom-up attention as a region extractor: the source of ViLBERT's and LXMERT's
features.

Its weights are published in five formats (models/convert/convert_c4.py). The default post-processing is Caffe's, as
for the features that ViLBERT was trained on. LXMERT's post-processing is for models trained on LXMERT's features.
"""

from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import nn

from comodal.data.regions.region_store import Regions
from comodal.errors import MediaError
from comodal.hardware import DTYPES, ResolvedPrecision
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_c4 import build_c4, is_c4_state_dict
from comodal.models.detectors.detector_c4 import C4, optimize_c4_layout
from comodal.models.detectors.detector_rules import (
    C4Postprocessing,
    LXMERTPostprocessing,
    detect_caffe_regions,
    detect_lxmert_regions,
)
from comodal.regions.backbones import fingerprint_weights
from comodal.regions.detector_files import CAFFEMODEL_SUFFIX, NetworkFiles, load_detector
from comodal.regions.region_extractor import ExtractorSource, PostprocessingName, fingerprint_extractor

NO_REGIONS = "no regions"
MAX_SIDES_RATIO = 5 / 3  # maximum of long side over short side: 1000 to 600
BOX_SETTINGS = (
    "min_regions",
    "max_regions",
    "score_threshold",
    "pre_nms_top_k",
    "post_nms_top_k",
    "nms_threshold",
    "class_nms_threshold",
    "class_nms_thresholds",
    "min_proposal_side",
)


class C4Extractor:
    """Extracts regions by a C4 detector.

    Args:
        model: In evaluation mode.
        postprocessing: The post-processing.
        precision: Precision of the last stage, nine tenths of the computation; bf16 features have a cosine of 0.9999
            with fp32.
        device: PyTorch device.
    """

    def __init__(
        self,
        model: C4,
        postprocessing: C4Postprocessing | LXMERTPostprocessing,
        precision: ResolvedPrecision = "fp32",
        device: str = "cpu",
    ) -> None:
        style = "ViLBERT's" if isinstance(postprocessing, C4Postprocessing) else "LXMERT's"
        self.name = f"bottom-up attention (Visual Genome, ResNet C4), {style} post-processing"
        self.has_own_boxes, self.accepts_boxes = True, True
        self.postprocessing, self.size, self.device = postprocessing, postprocessing.size, device
        self.feature_dim, self.num_classes = model.config.feature_dim, model.config.classes
        settings = {name: value for name, value in asdict(postprocessing).items() if name not in BOX_SETTINGS}
        settings |= {"rules": style, "head": precision}
        self.fingerprint = fingerprint_extractor(fingerprint_weights(model), settings)
        self.model = optimize_c4_layout(model, DTYPES[precision]).to(device)

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The detector's regions or those of given boxes, with features and class probabilities.

        Raises:
            MediaError: The image is smaller than the smallest region.
        """
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image.copy()).to(self.device)
        input_boxes = None if boxes is None else torch.from_numpy(boxes).to(self.device)
        if isinstance(self.postprocessing, C4Postprocessing):
            detections = detect_caffe_regions(self.model, pixels, self.postprocessing, input_boxes)
        else:
            detections = detect_lxmert_regions(self.model, pixels, self.postprocessing, input_boxes)
        if not len(detections.boxes) and boxes is None:
            raise MediaError("the image", NO_REGIONS, f"{width} x {height} pixels; Caffe's regions have sides of 16")
        features, region_boxes, classes = (
            tensor.cpu().numpy() for tensor in (detections.features, detections.boxes, detections.classes)
        )
        return Regions(features, region_boxes, classes, None, width, height)


def load_c4_extractor(source: ExtractorSource, files: NetworkFiles, device: str) -> C4Extractor | None:
    """Bottom-up attention's detector, from a file of any of its formats or a model folder."""
    if files.path.suffix == CAFFEMODEL_SUFFIX:
        model: nn.Module = load_detector(files.path)[0]
    elif files.model_class == C4.__name__:
        model = load_model(files.path)
    elif is_c4_state_dict(files.tensors):
        model = build_c4(files.tensors, files.path)[0]
    else:
        return None
    assert isinstance(model, C4)
    postprocessing = build_c4_postprocessing(source.postprocessing, source.size, source.min_regions, source.max_regions)
    return C4Extractor(model, postprocessing, "bf16" if source.precision == "bf16" else "fp32", device)


def build_c4_postprocessing(
    postprocessing: PostprocessingName | None = None,
    size: int | None = None,
    min_regions: int | None = None,
    max_regions: int = 36,
) -> C4Postprocessing | LXMERTPostprocessing:
    """The post-processing with a caller's settings.

    Args:
        postprocessing: ViLBERT's (Caffe's) by default.
        size: Short side of the images; by default 600. The long side is limited to 5/3 of it.
        min_regions: Minimum number of own regions; by default the maximum.
        max_regions: Maximum number of own regions.

    Raises:
        ValueError: The minimum exceeds the maximum.
    """
    min_regions = max_regions if min_regions is None else min_regions
    if min_regions > max_regions:
        raise ValueError(f"min_regions ({min_regions}) must not exceed max_regions ({max_regions})")
    build = LXMERTPostprocessing if postprocessing == "lxmert" else C4Postprocessing
    size = size or build.size
    return build(size=size, longest=round(size * MAX_SIDES_RATIO), min_regions=min_regions, max_regions=max_regions)
