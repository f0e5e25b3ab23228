"""Examples of tar, Parquet and Arrow files with the package's fields: label, split, group and captions.

| field | from the JSON member or the columns |
|---|---|
| label | `label`, `labels`, `class_name`, `class` or `category`: a text, a number or a list; else a `.cls` member |
| split | `split` or `subset`; else a folder or the beginning of the file's name, as in `train-00000-of-00004.parquet` |
| group | `group`, else the name of the source video: `video_id`, `videoID`, `youtube_id` or `url` |
| captions | `caption` or `captions`; else the `.txt` member, a caption a line; else other columns of captions |

Files next to containers that are not data are skipped: img2dataset's and video2dataset's table and statistics of
each tar (`00000.parquet` or `00000_stats.json` next to `00000.tar`), the JSON files of `save_to_disk`, and its cache.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from comodal.data.sources.caption_tables import CAPTION_COLUMNS, get_first_field
from comodal.data.sources.split_names import IMAGE_SPLIT_NAMES as SPLITS
from comodal.errors import DataError, MediaError, wrap_item_errors
from comodal.files import describe_os_error
from comodal.media.storage.archive_samples import ArchiveSample, SampleFault
from comodal.media.storage.open_media import is_container, open_container_file

LABEL_FIELDS = ("label", "labels", "class_name", "class", "category")
GROUP_FIELDS = ("group", "video_id", "videoID", "youtube_id", "url")
SPLIT_FIELDS = ("split", "subset")
SPLIT_PREFIX_PATTERN = re.compile(r"([a-z]+)[-_.]")
DATASETS_SIDE_FILES = {"dataset_info.json", "state.json", "dataset_dict.json"}
CONTAINER_RELATED_SUFFIXES = (
    ".tar",
    ".arrow",
    ".parquet",
    ".json",
)  # creating 100,000 Path objects takes half a second
CACHE_FILE_PATTERN = re.compile(r"(cache|tmp)-?.*\.arrow|.*-indices.*\.arrow")


class ArchiveExample(NamedTuple):
    """An example with the file that holds it, by its path below a folder."""

    file: str
    example: ArchiveSample

    @property
    def path(self) -> str:
        """The path of the example in reports."""
        return f"{self.file}/{self.example.name}" if self.example.name else self.file


def read_archive_examples(root: Path, name: str) -> Iterator[ArchiveExample]:
    """All examples of a container; one that cannot be read is an example with a fault.

    Raises:
        DataError: It needs a package that is not installed.
    """
    path = root / name
    try:
        with wrap_item_errors(path):
            yield from read_container_examples(path, name)
    except MediaError as error:
        yield ArchiveExample(name, ArchiveSample("", fault=SampleFault("damaged", error.detail)))


def read_container_examples(path: Path, name: str) -> Iterator[ArchiveExample]:
    """All examples of a container; what it is known to raise becomes an example with a fault."""
    try:
        container = open_container_file(path)
    except OSError as error:
        yield ArchiveExample(name, ArchiveSample("", fault=SampleFault("unreadable", describe_os_error(error))))
        return
    except DataError as error:
        if isinstance(error.__cause__, ImportError):
            raise
        yield ArchiveExample(name, ArchiveSample("", fault=SampleFault("unreadable", str(error))))
        return
    try:
        for example in container.iterate_examples():
            yield ArchiveExample(name, example)
    except (DataError, OSError) as error:
        yield ArchiveExample(name, ArchiveSample("", fault=SampleFault("damaged", str(error))))


def drop_side_files(names: Iterable[str]) -> list[str]:
    """The files of a folder without those that only describe a container next to them."""
    all_names = list(names)
    related = {name: PurePosixPath(name) for name in all_names if name.lower().endswith(CONTAINER_RELATED_SUFFIXES)}
    tars = {path.with_suffix("") for path in related.values() if path.suffix.lower() == ".tar"}
    arrows = {path.parent for path in related.values() if path.suffix.lower() == ".arrow"}
    arrows |= {folder.parent for folder in arrows}

    def is_side_file(path: PurePosixPath) -> bool:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return path.with_suffix("") in tars
        if suffix == ".arrow":
            return CACHE_FILE_PATTERN.fullmatch(path.name) is not None
        if suffix == ".json" and path.stem.endswith("_stats"):
            return path.with_name(path.stem.removesuffix("_stats")) in tars
        return path.name in DATASETS_SIDE_FILES and path.parent in arrows

    return [name for name in all_names if name not in related or not is_side_file(related[name])]


def select_containers(names: Iterable[str]) -> list[str]:
    """The containers among the files of a folder, without side files."""
    return [name for name in drop_side_files(names) if is_container(name)]


def get_example_labels(example: ArchiveSample) -> tuple[str, ...]:
    """The classes of an example."""
    value = get_first_field(example.metadata, LABEL_FIELDS)
    if value is None and example.texts.get("cls", "").strip():
        value = example.texts["cls"].strip()
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if isinstance(one, str | int) and not isinstance(one, bool) and one != "")


def get_example_group(stored: ArchiveExample) -> str:
    """The group of an example, such as its source video: a group is never divided between splits."""
    value = get_first_field(stored.example.metadata, GROUP_FIELDS)
    return str(value) if isinstance(value, str | int) and value != "" else stored.path


def get_example_split(stored: ArchiveExample) -> str | None:
    """The split of an example: its own, or that of its file.

    Raises:
        ValueError: Its own split name is unknown.
    """
    split = get_first_field(stored.example.metadata, SPLIT_FIELDS)
    if split is not None and split != "":
        if str(split).lower() not in SPLITS:
            raise ValueError(f"a split is one of {', '.join(SPLITS)}, not {split!r}")
        return SPLITS[str(split).lower()]
    path = PurePosixPath(stored.file.lower())
    start = SPLIT_PREFIX_PATTERN.match(path.name)
    candidates = [*path.parts[:-1], start[1] if start else path.stem]
    return next((SPLITS[part] for part in candidates if part in SPLITS), None)


def get_example_captions(example: ArchiveSample) -> Any:
    """The caption or captions of an example, or None."""
    captions = get_first_field(example.metadata, ("caption", "captions"))
    if captions is None and example.texts.get("txt", "").strip():
        return [line for line in example.texts["txt"].split("\n") if line.strip()]
    return get_first_field(example.metadata, CAPTION_COLUMNS) if captions is None else captions
