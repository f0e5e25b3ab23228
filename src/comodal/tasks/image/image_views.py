"""How a picture is shown to a network: its middle, ten crops, or changed at random as in training.

Pictures have a short side of 8/7 of the training crop (256 for 224), so that they show things at the scale of training
(L3-Net, section 4.3: 256).
"""

import hashlib
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from comodal.data.shards.clip_dataset import Augmentation
from comodal.errors import wrap_item_errors
from comodal.media.augmentation import jitter_color, random_crop, random_horizontal_flip
from comodal.media.image import crop_image_center, read_image, resize_short_side
from comodal.tasks.evaluation.class_folders import LabeledFile

CropMode = Literal["middle", "ten"]


class ImageView(NamedTuple):
    """One way to look at a picture.

    Args:
        kind: `middle` is the middle square, of the whole short side; `ten` are squares of the training crop's size in
            the four corners and the middle, and their mirror images (Krizhevsky et al. 2012); `random` is one such
            square anywhere, with the colours changed.
        number: Of a random one: another number is another chance.
    """

    kind: Literal["middle", "ten", "random"]
    number: int = 0

    @property
    def shots(self) -> int:
        """Squares that come of one picture."""
        return 10 if self.kind == "ten" else 1


class ViewConfig(NamedTuple):
    """What all views have in common.

    Args:
        crop: Side of the training crop.
        augmentation: Of random views.
        seed: Of their chance.
    """

    crop: int
    augmentation: Augmentation
    seed: int

    @property
    def short_side(self) -> int:
        """Of the whole picture."""
        return round(self.crop * 8 / 7)


def read_resized_image(image: LabeledFile, short_side: int) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with its short side.

    Raises:
        MediaError: It cannot be read.
    """
    with wrap_item_errors(image.path):
        return resize_short_side(read_image(image.path), short_side)


def render_view(
    picture: UInt8[np.ndarray, "height width 3"], name: str, view: ImageView, showing: ViewConfig
) -> UInt8[np.ndarray, "shots side side 3"]:
    """A picture in a view; the chance depends on its name, so that the same picture always comes out alike."""
    if view.kind == "middle":
        return crop_image_center(picture, showing.short_side)[None]
    if view.kind == "ten":
        return cut_ten_crops(picture, showing.crop)
    chance = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return augment_image(picture, showing, np.random.default_rng((showing.seed, view.number, chance)))[None]


def augment_image(
    picture: UInt8[np.ndarray, "height width 3"], showing: ViewConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side 3"]:
    """A picture as training shows it: a crop, mirrored or not, brighter or darker, of more or less colour."""
    augmentation = showing.augmentation
    crop = random_crop(picture, showing.crop, rng)
    if augmentation.mirror:
        crop = random_horizontal_flip(crop, rng)
    return jitter_color(crop, augmentation.brightness, augmentation.saturation, rng)


def cut_ten_crops(picture: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "10 size size 3"]:
    """Four corners and the middle, then the same mirrored."""
    bottom, right = picture.shape[0] - size, picture.shape[1] - size
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = np.stack([picture[top : top + size, left : left + size] for top, left in places])
    return np.concatenate([crops, crops[:, :, ::-1]])
