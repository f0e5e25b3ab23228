"""Images: upright RGB from files, JPEG encoding and decoding, resizing and cropping.

JPEG goes through simplejpeg (libjpeg-turbo), which decodes 1.5 to 2 times faster than Pillow and can downscale while it
decodes. All other formats go through Pillow.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from comodal.errors import MediaError
from comodal.media.storage.open_media import open_media
from comodal.media.storage.refused_formats import RefusalReason, describe_non_media, read_first_bytes

# Accepted formats. Other Pillow formats start programs (EPS: Ghostscript) or rarely hold images.
MAX_SAMPLE_VALUE = 65_535  # of 16 bits
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_IMAGE_PIXELS = 100_000_000  # of a declared size; Pillow warns at 89 million, a decoded image takes 3 bytes each
MAX_IMAGE_ASPECT = 100  # of an image's sides; 1 x 65,000 pixels scaled to a short side of 256 would take 13 GB
Luma: TypeAlias = UInt8[np.ndarray, "rows columns"]
Chroma: TypeAlias = UInt8[np.ndarray, "half_rows half_columns"]


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image file as RGB, upright: EXIF orientation is applied, grayscale and palettes are converted,
    transparency is composited on black. Of an animation, the first frame is read.

    Raises:
        MediaError: missing, unreadable, declared larger than 100 million pixels, narrower than 1 : 100, or of floats
            that are not from 0 to 255.
    """
    impostor = describe_non_media(read_first_bytes(path))
    if impostor:
        raise MediaError(path, RefusalReason.UNREADABLE, impostor)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: odd metadata, sizes under our own limit
            with open_media(path) as file, Image.open(file, formats=list_readable_formats()) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    detail = f"{image.width} x {image.height} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
                    raise MediaError(path, RefusalReason.TOO_LARGE, detail)
                if max(image.size) > MAX_IMAGE_ASPECT * min(image.size):
                    detail = f"{image.width} x {image.height} pixels are narrower than 1 : {MAX_IMAGE_ASPECT}"
                    raise MediaError(path, RefusalReason.TOO_LARGE, detail)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image takes 400 MB
                return np.asarray(convert_to_rgb(image))
    except Image.DecompressionBombError as error:
        raise MediaError(path, RefusalReason.TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise MediaError(path, RefusalReason.UNREADABLE, f"none of {', '.join(IMAGE_FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError) as error:
        # Pillow's readers raise any of these on damaged files
        raise MediaError(path, RefusalReason.UNREADABLE, str(error) or type(error).__name__) from None


@cache
def list_readable_formats() -> tuple[str, ...]:
    """The formats of FORMATS that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """RGB on black. 16-bit grayscale keeps its upper 8 bits; Pillow's own conversion clips everything to white.

    Integers of 32 bits are read as 16 bits, and rejected if they are none.

    Float images have no fixed range. Values from 0 to 255 are kept; values from 0 to 1 (or nan) are rejected, because
    Pillow's conversion would make them all black.
    """
    if image.mode == "F":
        floats = np.asarray(image)
        lowest, highest = float(floats.min()), float(floats.max())
        if not (lowest >= 0 and 1 < highest <= 255):
            raise ValueError(f"pixels are floats from {lowest} to {highest}; save them as 8 or 16 bits")
    if image.mode == "I":
        integers = np.asarray(image)
        lowest, highest = int(integers.min()), int(integers.max())
        if lowest < 0 or highest > MAX_SAMPLE_VALUE:
            raise ValueError(f"pixels are integers from {lowest} to {highest}; save them as 8 or 16 bits")
    if image.mode.startswith("I"):
        upper = np.asarray(image) // 256  # in the 2 or 4 bytes of the file's pixels
        image = Image.fromarray(np.clip(upper, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = change_mode(image, "RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return change_mode(image, "RGB")


def change_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image in a mode; Pillow's own conversion copies one that has the mode already."""
    return image if image.mode == mode else image.convert(mode)


def encode_jpeg(image: UInt8[np.ndarray, "height width 3"], quality: int = 85) -> bytes:
    """Encode RGB as JPEG with 4:2:0 chroma subsampling, as in video."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def encode_jpeg_planes(luma: Luma, blue: Chroma, red: Chroma, quality: int = 85) -> bytes:
    """Encode full-range BT.601 luma and half-size chroma planes as JPEG."""
    return simplejpeg.encode_jpeg_yuv_planes(luma, blue, red, quality=quality)


def decode_jpeg(data: bytes, min_short_side: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG to RGB.

    With `min_short_side`, a larger image may be downscaled while decoding (by libjpeg's n/8 factors, cheaper than full
    decoding). Its short side never falls below that value.

    Raises:
        MediaError: unreadable or too large; the path is "JPEG data", for the caller to replace.
    """
    min_side = min_short_side or 0
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if int(height) * int(width) > MAX_IMAGE_PIXELS:
            raise MediaError(
                "JPEG data", RefusalReason.TOO_LARGE, f"{width} x {height} pixels, the limit is {MAX_IMAGE_PIXELS:,}"
            )
        return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=min_side, min_width=min_side)
    except ValueError as error:
        raise MediaError("JPEG data", RefusalReason.UNREADABLE, str(error)) from None


def resize_short_side(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize an image, up or down, to a short side of `size`: bilinear, antialiased."""
    height, width, _ = image.shape
    if min(height, width) == size:
        return image
    scale = size / min(height, width)
    new_size = (max(size, round(width * scale)), max(size, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(new_size, Image.Resampling.BILINEAR))


def crop_image_center(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The center crop of `size` x `size` pixels; the image must be at least that large."""
    height, width, _ = image.shape
    if min(height, width) < size:
        raise ValueError(f"a square of {size} cannot be cropped from an image of {width} x {height}")
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
