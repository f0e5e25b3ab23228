"""An embedder: an L3-Net with its frontend, precision and size, and the preprocessing of OpenL3 for its weights.

OpenL3 weights get the preprocessing that they were trained with: audio resampled by `kaiser_best`, images cropped and
layers cut as in OpenL3.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.hardware import DTYPES, EmbedPrecision, can_fuse_convolution, choose_inference_batch_size, resolve_compute
from comodal.inference.openl3_files import is_openl3_file, load_openl3
from comodal.media.audio import resample_audio
from comodal.media.resample_kaiser import resample_kaiser
from comodal.models.checkpoint import find_model_folder, read_model_about
from comodal.models.convert.convert_openl3 import TowerModality
from comodal.models.l3net.fused_vgg import FusedTower
from comodal.models.l3net.l3net import AUDIO_GRID, IMAGE_GRID, L3Net, max_pool_to_grid
from comodal.models.l3net.spectrogram import Frontend, Representation, Spectrogram
from comodal.models.l3net.spectrogram import make_openl3_spectrogram_config as openl3_spectrogram
from comodal.runtimes.export_formats import EngineChoice, Format
from comodal.runtimes.exported_engines import ExportedEmbedders, find_fastest_export

OpenL3Version = Literal["0.4.2"]
CPU_BATCH = 32  # windows or images, on a CPU
FULL_GRIDS = {"image": IMAGE_GRID, "audio": AUDIO_GRID}


@dataclass(frozen=True)
class EmbedderOptions:
    """The options of an embedder.

    Args:
        as_openl3: Reproduce the embeddings of this version of OpenL3, including its errors.
        frontend: Spectrogram frontend of OpenL3; None: as the weights were trained, with `as_openl3` kapre03.
        precision: auto takes what the hardware computes fastest (bf16 or fp32), with `as_openl3` fp32.
        size: Dimension of the embeddings; None: the features of all cells of the grid.
        device: PyTorch device: auto (CUDA, else MPS, else the CPU) or its name.
        representation: linear, mel128 or mel256, for a weights file that does not store it.
        engine: PyTorch, or an engine that `comodal export` has written files for; auto: see `resolve_engine`.
    """

    as_openl3: OpenL3Version | None = None
    frontend: Frontend | None = None
    precision: EmbedPrecision = "auto"
    size: int | None = None
    device: str = "auto"
    representation: Representation | None = None
    engine: EngineChoice = "torch"


class Embedder:
    """Embeds audio and images.

    Args:
        model: The network; its weights at construction are used.
        options: The options.
        about: Metadata of OpenL3 weights (representation, towers, files); empty for comodal models.
        exports: The exported embedders of an engine other than PyTorch.
    """

    def __init__(
        self, model: L3Net, options: EmbedderOptions, about: dict[str, object], exports: ExportedEmbedders | None = None
    ) -> None:
        self.options, self.about, self.exports = options, about, exports
        if exports is None and options.precision == "int8":
            raise ValueError("int8 is for exported embedders: --engine onnx or openvino, after `comodal export --int8`")
        if (options.as_openl3 or options.frontend) and not about:
            raise ValueError("as_openl3 and frontend apply to OpenL3 weights only; this model is not one")
        self.frontend = options.frontend or ("kapre03" if options.as_openl3 else str(about.get("frontend", "")))
        self.config = model.config
        if about and self.frontend != about.get("frontend"):
            frontend: Frontend = self.frontend  # type: ignore[assignment]
            self.config = dataclasses.replace(
                self.config,
                spectrogram=openl3_spectrogram(about["representation"], frontend),  # type: ignore[arg-type]
            )
        precision: EmbedPrecision = "fp32" if options.as_openl3 and options.precision == "auto" else options.precision
        if exports is not None:
            self.device, self.precision = torch.device("cpu"), exports.precision
        else:
            assert precision != "int8"
            compute = resolve_compute(options.device, precision)
            self.device, self.precision = compute.device, compute.precision
        self.model = model.to(self.device)
        self.spectrogram = Spectrogram(self.config.spectrogram).to(self.device)
        self.audio_dtype = torch.float32
        if self.frontend == "librosa":  # computes in float64: the difference is visible 80 dB below a pure tone
            self.audio_dtype = torch.float64
            self.spectrogram.double().window = torch.hann_window(
                self.config.spectrogram.window_samples, dtype=torch.float64, device=self.device
            )

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device is not the CPU."""
        return self.device.type != "cpu"

    @property
    def batch_size(self) -> int:
        """Number of windows or images in memory at a time."""
        return max(CPU_BATCH, choose_inference_batch_size(self.device))

    @property
    def zeroes_silence(self) -> bool:
        """Whether silent windows get zero vectors: relative to its own maximum, silence is amplified to full level."""
        return self.config.spectrogram.scale == "decibels" and not self.options.as_openl3

    @cached_property
    def image_tower(self) -> FusedTower:
        """The image tower, prepared on first use."""
        return self._build_tower("image")

    @cached_property
    def audio_tower(self) -> FusedTower:
        """The audio tower, prepared on first use."""
        return self._build_tower("audio")

    def prepare(self, modality: TowerModality) -> None:
        """Loads what a modality needs, so that missing parts are reported before any file is opened."""
        self.get_grid(modality)
        if self.exports is not None:
            self.exports.open(modality)
        else:
            assert self.image_tower if modality == "image" else self.audio_tower

    def _build_tower(self, modality: TowerModality) -> FusedTower:
        if self.about and modality not in self.about["towers"]:  # type: ignore[operator]
            available = " and ".join(self.about["towers"])  # type: ignore[arg-type]
            files = ", ".join(self.about["files"])  # type: ignore[arg-type]
            raise CheckpointError(f"{files}: holds the network of the {available}, not of the {modality}")
        tower = self.model.image_tower if modality == "image" else self.model.audio_tower
        return FusedTower(tower, DTYPES[self.precision], self.config.embedding == "convolution")

    def get_grid(self, modality: TowerModality) -> tuple[int, int]:
        """The grid of cells that a map is pooled to, for the chosen size."""
        rows, columns = FULL_GRIDS[modality]
        channels = 8 * self.config.width
        if self.options.size in (None, rows * columns * channels):
            return rows, columns
        if self.options.size == channels:
            return 1, 1
        raise ValueError(f"size is {self.options.size}; this network has {channels} or {rows * columns * channels}")

    @torch.inference_mode()
    def embed_audio(
        self, windows: Float[np.ndarray, "windows samples"]
    ) -> tuple[Float32[np.ndarray, "windows features"], np.ndarray]:
        """Embeddings of windows at the network's sample rate, and which windows contain only zeros."""
        if self.exports is not None:
            vectors = self._run_exported(windows.astype(np.float32, copy=False), "audio")
        else:
            parts = self._split_batch(torch.from_numpy(windows).to(self.device, self.audio_dtype))
            vectors = self._embed_parts([self.spectrogram(part).float() for part in parts], "audio")
        silent = np.asarray(~windows.any(axis=1))
        if self.zeroes_silence:
            vectors[silent] = 0.0
        return vectors, silent

    @torch.inference_mode()
    def embed_spectrograms(
        self, decibels: Float32[np.ndarray, "windows 1 bands frames"]
    ) -> Float32[np.ndarray, "windows features"]:
        """Embeddings of precomputed spectrograms."""
        return self._embed_parts(self._split_batch(torch.from_numpy(decibels).to(self.device)), "audio")

    @torch.inference_mode()
    def embed_images(self, squares: UInt8[np.ndarray, "images size size 3"]) -> Float32[np.ndarray, "images features"]:
        """Embeddings of images of the network's size."""
        if self.exports is not None:
            return self._run_exported(squares.transpose(0, 3, 1, 2), "image")
        bytes_ = torch.from_numpy(squares).permute(0, 3, 1, 2).to(self.device)
        return self._embed_parts([self.model.normalize_image(part) for part in self._split_batch(bytes_)], "image")

    @torch.inference_mode()
    def embed_pixels(self, pixels: Float32[np.ndarray, "images size size 3"]) -> Float32[np.ndarray, "images features"]:
        """Embeddings of images with values in the network's input range."""
        if self.exports is not None:  # exported networks take bytes
            return self.embed_images(np.rint((pixels + 1) * 127.5).astype(np.uint8))
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
        return self._embed_parts(self._split_batch(values), "image")

    def _split_batch(self, batch: Tensor) -> list[Tensor]:
        """Splits a batch into the sizes that are fastest on this device."""
        return list(batch.split(choose_inference_batch_size(self.device)))

    def _embed_parts(self, parts: list[Tensor], modality: TowerModality) -> Float32[np.ndarray, "rows features"]:
        tower = self.image_tower if modality == "image" else self.audio_tower
        return (
            torch.cat([max_pool_to_grid(tower(part), self.get_grid(modality)).float() for part in parts]).cpu().numpy()
        )

    def _run_exported(
        self, batch: Shaped[np.ndarray, "rows ..."], modality: TowerModality
    ) -> Float32[np.ndarray, "rows features"]:
        """The output of the exported embedder; the maximum over all cells where the size is that of a single cell."""
        assert self.exports is not None
        vectors = self.exports(modality, batch)
        if self.get_grid(modality) == (1, 1):
            return vectors.reshape(len(vectors), -1, 8 * self.config.width).max(1)
        return vectors

    def resample(
        self, waveform: Float[np.ndarray, " samples"], sample_rate: int | float
    ) -> Float[np.ndarray, " new_samples"]:
        """A whole waveform resampled to the network's sample rate."""
        if self.about:
            return resample_kaiser(waveform, sample_rate, self.config.sample_rate)
        return resample_audio(waveform.astype(np.float32), round(sample_rate), self.config.sample_rate)


@cache
def load_embedder(path: Path, options: EmbedderOptions) -> Embedder:
    """Loads an embedder from a run or model folder, or from a file of OpenL3 weights; cached in each process.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of another kind.
    """
    if options.engine not in {"auto", "torch"} and (
        is_openl3_file(path) or options.as_openl3 or options.frontend or options.device not in {"auto", "cpu"}
    ):
        raise ValueError(
            f"--engine {options.engine} computes on the CPU what `comodal export` has written of a model's folder; "
            "as_openl3, frontend and device apply to PyTorch only"
        )
    if is_openl3_file(path):
        checkpoint = load_openl3(path, representation=options.representation)
        return Embedder(checkpoint.model, options, checkpoint.about)
    model = L3Net.from_pretrained(path)
    about = read_model_about(find_model_folder(path)).get("openl3")
    engine = resolve_engine(path, model, options)
    exports = None if engine == "torch" else ExportedEmbedders(path, model, engine, options.precision)
    return Embedder(model, options, about if isinstance(about, dict) else {}, exports)


def resolve_engine(path: Path, model: L3Net, options: EmbedderOptions) -> Format:
    """The engine of the options. Auto takes PyTorch where its fused convolutions run: they are as fast as the others.

    Where they do not, and for int8, auto takes an exported engine if there is one of the same weights.
    """
    if options.engine != "auto":
        return options.engine
    if options.as_openl3 or options.frontend or options.device not in {"auto", "cpu"}:
        return "torch"
    if options.precision != "int8":
        compute = resolve_compute(options.device, options.precision)
        if compute.device.type != "cpu" or can_fuse_convolution(compute.dtype):
            return "torch"
    return find_fastest_export(path, model, options.precision) or "torch"
