"""The inputs of L3-Net and AVE-Net: images as bytes, and audio as samples of a fixed duration."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def normalize_image(
    image: UInt8[Tensor, "batch 3 height width"], dtype: torch.dtype
) -> Float[Tensor, "batch 3 height width"]:
    """Scales uint8 to [-1, 1] (l3embedding, data/avc/sample.py).

    Raises:
        TypeError: The images are not uint8.
        ValueError: The shape is another one.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"images of {image.dtype}: pass bytes (torch.uint8) from 0 to 255, not normalized")
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(image.shape)}: pass a batch (batch, 3, height, width)")
    return image.to(dtype) * (2 / 255) - 1


def check_audio(
    audio: Float[Tensor, "batch samples"],
    audio_seconds: float,
    sample_rate: int,
    dtype: torch.dtype,
    checks_values: bool,
) -> Float[Tensor, "batch samples"]:
    """Validates audio. Sample values are only checked on a CPU, and where `checks_values` asks for it.

    On a GPU the check would synchronize, and in training the loss is checked.

    Raises:
        TypeError: The samples are not floating point, or of float64 for a model of another type.
        ValueError: The shape is another one, the audio is longer or shorter than `audio_seconds`, or has samples
            that are not finite.
    """
    samples = round(audio_seconds * sample_rate)
    if not audio.is_floating_point():
        raise TypeError(f"audio of {audio.dtype}: pass samples as floating point numbers from -1 to 1")
    if audio.dtype == torch.float64 != dtype:
        raise TypeError(f"audio of {audio.dtype}: pass {dtype}, the type of this model")
    if audio.ndim != 2:
        raise ValueError(f"audio of shape {tuple(audio.shape)}: pass a batch (batch, samples) with one channel")
    if audio.shape[-1] != samples:
        raise ValueError(
            f"audio of {audio.shape[-1]:,} samples: this model takes {samples:,}, {audio_seconds:g} s at "
            f"{sample_rate:,} Hz"
        )
    is_checked = checks_values and audio.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_checked and not bool(audio.isfinite().all()):
        raise ValueError("audio with samples that are not finite numbers")
    return audio
