"""Inputs of the Python API for an image or audio: a path, a PIL image, an array, a tensor, or a list.

Arrays have the layout of Pillow and soundfile: images (height, width, 3), audio (samples,) or (samples, channels).
Tensors have the layout of torchvision and torchaudio: (3, height, width) and (channels, samples).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from comodal.errors import check_number
from comodal.media.audio import stream_native_audio
from comodal.media.image import convert_to_rgb, read_image

ONE_IMAGE_INPUTS = "one path, PIL image, array (height, width, 3) or tensor (3, height, width) of bytes"
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 100, 10_000_000  # Hz
AUDIO_INPUTS = "one path, one array (samples,) or (samples, channels), or one tensor (samples,) or (channels, samples)"
ONE_AUDIO_AT_A_TIME = "; call this once for each waveform or file"
PCM_TYPES = {("u", 1), ("i", 2), ("i", 4)}  # kind and bytes
PCM_ADVICE = "convert samples of 16 bits to int16, or all samples to floating point numbers from -1 to 1"
Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Waveform(NamedTuple):
    """Mono samples with full scale at 1, and their sample rate."""

    samples: Float32[np.ndarray, " samples"]
    sample_rate: int | float


def to_path(path: Any) -> Path:
    """A path, given as a Path or a string.

    Raises:
        TypeError: The value is something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"got {describe_value(path)}; pass a path as str or Path")
    return Path(path)


def to_path_list(paths: Any) -> list[Path]:
    """One path or a list of paths.

    Raises:
        TypeError: The value is something else.
    """
    one = isinstance(paths, str | os.PathLike)
    if not one and not isinstance(paths, list | tuple):
        raise TypeError(f"got {describe_value(paths)}; pass a path as str or Path, or a list of them")
    return [to_path(path) for path in ([paths] if one else paths)]


def to_rgb_array(image: Any) -> UInt8[np.ndarray, "height width 3"]:
    """One image, upright and in RGB.

    Raises:
        TypeError: The value is not an image, or its pixels are not uint8.
        ValueError: The shape is not that of an image, or the image is empty.
        MediaError: The file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(convert_to_rgb(ImageOps.exif_transpose(image)))
    if isinstance(image, torch.Tensor):
        if image.ndim == 3:
            image = image.detach().cpu().permute(1, 2, 0)
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"got {describe_value(image)} for an image; pass {ONE_IMAGE_INPUTS}")
    if image.dtype != np.uint8:
        raise TypeError(f"pixels of {image.dtype}: pass bytes (uint8) from 0 to 255, not normalized")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"an image of shape {tuple(image.shape)}; pass {ONE_IMAGE_INPUTS}")
    if image.shape[2] == 4:
        return np.asarray(convert_to_rgb(Image.fromarray(np.ascontiguousarray(image))))
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image)


def to_rgb_arrays(images: Any) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """One image, a batch of images in one array or tensor, or a list of images.

    Raises:
        TypeError: A value is not an image, or its pixels are not uint8.
        ValueError: A shape is not that of an image, or there are no images.
        MediaError: A file cannot be read.
    """
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4):
        if not len(images):
            raise ValueError("no images")
        return [to_rgb_array(image) for image in images]
    return [to_rgb_array(images)]


def to_waveform(audio: Any, sample_rate: int | float | None = None) -> Waveform:
    """One waveform: channels are averaged, integer samples are scaled to full scale at 1.

    Args:
        audio: A path, an array or a tensor.
        sample_rate: Of samples in memory; a file has its own.

    Raises:
        TypeError: The value is not audio, or its integers are of a type that PCM does not have.
        ValueError: There are no samples, samples are not finite, the shape is not that of audio, 32-bit samples have
            the range of 16 bits, or the sample rate is missing or not a number.
        MediaError: The file cannot be read.
    """
    if isinstance(audio, str | os.PathLike):
        return read_native_waveform(Path(audio))
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu().float().numpy() if audio.dtype == torch.bfloat16 else audio.detach().cpu().numpy()
        audio = audio.T
    if not isinstance(audio, np.ndarray) or audio.dtype.kind not in "fiu":
        several = ONE_AUDIO_AT_A_TIME if isinstance(audio, list | tuple) else ""
        raise TypeError(f"got {describe_value(audio)} for audio; pass {AUDIO_INPUTS}, with its sample rate{several}")
    if sample_rate is None or sample_rate == 0:
        raise ValueError(f"audio in memory needs its sample rate, which is positive; got {sample_rate}")
    check_number("sample_rate", sample_rate, MIN_SAMPLE_RATE, MAX_SAMPLE_RATE)
    if audio.ndim not in (1, 2) or not audio.size:
        raise ValueError(f"audio of shape {tuple(audio.shape)}; pass {AUDIO_INPUTS}")
    if audio.ndim == 2 and audio.shape[1] > audio.shape[0]:
        raise ValueError(f"audio of {audio.shape[1]:,} channels and {audio.shape[0]:,} samples; pass {AUDIO_INPUTS}")
    samples = scale_to_unit_range(audio)
    samples = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float64)
    if not np.isfinite(samples).all():
        raise ValueError("audio with samples that are not finite numbers")
    return Waveform(samples.astype(np.float32), sample_rate)


def scale_to_unit_range(samples: np.ndarray) -> np.ndarray:
    """Floating point samples are kept; PCM of 8 (unsigned), 16 and 32 bits is scaled to -1 to 1.

    Raises:
        TypeError: Integers of another type, whose full scale is unknown.
        ValueError: 32-bit samples that all fit in 16 bits: their full scale is ambiguous.
    """
    if samples.dtype.kind == "f":
        return samples
    if (samples.dtype.kind, samples.dtype.itemsize) not in PCM_TYPES:
        raise TypeError(f"audio of {samples.dtype}: {PCM_ADVICE}")
    if samples.dtype.itemsize == 4 and samples.any() and np.array_equal(samples, samples.astype(np.int16)):
        raise ValueError(f"audio of int32 whose samples all fit in 16 bits: {PCM_ADVICE}")
    middle = 2 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float64) - (middle if samples.dtype.kind == "u" else 0)) / middle


def read_native_waveform(path: Path) -> Waveform:
    """A whole file at its own sample rate.

    Raises:
        MediaError: Missing, unreadable or without audio.
    """
    sample_rate, blocks = 0, []
    for sample_rate, block in stream_native_audio(path):  # noqa: B007
        blocks.append(block)
    if not sum(map(len, blocks)):
        raise ValueError(f"{path}: the audio has no samples")
    return Waveform(np.concatenate(blocks), sample_rate)


def check_texts(texts: Any) -> None:
    """Checks that a list holds texts.

    Raises:
        TypeError: It does not.
    """
    if not isinstance(texts, Sequence):
        raise TypeError(f"got {describe_value(texts)} for texts; pass a text or a list of texts")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"got {describe_value(wrong[0])} for a text; pass it as str")


def describe_value(value: Any) -> str:
    """A value, described for an error message."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    return type(value).__name__
