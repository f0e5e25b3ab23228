"""Maps over what they were computed from: pictures and spectrograms, dark but where a map is warm."""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MIN_HEAT_BRIGHTNESS = 0.25  # what is left of a picture where the map is cold


def resize_maps(maps: Float[Tensor, "maps rows columns"], size: tuple[int, int]) -> Float[Tensor, "maps height width"]:
    """Maps at the size of what they were computed from.

    A cell stands for 1, 2, 4 or 8 pixels either way, counted from the upper left; pixels beyond the last whole cell,
    which pooling drops, repeat their neighbours.
    """
    rows, columns = maps.shape[1:]
    cell = max(1, min(size[0] // rows, size[1] // columns))
    large = F.interpolate(maps[:, None], scale_factor=cell, mode="bilinear", align_corners=False)
    missing = (0, size[1] - columns * cell, 0, size[0] - rows * cell)
    return F.pad(large, missing, mode="replicate")[:, 0]


def shade_by_heat(
    picture: UInt8[np.ndarray, "height width 3"], warmth: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as bright as a map from 0 to 1 says."""
    return (picture * (MIN_HEAT_BRIGHTNESS + (1 - MIN_HEAT_BRIGHTNESS) * warmth[..., None])).astype(np.uint8)


def normalize_map(places: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """From the lowest (0) to the highest (1) value of a map; a flat map is 1 all over."""
    low, high = float(places.min()), float(places.max())
    return (places - low) / (high - low) if high > low else np.ones_like(places)


def render_spectrogram(
    spectrum: Float[np.ndarray, "bands frames"], warmth: Float[np.ndarray, "bands frames"], width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """A spectrogram in colours, low frequencies at the bottom, lit by a map."""
    colours = matplotlib.colormaps["magma"](normalize_map(spectrum), bytes=True)[..., :3]
    return np.asarray(
        Image.fromarray(shade_by_heat(colours, warmth)[::-1]).resize((width, height), Image.Resampling.BILINEAR)
    )
