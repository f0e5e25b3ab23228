"""Heatmaps over images and spectrograms: the brightness of a pixel follows the value of the map."""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MIN_HEAT_BRIGHTNESS = 0.25  # brightness of an image where the map is zero


def resize_maps(maps: Float[Tensor, "maps rows columns"], size: tuple[int, int]) -> Float[Tensor, "maps height width"]:
    """Resizes maps to the size of the input that they were computed from.

    A cell covers 1, 2, 4 or 8 pixels in each direction, counted from the upper left. Pooling drops the pixels beyond
    the last whole cell; they repeat their neighbors.
    """
    rows, columns = maps.shape[1:]
    cell = max(1, min(size[0] // rows, size[1] // columns))
    large = F.interpolate(maps[:, None], scale_factor=cell, mode="bilinear", align_corners=False)
    missing = (0, size[1] - columns * cell, 0, size[0] - rows * cell)
    return F.pad(large, missing, mode="replicate")[:, 0]


def shade_by_heat(
    image: UInt8[np.ndarray, "height width 3"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """An image with its brightness scaled by a map from 0 to 1."""
    return (image * (MIN_HEAT_BRIGHTNESS + (1 - MIN_HEAT_BRIGHTNESS) * heat[..., None])).astype(np.uint8)


def normalize_map(values: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Scales a map from its minimum (0) to its maximum (1). A constant map becomes 1."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def render_spectrogram(
    spectrum: Float[np.ndarray, "bands frames"], heat: Float[np.ndarray, "bands frames"], width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """A spectrogram in colors, low frequencies at the bottom, with its brightness scaled by a map."""
    colors = matplotlib.colormaps["magma"](normalize_map(spectrum), bytes=True)[..., :3]
    return np.asarray(
        Image.fromarray(shade_by_heat(colors, heat)[::-1]).resize((width, height), Image.Resampling.BILINEAR)
    )
