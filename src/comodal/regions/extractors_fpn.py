"""The ResNeXt-152-FPN detector of 12-in-1 and MMF as a region extractor.

It keeps the hundred most confident regions (`max_regions`). A region has the 2,048 features of fc6 and 1,601 class
probabilities, background first. Boxes may extend slightly beyond the image, as in the features used for training.
"""

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from comodal.data.regions.region_store import Regions
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_fpn import build_fpn, is_fpn_state_dict
from comodal.models.detectors.detector_fpn import FPN, optimize_fpn_layout
from comodal.models.detectors.detector_fpn_regions import FPNPostprocessing, detect_fpn_regions
from comodal.regions.backbones import fingerprint_weights
from comodal.regions.detector_files import NetworkFiles
from comodal.regions.region_extractor import ExtractorSource, fingerprint_extractor


class FPNExtractor:
    """Extracts regions by the ResNeXt-152-FPN detector.

    Args:
        model: In evaluation mode.
        postprocessing: The post-processing.
        device: PyTorch device.
    """

    def __init__(self, model: FPN, postprocessing: FPNPostprocessing, device: str = "cpu") -> None:
        self.name = "12-in-1 (Visual Genome, ResNeXt FPN)"
        self.has_own_boxes, self.accepts_boxes = True, True
        self.postprocessing, self.size, self.device = postprocessing, postprocessing.size, device
        self.feature_dim, self.num_classes = model.config.dense, model.config.classes
        self.fingerprint = fingerprint_extractor(
            fingerprint_weights(model), {"size": postprocessing.size, "longest": postprocessing.longest}
        )
        self.model = optimize_fpn_layout(model).to(device)

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The detector's regions or those of given boxes, with features and class probabilities."""
        pixels = torch.from_numpy(image.copy()).to(self.device)
        input_boxes = None if boxes is None else torch.from_numpy(boxes).to(self.device)
        detections = detect_fpn_regions(self.model, pixels, self.postprocessing, input_boxes)
        features, region_boxes, classes = (
            tensor.cpu().numpy() for tensor in (detections.features, detections.boxes, detections.classes)
        )
        height, width = image.shape[:2]
        return Regions(features, region_boxes, classes, None, width, height)


def load_fpn_extractor(source: ExtractorSource, files: NetworkFiles, device: str) -> FPNExtractor | None:
    """The detector of 12-in-1 and MMF, from its published file or a model folder."""
    if files.model_class == FPN.__name__:
        model = load_model(files.path)
    elif is_fpn_state_dict(files.tensors):
        model = build_fpn(files.tensors, files.path)[0]
    else:
        return None
    assert isinstance(model, FPN)
    return FPNExtractor(model, build_fpn_postprocessing(source.size, source.max_regions), device)


def build_fpn_postprocessing(
    size: int | None = None, max_regions: int = FPNPostprocessing.max_regions
) -> FPNPostprocessing:
    """The post-processing with a caller's settings.

    Args:
        size: Short side of the images; by default 800. The long side is limited to 1333/800 of it.
        max_regions: Maximum number of own regions.
    """
    size = size or FPNPostprocessing.size
    return FPNPostprocessing(
        size=size, longest=size * FPNPostprocessing.longest // FPNPostprocessing.size, max_regions=max_regions
    )
