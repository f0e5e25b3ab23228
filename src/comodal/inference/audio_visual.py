"""The audio-visual pipeline: embeddings of audio, images and videos, audio-visual correspondence, localization."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32

from comodal.analysis.localization import predict_by_position
from comodal.errors import CheckpointError
from comodal.hardware import Compute, DeviceName, Precision, resolve_compute
from comodal.inference.embed_inputs import get_audio_embedding, get_image_embedding
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder
from comodal.inference.embedding_rows import embed_timed_frames
from comodal.inference.joint_space.folder_index import FindKind, FolderIndex, open_folder_index
from comodal.inference.match import MatchResult, match_files
from comodal.media.image import resize_short_side
from comodal.media.user_inputs import to_path, to_rgb_array, to_waveform
from comodal.media.video import iterate_frames
from comodal.models.l3net.l3net import L3Net


class VideoEmbedding(NamedTuple):
    """Embeddings of the frames and of the audio of a video, each with its timestamps in seconds."""

    image_embeddings: Float32[np.ndarray, "frames features"]
    image_timestamps: Float[np.ndarray, " frames"]
    audio_embeddings: Float32[np.ndarray, "windows features"]
    audio_timestamps: Float[np.ndarray, " windows"]


@dataclass(frozen=True)
class AudioVisualPipeline:
    """An L3-Net that takes files, PIL images, arrays and tensors.

    Args:
        path: Of the run, the model folder or the OpenL3 weights.
        embedder: The loaded embedder.
        compute: Device and precision.
        has_fusion: Whether the fusion network was trained. OpenL3's weight files hold only the towers.
    """

    path: Path
    embedder: Embedder
    compute: Compute
    has_fusion: bool

    @classmethod
    def from_model(
        cls, model: L3Net, device: DeviceName = "auto", precision: Precision = "auto"
    ) -> "AudioVisualPipeline":
        """A pipeline over a network in memory."""
        embedder = Embedder(model, EmbedderOptions(device=device, precision=precision), {})
        return cls(Path(), embedder, resolve_compute(device, precision), has_fusion=True)

    @property
    def model(self) -> L3Net:
        """The network."""
        return self.embedder.model

    def embed_audio(
        self, audio: Any, sample_rate: int | float | None = None, hop_seconds: float = 0.1, center: bool = True
    ) -> tuple[Float32[np.ndarray, "windows features"], Float[np.ndarray, " windows"]]:
        """Embeddings of windows of audio, and their timestamps in seconds.

        Args:
            audio: A path, an array (samples,) or (samples, channels), or a tensor (samples,) or (channels, samples).
            sample_rate: Of samples in memory, in Hz; files have their own.
            hop_seconds: Time between windows.
            center: Window k is centered on its timestamp.

        Raises:
            MediaError: The file cannot be read.
            TypeError, ValueError: The input is not audio, or its sample rate is missing.
        """
        return get_audio_embedding(audio, sample_rate, self.embedder, hop_seconds, center)

    def embed_image(self, images: Any) -> Float32[np.ndarray, "images features"]:
        """Embeddings of one or a list of images: paths, PIL images, arrays (height, width, 3) or tensors of bytes.

        Raises:
            MediaError: A file cannot be read.
            TypeError, ValueError: An input is not an image.
        """
        return get_image_embedding(images, self.embedder)

    def embed_video(self, path: Path | str, frames_per_second: float = 1.0, hop_seconds: float = 0.1) -> VideoEmbedding:
        """Embeddings of the frames and of the audio of a video file, with timestamps on the same clock.

        Raises:
            MediaError: The file cannot be read, or has no video or no audio stream.
        """
        path = to_path(path)
        rows = list(
            embed_timed_frames(iterate_frames(path, frames_per_second), self.embedder, self.embedder.batch_size)
        )
        vectors, seconds = (np.concatenate([getattr(row, name) for row in rows]) for name in ("vectors", "seconds"))
        return VideoEmbedding(vectors, seconds, *self.embed_audio(path, hop_seconds=hop_seconds))

    def match(
        self, image_or_video: Any, audio: Any = None, sample_rate: int | float | None = None, hop_seconds: float = 1.0
    ) -> MatchResult:
        """Predicts over time whether an image or a video corresponds to audio; a video alone is matched with its own
        audio.

        Raises:
            CheckpointError: The weights have no fusion network.
            MediaError: A file cannot be read, is silent or too short.
        """
        self.check_fusion()
        with self.compute.autocast():
            return match_files(self.model, image_or_video, audio, hop_seconds, sample_rate)

    @torch.inference_mode()
    def localize(
        self, image: Any, audio: Any, sample_rate: int | float | None = None
    ) -> Float32[np.ndarray, "rows columns"]:
        """Sound source localization: logit of match minus that of mismatch, at each position of conv4_2.

        Args:
            image: The short side is resized to 8/7 of the model's image size; the map covers the whole image.
            audio: At least as long as the model's window; its first window is used.
            sample_rate: Of samples in memory, in Hz.

        Raises:
            CheckpointError: The weights have no fusion network.
            MediaError: A file cannot be read.
            ValueError: The audio is shorter than one window.
        """
        self.check_fusion()
        config = self.model.config
        pixels = resize_short_side(to_rgb_array(image), round(config.image_size * 8 / 7))
        waveform = self.embedder.resample(*to_waveform(audio, sample_rate)).astype(np.float32)
        window = round(config.audio_seconds * config.sample_rate)
        if len(waveform) < window:
            raise ValueError(
                f"{len(waveform)} samples at {config.sample_rate} Hz are shorter than a window of {window}"
            )
        device = self.compute.device
        image_batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device)
        waveform_batch = torch.from_numpy(waveform[None, :window]).to(device)
        with self.compute.autocast():
            return (
                predict_by_position(self.model, image_batch, waveform_batch).position_margins[0].float().cpu().numpy()
            )

    def open_index(self, folder: Path | str, index: Path | str | None = None, find: FindKind = "auto") -> FolderIndex:
        """A searcher for the images, or the audio, of a folder; its index is built or updated at the first search.

        Args:
            folder: The folder.
            index: Folder of the index; by default .comodal-index in the folder.
            find: image or audio; auto is the modality of the query: an L3-Net has no common space.

        Raises:
            DataError: There is nothing to search, or the index is damaged or cannot be written.

        Examples:
            comodal.load("runs/l3net").open_index("clips/").search("bark.wav").best
        """
        return open_folder_index(self, folder, index, find)

    def check_fusion(self) -> None:
        """Raises a CheckpointError if the weights are those of embedding towers only."""
        if not self.has_fusion:
            raise CheckpointError(f"{self.path} holds embedding networks alone; matching needs a trained L3-Net")


def load_audio_visual(
    path: Path | str, device: DeviceName = "auto", precision: Precision = "auto"
) -> AudioVisualPipeline:
    """Loads a run or model folder of an L3-Net, or a file of OpenL3 weights, as a pipeline.

    Raises:
        CheckpointError: The path holds no L3-Net, or it is damaged.
    """
    path = to_path(path)
    embedder = load_embedder(path, EmbedderOptions(device=device, precision=precision))
    return AudioVisualPipeline(path, embedder, resolve_compute(device, precision), has_fusion=not embedder.about)
