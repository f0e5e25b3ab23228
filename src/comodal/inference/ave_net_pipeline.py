"""The pipeline of AVE-Net: images and audio in one space, correspondence over time, localization."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from comodal.analysis.localization import predict_by_position
from comodal.errors import check_number
from comodal.hardware import Compute, DeviceName, Precision, resolve_compute
from comodal.inference.joint_space.folder_index import FindKind, FolderIndex, open_folder_index
from comodal.inference.match import MatchResult, match_files
from comodal.media.audio import resample_audio
from comodal.media.audio_windows import MAX_HOP_SECONDS
from comodal.media.image import crop_image_center, resize_short_side
from comodal.media.user_inputs import to_path, to_rgb_array, to_rgb_arrays, to_waveform
from comodal.models.ave_net.ave_net import AVENet


@dataclass(frozen=True)
class JointEmbeddingPipeline:
    """An AVE-Net or AVOL-Net that takes files, PIL images, arrays and tensors.

    The scalar product of an image embedding and an audio embedding ranks images by audio, and audio by images.

    Args:
        model: The network, in evaluation mode on its device.
        compute: Device and precision.
    """

    model: AVENet
    compute: Compute

    @classmethod
    def from_model(
        cls, model: AVENet, device: DeviceName = "auto", precision: Precision = "auto"
    ) -> "JointEmbeddingPipeline":
        """A pipeline over a network in memory, which is moved to the device."""
        compute = resolve_compute(device, precision)
        return cls(model.to(compute.device).eval(), compute)

    @torch.inference_mode()
    def embed_image(self, images: Any) -> Float32[np.ndarray, "images features"]:
        """Embeddings of the center squares of one or a list of images: paths, PIL images, arrays (height, width, 3) or
        tensors of bytes. AVOL-Net embeds each position of an image, row by row.

        Raises:
            MediaError: A file cannot be read.
            TypeError, ValueError: An input is not an image.
        """
        size = self.model.config.image_size
        squares = [
            crop_image_center(resize_short_side(image, round(size * 8 / 7)), size) for image in to_rgb_arrays(images)
        ]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return self.collect(self.model.compute_image_features(part) for part in self.split_batch(pixels))

    @torch.inference_mode()
    def embed_audio(
        self, audio: Any, sample_rate: int | float | None = None, hop_seconds: float = 1.0
    ) -> tuple[Float32[np.ndarray, "windows features"], Float[np.ndarray, " windows"]]:
        """Embeddings of windows of audio, and the times in seconds at which they start.

        Args:
            audio: A path, an array (samples,) or (samples, channels), or a tensor (samples,) or (channels, samples).
            sample_rate: Of samples in memory, in Hz; files have their own.
            hop_seconds: Time between windows.

        Raises:
            MediaError: The file cannot be read.
            TypeError, ValueError: The input is not audio, is shorter than a window, or its sample rate is missing.
        """
        waveform, length = self.read_waveform(audio, sample_rate)
        check_number("hop_seconds", hop_seconds, 0, MAX_HOP_SECONDS)
        hop = round(hop_seconds * self.model.config.sample_rate)
        if hop < 1:
            raise ValueError(f"hop_seconds ({hop_seconds}) is less than one sample")
        starts = np.arange(0, len(waveform) - length + 1, hop)
        windows = np.stack([waveform[start : start + length] for start in starts])
        return self.embed_windows(windows), starts / self.model.config.sample_rate

    @torch.inference_mode()
    def embed_windows(self, windows: Float32[np.ndarray, "windows samples"]) -> Float32[np.ndarray, "windows features"]:
        """Embeddings of windows of audio at the model's sample rate."""
        parts = self.split_batch(torch.from_numpy(windows))
        return self.collect(self.model.compute_audio_features(part) for part in parts)

    def match(
        self, image_or_video: Any, audio: Any = None, sample_rate: int | float | None = None, hop_seconds: float = 1.0
    ) -> MatchResult:
        """Predicts over time whether an image or a video corresponds to audio; a video alone is matched with its own
        audio.

        Raises:
            MediaError: A file cannot be read, is silent or too short.
        """
        with self.compute.autocast():
            return match_files(self.model, image_or_video, audio, hop_seconds, sample_rate)

    @torch.inference_mode()
    def localize(
        self, image: Any, audio: Any, sample_rate: int | float | None = None
    ) -> Float32[np.ndarray, "rows columns"]:
        """Sound source localization: logit of match minus that of mismatch, at each position of the whole image.

        Args:
            image: The short side is resized to 8/7 of the model's image size.
            audio: At least as long as the model's window; its first window is used.
            sample_rate: Of samples in memory, in Hz.

        Raises:
            MediaError: A file cannot be read.
            ValueError: The audio is shorter than one window.
        """
        pixels = resize_short_side(to_rgb_array(image), round(self.model.config.image_size * 8 / 7))
        waveform, length = self.read_waveform(audio, sample_rate)
        image_batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        with self.compute.autocast():
            found = predict_by_position(self.model, image_batch, torch.from_numpy(waveform[None, :length]))
        return found.position_margins[0].numpy()

    def open_index(self, folder: Path | str, index: Path | str | None = None, find: FindKind = "auto") -> FolderIndex:
        """A searcher for the images, audio and videos of a folder; its index is built or updated at the first search.

        Args:
            folder: The folder.
            index: Folder of the index; by default .comodal-index in the folder.
            find: audio or image; auto: images for a query of audio, and the other way round.

        Raises:
            DataError: There is nothing to search, or the index is damaged or cannot be written.
            CheckpointError: It is an AVOL-Net, which has no vector of a whole image.

        Examples:
            comodal.load("runs/ave").open_index("clips/").search("bark.wav").best
        """
        return open_folder_index(self, folder, index, find)

    def read_waveform(self, audio: Any, sample_rate: int | float | None) -> tuple[Float32[np.ndarray, " samples"], int]:
        """Audio at the model's sample rate, and the length of a window.

        Raises:
            ValueError: The audio is shorter than a window.
        """
        config = self.model.config
        samples, rate = to_waveform(audio, sample_rate)
        waveform = resample_audio(samples.astype(np.float32), round(rate), config.sample_rate).astype(np.float32)
        length = round(config.audio_seconds * config.sample_rate)
        if len(waveform) < length:
            raise ValueError(
                f"{len(waveform)} samples at {config.sample_rate} Hz are shorter than a window of {length}"
            )
        return waveform, length

    def split_batch(self, batch: Tensor) -> Iterator[Tensor]:
        """The parts of a batch that are computed at a time, on the device."""
        return (part.to(self.compute.device) for part in batch.split(self.compute.batch_size))

    def collect(self, parts: Iterator[Tensor]) -> Float32[np.ndarray, "rows features"]:
        """All features of a lazy sequence of parts, which are computed here."""
        with self.compute.autocast():
            return torch.cat([part.float().cpu() for part in parts]).numpy()


def load_joint_embedding(
    path: Path | str, device: DeviceName = "auto", precision: Precision = "auto"
) -> JointEmbeddingPipeline:
    """Loads a run or model folder of an AVE-Net as a pipeline.

    Raises:
        CheckpointError: The path holds no AVE-Net, or it is damaged.
    """
    return JointEmbeddingPipeline.from_model(AVENet.from_pretrained(to_path(path)), device, precision)
