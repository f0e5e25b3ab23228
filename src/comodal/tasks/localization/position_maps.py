"""Maps of the margin of each position of an image, with its own audio and with audio that has no source in it.

Negative audio is that of Juanola et al. (arXiv 2410.01020): silence, Gaussian noise of unit variance, and the audio of
another image (off-screen). Each audio file is read once and becomes one vector; then each image is read once and scored
with all its vectors.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from comodal.errors import DataError, MediaError
from comodal.hardware import Compute
from comodal.media.image import read_image
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.audio.audio_features import LabeledAudioFile, read_all_samples
from comodal.tasks.correspondence.clip_features import choose_forward_batch
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.threaded_reading import read_batches
from comodal.tasks.localization.sounding_boxes import SoundingImage

FRAME_FOLDER, AUDIO_FOLDER = "frames", "audio"  # as in the published scripts
NEGATIVE_AUDIO = ("silence", "noise", "offscreen")
AUDIO_KINDS = ("own", *NEGATIVE_AUDIO)
NOISE_STREAM, OFFSCREEN_STREAM = 1, 2  # separate the random states of one seed


class FrameFile(NamedTuple):
    """The image file of a sounding image."""

    path: Path


class MediaPair(NamedTuple):
    """A sounding image with the files of its frame and its audio."""

    image: SoundingImage
    frame: FrameFile
    audio: LabeledAudioFile


class AudioVectors(NamedTuple):
    """The vector of the audio of each file, that of noise for each file, and that of silence."""

    own: Float[Tensor, "images features"]
    noise: Float[Tensor, "images features"]
    silence: Float[Tensor, "1 features"]


def match_media_files(data: Path, images: Sequence[SoundingImage]) -> list[MediaPair]:
    """The images that have a file in `frames` and one in `audio`, matched by name without suffix.

    Raises:
        DataError: A folder is missing, or no image has both files.
    """
    folders = {
        name: index_media_files(data / name, suffixes)
        for name, suffixes in ((FRAME_FOLDER, IMAGE_SUFFIXES), (AUDIO_FOLDER, tuple(AUDIO_SUFFIXES)))
    }
    pairs = [
        MediaPair(
            image,
            FrameFile(folders[FRAME_FOLDER][image.name]),
            LabeledAudioFile(folders[AUDIO_FOLDER][image.name], image.name, image.category),
        )
        for image in images
        if all(image.name in files for files in folders.values())
    ]
    if not pairs:
        raise DataError(
            f"{data}: none of the {len(images):,} annotated images has a frame and audio in it; the first is expected "
            f"as {FRAME_FOLDER}/{images[0].name}.jpg and {AUDIO_FOLDER}/{images[0].name}.wav"
        )
    return pairs


def index_media_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by name without suffix.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the data needs the folders {FRAME_FOLDER} and {AUDIO_FOLDER}")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def read_square_image(frame: FrameFile, size: int) -> UInt8[Tensor, "3 size size"]:
    """The whole image, scaled to a square as in the published scripts, so that its boxes keep their fractions.

    Raises:
        MediaError: It cannot be read.
    """
    image = Image.fromarray(read_image(frame.path)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_center_audio(audio: LabeledAudioFile, sample_rate: int, length: int) -> Float32[np.ndarray, " samples"]:
    """The samples at the center of a file; shorter audio is repeated, as in the published scripts.

    Raises:
        MediaError: It cannot be read, or holds no samples.
    """
    samples = read_all_samples(audio, sample_rate)
    if len(samples) < length:
        return np.resize(samples, length)
    start = (len(samples) - length) // 2
    return samples[start : start + length]


def draw_noise(seed: int, index: int, length: int) -> Float32[np.ndarray, " samples"]:
    """Gaussian noise of unit variance, the same for an image in every run with this seed."""
    return np.random.default_rng((seed, index, NOISE_STREAM)).standard_normal(length).astype(np.float32)


@torch.inference_mode()
def compute_audio_vectors(
    models: Mapping[str, L3Net | AVENet], pairs: Sequence[MediaPair], compute: Compute, workers: int, seed: int
) -> tuple[dict[str, AudioVectors], dict[int, MediaError]]:
    """The vectors of the audio of each pair by model, and the errors of the files that cannot be read.

    Rows of such files are missing, so that row k is of the k-th pair whose audio can be read.

    Raises:
        DataError: No file can be read.
    """
    config = next(iter(models.values())).config
    length = round(config.audio_seconds * config.sample_rate)
    size = choose_forward_batch(next(iter(models.values())), compute)
    read_file = partial(read_center_audio, sample_rate=config.sample_rate, length=length)
    own: dict[str, list[Tensor]] = {name: [] for name in models}
    noise: dict[str, list[Tensor]] = {name: [] for name in models}
    problems: dict[int, MediaError] = {}
    files = [pair.audio for pair in pairs]
    for indices, batch, errors in read_batches(read_file, files, size, workers, "embedding audio files"):
        problems |= errors
        if not batch:
            continue
        noises = np.stack([draw_noise(seed, index, length) for index in indices])
        for name, model in models.items():
            own[name].append(embed_waveforms(model, torch.from_numpy(np.stack(batch)), compute))
            noise[name].append(embed_waveforms(model, torch.from_numpy(noises), compute))
    if len(problems) == len(pairs):
        raise DataError(f"none of the {len(pairs):,} audio files can be read; the first: {problems[0]}")
    silence = torch.zeros(1, length)
    return {
        name: AudioVectors(torch.cat(own[name]), torch.cat(noise[name]), embed_waveforms(model, silence, compute))
        for name, model in models.items()
    }, problems


def embed_waveforms(
    model: L3Net | AVENet, audio: Float[Tensor, "batch samples"], compute: Compute
) -> Float[Tensor, "batch features"]:
    """The vectors of audio, in fp32."""
    with compute.autocast():
        return model.compute_audio_features(audio.to(compute.device)).float()


def choose_offscreen(images: Sequence[SoundingImage], seed: int) -> Int64[np.ndarray, " images"]:
    """For each image, the index of a random one of another video and, where classes are known, of another class.

    Raises:
        DataError: An image has no other.
    """
    rng = np.random.default_rng((seed, OFFSCREEN_STREAM))
    videos = np.unique([image.video for image in images], return_inverse=True)[1]
    categories = np.unique([image.category or image.video for image in images], return_inverse=True)[1]
    partners = []
    for index, image in enumerate(images):
        candidates = np.flatnonzero((videos != videos[index]) & (categories != categories[index]))
        if not len(candidates):
            raise DataError(f"{image.name}: there is no image of another video and class for its off-screen audio")
        partners.append(int(rng.choice(candidates)))
    return np.array(partners, dtype=np.int64)


@torch.inference_mode()
def compute_position_maps(
    models: Mapping[str, L3Net | AVENet],
    pairs: Sequence[MediaPair],
    vectors: Mapping[str, AudioVectors],
    partners: Int64[np.ndarray, " pairs"],
    compute: Compute,
    workers: int,
) -> tuple[dict[str, Float[Tensor, "audios images rows columns"]], dict[int, MediaError]]:
    """The maps of each model with the kinds of audio of `AUDIO_KINDS`, and the errors of images that cannot be read.

    Maps of such images are missing.

    Raises:
        DataError: No image can be read, or a map is not finite.
    """
    reference = next(iter(models.values()))
    size = choose_forward_batch(reference, compute)
    read_file = partial(read_square_image, size=reference.config.image_size)
    maps: dict[str, list[Tensor]] = {name: [] for name in models}
    problems: dict[int, MediaError] = {}
    files = [pair.frame for pair in pairs]
    for indices, batch, errors in read_batches(read_file, files, size, workers, "localizing"):
        problems |= errors
        if not batch:
            continue
        pixels = torch.stack(batch).to(compute.device)
        for name, model in models.items():
            audio = select_vectors(vectors[name], indices, partners)
            with compute.autocast():
                positions = model.compute_position_features(pixels)
                scored = torch.stack([model.score_positions(positions, rows) for rows in audio]).float().cpu()
            check_finite_scores(scored.numpy(), f"maps of the {name} network from {pairs[indices[0]].frame.path}")
            maps[name].append(scored)
    if len(problems) == len(pairs):
        raise DataError(f"none of the {len(pairs):,} images can be read; the first: {problems[0]}")
    return {name: torch.cat(parts, 1) for name, parts in maps.items()}, problems


def select_vectors(
    vectors: AudioVectors, indices: Sequence[int], partners: Int64[np.ndarray, " pairs"]
) -> tuple[Float[Tensor, "images features"], ...]:
    """The vectors of some images, in the order of `AUDIO_KINDS`."""
    rows = list(indices)
    silence = vectors.silence.expand(len(rows), -1)
    return vectors.own[rows], silence, vectors.noise[rows], vectors.own[partners[rows].tolist()]
