"""Views of an image for a network: the center crop, ten crops, or random augmentation as in training.

Images are resized to a short side of 8/7 of the training crop (256 for 224), so that objects have the same scale as in
training (L3-Net, section 4.3: 256).
"""

import hashlib
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from comodal.data.shards.clip_dataset import Augmentation
from comodal.errors import wrap_item_errors
from comodal.files import encode_for_hash
from comodal.media.augmentation import jitter_color, random_crop, random_horizontal_flip
from comodal.media.image import crop_image_center, read_image, resize_short_side
from comodal.tasks.evaluation.class_folders import LabeledFile

CropMode = Literal["center", "ten"]


class ImageView(NamedTuple):
    """One view of an image.

    Args:
        kind: `middle` is the center square of the whole short side. `ten` are squares of the training crop's size in
            the four corners and the center, and their horizontal flips (Krizhevsky et al. 2012). `random` is one such
            square at a random position, with color jitter.
        view_index: Index of a random view; each index has its own random state.
    """

    kind: Literal["center", "ten", "random"]
    view_index: int = 0

    @property
    def num_squares(self) -> int:
        """The number of squares of one image."""
        return 10 if self.kind == "ten" else 1


class ViewConfig(NamedTuple):
    """The configuration that all views share.

    Args:
        crop: Side of the training crop.
        augmentation: Augmentation of random views.
        seed: Seed of the random views.
    """

    crop: int
    augmentation: Augmentation
    seed: int

    @property
    def short_side(self) -> int:
        """The short side of the resized image."""
        return round(self.crop * 8 / 7)


def read_resized_image(item: LabeledFile, short_side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image and resizes its short side.

    Raises:
        MediaError: It cannot be read.
    """
    with wrap_item_errors(item.path):
        return resize_short_side(read_image(item.path), short_side)


def render_view(
    image: UInt8[np.ndarray, "height width 3"], name: str, view: ImageView, view_config: ViewConfig
) -> UInt8[np.ndarray, "views side side 3"]:
    """Renders an image in a view; the random state depends on the image's name, so the result is reproducible."""
    if view.kind == "center":
        return crop_image_center(image, view_config.short_side)[None]
    if view.kind == "ten":
        return cut_ten_crops(image, view_config.crop)
    name_seed = int.from_bytes(hashlib.sha256(encode_for_hash(name)).digest()[:8], "big")
    return augment_image(image, view_config, np.random.default_rng((view_config.seed, view.view_index, name_seed)))[
        None
    ]


def augment_image(
    image: UInt8[np.ndarray, "height width 3"], view_config: ViewConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side 3"]:
    """Augments an image as in training: random crop, horizontal flip, brightness and saturation jitter."""
    augmentation = view_config.augmentation
    crop = random_crop(image, view_config.crop, rng)
    if augmentation.horizontal_flip:
        crop = random_horizontal_flip(crop, rng)
    return jitter_color(crop, augmentation.brightness_jitter, augmentation.saturation_jitter, rng)


def cut_ten_crops(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "10 size size 3"]:
    """The four corners and the center, then the same flipped horizontally."""
    bottom, right = image.shape[0] - size, image.shape[1] - size
    offsets = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = np.stack([image[top : top + size, left : left + size] for top, left in offsets])
    return np.concatenate([crops, crops[:, :, ::-1]])
