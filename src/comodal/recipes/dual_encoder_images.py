"""The data of a dual encoder that is trained on image files: images with captions, and the features of frozen parts."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from comodal import distributed
from comodal.data.captions.caption_image_dataset import (
    NO_AUGMENTATION,
    CaptionImageDataset,
    ImageAugmentation,
    read_square,
)
from comodal.data.image_ids import make_image_id
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import DataError, MediaError, check_number, wrap_item_errors
from comodal.files import fingerprint_file
from comodal.media.storage.open_media import find_container
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.efficientnet_lite0 import LITE0
from comodal.models.l3net.l3net import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from comodal.progress import track_progress
from comodal.recipes.vilbert_options import CaptionLoading
from comodal.recipes.vilbert_pretraining import MatchedPairs, split_captions

IMAGE_BATCH_SIZE = 64  # of the images whose features are computed once


@dataclass(frozen=True)
class ImageNetwork:
    """The image network of a run on image files.

    Args:
        images: Folder of the images, instead of --data: the model gets an image network of its own.
        image_backbone: efficientnet_lite0 (extra `lite`), or timm/NAME for a model of timm (extra `timm`).
        image_encoder: frozen: the network keeps its weights; trained: it is trained too, by --backbone-lr-scale.
        image_weights: pretrained, or random.
        image_size: Height and width of the images, cropped from ones with a short side of 8/7 of it.
    """

    images: Path | None = None
    image_backbone: str = LITE0
    image_encoder: Literal["frozen", "trained"] = "frozen"
    image_weights: Literal["pretrained", "random"] = "pretrained"
    image_size: int = 224

    def check(self, data: Path | None, augmentation: ImageAugmentation) -> None:
        """Raises ValueError if the options contradict each other."""
        check_number("image_size", self.image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        if (data is None) == (self.images is None):
            raise ValueError("give either --data, a region store, or --images, a folder of images")
        if self.images is None and (self != ImageNetwork() or augmentation != NO_AUGMENTATION):
            raise ValueError("options of the image network and of augmentation are for --images, not for --data")
        if self.image_weights == "random" and self.image_encoder == "frozen":
            raise ValueError("--image-weights random needs --image-encoder trained")


@dataclass(frozen=True)
class CaptionedImages:
    """Image files with captions.

    Args:
        folder: Of the images.
        names: Their paths, relative to the folder.
        tokenizer: The vocabulary.
        train: Captions of the training split, each with the index of its image.
        validation: Those of the validation split.
        skipped: Number of captions that are not used, by reason.
    """

    folder: Path
    names: Sequence[str]
    tokenizer: WordPieceTokenizer
    train: MatchedPairs
    validation: MatchedPairs
    skipped: Counter[str]

    def compute_fingerprint(self) -> str:
        """The fingerprint of everything that training reads."""
        digest, stamps = hashlib.sha256(self.tokenizer.to_json()), dict[Path, str]()
        for row in sorted({row for _, row in [*self.train, *self.validation]}):
            path = self.folder / self.names[row]
            file = find_container(path) or path
            if file not in stamps:
                stamps[file] = fingerprint_file(file)
            digest.update(f"{row} {self.names[row]} {stamps[file]}\n".encode(errors="surrogateescape"))
        for caption, row in [*self.train, *self.validation]:
            digest.update(f"{row} {caption.caption}\n".encode())
        return digest.hexdigest()[:16]


def load_captioned_images(images: Path, captions: Path, vocabulary: Path, loading: CaptionLoading) -> CaptionedImages:
    """The images of a folder that have captions, split, and the vocabulary.

    Raises:
        DataError: A file is missing or damaged, or captions and images do not match.
    """
    found = find_image_files(images)
    ids = [make_image_id(name) for name in found.names]
    most_common = Counter(ids).most_common(1)
    if most_common and most_common[0][1] > 1:
        raise DataError(f"{images}: several images have the id {most_common[0][0]}, which differ by the suffix only")
    parts, skipped = split_captions(captions, images, ids, f"{len(ids):,} images", loading)
    tokenizer = WordPieceTokenizer.read(vocabulary)
    return CaptionedImages(found.root, found.names, tokenizer, parts["train"], parts["validation"], skipped)


@torch.no_grad()
def compute_frozen_image_features(
    model: DualEncoder, dataset: CaptionImageDataset, device: torch.device
) -> Float[Tensor, "images features"]:
    """The features of the center squares of all images with captions; rows of other images stay zero.

    Images that cannot be read are added to the problems of the data set.
    """
    features = torch.zeros(len(dataset.names), model.config.region_feature_dim)
    rows = np.unique(dataset.pairs.rows)
    batches = np.split(rows, range(IMAGE_BATCH_SIZE, len(rows), IMAGE_BATCH_SIZE))
    parallel = joblib.Parallel(n_jobs=-1, prefer="threads")
    is_training = model.training
    model.eval()
    for batch in track_progress(batches, "image features", is_shown=distributed.is_main_process()):
        paths = [dataset.folder / dataset.names[row] for row in batch]
        squares = parallel(joblib.delayed(try_square)(path, dataset.image_size) for path in paths)
        readable = {row: square for row, square in zip(batch, squares, strict=True) if isinstance(square, np.ndarray)}
        dataset.problems |= {
            int(row): square for row, square in zip(batch, squares, strict=True) if isinstance(square, MediaError)
        }
        if readable:
            pixels = torch.from_numpy(np.stack([*readable.values()])).permute(0, 3, 1, 2).to(device)
            features[[*readable]] = model.compute_image_features(pixels).float().cpu()
    model.train(is_training)
    return features


def try_square(path: Path, size: int) -> UInt8[np.ndarray, "{size} {size} 3"] | MediaError:
    """The center square of an image, or why it cannot be read."""
    try:
        with wrap_item_errors(path):
            return read_square(path, size)
    except MediaError as error:
        return error
