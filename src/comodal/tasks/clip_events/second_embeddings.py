"""Embeddings of each second of videos: its audio, and the frame in its middle.

Frames and audio are cut as for training: the frame is scaled to 8/7 of the network's image size, and its center is
taken. A video that ends early is padded with silence and with its last frame.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from comodal.errors import CheckpointError, DataError, MediaError
from comodal.hardware import Compute
from comodal.media.image import crop_image_center, decode_jpeg
from comodal.media.storage.suffixes import VIDEO_SUFFIXES
from comodal.media.video import read_clip
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import load_model, make_untrained_copy
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.threaded_reading import read_batches
from comodal.tasks.evaluation.unreadable_files import try_read

FRAMES_PER_SECOND = 2.0  # so that every other frame is in the middle of a second
VIDEO_BATCH = 2  # videos of ten seconds, that are embedded at a time
MAX_CALIBRATION_VIDEOS = 26  # of ten seconds: as many examples as elsewhere (256)


class VideoFile(NamedTuple):
    """A video file."""

    path: Path


class VideoSeconds(NamedTuple):
    """The middle frame and the audio of each second, and whether the video was padded."""

    image: UInt8[Tensor, "seconds 3 size size"]
    audio: Float[Tensor, "seconds samples"]
    is_padded: bool


class SecondFeatures(NamedTuple):
    """The embeddings of a network. Rows of videos that cannot be read are undefined."""

    image: Float[Tensor, "videos seconds image_features"]
    audio: Float[Tensor, "videos seconds audio_features"]

    def concatenate(self) -> Float[Tensor, "videos seconds features"]:
        """Both embeddings of each second, as one vector."""
        return torch.cat([self.image, self.audio], 2)


class EmbeddedVideos(NamedTuple):
    """The embeddings of each network, the errors of videos by index, and the number of padded videos."""

    features: dict[str, SecondFeatures]
    problems: dict[int, MediaError]
    num_padded: int


def load_embedding_model(path: Path) -> L3Net | AVENet:
    """Loads an L3-Net, an AVE-Net or an AVOL-Net.

    Raises:
        CheckpointError: The folder holds another model.
    """
    model = load_model(path)
    if not isinstance(model, L3Net | AVENet):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs an L3Net or an AVENet")
    return model


def index_videos(folder: Path) -> dict[str, VideoFile]:
    """The videos of a folder by name without suffix.

    Raises:
        DataError: There is no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: there are no videos in it")
    return {path.stem: VideoFile(path) for path in paths}


def read_seconds(video: VideoFile, model: L3Net | AVENet, seconds: int) -> VideoSeconds:
    """The first seconds of a video.

    Raises:
        MediaError: It cannot be read, or has no video or no audio.
    """
    config, size = model.config, model.config.image_size
    length = round(config.audio_seconds * config.sample_rate)
    clip = read_clip(
        video.path,
        seconds=float(seconds),
        frames_per_second=FRAMES_PER_SECOND,
        short_side=round(size * 8 / 7),
        quality=95,
        sample_rate=config.sample_rate,
    )
    images = []
    for second in range(seconds):
        frame = min(int((second + 0.5) * FRAMES_PER_SECOND), len(clip.frames) - 1)
        images.append(crop_image_center(decode_jpeg(clip.frames[frame]), size))
    waveform = np.pad(clip.audio, (round(clip.audio_start_seconds * config.sample_rate), 0))
    missing = max(0, seconds * config.sample_rate + length - len(waveform))
    waveform = np.pad(waveform, (0, missing))
    starts = [second * config.sample_rate for second in range(seconds)]
    audio = np.stack([waveform[start : start + length] for start in starts])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return VideoSeconds(pixels, torch.from_numpy(audio), clip.seconds < seconds - 1 / FRAMES_PER_SECOND)


def build_untrained_embedder(
    trained: L3Net | AVENet, videos: Sequence[VideoFile], seconds: int, seed: int
) -> L3Net | AVENet:
    """An untrained network of the same shape, whose batch norms are calibrated on the first videos, without labels.

    Raises:
        DataError: None of them can be read.
    """
    untrained = make_untrained_copy(trained, seed)
    read_file = partial(read_seconds, model=trained, seconds=seconds)
    contents = [try_read(read_file, video) for video in videos[:MAX_CALIBRATION_VIDEOS]]
    readable = [content for content in contents if not isinstance(content, MediaError)]
    if not readable:
        raise DataError(f"{videos[0].path.parent}: none of the first videos can be read")
    image, audio = torch.cat([one.image for one in readable]), torch.cat([one.audio for one in readable])
    calibrate_batch_norms(untrained, untrained, image, audio)
    return untrained


@torch.inference_mode()
def embed_videos(
    models: Mapping[str, L3Net | AVENet], videos: Sequence[VideoFile], seconds: int, compute: Compute, workers: int
) -> EmbeddedVideos:
    """Reads each video once, and embeds its seconds with each network.

    Raises:
        DataError: No video can be read, or an embedding is not finite.
    """
    for model in models.values():
        model.to(compute.device).eval()
    read_file = partial(read_seconds, model=next(iter(models.values())), seconds=seconds)
    rows: dict[str, list[SecondFeatures]] = {name: [] for name in models}
    readable: list[int] = []
    problems: dict[int, MediaError] = {}
    num_padded = 0
    for batch in read_batches(read_file, videos, VIDEO_BATCH, workers, "embedding videos"):
        problems |= batch.problems
        readable += batch.indices
        num_padded += sum(content.is_padded for content in batch.contents)
        for content in batch.contents:
            for name, model in models.items():
                rows[name].append(embed_seconds(model, content, compute))
    if not readable:
        raise DataError(f"{videos[0].path.parent}: none of the {len(videos):,} videos can be read: {problems[0]}")
    features = {}
    for name, parts in rows.items():
        image, audio = torch.stack([part.image for part in parts]), torch.stack([part.audio for part in parts])
        check_finite_scores(image.numpy(), f"image embeddings of the {name} network")
        check_finite_scores(audio.numpy(), f"audio embeddings of the {name} network")
        features[name] = SecondFeatures(*(spread_rows(part, readable, len(videos)) for part in (image, audio)))
    return EmbeddedVideos(features, problems, num_padded)


def spread_rows(
    rows: Float[Tensor, "readable seconds features"], indices: Sequence[int], count: int
) -> Float[Tensor, "videos seconds features"]:
    """The rows at their indices among `count`; others are zero."""
    spread = rows.new_zeros(count, *rows.shape[1:])
    spread[list(indices)] = rows
    return spread


def embed_seconds(model: L3Net | AVENet, content: VideoSeconds, compute: Compute) -> SecondFeatures:
    """The embeddings of the seconds of one video, in fp32 on the CPU.

    L3-Net's are the maxima of its last maps. AVE-Net's are its embeddings; those of AVOL-Net's positions are averaged.
    """
    image, audio = content.image.to(compute.device), content.audio.to(compute.device)
    with compute.autocast():
        if isinstance(model, AVENet) and model.config.comparison == "localization":
            image_features = model.compute_position_features(image).mean((1, 2))
        else:
            image_features = model.compute_image_features(image)
        audio_features = model.compute_audio_features(audio)
    return SecondFeatures(image_features.float().cpu(), audio_features.float().cpu())
