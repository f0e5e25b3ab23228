"""Videos to shards: `comodal prepare videos`.

The first seconds of each video become a clip: frames at a chosen rate as JPEG and mono audio as FLAC, with timestamps
on one clock. So any frame and second of audio can be read without the video (L3-Net, section 3: 10 s).
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg

from comodal.console import print_line
from comodal.data.shards.shard_report import ShardSummary
from comodal.data.shards.shard_runner import (
    RunPlan,
    ShardSample,
    format_refusal,
    make_shards,
    plan_shards,
)
from comodal.data.sources.kinetics_sounds import KINETICS_SOUNDS
from comodal.data.sources.official_sets import (
    OFFICIAL_SETS,
    OfficialSetName,
    assign_official_splits,
    describe_lists,
)
from comodal.data.sources.split_names import SPLITS
from comodal.data.sources.splits import HashSplit, assign_group_splits, hash_to_fraction, split_by_hash
from comodal.data.sources.video_sources import (
    ArchiveVideoSource,
    ListFormat,
    VideoSource,
    find_media_root,
    normalize_label,
    read_sources,
)
from comodal.errors import DataError, MediaError
from comodal.files import encode_for_hash, fingerprint_files
from comodal.flat_parameters import flatten_parameters
from comodal.media.audio import encode_flac
from comodal.media.storage.open_media import is_container, remember_locations
from comodal.media.storage.path_patterns import is_path_pattern
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.video import (
    DEFAULT_CLIP,
    MIN_CLIP_SECONDS,
    Clip,
    ClipParameters,
    read_clip,
    read_clip_with_audio,
    read_video_info,
)
from comodal.workers import WorkerOptions

CUT_MARGIN_SECONDS = 1.0  # clips in files are cut at key frames
MAX_KEY_LENGTH = 120  # so that a member's name stays below the 255 bytes of a file system


@dataclass(frozen=True)
class VideoSelection(HashSplit):
    """Which videos are taken, and how they are split.

    Args:
        classes: Labels to keep; kinetics-sounds selects the 34 classes of the paper.
        preset: A data set of the paper from its official lists: flickr-soundnet (400,000 training, 50,000 validation
            and 50,000 test videos) or kinetics-sounds (34 classes, 15,000, 1,900 and 1,900 clips). A hash of the
            video's id selects them; the paper's own selection is not published.
        limit: Use only this many videos, chosen by the hash of their keys.
        split: own keeps the splits of the list or of folders named train, validation and test, and splits the rest by a
            hash; hash splits everything by a hash. Clips of one source video are never in two splits.
        validation_fraction: The fraction of the source videos that a hash puts into validation.
        test_fraction: The fraction of the source videos that a hash puts into test.
    """

    classes: Sequence[str] | None = None
    preset: OfficialSetName | None = None
    limit: int | None = None
    split: Literal["own", "hash"] = "own"

    def check(self) -> None:
        """Raises ValueError if a number is out of range."""
        super().check()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if self.preset is not None and (self.classes or self.split != "own"):
            raise ValueError(f"--preset {self.preset} sets the classes and the splits: leave out --classes and --split")


@dataclass(frozen=True)
class VideoShards(WorkerOptions):
    """The size of the shards, and the processes that make them.

    Args:
        videos_per_shard: Videos that one task reads and one tar file holds.
    """

    videos_per_shard: int = 32

    def check(self) -> None:
        """Raises ValueError if a number is out of range."""
        if self.videos_per_shard < 1:
            raise ValueError(f"videos_per_shard must be at least 1, got {self.videos_per_shard}")


ALL_VIDEOS, DEFAULT_SHARDS = VideoSelection(), VideoShards()


@flatten_parameters
def prepare_videos(
    source: Path,
    out: Path,
    files: Path | None = None,
    list_format: ListFormat = "auto",
    lists: Sequence[Path] | None = None,
    selection: VideoSelection = ALL_VIDEOS,
    media: ClipParameters = DEFAULT_CLIP,
    shards: VideoShards = DEFAULT_SHARDS,
) -> ShardSummary:
    """Make shards of clips from a folder or a list of videos.

    The command can be interrupted and resumed; when all is done it does nothing. The result does not depend on the
    number of workers. OUT/report.jsonl lists the refused files and why.

    Args:
        source: A folder of videos, of tar shards (WebDataset, video2dataset) or of Parquet or Arrow files (Hugging
            Face), one such file, or a pattern of files ("shards/{00000..00099}.tar"); or a list: Kinetics CSV or JSON,
            VGGSound, AudioSet CSV, Flickr-SoundNet URLs, or JSON Lines.
        out: The folder of shards to make.
        files: The folder that holds the files of a list; by default the list's own folder.
        list_format: The format of the list; by default it is detected.
        lists: Further lists of the same files, such as the lists of the other splits.
        selection: Which videos are taken, and how they are split.
        media: What is taken of each video, and its format.
        seconds: How much of each video is taken, from its beginning or the list's start.
        shards: The size of the shards, and the processes that make them.

    Returns:
        The number of clips and their seconds by split, and of refused files by reason.

    Raises:
        DataError: The source cannot be read, OUT holds something else, or the disk is full.

    Examples:
        comodal prepare videos clips/ shards/
        comodal prepare videos webvid/ shards/
        comodal prepare videos "webvid/{00000..00099}.tar" shards/
        comodal prepare videos train.csv shards/ --lists validate.csv test.csv --files kinetics/
        comodal prepare videos kinetics_train.csv shards/ --files kinetics/ --classes kinetics-sounds
        comodal prepare videos train.csv shards/ --lists validate.csv test.csv --files k400/ --preset kinetics-sounds
        comodal prepare videos urls_public.txt shards/ --files flickr/ --preset flickr-soundnet
    """
    selection.check()
    shards.check()
    source, out = Path(source), Path(out)
    sources = read_sources(source, files, list_format, leave_out=out)
    if lists and source.is_dir():
        raise ValueError(f"--lists needs a list as the source, and {source} is a folder")
    for other_list in lists or ():
        sources += read_sources(Path(other_list), find_media_root(source, files), list_format)
    if not sources:
        raise DataError(f"{source} names no files")
    preset = OFFICIAL_SETS[selection.preset] if selection.preset else None
    classes = preset.classes if preset else selection.classes
    sources = select_classes(sources, list(classes or ()))
    if selection.preset:
        sources = assign_official_splits(sources, selection.preset)
    choice = {"classes": classes and list(classes), "limit": selection.limit, "split": selection.split}
    choice |= {"preset": selection.preset} if selection.preset else {}
    sizes = {
        "validation_fraction": selection.validation_fraction,
        "test_fraction": selection.test_fraction,
        "videos_per_shard": shards.videos_per_shard,
    }
    plan, root = plan_videos(sources, asdict(media) | choice | sizes), find_media_root(source, files)
    paths = sorted({item.file for shard in plan.shards for item in shard.items})
    plan = replace(plan, contents=fingerprint_files(root / path for path in paths))
    if is_list(source):
        listed = count_listed_clips(sources, selection)
        record = describe_lists(selection.preset or source.name, [source, *map(Path, lists or ())], listed)
        plan = replace(plan, dataset=record)
    return make_shards(plan, partial(read_video_sample, root=root, media=media), out, shards)


def is_list(source: Path) -> bool:
    """Whether the source is a list rather than a folder, a pattern or a container."""
    return not source.is_dir() and not is_path_pattern(source) and not is_container(source.name)


def count_listed_clips(sources: list[VideoSource], selection: VideoSelection) -> Counter[str]:
    """The number of listed clips of each split, whether their files exist or not, and without the limit."""
    fractions = (selection.validation_fraction, selection.test_fraction)
    if selection.split == "hash":
        return Counter(split_by_hash(source.group, *fractions) for source in sources)
    splits = assign_group_splits(sources, *fractions)
    return Counter(splits[source.group] for source in sources)


def select_classes(sources: list[VideoSource], classes: list[str]) -> list[VideoSource]:
    """The sources with one of these labels; reports the classes that the sources do not have."""
    if not classes:
        return sources
    names_by_class = {
        paper: normalize_label(name or paper)
        for group in classes
        for paper, name in (KINETICS_SOUNDS if group == "kinetics-sounds" else {group: group}).items()
    }
    source_labels = {normalize_label(label) for source in sources for label in source.labels}
    missing = [paper for paper, name in names_by_class.items() if name not in source_labels]
    kept = [
        source
        for source in sources
        if {normalize_label(label) for label in source.labels} & set(names_by_class.values())
    ]
    print_line(
        f"{len(names_by_class) - len(missing)} of {len(names_by_class)} classes, {len(kept):,} of {len(sources):,} "
        f"files"
    )
    if missing:
        print_line(f"classes that the source does not have: {', '.join(missing)}")
    if not kept:
        raise DataError(f"no file has one of the classes {', '.join(classes)}")
    return kept


def plan_videos(sources: list[VideoSource], options: dict[str, Any]) -> RunPlan[VideoSource]:
    """Assign videos to shards; in each split they are ordered by a hash of the key."""
    sources = sorted(make_unique_keys(sources), key=lambda source: (hash_to_fraction(source.key), source.key))
    sources = sources[: options["limit"]]
    validation_fraction, test_fraction = options["validation_fraction"], options["test_fraction"]
    if options["split"] == "own":
        splits = assign_group_splits(sources, validation_fraction, test_fraction)
    else:
        sources = [replace(source, split=None) for source in sources]
        splits = {source.group: split_by_hash(source.group, validation_fraction, test_fraction) for source in sources}
    accepted: dict[str, list[VideoSource]] = {split: [] for split in SPLITS}
    refused, identities = [], set()
    for source in sources:
        split, identity = splits[source.group], (source.path, source.start_seconds)
        if source.missing:
            refused.append(format_refusal(source, split, "missing", "listed, but there is no such file"))
        elif isinstance(source, ArchiveVideoSource) and source.fault is not None:
            refused.append(format_refusal(source, split, *source.fault))
        elif identity in identities:
            refused.append(format_refusal(source, split, "listed twice", "the same part of the same file"))
        elif source.split not in (None, split):
            refused.append(
                format_refusal(source, source.split or split, "in two splits", f"its video is also in {split}")
            )
        else:
            accepted[split].append(source)
        identities.add(identity)
    return RunPlan("clips", options, plan_shards(accepted, options["videos_per_shard"]), tuple(refused))


def make_unique_keys(sources: list[VideoSource]) -> list[VideoSource]:
    """Unique keys without dots, slashes and blanks; duplicates get a hash of their path."""
    keys = [re.sub(r"[^\w+=@,-]+", "_", source.key) for source in sources]
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    return [
        replace(
            source,
            key=f"{key[:MAX_KEY_LENGTH]}-{hash_source_path(source)}" if key in repeated or is_long_key(key) else key,
        )
        for source, key in zip(sources, keys, strict=True)
    ]


def is_long_key(key: str) -> bool:
    return len(key.encode()) > MAX_KEY_LENGTH


def hash_source_path(source: VideoSource) -> str:
    text = f"{source.path}\n{source.key}\n{source.start_seconds}"
    return hashlib.sha256(encode_for_hash(text)).hexdigest()[:8]


def read_video_sample(source: VideoSource, root: Path, media: ClipParameters) -> ShardSample:
    """One clip of one video.

    Raises:
        MediaError: The video cannot be used.
    """
    path, seconds = root / source.path, min(media.seconds, source.clip_seconds or math.inf)
    if seconds < MIN_CLIP_SECONDS:
        raise MediaError(path, RefusalReason.TOO_SHORT, f"its duration in the list is {seconds:g} s")
    media = replace(media, seconds=seconds)
    if isinstance(source, ArchiveVideoSource):
        return make_shard_sample(source, read_stored_clip(source, root, media))
    start_seconds = source.start_seconds if source.start_seconds and is_full_video(source, path) else 0.0
    return make_shard_sample(source, read_clip(path, start_seconds=start_seconds, clip=media))


def read_stored_clip(source: ArchiveVideoSource, root: Path, media: ClipParameters) -> Clip:
    """A clip of a video in a container; its audio may be a separate file, as in video2dataset."""
    path, audio_path = root / source.path, root / (source.audio or "")
    locations = {path: source.location, audio_path: source.audio_location}
    with remember_locations({path: location for path, location in locations.items() if location is not None}):
        try:
            return read_clip(path, clip=media)
        except MediaError as error:
            if error.reason != RefusalReason.NO_AUDIO_STREAM or source.audio is None:
                raise
        return read_clip_with_audio(path, audio_path, clip=media)


def is_full_video(source: VideoSource, path: Path) -> bool:
    """Whether a file is the whole source video rather than the listed part; both may be stored under the bare id."""
    if source.clip_seconds is None:
        return True
    return read_video_info(path).seconds > source.clip_seconds + CUT_MARGIN_SECONDS


def make_shard_sample(source: VideoSource, clip: Clip) -> ShardSample:
    """The members and the record of a clip: the audio from time 0 to the end, and the frames in that time."""
    waveform = np.concatenate([np.zeros(round(clip.audio_start_seconds * clip.sample_rate), np.float32), clip.audio])
    waveform = waveform[: round(clip.seconds * clip.sample_rate)]
    times = [round(time, 6) for time in clip.frame_seconds if time < clip.seconds]
    frames = {f"{index:04d}.jpg": clip.frames[index] for index in range(len(times))}
    height, width, *_ = simplejpeg.decode_jpeg_header(clip.frames[0])
    record = {
        "key": source.key,
        "source": source.path,
        "group": source.group,
        "frame_seconds": times,
        "frames": list(frames),
        "seconds": round(clip.seconds, 6),
        "sample_rate": clip.sample_rate,
        "width": width,
        "height": height,
    }
    if isinstance(source, ArchiveVideoSource) and source.captions:
        record["caption"] = source.captions[0] if len(source.captions) == 1 else list(source.captions)
    if source.labels:
        record["label"] = source.labels[0] if len(source.labels) == 1 else list(source.labels)
    return ShardSample(frames | {"flac": encode_flac(waveform, clip.sample_rate)}, record)
