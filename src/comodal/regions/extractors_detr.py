"""Hugging Face's DETR family as region extractors (Carion et al., ECCV 2020), from a model folder (extra `detr`).

A region is a query of the decoder: its last hidden state, its box, and class probabilities if the network has them.
DETR has "no object" as the last class, a store as the first. Networks that score each class independently (RT-DETR,
Deformable and Conditional DETR) have no probabilities that sum to one; for these `comodal prepare tokens` adds visual
tokens to the store. Queries predict their own boxes, so boxes cannot be given.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from comodal.data.regions.region_store import Regions
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import summarize_load_error
from comodal.models.convert.state_dicts import DAMAGED_WEIGHTS_ERRORS
from comodal.regions.backbones import fingerprint_weights
from comodal.regions.detector_files import NetworkFiles
from comodal.regions.region_extractor import ExtractorSource, fingerprint_extractor

PROCESSOR_SETTINGS = (
    "size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
    "do_pad",
)  # fmt: skip


class DetrExtractor:
    """Extracts regions by a network that transformers loads for object detection.

    Args:
        name: Display name of its type.
        model: In evaluation mode.
        processor: Scales and normalizes images for it.
        max_regions: Maximum number of regions; the most confident queries are kept.
        device: Device of its weights.

    Raises:
        ValueError: It has different numbers of hidden states and boxes.
    """

    def __init__(self, name: str, model: Any, processor: Any, max_regions: int, device: str = "cpu") -> None:
        self.name, self.max_regions, self.device = f"transformers' {name}", max_regions, device
        self.has_own_boxes, self.accepts_boxes = True, False
        self.processor = processor
        settings = {key: getattr(processor, key, None) for key in PROCESSOR_SETTINGS}
        settings["size"] = read_processor_size(processor)
        self.size = min(read_processor_size(processor).values())
        self.fingerprint = fingerprint_extractor(fingerprint_weights(model), settings)
        self.model = model.to(device)
        state, logits, _ = self._compute_queries(np.zeros((64, 64, 3), np.uint8))
        if state.shape[:1] != logits.shape[:1]:
            raise ValueError(f"a {name} with {len(state)} states and {len(logits)} boxes")
        self.feature_dim = state.shape[1]
        self.has_probabilities = logits.shape[1] == model.config.num_labels + 1
        self.num_classes = logits.shape[1] if self.has_probabilities else 0

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], boxes: Float32[np.ndarray, "regions 4"] | None = None
    ) -> Regions:
        """The most confident queries."""
        if boxes is not None:
            raise ValueError(f"{self.name} has its own boxes and does not support given ones")
        height, width = image.shape[:2]
        state, logits, query_boxes = self._compute_queries(image)
        probabilities = logits.softmax(1).roll(1, 1) if self.has_probabilities else logits.sigmoid()
        confidences = (probabilities[:, 1:] if self.has_probabilities else probabilities).amax(1)
        kept = confidences.argsort(descending=True, stable=True)[: self.max_regions]
        center, half = query_boxes[kept, :2], query_boxes[kept, 2:] / 2
        sides = torch.tensor([width, height] * 2, dtype=torch.float32)
        region_boxes = torch.cat([center - half, center + half], 1).clamp(0, 1) * sides
        classes = probabilities[kept].numpy() if self.has_probabilities else None
        return Regions(state[kept].numpy(), region_boxes.numpy(), classes, None, width, height)

    @torch.inference_mode()
    def _compute_queries(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[Float[Tensor, "states features"], Float[Tensor, "queries classes"], Float[Tensor, "queries 4"]]:
        """Hidden states, logits and boxes (center and size as fractions of the image)."""
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        inputs = self.processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
        output = self.model(**inputs.to(self.device))
        outputs = output.last_hidden_state, output.logits, output.pred_boxes
        state, logits, query_boxes = (part[0].float().cpu() for part in outputs)
        return state, logits, query_boxes


def load_detr_extractor(source: ExtractorSource, files: NetworkFiles, device: str) -> DetrExtractor | None:
    """A network of the DETR family, from a folder of transformers."""
    if "model_type" not in files.config:
        return None
    return load_detr(files.path, source.size, source.max_regions, device)


def load_detr(path: Path, size: int | None, max_regions: int, device: str = "cpu") -> DetrExtractor:
    """Loads a network of the DETR family from a folder of `save_pretrained` or the hub; nothing is downloaded.

    Args:
        path: The folder.
        size: Short side of the images; by default that of its preprocessor. The ratio to the long side's limit is kept.
        max_regions: Maximum number of regions.
        device: PyTorch device.

    Raises:
        CheckpointError: It is damaged, incomplete, or another kind of network.
        DataError: transformers, or a package that it needs for this network, is not installed.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
    except ImportError as error:
        raise DataError("a DETR needs the extra: pip install 'comodal[detr]'") from error
    try:
        model, loading_info = AutoModelForObjectDetection.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise DataError(f"{path}: {summarize_load_error(error)}") from error
    except (*DAMAGED_WEIGHTS_ERRORS, UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a network of the DETR family: {summarize_load_error(error)}") from error
    if missing := sorted(loading_info["missing_keys"]):  # transformers would initialize them randomly and continue
        raise CheckpointError(f"{path}: missing weights {missing[:3]}")
    if size is not None:
        sides = read_processor_size(processor)
        processor.size = {name: round(side * size / min(sides.values())) for name, side in sides.items()}
    try:
        return DetrExtractor(str(model.config.model_type), model.eval(), processor, max_regions, device)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a network of the DETR family: {summarize_load_error(error)}") from error


def read_processor_size(processor: Any) -> dict[str, int]:
    """The image size of a preprocessor: height and width, or the shortest and longest edge."""
    return {name: int(side) for name, side in dict(processor.size).items() if side}
