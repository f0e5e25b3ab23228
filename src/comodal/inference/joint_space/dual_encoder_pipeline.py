"""The pipeline of a dual encoder: vectors of texts and images in one space."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.captions.caption_image_dataset import resize_for_model
from comodal.data.regions.region_compatibility import REGION_SETTINGS_FILE
from comodal.errors import CheckpointError, MediaError
from comodal.hardware import Compute, DeviceName, Precision, resolve_compute
from comodal.inference.joint_space.folder_index import FindKind, FolderIndex, open_folder_index
from comodal.media.image import crop_image_center
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS, WordPieceTokenizer
from comodal.media.user_inputs import check_texts, to_path, to_rgb_array, to_rgb_arrays
from comodal.models.checkpoint import find_model_folder, load_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.regions.extractors import LoadedExtractor
from comodal.regions.region_network import load_extractor_for_images
from comodal.text_files import read_json_object

MAX_INPUT_REGIONS = 100


@dataclass(frozen=True)
class DualEncoderPipeline:
    """A dual encoder that takes texts, files, PIL images, arrays and tensors.

    Args:
        folder: Of the run or model.
        model: The dual encoder.
        tokenizer: Its tokenizer.
        regions: The metadata of its regions; empty for a model with an image network of its own.
        compute: Device and precision of the model.
    """

    folder: Path
    model: DualEncoder
    tokenizer: WordPieceTokenizer
    regions: dict[str, Any]
    compute: Compute

    @cached_property
    def extractor(self) -> LoadedExtractor:
        """The extractor of the regions that the model was trained on; loaded for the first image.

        Raises:
            CheckpointError: There is no such network, or it is damaged, or another one.
            DataError: The regions were extracted by other software.
        """
        return load_extractor_for_images(self.folder, self.regions, str(self.compute.device))

    @torch.inference_mode()
    def embed_text(self, texts: str | Sequence[str]) -> Float32[np.ndarray, "texts dim"]:
        """Embeddings of length one of a text or of several texts.

        Raises:
            TypeError: A text is of another type.
        """
        texts = [texts] if isinstance(texts, str) else texts
        check_texts(texts)
        config, rows = self.model.config, []
        max_tokens = min(DEFAULT_MAX_TOKENS, config.positions - config.first_position)
        for text in texts:
            token_ids = torch.tensor([self.tokenizer.encode(text, max_tokens)], device=self.compute.device)
            with self.compute.autocast():
                features = self.model.compute_text_features(token_ids, None)
                rows.append(self.model.embed_text_features(features).float().cpu().numpy())
        if not rows:
            raise ValueError("no texts")
        return np.concatenate(rows)

    @torch.inference_mode()
    def embed_image(self, images: Any) -> Float32[np.ndarray, "images dim"]:
        """Embeddings of length one of an image or of a list of images.

        Args:
            images: A path, a PIL image, an array (height, width, 3) or a tensor (3, height, width) of bytes, or a list.

        Raises:
            DataError: The run's regions cannot be extracted.
            MediaError: An image cannot be read, or is too narrow.
            TypeError: The input is of another type.
        """
        if self.model.image_tower is not None:
            return self.embed_pixels(to_rgb_arrays(images))
        rows = []
        for image in images if isinstance(images, list | tuple) else [images]:
            try:
                extracted = self.extractor(to_rgb_array(image), None)
            except MediaError as error:
                path = image if isinstance(image, str | Path) else error.path
                raise MediaError(path, error.reason, error.detail) from None
            features = torch.from_numpy(prepend_full_image(extracted, MAX_INPUT_REGIONS)[0])[None]
            with self.compute.autocast():
                rows.append(self.model.embed_image(features.to(self.compute.device), None).float().cpu().numpy())
        if not rows:
            raise ValueError("no images")
        return np.concatenate(rows)

    def embed_pixels(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "images dim"]:
        """Embeddings of the center squares of images, by the image network of the model."""
        size, rows = self.model.config.image_size, []
        squares = np.stack([crop_image_center(resize_for_model(image, size), size) for image in images])
        for part in torch.from_numpy(squares).permute(0, 3, 1, 2).split(self.compute.batch_size):
            with self.compute.autocast():
                features = self.model.compute_image_features(part.to(self.compute.device))
                rows.append(self.model.embed_image_features(features).float().cpu().numpy())
        return np.concatenate(rows)

    def open_index(self, folder: Path | str, index: Path | str | None = None, find: FindKind = "auto") -> FolderIndex:
        """A searcher for the images and videos of a folder; its index is built or updated at the first search.

        Args:
            folder: The folder.
            index: Folder of the index; by default .comodal-index in the folder.
            find: image; auto is the same.

        Raises:
            DataError: There is nothing to search, or the index is damaged or cannot be written.

        Examples:
            comodal.load("runs/dual").open_index("photos/").search("a dog on a beach").best
        """
        return open_folder_index(self, folder, index, find)

    def score(self, image: Any, texts: str | Sequence[str]) -> Float32[np.ndarray, " texts"]:
        """The cosine of an image with each text, from -1 to 1."""
        similarities: Float32[np.ndarray, " texts"] = self.embed_text(texts) @ self.embed_image(image)[0]
        return similarities


def load_dual_encoder_pipeline(
    run: Path | str, device: DeviceName = "auto", precision: Precision = "auto"
) -> DualEncoderPipeline:
    """Loads a run or model folder of a dual encoder as a pipeline.

    Args:
        run: The folder.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Raises:
        CheckpointError: There is no dual encoder, or it has no metadata of its regions.
        DataError: Its vocabulary is missing.
    """
    run = to_path(run)
    model, path = load_model(run), find_model_folder(run) / REGION_SETTINGS_FILE
    if not isinstance(model, DualEncoder):
        raise CheckpointError(f"{run}: a {type(model).__name__}; this needs a dual encoder")
    regions = read_json_object(path, CheckpointError) if path.is_file() else {}
    if model.image_tower is None and not isinstance(regions.get("provenance"), dict):
        raise CheckpointError(f"{path} (the regions of the training data) is missing or has no provenance")
    compute = resolve_compute(device, precision)
    return DualEncoderPipeline(run, model.to(compute.device), WordPieceTokenizer.read(run), regions, compute)
