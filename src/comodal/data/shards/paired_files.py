"""Pairs of images and audio without a video: `comodal prepare pairs`.

Both are in class folders, or in containers with labels. An image and a recording of the same class form a pair, written
like a clip with one frame. With handwritten and spoken digits this is a controlled experiment on audio-visual
correspondence that runs in minutes.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from comodal.data.shards.shard_report import ShardSummary
from comodal.data.shards.shard_runner import RunPlan, ShardSample, make_shards, plan_shards
from comodal.data.sources.archive_examples import (
    ArchiveExample,
    get_example_group,
    get_example_labels,
    get_example_split,
    read_archive_examples,
)
from comodal.data.sources.split_names import SPLIT_NAMES, SPLITS
from comodal.data.sources.splits import HashSplit, split_by_hash
from comodal.data.sources.video_sources import find_media_root, list_media_files
from comodal.errors import DataError, MediaError, MediaWarning, collect_media_warnings
from comodal.files import fingerprint_files
from comodal.flat_parameters import flatten_parameters
from comodal.media.audio import encode_flac, read_audio
from comodal.media.image import encode_jpeg, read_image, resize_short_side
from comodal.media.storage.archive_samples import Kind, SampleFault
from comodal.media.storage.open_media import find_container, is_container
from comodal.media.storage.path_patterns import is_path_pattern
from comodal.workers import WorkerOptions

MIN_AUDIO_SECONDS = 1.0  # the audio input of the network (L3-Net, section 3)
MAX_CACHED_AUDIO = 1024  # of 10 to 70 kB each

FilesByClass = dict[tuple[str, str], list[str]]  # by split and class


@dataclass(frozen=True)
class PairedFiles:
    """An image and an audio file of one class."""

    key: str
    image: str
    audio: str
    label: str

    @property
    def path(self) -> str:
        return f"{self.image} + {self.audio}"


@dataclass(frozen=True)
class PairedMediaParameters:
    """The format in which images and audio are written.

    Args:
        seconds: Maximum length of the audio, from its beginning.
        short_side: Short side of the images, which are resized to it.
        quality: JPEG quality, 1 to 100.
        sample_rate: Of the audio, in Hz.
    """

    seconds: float = 10.0
    short_side: int = 256
    quality: int = 85
    sample_rate: int = 48000


@dataclass(frozen=True)
class PairShards(WorkerOptions):
    """The size of the shards, and the processes that make them.

    Args:
        pairs_per_shard: Pairs that one task makes and one tar file holds.
    """

    pairs_per_shard: int = 512


DEFAULT_SPLIT, DEFAULT_MEDIA, DEFAULT_PAIR_SHARDS = HashSplit(), PairedMediaParameters(), PairShards()


@flatten_parameters
def prepare_pairs(
    images: Path,
    audio: Path,
    out: Path,
    pairs: int | None = None,
    seed: int = 0,
    split: HashSplit = DEFAULT_SPLIT,
    media: PairedMediaParameters = DEFAULT_MEDIA,
    shards: PairShards = DEFAULT_PAIR_SHARDS,
) -> ShardSummary:
    """Make shards of pairs from images in class folders and audio in class folders.

    Folders are `class/file`, or `train/class/file`, `validation/class/file` and `test/class/file`; files outside such
    folders are split by a hash of their path. No file is in two splits. In each split every file of the kind that has
    more files is used before any is used again; its partner is drawn from those of the same class.

    Args:
        images: Folder of images; or tar shards, Parquet or Arrow files of images with labels (a folder of them, one
            file, or a pattern).
        audio: The same for audio files. Audio shorter than a second is padded with silence on both sides.
        out: The folder of shards to make.
        pairs: Pairs in each split; by default as many as the larger of the numbers of images and audio files.
        seed: Of the random pairing.
        split: The fractions of validation and test.
        media: The format of images and audio.
        shards: The size of the shards, and the processes that make them.

    Returns:
        The number of pairs and their seconds by split, and of refused files by reason.

    Raises:
        DataError: A folder cannot be read or no class has both, OUT holds something else, or the disk is full.

    Examples:
        comodal prepare pairs mnist/ spoken_digits/ shards/ --short-side 36
        comodal prepare pairs mnist.parquet spoken_digits.parquet shards/ --short-side 36
    """
    split.check()
    if media.seconds < MIN_AUDIO_SECONDS:
        raise ValueError(f"seconds must be at least {MIN_AUDIO_SECONDS}, got {media.seconds}")
    if pairs is not None and pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    pairing_options = {"pairs": pairs, "seed": seed, **asdict(split), "pairs_per_shard": shards.pairs_per_shard}
    image_root, audio_root = (find_media_root(Path(folder), None) for folder in (images, audio))
    images_by_class, damaged_images = group_by_split_and_class(
        Path(images), split.validation_fraction, split.test_fraction, "image"
    )
    audio_by_class, damaged_audio = group_by_split_and_class(
        Path(audio), split.validation_fraction, split.test_fraction, "audio"
    )
    drawn = {name: draw_file_pairs(name, images_by_class, audio_by_class, pairs, seed) for name in SPLITS}
    if not any(drawn.values()):
        raise DataError(f"no class of {images} is also a class of {audio}")
    image_names = sorted({pair.image for pairs_of_split in drawn.values() for pair in pairs_of_split})
    audio_names = sorted({pair.audio for pairs_of_split in drawn.values() for pair in pairs_of_split})
    paths = [*(image_root / name for name in image_names), *(audio_root / name for name in audio_names)]
    contents = fingerprint_files(dict.fromkeys(find_container(path) or path for path in paths))
    refused = (*report_unpaired_classes(images_by_class, audio_by_class), *damaged_images, *damaged_audio)
    plan = RunPlan(
        "pairs", asdict(media) | pairing_options, plan_shards(drawn, shards.pairs_per_shard), refused, contents
    )
    read = partial(read_file_pair, image_root=image_root, audio_root=audio_root, media=media)
    return make_shards(plan, read, Path(out), shards)


def group_by_split_and_class(
    folder: Path, validation_fraction: float, test_fraction: float, kind: Kind
) -> tuple[FilesByClass, list[dict[str, Any]]]:
    """The files of `[split/]class/.../file`, and the media of one kind in containers by their labels; by split and
    class. Also report lines about damage in containers.

    Raises:
        DataError: There is no such folder or file, or nothing in it has a class.
    """
    if not (folder.is_dir() or is_path_pattern(folder) or (folder.is_file() and is_container(folder.name))):
        raise DataError(f"{folder}: there is no such folder, and no tar, Parquet or Arrow file of that name")
    root, names = list_media_files(folder)
    files_by_class: FilesByClass = {}
    damaged: list[dict[str, Any]] = []
    for name in names:
        if is_container(name):
            for stored in read_archive_examples(root, name):
                damaged += add_archive_media(files_by_class, stored, kind, validation_fraction, test_fraction)
            continue
        folders = list(PurePosixPath(name).parts[:-1])
        split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
        if split:
            folders.pop(0)
        if folders:
            split_and_class = (split or split_by_hash(name, validation_fraction, test_fraction), folders[0])
            files_by_class.setdefault(split_and_class, []).append(name)
    if not files_by_class:
        raise DataError(f"{folder} has no class folders with files in them, and no containers with labels")
    return files_by_class, damaged


def add_archive_media(
    files_by_class: FilesByClass, stored: ArchiveExample, kind: Kind, validation_fraction: float, test_fraction: float
) -> Iterator[dict[str, Any]]:
    """Add the media of an example to the files of its class, or return a report line with the reason why not."""
    fault, labels, split = stored.example.fault, get_example_labels(stored.example), None
    try:
        split = get_example_split(stored)
    except ValueError as error:
        fault = fault or SampleFault("unknown split", str(error))
    split = split or split_by_hash(get_example_group(stored), validation_fraction, test_fraction)
    if fault is None and kind in stored.example.members:
        for label in labels[:1]:
            files_by_class.setdefault((split, label), []).append(f"{stored.file}/{stored.example.members[kind][0]}")
        fault = None if labels else SampleFault("no label", "neither its metadata nor a .cls member names its class")
    if fault is not None:
        yield {
            "key": stored.path, "path": stored.path, "split": split, "status": "refused", "reason": fault.reason,
            "detail": fault.detail,
        }  # fmt: skip


def draw_file_pairs(
    split: str, images: FilesByClass, audio: FilesByClass, pairs: int | None, seed: int
) -> list[PairedFiles]:
    """The pairs of one split; pair n is a function of (seed, split, n) and of the lists of files."""
    classes = sorted({label for image_split, label in images if image_split == split and (split, label) in audio})
    labeled_images = [(label, name) for label in classes for name in images[split, label]]
    labeled_audio = [(label, name) for label in classes for name in audio[split, label]]
    if not classes:
        return []
    larger, partners = (labeled_images, audio) if len(labeled_images) >= len(labeled_audio) else (labeled_audio, images)
    order = np.random.default_rng((seed, SPLITS.index(split))).permutation(len(larger))
    drawn = []
    for n in range(pairs or len(larger)):
        label, name = larger[order[n % len(larger)]]
        choices = partners[split, label]
        partner = choices[np.random.default_rng((seed, SPLITS.index(split), n)).integers(len(choices))]
        image_name, audio_name = (name, partner) if larger is labeled_images else (partner, name)
        drawn.append(PairedFiles(f"{split}_{n:07d}", image_name, audio_name, label))
    return drawn


def report_unpaired_classes(images: FilesByClass, audio: FilesByClass) -> Iterator[dict[str, Any]]:
    """Report lines about files whose class has no file of the other kind in their split."""
    for files, partners, partner_kind in ((images, audio, "audio file"), (audio, images, "image")):
        for (split, label), names in sorted(files.items()):
            if (split, label) not in partners:
                for name in names:
                    yield {
                        "key": name, "path": name, "split": split, "status": "refused", "reason": "no partner",
                        "detail": f"there is no {partner_kind} of class {label} in {split}",
                    }  # fmt: skip


def read_file_pair(pair: PairedFiles, image_root: Path, audio_root: Path, media: PairedMediaParameters) -> ShardSample:
    """One pair as a clip of one frame, at the middle of the audio.

    Raises:
        MediaError: The image or the audio cannot be used.
    """
    image = resize_short_side(read_image(image_root / pair.image), media.short_side)
    flac, samples, notes = _read_as_flac(audio_root / pair.audio, media.seconds, media.sample_rate)
    for note in notes:
        warnings.warn(MediaWarning(audio_root / pair.audio, note), stacklevel=2)
    length = samples / media.sample_rate
    record = {
        "key": pair.key,
        "source": pair.image,
        "audio_source": pair.audio,
        "group": pair.audio,
        "label": pair.label,
        "frame_seconds": [length / 2],
        "frames": ["0000.jpg"],
        "seconds": length,
        "sample_rate": media.sample_rate,
        "width": image.shape[1],
        "height": image.shape[0],
    }
    return ShardSample({"0000.jpg": encode_jpeg(image, media.quality), "flac": flac}, record)


@lru_cache(MAX_CACHED_AUDIO)
def _read_as_flac(path: Path, seconds: float, sample_rate: int) -> tuple[bytes, int, tuple[str, ...]]:
    """Audio as FLAC, its number of samples, and the notes on it; cached, since each file is in several pairs."""
    with collect_media_warnings() as notes:
        waveform = pad_to_one_second(read_audio(path, sample_rate, seconds=seconds), sample_rate)
    if not np.any(waveform):
        raise MediaError(path, "silent", "every sample is zero")
    return encode_flac(waveform, sample_rate), len(waveform), tuple(notes)


def pad_to_one_second(waveform: Float[np.ndarray, " samples"], sample_rate: int) -> Float[np.ndarray, " padded"]:
    """Pad audio shorter than a second with silence, equally on both sides."""
    missing = max(round(MIN_AUDIO_SECONDS * sample_rate) - len(waveform), 0)
    return np.pad(waveform, (missing // 2, missing - missing // 2))
