"""Torchvision's Faster R-CNN as a region extractor, from a file of weights (Ren et al., NIPS 2015).

A region is a box of the proposal network with the 1,024 features of the box head and its class probabilities,
background first. The features are computed in this box; the boxes of final detections are regressed afterwards and do
not correspond to the features. Of proposals that overlap by more than half, the most confident is kept.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from comodal.data.regions.region_store import Regions
from comodal.errors import CheckpointError
from comodal.models.checkpoint import summarize_load_error
from comodal.models.detectors.box_ops import nms
from comodal.regions.backbones import fingerprint_weights
from comodal.regions.detector_files import NetworkFiles
from comodal.regions.region_extractor import ExtractorSource, fingerprint_extractor

FASTER_RCNN_BUILDERS: dict[str, Callable[..., FasterRCNN]] = {  # by a tensor name that only its file has
    "roi_heads.box_head.0.0.weight": fasterrcnn_resnet50_fpn_v2,
    "backbone.body.layer1.0.conv1.weight": fasterrcnn_resnet50_fpn,
    "backbone.body.0.0.weight": fasterrcnn_mobilenet_v3_large_fpn,
}
CLASS_SCORES_KEY = "roi_heads.box_predictor.cls_score.weight"  # in every Faster R-CNN of torchvision
NMS_THRESHOLD = 0.5


class FasterRCNNExtractor:
    """Extracts regions by a Faster R-CNN of torchvision.

    Args:
        name: Name of its builder function.
        model: In evaluation mode, with its own settings for sizes and proposals.
        max_regions: Maximum number of own boxes; the most confident are kept.
        device: Device of its weights.
    """

    def __init__(self, name: str, model: FasterRCNN, max_regions: int, device: str = "cpu") -> None:
        self.name, self.max_regions, self.device = f"torchvision's {name}", max_regions, device
        self.has_own_boxes, self.accepts_boxes = True, True
        self.num_classes, self.feature_dim = model.roi_heads.box_predictor.cls_score.weight.shape
        transform = model.transform
        self.size = int(transform.min_size[-1])
        settings = {"size": transform.min_size, "longest": transform.max_size}
        settings |= {"mean": transform.image_mean, "std": transform.image_std, "eps": list_batch_norm_epsilons(model)}
        self.fingerprint = fingerprint_extractor(fingerprint_weights(model), settings)
        self.model = model.to(device)

    @torch.inference_mode()
    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """Proposals or given boxes, with their features and class probabilities."""
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).to(self.device).float() / 255
        images, _ = self.model.transform([pixels])
        rows, columns = images.image_sizes[0]
        scale = torch.tensor([columns / width, rows / height] * 2, device=self.device)
        maps, heads = self.model.backbone(images.tensors), self.model.roi_heads
        if boxes is None:
            chosen = self.model.rpn(images, maps)[0][0]
        else:
            chosen = torch.from_numpy(boxes).to(self.device) * scale
        features = heads.box_head(heads.box_roi_pool(maps, [chosen], images.image_sizes))
        probabilities = heads.box_predictor(features)[0].softmax(1)
        if boxes is None:
            kept = select_likeliest_boxes(chosen, probabilities, self.max_regions)
            chosen, features, probabilities = chosen[kept], features[kept], probabilities[kept]
            boxes = (chosen / scale).cpu().numpy().clip(0, np.array([width, height] * 2, np.float32))
        return Regions(features.cpu().numpy(), boxes, probabilities.cpu().numpy(), None, width, height)


def select_likeliest_boxes(
    boxes: Float[Tensor, "boxes 4"], probabilities: Float[Tensor, "boxes classes"], max_regions: int
) -> Int64[Tensor, " chosen"]:
    """The boxes that most likely hold an object, in descending order, after suppression of overlaps above one half."""
    return nms(boxes, probabilities[:, 1:].amax(1), NMS_THRESHOLD)[:max_regions]


def load_torchvision_extractor(source: ExtractorSource, files: NetworkFiles, device: str) -> FasterRCNNExtractor | None:
    """A Faster R-CNN of torchvision, from a file of its weights."""
    if CLASS_SCORES_KEY not in files.tensors:
        return None
    return load_faster_rcnn(files.path, files.tensors, source.size, source.max_regions, device)


def load_faster_rcnn(
    path: Path, state: Mapping[str, Tensor], size: int | None, max_regions: int, device: str = "cpu"
) -> FasterRCNNExtractor:
    """Loads a Faster R-CNN from the weights of a file.

    Args:
        path: The file, for error messages.
        state: Its state dict.
        size: Short side of the images; by default 800. The long side is limited to 5/3 of it.
        max_regions: Maximum number of own boxes.
        device: PyTorch device.

    Raises:
        CheckpointError: They are the weights of another network.
    """
    builder = next((build for tensor_name, build in FASTER_RCNN_BUILDERS.items() if tensor_name in state), None)
    if builder is None or CLASS_SCORES_KEY not in state:
        names = ", ".join(build.__name__ for build in FASTER_RCNN_BUILDERS.values())
        raise CheckpointError(f"{path}: not the weights of {names}")
    with torch.random.fork_rng(devices=[]):  # these initial weights are overwritten
        model = builder(weights=None, weights_backbone=None, num_classes=state[CLASS_SCORES_KEY].shape[0])
    try:
        missing, unknown = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not the weights of {builder.__name__}: {summarize_load_error(error)}"
        ) from error
    if missing or unknown:
        raise CheckpointError(
            f"{path}: not the weights of {builder.__name__}: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    if builder is fasterrcnn_resnet50_fpn:  # torchvision does the same for its published weights
        for norm in list_batch_norms(model):
            norm.eps = 0.0
    if size is not None:
        side_ratio = model.transform.max_size / model.transform.min_size[-1]
        model.transform.min_size, model.transform.max_size = (size,), round(size * side_ratio)
    return FasterRCNNExtractor(builder.__name__, model.eval(), max_regions, device)


def list_batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch norms."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def list_batch_norm_epsilons(model: nn.Module) -> list[float]:
    """The epsilons of the batch norms, which no weight shows."""
    return sorted({norm.eps for norm in list_batch_norms(model)})
