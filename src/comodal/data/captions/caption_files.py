"""Reads captions of images in the usual file formats; a region store determines the image of each.

The layout is detected from the content:

- Conceptual Captions TSV (`caption <tab> url`, or `url <tab> caption` as in CC12M): an image has the CRC-32 of its URL
  as its name (as in the original's features), or its row, counted from 0. A file may replace the URL, as in Flickr8k's
  and Flickr30k's `name.jpg#0 <tab> caption`.
- Karpathy's JSON of COCO, Flickr30k and Flickr8k (`images`, each with `sentences`); `restval` counts as training.
- COCO's own JSON (`images` and `annotations`).
- JSON Lines, or a JSON array: `image` with `caption` or `captions`, if known `id` and `split`; or the original's
  `img_path` with `sentences` and `id`.
- The original's caption_train.json: `{image id: caption}`, or a list of captions.
- CSV or TSV with a header line: Flickr8k's `image,caption`, Flickr30k's `image_name| comment_number| comment`, and
  others (caption_tables.py); a folder with such a metadata.csv or metadata.jsonl (Hugging Face's ImageFolder).
- Parquet and Arrow with the same columns, and img2dataset's table of a download (`key`, `caption`, `status`).
- Tar shards (WebDataset, img2dataset) and Hugging Face's Parquet and Arrow files with the images in them, in a folder,
  by a pattern or alone (archive_examples.py).
- A folder with `name.txt` next to `name.jpg`, a caption a line; its first folders may be the splits.
- Flickr30k Entities' folder of sentences (Plummer et al., ICCV 2015): `ID.txt`, a caption a line in which phrases are
  marked as `[/EN#ENTITY/KIND words]`; train.txt, val.txt and test.txt in it or next to it list the ids of the splits.

An image has several names: its id, its file name with and without folder and suffix. A caption has all of them,
in the same order in the whole file; caption_matching.py uses the kind that most captions share with a region store.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from comodal.data.captions.caption_json import is_caption_entry, parse_caption_object
from comodal.data.sources.archive_examples import (
    get_example_captions,
    get_example_split,
    read_archive_examples,
    select_containers,
)
from comodal.data.sources.caption_tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    CaptionColumns,
    CaptionRow,
    detect_caption_columns,
    get_first_field,
    iterate_container_rows,
    iterate_table_rows,
)
from comodal.data.sources.split_names import IMAGE_SPLIT_NAMES as SPLITS
from comodal.data.sources.video_sources import list_media_files, walk_folder
from comodal.errors import DataError
from comodal.media.storage.open_media import is_container, open_container_file
from comodal.media.storage.parquet_table import TableFile
from comodal.media.storage.path_patterns import is_path_pattern
from comodal.media.storage.suffixes import IMAGE_SUFFIXES
from comodal.text_files import is_json_lines, is_valid_unicode, parse_json, parse_json_lines, read_text

CAPTION_LAYOUTS = (
    "Conceptual Captions TSV, CSV with a header line (image,caption or file_name,text), Karpathy's or COCO's JSON, "
    "JSON Lines or a JSON array of image and caption, a folder with metadata.csv, .jsonl or .parquet, tar shards, "
    "Parquet or Arrow files, a JSON of "
    "{image id: caption}, a folder with name.txt next to name.jpg, or Flickr30k Entities' folder of sentences"
)
TRAILING_DIGITS_PATTERN = re.compile(r"(\d+)$")
IMAGE_REFERENCE_PATTERN = re.compile(rf"://|({'|'.join(map(re.escape, IMAGE_SUFFIXES))})(#\d+)?$", re.IGNORECASE)
CAPTION_INDEX_PATTERN = re.compile(r"(?<=\w)#\d+$")  # a.jpg#0, a.jpg#1, ...: the captions of one image
MAX_CAPTION_CHARACTERS = 100_000  # a longer one is most likely a whole file
ENTITY_PHRASE_PATTERN = re.compile(r"\[/EN#\d+(?:/[\w-]+)+ ([^\]]*)\]")
METADATA_FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's ImageFolder


class Caption(NamedTuple):
    """A sentence about an image.

    Attributes:
        image: The names of the image, each kind of name at its own index; "" where that kind is missing.
        caption: The sentence, on one line.
        split: "train", "validation" or "test" if the file names one.
        key: Where the sentence is in the file.
    """

    image: tuple[str, ...]
    caption: str
    split: str | None
    key: str


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a file in its order, and what was skipped, counted by reason."""

    layout: str
    captions: list[Caption] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.captions)

    def __iter__(self) -> Iterator[Caption]:
        return iter(self.captions)

    def add_captions(self, image: tuple[str, ...], captions: Any, split: str | None, key: str) -> None:
        """Add the caption or captions of an image, or count why they are skipped."""
        caption_list = captions if isinstance(captions, list) else [captions]
        if not caption_list:
            self.refused["image without caption"] += 1
        for index, caption in enumerate(caption_list):
            text = " ".join(caption.split()) if isinstance(caption, str) else None
            if text is None:
                self.refused["caption is not text"] += 1
            elif not text or not is_valid_unicode(text):
                self.refused["caption is not valid Unicode" if text else "caption is empty"] += 1
            elif "\0" in text:
                self.refused["caption has a null character"] += 1
            elif len(text) > MAX_CAPTION_CHARACTERS:
                self.refused[f"caption has more than {MAX_CAPTION_CHARACTERS:,} characters"] += 1
            elif not any(image):
                self.refused["caption without image"] += 1
            else:
                self.captions.append(Caption(image, text, split, f"{key}.{index}" if len(caption_list) > 1 else key))


def read_captions(path: Path) -> CaptionFile:
    """All captions of a file or a folder.

    Raises:
        DataError: It does not exist, is damaged, has no known layout, or holds no caption.
    """
    if is_path_pattern(path):
        caption_file = _read_containers(*list_media_files(path))
    elif not path.exists():
        raise DataError(f"{path}: there is no such file or folder of captions")
    else:
        caption_file = _read_sidecar_captions(path) if path.is_dir() else _read_caption_file(path)
    if not caption_file.captions:
        reasons = (
            ", ".join(f"{count} x {reason}" for reason, count in caption_file.refused.most_common()) or "it is empty"
        )
        raise DataError(
            f"{path} ({caption_file.layout}) has no caption of an image: {reasons}. Supported: {CAPTION_LAYOUTS}"
        )
    return caption_file


def list_image_names(file: str, image_id: Any = None) -> tuple[str, ...]:
    """The names of an image: its id, and its file name in several forms."""
    path = PurePosixPath(file.replace("\\", "/"))
    digits = TRAILING_DIGITS_PATTERN.search(path.stem)
    return (
        "" if image_id is None else str(image_id),
        path.stem,
        path.name,
        "" if not file else path.with_suffix("").as_posix(),
        "" if not file else path.as_posix(),
        str(int(digits.group(1))) if digits else "",
    )


def _read_caption_file(path: Path) -> CaptionFile:
    """A container, a table of Parquet or Arrow, or text."""
    if not is_container(path.name):
        return _parse_caption_text(path, read_text(path))
    if table := _open_table_without_media(path):
        return _parse_caption_rows(iterate_container_rows(path, table), "table of Parquet or Arrow")
    return _read_containers(path.parent, [path.name])


def _open_table_without_media(path: Path) -> TableFile | None:
    """A Parquet or Arrow file that names its images without containing them."""
    try:
        container = open_container_file(path)
    except (DataError, OSError):  # reported where its examples are read
        return None
    return container if isinstance(container, TableFile) and not container.media else None


def _read_containers(root: Path, files: Sequence[str]) -> CaptionFile:
    """The examples of tar, Parquet and Arrow files; an image is named by the path that `comodal extract` gives it."""
    read = CaptionFile("examples of tar, Parquet or Arrow files")
    for file in filter(is_container, files):
        if table := _open_table_without_media(root / file):
            rows = _parse_caption_rows(iterate_container_rows(root / file, table), read.layout)
            read.captions.extend(row._replace(key=f"{file}/{row.key}") for row in rows)
            read.refused.update(rows.refused)
            continue
        for stored in read_archive_examples(root, file):
            example, captions = stored.example, get_example_captions(stored.example)
            if example.fault is not None:
                read.refused[example.fault.reason] += 1
            elif "image" not in example.members:
                read.refused["caption without image"] += 1
            elif captions is None:
                read.refused["image without caption"] += 1
            else:
                image = PurePosixPath(example.members["image"][0])
                try:
                    read.add_captions(
                        _list_names_in_container(file, image),
                        captions,
                        get_example_split(stored),
                        f"{file}/{example.key}",
                    )
                except ValueError:
                    read.refused["unknown split"] += 1
    return read


def _list_names_in_container(file: str, image: PurePosixPath) -> tuple[str, ...]:
    """Never the name in the container without the container: many data sets count their images from 0 in each."""
    inner = image.with_suffix("")
    short, full = PurePosixPath(file).name, PurePosixPath(file)
    return "", f"{short}/{inner}", f"{short}/{image}", f"{full}/{inner}", f"{full}/{image}"


def _parse_caption_text(path: Path, text: str) -> CaptionFile:
    """Detect the format by the first character: braces are JSON, a tab in the first line is TSV."""
    start = text.lstrip()[:1]
    try:
        if start == "[":
            return _parse_caption_entries(parse_json(text, path), "JSON array")
        if start == "{":
            return _parse_json_captions(path, text)
        if columns := detect_caption_columns(text):
            return _parse_caption_table(path, text, columns)
        if "\t" in next((line for line in text.split("\n", 50) if line.strip()), ""):
            return _parse_tsv(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} does not have the layout that its first lines suggest: {error!r}") from error
    raise DataError(
        f"{path}: unknown layout of captions. Supported: {CAPTION_LAYOUTS}; the file begins with {text[:60]!r}"
    )


def _parse_json_captions(path: Path, text: str) -> CaptionFile:
    """A JSON object is the whole file, or the first of JSON Lines."""
    if is_json_lines(text):
        return _parse_caption_entries((entry for _, entry in parse_json_lines(text, path)), "JSON Lines")
    first = parse_caption_object(path, text)
    if isinstance(first.get("images"), list):
        return _parse_coco(first) if "annotations" in first else _parse_karpathy(first)
    if is_caption_entry(first):
        return _parse_caption_entries([first], "JSON Lines")
    read = CaptionFile("JSON of {image id: caption}")
    for index, (image, captions) in enumerate(first.items()):
        if isinstance(captions, dict):
            raise DataError(f"{path}: unknown layout of captions. Supported: {CAPTION_LAYOUTS}")
        read.add_captions(list_image_names(image, image), captions, None, str(index))
    return read


def _parse_caption_entries(entries: Iterable[Any], layout: str) -> CaptionFile:
    """Objects with an image and its captions, in comodal's names or the original's."""
    read = CaptionFile(layout)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {index} is not an object: {str(entry)[:40]!r}")
        image_value = get_first_field(entry, IMAGE_COLUMNS)
        if not isinstance(image_value, str | int | None) or isinstance(image_value, bool):
            read.refused["image is not text"] += 1
            continue
        image = "" if image_value is None else str(image_value)
        captions: Any = next((entry[name] for name in CAPTION_COLUMNS if name in entry), [])
        image_id = entry.get("id")
        image_names = list_image_names(image, image_id) if image or image_id is not None else ("",)
        read.add_captions(image_names, captions, _normalize_split_name(entry.get("split")), str(index))
    return read


def _parse_karpathy(content: dict[str, Any]) -> CaptionFile:
    """`imgid` is a running index, so it is the last name: the image's own id or file name is more specific."""
    read = CaptionFile("Karpathy's JSON")
    for index, image in enumerate(content["images"]):
        file = PurePosixPath(str(image.get("filepath", ""))) / str(image.get("filename", ""))
        image_names = (
            *list_image_names(file.as_posix() if file.name else "", image.get("cocoid")),
            str(image.get("imgid", "")),
        )
        raw = [sentence["raw"] for sentence in image["sentences"]]
        read.add_captions(image_names, raw, _normalize_split_name(image.get("split")), str(image.get("imgid", index)))
    return read


def _parse_coco(content: dict[str, Any]) -> CaptionFile:
    read = CaptionFile("COCO's JSON")
    files = {image["id"]: str(image.get("file_name", "")) for image in content["images"]}
    if len(files) < len(content["images"]):
        raise ValueError("two images have the same id")
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        is_listed = isinstance(image, str | int) and not isinstance(image, bool) and image in files
        image_names = list_image_names(files[image], image) if is_listed else ("",)
        read.add_captions(image_names, annotation["caption"], None, str(annotation["id"]))
    for _ in files.keys() - {annotation["image_id"] for annotation in content["annotations"]}:
        read.refused["image without caption"] += 1
    return read


def _parse_tsv(text: str) -> CaptionFile:
    """The first line shows which column is the image: the first if that is a URL or an image file, else the second."""
    read = CaptionFile("TSV")
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    column = 0 if IMAGE_REFERENCE_PATTERN.search(rows[0][0]) and not IMAGE_REFERENCE_PATTERN.search(rows[0][1]) else 1
    for index, row in enumerate(rows):
        image = CAPTION_INDEX_PATTERN.sub("", row[column].strip()) if column < len(row) else ""
        caption = row[1 - column] if len(row) > 1 - column else ""
        read.add_captions(_list_names_in_cell(image, index), caption, None, str(index))
    return read


def _parse_caption_table(path: Path, text: str, columns: CaptionColumns) -> CaptionFile:
    """A table with a header line."""
    return _parse_caption_rows(iterate_table_rows(path, text, columns), "table with a header line")


def _parse_caption_rows(rows: Iterable[CaptionRow], layout: str) -> CaptionFile:
    """The rows of a table."""
    read = CaptionFile(layout)
    for index, row in enumerate(rows):
        if row.image is None:
            read.refused["row is cut short"] += 1
        else:
            read.add_captions(
                _list_names_in_cell(row.image, index), row.captions, _normalize_split_name(row.split), str(index)
            )
    return read


def _list_names_in_cell(image: str, row_index: int) -> tuple[str, ...]:
    """The names of a row's image: a URL by its CRC-32 or its row index, as in the original's features."""
    if "://" in image:
        return str(zlib.crc32(image.encode("utf-8", "replace")) & 0xFFFFFFFF), str(row_index)
    return list_image_names(CAPTION_INDEX_PATTERN.sub("", image)) if image else ("",)


def _read_metadata_files(folder: Path, files: Sequence[PurePosixPath]) -> CaptionFile:
    """Hugging Face's ImageFolder: metadata files, each with the names of the images below its own folder."""
    read = CaptionFile("ImageFolder with metadata")
    for file in files:
        inside = _read_caption_file(folder / file)
        read.refused.update(inside.refused)
        split = SPLITS.get(file.parts[0].lower()) if len(file.parts) > 1 else None
        for caption in inside.captions:
            image = (
                list_image_names((file.parent / caption.image[4]).as_posix())
                if len(caption.image) > 4
                else caption.image
            )
            read.captions.append(
                caption._replace(image=image, split=caption.split or split, key=f"{file}.{caption.key}")
            )
    return read


def _read_sidecar_captions(folder: Path) -> CaptionFile:
    """Text files next to images of the same name; an image without one is counted too."""
    read = CaptionFile("folder")
    names = [PurePosixPath(name) for name in walk_folder(folder)]
    metadata = [name for name in names if name.name in METADATA_FILE_NAMES]
    if metadata:
        return _read_metadata_files(folder, metadata)
    if containers := select_containers(map(str, names)):
        return _read_containers(folder, containers)
    images = {name.with_suffix(""): name for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
    texts = {name: read_text(folder / name) for name in names if name.suffix.lower() == ".txt"}
    if any(ENTITY_PHRASE_PATTERN.search(text) for text in texts.values()):
        return _read_entities(folder, texts)
    for name, text in texts.items():
        image = images.get(name.with_suffix(""))
        split = SPLITS.get(name.parts[0].lower()) if len(name.parts) > 1 else None
        lines = [line for line in text.split("\n") if line.strip()]
        image_names = list_image_names(image.as_posix()) if image else ("",)
        read.add_captions(image_names, lines or "", split, name.with_suffix("").as_posix())
    without_caption = images.keys() - {name.with_suffix("") for name in texts}
    if without_caption:
        read.refused["image without caption"] = len(without_caption)
    return read


def _read_entities(folder: Path, texts: Mapping[PurePosixPath, str]) -> CaptionFile:
    """The sentences without their markup; a file named after a split lists the images of that split."""
    read = CaptionFile("Flickr30k Entities")
    lists = [path for parent in (folder, folder.parent) for path in parent.glob("*.txt") if path.stem in SPLITS]
    split_of = {image: SPLITS[path.stem] for path in lists for image in read_text(path).split()}
    for name, text in texts.items():
        if ENTITY_PHRASE_PATTERN.search(text):
            lines = [ENTITY_PHRASE_PATTERN.sub(r"\1", line) for line in text.split("\n") if line.strip()]
            read.add_captions(list_image_names(name.stem, name.stem), lines, split_of.get(name.stem), name.stem)
        elif name.stem not in SPLITS:
            read.refused["file without marked phrases"] += 1
    return read


def _normalize_split_name(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or name.lower() not in SPLITS):
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, not {name!r}")
    return None if name is None else SPLITS[name.lower()]
