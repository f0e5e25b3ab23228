"""Captions with the pixels of their image, for contrastive learning on image files.

An image is resized to a short side of 8/7 of the model's image size, and a square is cropped: its center, or with
augmentation a random one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from comodal.data.batch import CaptionImageBatch
from comodal.data.captions.caption_files import Caption
from comodal.data.captions.caption_pairs import CaptionPairs, NegativeSampling
from comodal.errors import DataError, MediaError, check_number, wrap_item_errors
from comodal.media.augmentation import jitter_color, random_crop, random_horizontal_flip
from comodal.media.image import crop_image_center, read_image, resize_short_side
from comodal.media.tokenizer import WordPieceTokenizer

AUGMENTATION_SEED = 3  # separates this random stream from that of the order
RESIZE_RATIO = 8 / 7


@dataclass(frozen=True)
class ImageAugmentation:
    """Random changes of training images; none by default.

    Args:
        random_crop: Crop a random square of the image, which is 8/7 of the square's size, instead of its center.
        horizontal_flip: Flip half of the images horizontally. Unsuitable for captions with left and right.
        brightness_jitter: Brightness jitter: the largest change, where 1 is white.
        saturation_jitter: Saturation jitter: the largest change, as a fraction.
    """

    random_crop: bool = False
    horizontal_flip: bool = False
    brightness_jitter: float = 0.0
    saturation_jitter: float = 0.0

    def __post_init__(self) -> None:
        check_number("brightness_jitter", self.brightness_jitter, 0, 1)
        check_number("saturation_jitter", self.saturation_jitter, 0, 1)

    @property
    def is_none(self) -> bool:
        """Whether images are always the same."""
        return self == NO_AUGMENTATION

    def apply(
        self, image: UInt8[np.ndarray, "height width 3"], size: int, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """The square of a resized image, changed at random."""
        square = random_crop(image, size, rng) if self.random_crop else crop_image_center(image, size)
        if self.horizontal_flip:
            square = random_horizontal_flip(square, rng)
        if self.brightness_jitter or self.saturation_jitter:
            square = jitter_color(square, self.brightness_jitter, self.saturation_jitter, rng)
        return square


NO_AUGMENTATION = ImageAugmentation()


def resize_for_model(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image with a short side of 8/7 of the model's image size."""
    return resize_short_side(image, round(RESIZE_RATIO * size))


def read_square(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The center square of an image file.

    Raises:
        MediaError: It cannot be read.
    """
    return crop_image_center(resize_for_model(read_image(path), size), size)


class CaptionImageDataset:
    """Batches of any (epoch, index), a function of the seed, in the order of `CaptionPairs`.

    Args:
        captions: Captions, each with the index of its image.
        folder: Of the images.
        names: Paths of the images, relative to the folder.
        tokenizer: The tokenizer.
        seed: Of the order and the augmentation.
        batch_size: Samples of one step, over all processes.
        max_tokens: Maximum number of tokens of a caption with [CLS] and [SEP]; longer ones are truncated.
        image_size: Height and width of the squares.
        augmentation: Random changes of the images.

    Attributes:
        text_features, image_features: Features of captions and of images from frozen encoders; no columns if they are
            computed in training.
        problems: The images that could not be read so far, by their index. The next caption of another image takes the
            place of each of their captions.
    """

    def __init__(
        self,
        captions: Sequence[tuple[Caption, int]],
        folder: Path,
        names: Sequence[str],
        tokenizer: WordPieceTokenizer,
        seed: int,
        batch_size: int,
        max_tokens: int,
        image_size: int,
        augmentation: ImageAugmentation,
    ) -> None:
        self.folder, self.names, self.seed, self.image_size = folder, names, seed, image_size
        self.augmentation = augmentation
        self.encoded = tokenizer.encode_all((caption.caption for caption, _ in captions), max_tokens)
        self.starts = np.cumsum(self.encoded.lengths) - self.encoded.lengths
        self.padding_id = tokenizer.padding_id
        self.keys = np.array([caption.key.encode() for caption, _ in captions])  # flat, so that workers share them
        rows = np.array([row for _, row in captions], np.int64)
        sizes = np.ones(len(names), np.int64)
        self.pairs = CaptionPairs(rows, self.encoded.lengths, sizes, seed, batch_size, NegativeSampling(0.0))
        self.text_features: Float[Tensor, "captions features"] = torch.empty(len(captions), 0)
        self.image_features: Float[Tensor, "images features"] = torch.empty(len(names), 0)
        self.problems: dict[int, MediaError] = {}

    def __len__(self) -> int:
        """Samples in an epoch: as many as captions."""
        return len(self.pairs)

    @property
    def num_truncated(self) -> int:
        """Number of captions that were longer than `max_tokens` and were truncated."""
        return self.encoded.num_truncated

    def batch(self, positions: Sequence[tuple[int, int]]) -> CaptionImageBatch:
        """The samples of these (epoch, index), in this order.

        Raises:
            DataError: No image can be read.
        """
        samples = [self.read_sample(*position) for position in positions]
        captions = np.array([caption for caption, _ in samples], np.int64)
        rows = self.pairs.rows[captions]
        lengths = self.encoded.lengths[captions]
        columns = np.arange(lengths.max())
        token_mask = columns < lengths[:, None]
        token_ids = np.full(token_mask.shape, self.padding_id, np.int64)
        token_ids[token_mask] = self.encoded.token_ids[(self.starts[captions][:, None] + columns)[token_mask]]
        pixels = torch.from_numpy(np.stack([square for _, square in samples])).permute(0, 3, 1, 2).contiguous()
        return CaptionImageBatch(
            token_ids=torch.from_numpy(token_ids),
            token_mask=torch.from_numpy(token_mask),
            text_features=self.text_features[captions],
            pixels=pixels,
            image_features=self.image_features[rows],
            image_rows=torch.from_numpy(rows),
            keys=tuple(
                f"image {self.names[row]}, caption {self.keys[caption].decode()}"
                for caption, row in zip(captions.tolist(), rows.tolist(), strict=True)
            ),
        )

    def read_sample(self, epoch: int, index: int) -> tuple[int, UInt8[np.ndarray, "size size 3"]]:
        """The caption of a sample, and the square of its image: of size 0 if features of images are given.

        Raises:
            DataError: No image can be read.
        """
        first = int(self.pairs.get_epoch(epoch).captions[index])
        for caption in (*range(first, len(self)), *range(first)):
            row = int(self.pairs.rows[caption])
            if row in self.problems:
                continue
            if self.image_features.shape[1]:
                return caption, np.empty((0, 0, 3), np.uint8)
            path = self.folder / self.names[row]
            try:
                with wrap_item_errors(path):
                    image = resize_for_model(read_image(path), self.image_size)
            except MediaError as error:
                self.problems[row] = error
                continue
            rng = np.random.default_rng((self.seed, epoch, index, AUGMENTATION_SEED))
            return caption, self.augmentation.apply(image, self.image_size, rng)
        raise DataError(f"{self.folder}: no image can be read, the first: {next(iter(self.problems.values()))}")
