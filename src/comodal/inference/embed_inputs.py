"""Embeds audio and images in memory, or single files; `embed_files.py` embeds many files."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32

from comodal.errors import check_number
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder
from comodal.inference.embedding_rows import embed_audio_blocks, embed_image_batches
from comodal.media.audio_windows import MAX_HOP_SECONDS
from comodal.media.user_inputs import to_rgb_arrays, to_waveform
from comodal.models.l3net.l3net import L3Net

Model: TypeAlias = L3Net | Embedder | Path | str


def get_audio_embedding(
    audio: Any,
    sample_rate: int | float | None,
    model: Model,
    hop_seconds: float = 0.1,
    center: bool = True,
    batch_size: int | None = None,
) -> tuple[Float32[np.ndarray, "windows features"], Float[np.ndarray, " windows"]]:
    """Embeddings of audio, and their timestamps in seconds. Channels are mixed down, and resampled to the model's rate.

    Args:
        audio: A path, an array (samples,) or (samples, channels), or a tensor (samples,) or (channels, samples).
        sample_rate: Of samples in memory; None for a file, which has its own.
        model: An L3Net, an embedder, or the path of a run, a model or a file of OpenL3 weights.
        hop_seconds: Time between windows.
        center: Window k is centered on its timestamp.
        batch_size: Windows at a time; by default chosen for the device.

    Raises:
        TypeError: The input is of another type.
        ValueError: It has no samples, samples that are not finite, or no sample rate, or `hop_seconds` is not a
            number of at least one sample.
        MediaError: The file cannot be read.
    """
    embedder = resolve_embedder(model)
    check_number("hop_seconds", hop_seconds, 0, MAX_HOP_SECONDS)
    blocks = [embedder.resample(*to_waveform(audio, sample_rate))]
    batches = list(embed_audio_blocks(blocks, embedder, hop_seconds, center, batch_size or embedder.batch_size))
    return np.concatenate([rows.vectors for rows in batches]), np.concatenate([rows.seconds for rows in batches])


def get_image_embedding(
    images: Any, model: Model, batch_size: int | None = None
) -> Float32[np.ndarray, "images features"]:
    """Embeddings of images of any size; each is resized and cropped to the model's square.

    Args:
        images: One or a list of paths, PIL images, arrays (height, width, 3) or tensors (3, height, width) of bytes; or
            several images in one array or tensor.
        model: An L3Net, an embedder, or the path of a run, a model or a file of OpenL3 weights.
        batch_size: Images at a time; by default chosen for the device.

    Raises:
        TypeError: An input is of another type.
        ValueError: There are none, or one has not the shape of an image.
        MediaError: A file cannot be read.
    """
    embedder = resolve_embedder(model)
    return np.concatenate(list(embed_image_batches(to_rgb_arrays(images), embedder, batch_size or embedder.batch_size)))


def resolve_embedder(model: Model) -> Embedder:
    """The embedder of a model, an embedder or a path."""
    if isinstance(model, str | Path):
        return load_embedder(Path(model), EmbedderOptions())
    return model if isinstance(model, Embedder) else Embedder(model, EmbedderOptions(), {})
