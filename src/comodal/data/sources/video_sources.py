"""The videos to ingest: a folder of videos, or an official list with the folder that holds its files.

The format of a list is detected from its first lines:

- Kinetics CSV (`label,youtube_id,time_start,time_end,split[,is_cc]`); files are `<id>_<start:06d>_<end:06d>.mp4`, in
  folders by label (with spaces or underscores), by split, or flat.
- Kinetics JSON (`{id: {"annotations": {"label", "segment"}, "subset"}}`), with files as for the CSV.
- VGGSound's vggsound.csv (`id,start,label,split`); files are `<id>_<start:06d>.mp4`, also with the end.
- AudioSet CSV (three comment lines, `YTID, start_seconds, end_seconds, "labels"`); files are named by the id, with or
  without the times in seconds or milliseconds.
- Flickr-SoundNet's urls_public.txt (`http://www.flickr.com/videos/<owner>/<photo id>/...`); files are `<photo id>.mp4`.
- JSON Lines: `path`, and if known `key`, `label` (one or a list), `group` (the source video), `split`, `start`.

Files are searched anywhere below the folder. A name with times is the clip itself. A file named by the bare id may be
the clip or the whole source video; its length decides.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from comodal.data.sources.archive_examples import (
    ArchiveExample,
    drop_side_files,
    get_example_captions,
    get_example_group,
    get_example_labels,
    get_example_split,
    read_archive_examples,
)
from comodal.data.sources.split_names import SPLIT_NAMES, SPLITS
from comodal.errors import DataError
from comodal.media.storage.archive_samples import MemberLocation, SampleFault
from comodal.media.storage.open_media import is_container
from comodal.media.storage.path_patterns import expand_pattern, is_path_pattern
from comodal.media.storage.suffixes import VIDEO_SUFFIXES
from comodal.text_files import is_json_lines, parse_csv, parse_json, parse_json_lines, read_text, split_lines

ListFormat = Literal["auto", "folder", "kinetics", "kinetics-json", "vggsound", "audioset", "flickr-soundnet", "jsonl"]
VGGSOUND_PATTERN = re.compile(r"[\w-]{11},\d+,.*,(train|test)", re.ASCII)
VGGSOUND_SECONDS = 10.0
YOUTUBE_CLIP_PATTERN = re.compile(r"([\w-]{11})_(\d+)_(\d+)", re.ASCII)  # <11 characters>_<start>_<end>
FLICKR_URL_PATTERN = re.compile(r"https?://(www\.)?flickr\.com/videos/", re.IGNORECASE)


@dataclass(frozen=True)
class VideoSource:
    """A video, or a part of one, that becomes a clip."""

    path: str  # below the folder of files; of a missing file, its name in the list
    key: str
    group: str  # the source video: its clips all go into one split
    labels: tuple[str, ...] = ()
    split: str | None = None
    start_seconds: float = 0.0  # where the clip is in the source video, if the file may be all of that
    clip_seconds: float | None = None
    missing: bool = False  # the list names it, and the file does not exist

    @property
    def file(self) -> str:
        """Its file, below the folder of files."""
        return self.path


@dataclass(frozen=True)
class ArchiveVideoSource(VideoSource):
    """A video in a container: a tar, Parquet or Arrow file."""

    container: str = ""
    location: MemberLocation | None = None
    audio: str | None = None  # a separate audio file for a silent video, below the folder of files
    audio_location: MemberLocation | None = None
    captions: tuple[str, ...] = ()
    fault: SampleFault | None = None  # why it cannot be used

    @property
    def file(self) -> str:
        return self.container


def read_sources(
    source: Path, files: Path | None = None, list_format: ListFormat = "auto", leave_out: Path | None = None
) -> list[VideoSource]:
    """All videos that a folder or a list names, in its order; files of a list that do not exist are `missing`.

    Args:
        source: A folder or a list.
        files: The folder that holds a list's files; by default the folder of the list.
        list_format: The format of `source`; by default detected.
        leave_out: A folder below `source` that is skipped.

    Raises:
        DataError: There is no such folder or list, it cannot be read, or its format is not known.
    """
    if list_format not in get_args(ListFormat):
        raise ValueError(f"list_format is one of {', '.join(get_args(ListFormat))}, got {list_format!r}")
    matches = is_path_pattern(source)
    if not source.exists() and not matches:
        raise DataError(f"{source}: there is no such folder or list")
    if source.is_dir() or matches or is_container(source.name):
        if list_format not in ("auto", "folder"):
            raise DataError(f"{source} is not a list in the format {list_format}")
        return list(_iterate_file_sources(*list_media_files(source, leave_out)))
    root = find_media_root(source, files)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder to hold the files of {source.name}")
    text = read_text(source)
    kind = detect_list_format(source, text) if list_format == "auto" else list_format
    if kind == "jsonl":
        return list(_parse_json_lines(source, text, root))
    readers = {
        "kinetics": _parse_kinetics,
        "kinetics-json": _parse_kinetics_json,
        "vggsound": _parse_vggsound,
        "audioset": _parse_audioset,
        "flickr-soundnet": _parse_flickr,
    }
    if kind not in readers:
        raise DataError(f"{source} is a file, not a folder")
    try:
        return list(readers[kind](source, text, FileFinder(root)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{source} is not a list in the format {kind}: {error!r}") from error


def find_media_root(source: Path, files: Path | None) -> Path:
    """The folder that the paths of the sources are relative to."""
    if is_path_pattern(source):
        return expand_pattern(source).root
    return source if source.is_dir() else files or source.parent


def list_media_files(source: Path, leave_out: Path | None = None) -> tuple[Path, list[str]]:
    """The files of a folder or a pattern, or a single file, with the folder that their paths are relative to."""
    if is_path_pattern(source):
        return expand_pattern(source)
    if source.is_dir():
        return source, drop_side_files(walk_folder(source, leave_out))
    return source.parent, [source.name]


def detect_list_format(source: Path, text: str) -> ListFormat:
    """The format of a list, from its first lines."""
    lines = [line for line in split_lines(text[:10_000]) if line.strip()][:3]
    first = lines[0] if lines else ""
    if first.startswith("{"):
        is_kinetics = not is_json_lines(text) and all(
            f'"{name}"' in text[:10_000] for name in ("annotations", "subset")
        )
        return "kinetics-json" if is_kinetics else "jsonl"
    if VGGSOUND_PATTERN.fullmatch(first.strip()):
        return "vggsound"
    if FLICKR_URL_PATTERN.match(first):
        return "flickr-soundnet"
    if first.startswith("#") and any("YTID" in line for line in lines):
        return "audioset"
    if {"youtube_id", "time_start", "time_end"} <= set(first.replace('"', "").split(",")):
        return "kinetics"
    raise DataError(
        f"{source} : unknown list format. Supported: Kinetics CSV or JSON, VGGSound, AudioSet CSV, Flickr-SoundNet "
        "URLs or JSON Lines. "
        f"It begins with {first[:80]!r}"
    )


def walk_folder(folder: Path, leave_out: Path | None = None) -> list[str]:
    """All files below a folder, links followed, as sorted relative paths."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    paths, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        resolved = Path(parent).resolve()
        if resolved in visited or resolved == (leave_out and leave_out.resolve()):
            folders.clear()
            continue
        visited.add(resolved)
        relative = Path(parent).relative_to(folder).as_posix()
        paths += names if relative == "." else [f"{relative}/{name}" for name in names]
    return sorted(paths)


def _iterate_file_sources(root: Path, names: list[str]) -> Iterator[VideoSource]:
    """Files one by one, and the examples of those that are containers."""
    for name in names:
        if is_container(name) and (root / name).is_file():
            yield from map(_make_archive_source, read_archive_examples(root, name))
        elif (root / name).exists():
            yield _make_folder_source(name)
        else:
            yield VideoSource(name, name, name, missing=True)


def _make_archive_source(stored: ArchiveExample) -> ArchiveVideoSource:
    """The video of an example, with its separate audio if any."""
    example = stored.example
    name, location = example.members.get("video", (example.name, None))
    audio, audio_location = example.members.get("audio", (None, None))
    fault, split, captions = example.fault, None, get_example_captions(example)
    if fault is None and location is None:
        fault = SampleFault("not a video", f"it has only {', '.join(example.members) or 'no media'}")
    try:
        split = get_example_split(stored)
    except ValueError as error:
        fault = fault or SampleFault("unknown split", str(error))
    caption_list = captions if isinstance(captions, list) else [captions]
    return ArchiveVideoSource(
        f"{stored.file}/{name}" if name else stored.file,
        key=f"{stored.file}/{example.key}" if example.key else stored.file,
        group=get_example_group(stored),
        labels=get_example_labels(example),
        split=split,
        container=stored.file,
        location=location,
        audio=f"{stored.file}/{audio}" if audio else None,
        audio_location=audio_location,
        captions=tuple(one for one in caption_list if isinstance(one, str)),
        fault=fault,
    )


def _make_folder_source(name: str) -> VideoSource:
    """A file of a folder: `[split/][...label/]file`."""
    path = PurePosixPath(name)
    folders = list(path.parts[:-1])
    split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
    if split:
        folders.pop(0)
    clip = YOUTUBE_CLIP_PATTERN.fullmatch(path.stem)
    group = clip.group(1) if clip else str(PurePosixPath(*folders, path.name))
    return VideoSource(name, str(PurePosixPath(*folders, path.stem)), group, tuple(folders[-1:]), split)


class FileFinder:
    """Finds the files of a list by their name without its suffix."""

    def __init__(self, root: Path) -> None:
        self.by_stem: dict[str, list[PurePosixPath]] = {}
        for name in walk_folder(root):
            path = PurePosixPath(name)
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, stem: str, label: str = "") -> str | None:
        """The file of that name; among several, a video in the folder of the label is preferred."""
        candidates = self.by_stem.get(stem, [])
        return min(candidates, key=lambda path: _rank_candidate(path, label)).as_posix() if candidates else None


def _rank_candidate(path: PurePosixPath, label: str) -> tuple[bool, bool, str]:
    return (
        path.suffix.lower() not in VIDEO_SUFFIXES,
        normalize_label(path.parent.name) != normalize_label(label),
        path.as_posix(),
    )


def normalize_label(label: str) -> str:
    """A label with spaces and underscores unified, since folders use either."""
    return label.replace("_", " ").strip().casefold()


def _make_clip_source(
    files: FileFinder,
    video: str,
    start: float,
    end: float,
    names: list[str],
    labels: tuple[str, ...],
    split: str | None,
) -> VideoSource:
    """A clip of a YouTube video: a file that is the clip (one of `names`), or else the whole video."""
    for name in names:
        path = files.find(name, labels[0] if labels else "")
        if path:
            return VideoSource(path, names[0], video, labels, split)
    path = files.find(video)
    if path:
        return VideoSource(path, names[0], video, labels, split, start, end - start)
    return VideoSource(names[0], names[0], video, labels, split, start, end - start, missing=True)


def _parse_kinetics(source: Path, text: str, files: FileFinder) -> Iterator[VideoSource]:
    rows = parse_csv(text, source)
    _, columns = next(rows)
    for row in (dict(zip(columns, cells, strict=False)) for _, cells in rows):
        video, start, end = row["youtube_id"], float(row["time_start"]), float(row["time_end"])
        names = [f"{video}_{int(start):06d}_{int(end):06d}"]
        labels = (row["label"],) if row.get("label") else ()
        yield _make_clip_source(
            files, video, start, end, names, labels, SPLIT_NAMES.get((row.get("split") or "").lower())
        )


def _parse_kinetics_json(source: Path, text: str, files: FileFinder) -> Iterator[VideoSource]:
    for video, entry in parse_json(text, source).items():
        label, (start, end) = entry["annotations"].get("label"), map(float, entry["annotations"]["segment"])
        names = [f"{video}_{int(start):06d}_{int(end):06d}"]
        split = SPLIT_NAMES.get(str(entry.get("subset", "")).lower())
        yield _make_clip_source(files, video, start, end, names, (str(label),) if label else (), split)


def _parse_vggsound(source: Path, text: str, files: FileFinder) -> Iterator[VideoSource]:
    for _, (video, start, label, split) in parse_csv(text, source):
        first, last = int(start), int(start) + int(VGGSOUND_SECONDS)
        names = [
            f"{video}_{time}" for time in (f"{first:06d}", f"{first:06d}_{last:06d}", f"{first}", f"{first}_{last}")
        ]
        yield _make_clip_source(
            files, video, float(first), first + VGGSOUND_SECONDS, names, (label,), SPLIT_NAMES[split]
        )


def _parse_audioset(source: Path, text: str, files: FileFinder) -> Iterator[VideoSource]:
    lines = "\n".join(line for line in split_lines(text) if not line.startswith("#"))
    for _, (video, start, end, labels) in parse_csv(lines, source, skip_space=True):
        first, last = int(float(start)), int(float(end))
        times = [f"{first:06d}_{last:06d}", f"{first * 1000}_{last * 1000}", f"{first}_{last}"]
        times += [f"{first:06d}", f"{first}"]
        names = [f"{prefix}{video}_{time}" for prefix in ("", "Y") for time in times]
        yield _make_clip_source(files, video, float(start), float(end), names, tuple(labels.split(",")), None)


def _parse_flickr(_: Path, text: str, files: FileFinder) -> Iterator[VideoSource]:
    for line in split_lines(text):
        if line.strip():
            photo = line.strip().split("/")[5]  # http: / / host / videos / owner / photo id
            path = files.find(photo)
            yield VideoSource(path or photo, photo, photo, missing=path is None)


def _parse_json_lines(source: Path, text: str, root: Path) -> Iterator[VideoSource]:
    for line_number, entry in parse_json_lines(text, source):
        try:
            yield _parse_json_line(entry, root)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{source}, line {line_number}: {error!r}; each line is like {{"path": "a.mp4"}}'
            ) from error


def _parse_json_line(entry: dict[str, Any], root: Path) -> VideoSource:
    name = str(PurePosixPath(entry["path"]))
    label, split = entry.get("label", []), entry.get("split")
    if split is not None and split not in SPLIT_NAMES:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, got {split!r}")
    return VideoSource(
        name,
        key=str(entry.get("key", PurePosixPath(name).with_suffix(""))),
        group=str(entry.get("group", name)),
        labels=(label,) if isinstance(label, str) else tuple(label),
        split=SPLIT_NAMES[split] if split else None,
        start_seconds=float(entry.get("start", 0.0)),
        missing=not (root / name).is_file(),
    )
