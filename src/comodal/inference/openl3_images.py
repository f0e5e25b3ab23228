"""Images for OpenL3's networks: the 224 x 224 center crop of an image with a short side of at most 256, in [-1, 1].

OpenL3 0.4.2 gives its networks another range for every image that is not exactly 224 x 224 (openl3/core.py,
`_preprocess_image_batch`); `as_openl3` does the same.
"""

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch.nn import functional as F

from comodal.media.image import crop_image_center, resize_short_side

INPUT_SIDE, RESCALED_SIDE = 224, 256


def prepare_squares(images: Shaped[np.ndarray, "images rows columns 3"]) -> Float32[np.ndarray, "images 224 224 3"]:
    """The input that the networks were trained on, from images of one size.

    A short side over 256 is scaled to 256 by area averaging; one under 224 is scaled up to 224. Bytes and unsigned
    integers are scaled by their range, signed integers are taken as signed. Floats with a negative value are taken as
    [-1, 1], without as [0, 1], and as [0, 255] if any exceeds 1.

    Departs from OpenL3: it takes every n-th pixel when it scales down, leaves the range at [0, 1], and rejects small
    images.
    """
    short = min(images.shape[1:3])
    size = RESCALED_SIDE if short > RESCALED_SIDE else max(short, INPUT_SIDE)
    if images.dtype == np.uint8:
        cut = [crop_image_center(resize_short_side(image, size), INPUT_SIDE) for image in images]
        return (np.stack(cut) * np.float32(2 / 255) - 1).astype(np.float32)
    scaled = scale_to_signed_unit(images)
    if short != size:
        rows, columns = (max(size, round(side * size / short)) for side in images.shape[1:3])
        smaller = F.interpolate(
            torch.from_numpy(scaled).permute(0, 3, 1, 2), (rows, columns), mode="bilinear", antialias=True
        )
        scaled = smaller.permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(crop_center(scaled))


def scale_to_signed_unit(
    images: Shaped[np.ndarray, "images rows columns 3"],
) -> Float32[np.ndarray, "images rows columns 3"]:
    """Values of any type scaled to [-1, 1].

    Raises:
        ValueError: Floats beyond 255, or negative beyond -1.
    """
    if np.issubdtype(images.dtype, np.unsignedinteger):
        return convert_to_float(images) * 2 - 1
    if not np.issubdtype(images.dtype, np.floating):
        return convert_to_float(images)
    min_value, max_value = float(images.min()), float(images.max())
    if min_value < -1 or max_value > 255 or (min_value < 0 and max_value > 1) or not np.isfinite(min_value + max_value):
        raise ValueError(f"image values from {min_value:g} to {max_value:g}; supported: [-1, 1], [0, 1] and [0, 255]")
    if min_value < 0:
        return images.astype(np.float32)
    return (images.astype(np.float32) / (255 if max_value > 1 else 1)) * 2 - 1


def convert_to_float(images: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Integers divided by the maximum of their type, floats unchanged: scikit-image's `img_as_float32`."""
    if np.issubdtype(images.dtype, np.integer):
        return np.maximum(images / np.float64(np.iinfo(images.dtype).max), -1.0).astype(np.float32)
    return images.astype(np.float32)


def prepare_squares_as_openl3(
    images: Shaped[np.ndarray, "images rows columns 3"],
) -> Float32[np.ndarray, "images 224 224 3"]:
    """The input that OpenL3 0.4.2 gives its networks, from images of one size, at least 224 x 224.

    Images of exactly 224 x 224: unsigned integers in [-1, 1]. All others: [0, 1]. If nothing is scaled (a short side up
    to 256), values beyond 1 are divided by the maximum over all these images.
    """
    if images.shape[1:3] == (INPUT_SIDE, INPUT_SIDE):
        batch = convert_to_float(images)
        if np.issubdtype(images.dtype, np.unsignedinteger):
            batch = 2 * batch - 1
    elif min(images.shape[1:3]) > RESCALED_SIDE:
        batch = crop_center(np.stack([rescale_short_side(image) for image in images])).astype(np.float32)
    else:
        batch = crop_center(images).astype(np.float32)
    max_abs = np.abs(batch).max()
    return np.ascontiguousarray(batch / max_abs if max_abs > 1 else batch).astype(np.float32)


def rescale_short_side(image: Shaped[np.ndarray, "rows columns 3"]) -> Shaped[np.ndarray, "new_rows new_columns 3"]:
    """scikit-image's `rescale` to a short side of 256, without anti-aliasing: bilinear between four pixels."""
    scale = RESCALED_SIDE / min(image.shape[:2])
    size = [round(scale * side) for side in image.shape[:2]]
    values = image / np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else image
    pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode="bilinear")[0].permute(1, 2, 0).numpy()


def crop_center(images: Shaped[np.ndarray, "images rows columns 3"]) -> Shaped[np.ndarray, "images 224 224 3"]:
    """The center crop, rounded as in OpenL3."""
    top, left = (side // 2 - INPUT_SIDE // 2 for side in images.shape[1:3])
    return images[:, top : top + INPUT_SIDE, left : left + INPUT_SIDE]
