"""Random changes of a picture and a sound that leave alone what they show (L3-Net, section 3.2): crop, flip,
brightness, saturation and volume. Each takes its chance as a generator."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

GRAY_WEIGHTS = (
    0.299,
    0.587,
    0.114,
)  # luma of ITU-R BT.601, the weights of Pillow's and l3embedding's conversion to grey


def random_crop(
    image: UInt8[np.ndarray, "height width 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """A square of `size` pixels, every place in the picture as likely as any other."""
    if min(image.shape[:2]) < size:
        raise ValueError(f"a crop of {size} pixels does not fit into a picture of {image.shape[1]} x {image.shape[0]}")
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    return image[top : top + size, left : left + size]


def random_horizontal_flip(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture or its mirror image, with equal chance."""
    if rng.random() < 0.5:
        return image
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))  # numpy takes 3 times as long


def jitter_color(
    image: UInt8[np.ndarray, "height width 3"], brightness: float, saturation: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Adds up to `brightness` (1 is white) to every channel and scales the distance from grey by 1 +- `saturation`.

    Departs from l3embedding (data/avc/sample.py), which scales the saturation of HSV and clips between the two steps:
    both steps are one linear map of (red, green, blue) here, five times as fast, and grey stays grey in either.
    """
    scale = rng.uniform(1 - saturation, 1 + saturation)
    offset = 255 * rng.uniform(-brightness, brightness)
    matrix: list[float] = []
    for channel in range(3):
        row = [(1 - scale) * weight for weight in GRAY_WEIGHTS]
        row[channel] += scale
        matrix += [*row, offset]
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix)))


def jitter_gain(
    sound: Float32[np.ndarray, "samples"], change: float, rng: np.random.Generator
) -> Float32[np.ndarray, "samples"]:
    """The sound up to `change` louder or softer (0.1 is 10 %)."""
    return sound * np.float32(rng.uniform(1 - change, 1 + change))
