"""`comodal.openl3.models`: OpenL3's networks under the names and parameters of its own functions (openl3/models.py).

Nothing is downloaded: the published files are searched in the folder $COMODAL_OPENL3 and in the cache. Each process
loads a network only once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from comodal.errors import CheckpointError
from comodal.hardware import Precision
from comodal.inference.embedder import Embedder, EmbedderOptions, OpenL3Version, load_embedder
from comodal.inference.openl3_files import find_published_weights
from comodal.models.convert.convert_openl3 import TowerModality
from comodal.openl3.openl3_exceptions import OpenL3Error

VALID_FRONTENDS = ("librosa", "kapre")
VALID_INPUT_REPRS = ("linear", "mel128", "mel256")
VALID_CONTENT_TYPES = ("music", "env")
VALID_AUDIO_EMBEDDING_SIZES = (6144, 512)
VALID_IMAGE_EMBEDDING_SIZES = (8192, 512)
EXTENDED_FRONTENDS = ("librosa", "kapre014", "kapre03")  # "kapre" is the version of the training


@dataclass(frozen=True)
class OpenL3Settings:
    """See `settings`."""

    as_openl3: OpenL3Version | None = None
    precision: Precision = "fp32"
    device: str = "auto"


CURRENT: ContextVar[OpenL3Settings] = ContextVar("comodal_openl3_settings")
DEFAULT = OpenL3Settings()


@contextmanager
def settings(
    as_openl3: OpenL3Version | None = None, precision: Precision = "fp32", device: str = "auto"
) -> Iterator[None]:
    """Context manager that sets how networks are loaded.

    Args:
        as_openl3: "0.4.2": reproduce that version, including its frontend and its pixel range.
        precision: fp32, bf16 (embeddings have a cosine of 0.9999 with those in fp32), or auto: bf16 where it is native.
        device: auto (CUDA, else MPS, else the CPU) or the name of a device.
    """
    token = CURRENT.set(OpenL3Settings(as_openl3, precision, device))
    try:
        yield
    finally:
        CURRENT.reset(token)


class EmbeddingModel:
    """Replaces OpenL3's Keras models in its functions and in `predict`."""

    def __init__(self, embedder: Embedder, modality: TowerModality, frontend: str) -> None:
        self.embedder, self.modality, self.frontend = embedder, modality, frontend

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the input of `predict`: audio windows, spectrograms in decibels (librosa), or pixels in [-1, 1]."""
        if self.modality == "image":
            return (None, 224, 224, 3)
        if self.frontend != "librosa":
            return (None, 1, 48_000)
        spectrogram = self.embedder.config.spectrogram
        samples = spectrogram.sample_rate + spectrogram.zeros_before + spectrogram.zeros_after
        frames = 1 + (samples - spectrogram.window_samples) // spectrogram.hop_samples
        return (None, spectrogram.mel_bands or spectrogram.n_fft // 2 + 1, frames, 1)

    @property
    def output_shape(self) -> tuple[None, int]:
        """Shape of the output of `predict`."""
        rows, columns = self.embedder.get_grid(self.modality)
        return (None, rows * columns * 8 * self.embedder.config.width)

    def predict(
        self, x: Shaped[np.ndarray, "rows ..."], batch_size: int = 32, verbose: int = 0
    ) -> Float32[np.ndarray, "rows features"]:
        """Returns embeddings of `preprocess_audio`'s output, or of pixels; `verbose` is ignored."""
        if x.shape[1:] != self.input_shape[1:]:
            raise OpenL3Error(f"this model takes {self.input_shape}, not {x.shape} (verbose {verbose})")
        parts = [self._embed_batch(x[first : first + batch_size]) for first in range(0, len(x), batch_size)]
        return np.concatenate(parts)

    def _embed_batch(self, x: Shaped[np.ndarray, "rows ..."]) -> Float32[np.ndarray, "rows features"]:
        if self.modality == "image":
            return self.embedder.embed_pixels(np.ascontiguousarray(x, dtype=np.float32))
        if self.frontend == "librosa":
            return self.embedder.embed_spectrograms(np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32))
        return self.embedder.embed_audio(np.ascontiguousarray(x[:, 0]))[0]


def load_audio_embedding_model(
    input_repr: str, content_type: str, embedding_size: object, frontend: str = "kapre"
) -> EmbeddingModel:
    """Loads a published audio network.

    Args:
        input_repr: linear, mel128 or mel256.
        content_type: music or env.
        embedding_size: 6144 or 512.
        frontend: kapre (0.1.4, with which the weights were trained) or librosa; OpenL3 uses kapre03 since 0.4.

    Raises:
        OpenL3Error: There is no such network, or its file is missing; the message names its download page.
    """
    path = get_audio_embedding_model_path(input_repr, content_type)
    return load_audio_embedding_model_from_path(path, input_repr, embedding_size, frontend)


def load_audio_embedding_model_from_path(
    model_path: str | Path, input_repr: str, embedding_size: object, frontend: str = "kapre"
) -> EmbeddingModel:
    """Loads an audio network from a file (.h5, .h5.gz, .pth.tar) or a model folder."""
    check_choice("input representation", input_repr, VALID_INPUT_REPRS)
    check_choice("embedding size", embedding_size, VALID_AUDIO_EMBEDDING_SIZES)
    check_choice("frontend", frontend, (*VALID_FRONTENDS, *EXTENDED_FRONTENDS))
    current = CURRENT.get(DEFAULT)
    kapre = "kapre03" if current.as_openl3 else "kapre014"
    options = EmbedderOptions(
        current.as_openl3,
        kapre if frontend == "kapre" else frontend,  # type: ignore[arg-type]
        current.precision,
        embedding_size,  # type: ignore[arg-type]
        current.device,
        input_repr,  # type: ignore[arg-type]
    )
    return EmbeddingModel(load_cached_embedder(Path(model_path), options, "audio"), "audio", frontend)


def load_image_embedding_model(input_repr: str, content_type: str, embedding_size: object) -> EmbeddingModel:
    """Loads a published image network by the audio network it was trained with; sizes are 8192 and 512."""
    return load_image_embedding_model_from_path(
        get_image_embedding_model_path(input_repr, content_type), embedding_size
    )


def load_image_embedding_model_from_path(model_path: str | Path, embedding_size: object) -> EmbeddingModel:
    """Loads an image network from a file (.h5, .h5.gz) or a model folder."""
    check_choice("embedding size", embedding_size, VALID_IMAGE_EMBEDDING_SIZES)
    current = CURRENT.get(DEFAULT)
    options = EmbedderOptions(current.as_openl3, None, current.precision, embedding_size, current.device)  # type: ignore[arg-type]
    return EmbeddingModel(load_cached_embedder(Path(model_path), options, "image"), "image", "")


def load_cached_embedder(path: Path, options: EmbedderOptions, modality: TowerModality) -> Embedder:
    """Loads a network once per process."""
    try:
        embedder = load_embedder(path, options)
        embedder.get_grid(modality)
        assert embedder.audio_tower if modality == "audio" else embedder.image_tower
    except (CheckpointError, ValueError) as error:
        raise OpenL3Error(str(error)) from error
    representation = embedder.about.get("representation")
    if options.representation not in (None, representation):
        raise OpenL3Error(f"{path} was trained with {representation}, not {options.representation}")
    return embedder


def get_audio_embedding_model_path(input_repr: str, content_type: str) -> str:
    """Path of the published file of an audio network."""
    return find_published_path("audio", input_repr, content_type)


def get_image_embedding_model_path(input_repr: str, content_type: str) -> str:
    """Path of the published file of an image network."""
    return find_published_path("image", input_repr, content_type)


def find_published_path(modality: TowerModality, input_repr: str, content_type: str) -> str:
    """Path of a published file, which must exist."""
    check_choice("input representation", input_repr, VALID_INPUT_REPRS)
    check_choice("content type", content_type, VALID_CONTENT_TYPES)
    try:
        return str(find_published_weights(modality, input_repr, content_type))
    except CheckpointError as error:
        raise OpenL3Error(str(error)) from error


def check_choice(argument: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises an error for any other value."""
    if value not in choices:
        raise OpenL3Error(f"Invalid {argument} {value!r}; it must be one of {', '.join(map(repr, choices))}")


def as_list(value: object, argument: str) -> list:
    """Returns a list: of one value, or the given list."""
    if not isinstance(value, np.ndarray | list):
        raise OpenL3Error(f"{argument} must be type list[np.ndarray] or np.ndarray. Got {type(value)}")
    return value if isinstance(value, list) else [value]


def describe(value: object) -> str:
    """Describes a value for messages."""
    return f"shape {value.shape}" if isinstance(value, np.ndarray) else str(type(value))
