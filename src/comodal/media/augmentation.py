"""Data augmentation of images and audio (L3-Net, section 3.2): random crop, horizontal flip, brightness and saturation
jitter, gain jitter. Each function takes a random generator.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

GRAY_WEIGHTS = (
    0.299,
    0.587,
    0.114,
)  # luma of ITU-R BT.601, the weights of Pillow's and l3embedding's conversion to gray


def random_crop(
    image: UInt8[np.ndarray, "height width 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """A random crop of `size` x `size` pixels; every position is equally likely."""
    if min(image.shape[:2]) < size:
        raise ValueError(f"a crop of {size} pixels does not fit into an image of {image.shape[1]} x {image.shape[0]}")
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    return image[top : top + size, left : left + size]


def random_horizontal_flip(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Flip the image horizontally with probability 0.5."""
    if rng.random() < 0.5:
        return image
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))  # numpy takes 3 times as long


def jitter_color(
    image: UInt8[np.ndarray, "height width 3"],
    brightness_jitter: float,
    saturation_jitter: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "height width 3"]:
    """Add up to `brightness_jitter` (1 is white) to each channel, and scale the distance by 1 +- `saturation_jitter`.

    Departs from l3embedding (its data/avc/sample.py), which scales the saturation of HSV and clips between the two
    steps: both steps are one linear map of (red, green, blue) here, five times as fast. Gray stays gray in either.
    """
    scale = rng.uniform(1 - saturation_jitter, 1 + saturation_jitter)
    offset = 255 * rng.uniform(-brightness_jitter, brightness_jitter)
    matrix: list[float] = []
    for channel in range(3):
        row = [(1 - scale) * weight for weight in GRAY_WEIGHTS]
        row[channel] += scale
        matrix += [*row, offset]
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix)))


def jitter_gain(
    waveform: Float32[np.ndarray, "samples"], gain_jitter: float, rng: np.random.Generator
) -> Float32[np.ndarray, "samples"]:
    """Scale the waveform by a random gain of up to 1 +- `gain_jitter` (0.1 is 10 %)."""
    return waveform * np.float32(rng.uniform(1 - gain_jitter, 1 + gain_jitter))
