"""Captions of images, from the files that people have; which image each belongs to is decided by a region store.

The layout is recognised from the content:

- Conceptual Captions TSV (`caption <tab> url`, or `url <tab> caption` as in CC12M): an image is called by the CRC-32 of
  its URL, as in the original's features, or by its row, counted from 0. In place of the URL may stand a file, as in
  Flickr8k's and Flickr30k's `name.jpg#0 <tab> caption`.
- Karpathy's JSON of COCO, Flickr30k and Flickr8k (`images`, each with `sentences`); `restval` counts as training.
- COCO's own JSON (`images` and `annotations`).
- JSON Lines, or a JSON array: `image` with `caption` or `captions`, if known `id` and `split`; or the original's
  `img_path` with `sentences` and `id`.
- The original's caption_train.json: `{image id: caption}`, or a list of captions.
- CSV or TSV with a line of names: Flickr8k's `image,caption`, Flickr30k's `image_name| comment_number| comment`, and
  others (caption_tables.py); a folder with such a metadata.csv or metadata.jsonl (Hugging Face's ImageFolder).
- A folder with `name.txt` beside `name.jpg`, a caption a line; its first folders may be the splits.
- Flickr30k Entities' folder of sentences (Plummer et al., ICCV 2015): `ID.txt`, a caption a line in which phrases are
  marked as `[/EN#ENTITY/KIND words]`; train.txt, val.txt and test.txt in it or beside it list the ids of the splits.

An image has many names: its number, its file's name with and without folder and suffix. A caption carries all of them,
in the same order in the whole file, and `matched` takes the kind of name that most captions share with the store; to
take the first that fits, caption by caption, would join an image's running number to another image's id.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from comodal.data.caption_tables import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, columns_of, pick, table_rows
from comodal.data.image_names import coco_number
from comodal.data.sources import SPLIT_NAMES, walk
from comodal.data.splits import HELD_OUT_FIRST, split_by_hash
from comodal.errors import DataError
from comodal.text_files import is_json_lines, parse_json, parse_json_lines, read_text

LAYOUTS = (
    "Conceptual Captions TSV, CSV with a line of names (image,caption or file_name,text), Karpathy's or COCO's JSON, "
    "JSON Lines or a JSON array of image and caption, a folder with metadata.csv or metadata.jsonl, a JSON of "
    "{image id: caption}, a folder with name.txt beside name.jpg, or Flickr30k Entities' folder of sentences"
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = SPLIT_NAMES | {"restval": "train", "dev": "validation"}
LAST_NUMBER = re.compile(r"(\d+)$")
IMAGE = re.compile(rf"://|({'|'.join(map(re.escape, IMAGE_SUFFIXES))})(#\d+)?$", re.IGNORECASE)
CAPTION_NUMBER = re.compile(r"(?<=\w)#\d+$")  # a.jpg#0, a.jpg#1, ...: the captions of one image
PHRASE = re.compile(r"\[/EN#\d+(?:/[\w-]+)+ ([^\]]*)\]")
NUMBERS = (0, 5, 6)  # places of an image's names that are numbers, which another data set's images have as well
LITTLE = 0.1  # fewer captions and fewer images than this share of either side look like names of another kind
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's ImageFolder
SHOWN = 3


class Caption(NamedTuple):
    """A sentence about an image.

    Attributes:
        image: What the image may be called, each kind of name at its own place; "" where that kind is missing.
        caption: The sentence, on one line.
        split: "train", "validation" or "test" where the file says so.
        key: Where the sentence stands in the file.
    """

    image: tuple[str, ...]
    caption: str
    split: str | None
    key: str


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a file in its order, and what was not taken, counted by reason."""

    layout: str
    captions: list[Caption] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.captions)

    def __iter__(self) -> Iterator[Caption]:
        return iter(self.captions)

    def take(self, image: tuple[str, ...], captions: Any, split: str | None, key: str) -> None:
        """Adds the caption or captions of an image, or counts why not."""
        several = captions if isinstance(captions, list) else [captions]
        if not several:
            self.refused["image without caption"] += 1
        for number, caption in enumerate(several):
            text = " ".join(caption.split()) if isinstance(caption, str) else None
            if text is None:
                self.refused["caption is not text"] += 1
            elif not text:
                self.refused["caption is empty"] += 1
            elif not any(image):
                self.refused["caption without image"] += 1
            else:
                self.captions.append(Caption(image, text, split, f"{key}.{number}" if len(several) > 1 else key))


class Matched(NamedTuple):
    """Captions with the row of their image in a store, and those whose image is not there."""

    pairs: list[tuple[Caption, int]]
    unmatched: list[Caption]

    def not_taken(self, refused: Counter[str]) -> str:
        """How many captions are left out, by reason, to be said behind something else; "" where all are taken."""
        reasons = refused + Counter({"image is not in the store": len(self.unmatched)})
        return "".join(f"; {count:,} not taken: {reason}" for reason, count in reasons.items())


def read_captions(path: Path) -> CaptionFile:
    """All captions of a file or a folder.

    Raises:
        DataError: It is not there, damaged, or of no known layout, or holds no caption.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder of captions")
    read = _folder(path) if path.is_dir() else _file(path, read_text(path))
    if not read.captions:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in read.refused.most_common()) or "it is empty"
        raise DataError(f"{path} ({read.layout}) holds no caption of an image: {reasons}. comodal reads {LAYOUTS}")
    return read


def matched(captions: Iterable[Caption], store_ids: Sequence[str]) -> Matched:
    """Finds the image of each caption in a store, by the kind of name that most captions share with it.

    Raises:
        DataError: Next to nothing fits: the names are of another kind.
    """
    every = list(captions)
    rows: dict[str, int] = {}
    for place, name in enumerate(store_ids):
        rows.setdefault(name, place)
    without_folder = Counter(map(_last_part, store_ids))
    for place, name in enumerate(store_ids):
        if without_folder[_last_part(name)] == 1:  # a store of several folders, captions that name the file alone
            rows.setdefault(_last_part(name), place)
    hits = Counter(place for caption in every for place, name in enumerate(caption.image) if name in rows)
    stems = (caption.image[1] for caption in every if len(caption.image) > 1)
    if any(map(coco_number, stems)) and any(coco_number(_last_part(name)) for name in store_ids):
        hits = Counter({place: count for place, count in hits.items() if place not in NUMBERS})
    kind = min(hits, key=lambda place: (-hits[place], place in NUMBERS, place), default=1)
    found = Matched([], [])
    for caption in every:
        row = rows.get(caption.image[kind]) if kind < len(caption.image) else None
        if row is None:
            found.unmatched.append(caption)
        else:
            found.pairs.append((caption, row))
    images = len({row for _, row in found.pairs})
    if not found.pairs or (len(found.pairs) < LITTLE * len(every) and images < LITTLE * len(store_ids)):
        asked = [" or ".join(filter(None, dict.fromkeys(caption.image))) for caption in found.unmatched[:SHOWN]]
        raise DataError(
            f"{len(found.pairs)} of {len(every)} captions fit an image of the region store ({images} of "
            f"{len(store_ids)} images): the captions ask for {'; '.join(asked) or 'nothing'}; the store has "
            f"{'; '.join(store_ids[:SHOWN]) or 'nothing'}"
        )
    return found


def _last_part(image: str) -> str:
    return image.rpartition("/")[2]


def split_pairs(
    pairs: Iterable[tuple[Caption, int]], store_ids: Sequence[str], validation: float, test: float
) -> dict[str, list[tuple[Caption, int]]]:
    """The captions of each split: all captions of an image in one.

    The split is the file's; that which is held out most if it gives several for one image; else by hash of the id.
    """
    every = list(pairs)
    own: dict[int, set[str | None]] = {}
    for caption, row in every:
        own.setdefault(row, set()).add(caption.split)
    split_of = {
        row: next((split for split in HELD_OUT_FIRST if split in said), split_by_hash(store_ids[row], validation, test))
        for row, said in own.items()
    }
    parts: dict[str, list[tuple[Caption, int]]] = {split: [] for split in HELD_OUT_FIRST}
    for caption, row in every:
        parts[split_of[row]].append((caption, row))
    return parts


def names_of(file: str, number: Any = None) -> tuple[str, ...]:
    """What an image may be called: its number, and its file's name in several forms."""
    path = PurePosixPath(file.replace("\\", "/"))
    last = LAST_NUMBER.search(path.stem)
    return (
        "" if number is None else str(number),
        path.stem,
        path.name,
        "" if not file else path.with_suffix("").as_posix(),
        "" if not file else path.as_posix(),
        str(int(last.group(1))) if last else "",
    )


def _file(path: Path, text: str) -> CaptionFile:
    """By the first sign: braces are JSON, a tab in the first line is TSV."""
    start = text.lstrip()[:1]
    try:
        if start == "[":
            return _entries(parse_json(text, path, hook=_all_values), "JSON array")
        if start == "{":
            return _object(path, text)
        if columns := columns_of(text):
            return _table(path, text, columns)
        if "\t" in next((line for line in text.split("\n", 50) if line.strip()), ""):
            return _tsv(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not laid out as its beginning says: {error!r}") from error
    raise DataError(f"{path} is no file of captions that comodal knows. It reads {LAYOUTS}; this begins {text[:60]!r}")


def _object(path: Path, text: str) -> CaptionFile:
    """A JSON object is the whole file, or the first of JSON Lines."""
    if is_json_lines(text):
        return _entries((entry for _, entry in parse_json_lines(text, path, hook=_all_values)), "JSON Lines")
    first = parse_json(text, path, hook=_all_values)
    if isinstance(first.get("images"), list):
        return _coco(first) if "annotations" in first else _karpathy(first)
    is_entry = {*IMAGE_COLUMNS} & first.keys() and {*CAPTION_COLUMNS} & first.keys()
    if is_entry or {"image", "img_path"} & first.keys():
        return _entries([first], "JSON Lines")
    read = CaptionFile("JSON of {image id: caption}")
    for number, (image, captions) in enumerate(first.items()):
        if isinstance(captions, dict):
            raise DataError(f"{path} is no file of captions that comodal knows. It reads {LAYOUTS}")
        read.take(names_of(image, image), captions, None, str(number))
    return read


def _entries(entries: Iterable[Any], layout: str) -> CaptionFile:
    """Objects with an image and its captions, in comodal's names or the original's."""
    read = CaptionFile(layout)
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {number} is no object but {str(entry)[:40]!r}")
        said = pick(entry, IMAGE_COLUMNS)
        image = "" if said is None else str(said)
        captions: Any = next((entry[name] for name in CAPTION_COLUMNS if name in entry), [])
        identity = entry.get("id")
        named = names_of(image, identity) if image or identity is not None else ("",)
        read.take(named, captions, _split(entry.get("split")), str(number))
    return read


def _karpathy(content: dict[str, Any]) -> CaptionFile:
    """`imgid` is a running number, so it stands last: the image's own number or file is the better name."""
    read = CaptionFile("Karpathy's JSON")
    for number, image in enumerate(content["images"]):
        file = PurePosixPath(str(image.get("filepath", ""))) / str(image.get("filename", ""))
        named = (*names_of(file.as_posix() if file.name else "", image.get("cocoid")), str(image.get("imgid", "")))
        raw = [sentence["raw"] for sentence in image["sentences"]]
        read.take(named, raw, _split(image.get("split")), str(image.get("imgid", number)))
    return read


def _coco(content: dict[str, Any]) -> CaptionFile:
    read = CaptionFile("COCO's JSON")
    files = {image["id"]: str(image.get("file_name", "")) for image in content["images"]}
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        named = names_of(files[image], image) if image in files else ("",)
        read.take(named, annotation["caption"], None, str(annotation["id"]))
    for _ in files.keys() - {annotation["image_id"] for annotation in content["annotations"]}:
        read.refused["image without caption"] += 1
    return read


def _tsv(text: str) -> CaptionFile:
    """The first line tells which column is the image: the first if that is a URL or an image file, else the second."""
    read = CaptionFile("TSV")
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    column = 0 if IMAGE.search(rows[0][0]) and not IMAGE.search(rows[0][1]) else 1
    for number, row in enumerate(rows):
        image = CAPTION_NUMBER.sub("", row[column].strip()) if column < len(row) else ""
        caption = row[1 - column] if len(row) > 1 - column else ""
        read.take(_names_in_cell(image, number), caption, None, str(number))
    return read


def _table(path: Path, text: str, columns: Columns) -> CaptionFile:
    """A table with a line of names."""
    read = CaptionFile("table with a line of names")
    for number, row in enumerate(table_rows(path, text, columns)):
        if row.image is None:
            read.refused["row is cut short"] += 1
        else:
            read.take(_names_in_cell(row.image, number), row.captions, _split(row.split), str(number))
    return read


def _names_in_cell(image: str, number: int) -> tuple[str, ...]:
    """What the image of a row may be called: a URL by its CRC-32 or its row, as in the original's features."""
    if "://" in image:
        return str(zlib.crc32(image.encode("utf-8", "replace")) & 0xFFFFFFFF), str(number)
    return names_of(CAPTION_NUMBER.sub("", image)) if image else ("",)


def _metadata(folder: Path, files: Sequence[PurePosixPath]) -> CaptionFile:
    """Hugging Face's ImageFolder: metadata files, each with the names of the images below its own folder."""
    read = CaptionFile("ImageFolder with metadata")
    for file in files:
        inside = _file(folder / file, read_text(folder / file))
        read.refused.update(inside.refused)
        split = SPLITS.get(file.parts[0].lower()) if len(file.parts) > 1 else None
        for caption in inside.captions:
            image = names_of((file.parent / caption.image[4]).as_posix()) if len(caption.image) > 4 else caption.image
            read.captions.append(
                caption._replace(image=image, split=caption.split or split, key=f"{file}.{caption.key}")
            )
    return read


def _folder(folder: Path) -> CaptionFile:
    """Text files beside images of the same name; an image without one is counted too."""
    read = CaptionFile("folder")
    names = [PurePosixPath(name) for name in walk(folder)]
    metadata = [name for name in names if name.name in METADATA]
    if metadata:
        return _metadata(folder, metadata)
    images = {name.with_suffix(""): name for name in names if name.suffix.lower() in IMAGE_SUFFIXES}
    texts = {name: read_text(folder / name) for name in names if name.suffix.lower() == ".txt"}
    if any(PHRASE.search(text) for text in texts.values()):
        return _entities(folder, texts)
    for name, text in texts.items():
        image = images.get(name.with_suffix(""))
        split = SPLITS.get(name.parts[0].lower()) if len(name.parts) > 1 else None
        lines = [line for line in text.split("\n") if line.strip()]
        named = names_of(image.as_posix()) if image else ("",)
        read.take(named, lines or "", split, name.with_suffix("").as_posix())
    without = images.keys() - {name.with_suffix("") for name in texts}
    if without:
        read.refused["image without caption"] = len(without)
    return read


def _entities(folder: Path, texts: Mapping[PurePosixPath, str]) -> CaptionFile:
    """The sentences without their marks; a file whose name is a split's lists the images of that split."""
    read = CaptionFile("Flickr30k Entities")
    lists = [path for place in (folder, folder.parent) for path in place.glob("*.txt") if path.stem in SPLITS]
    split_of = {image: SPLITS[path.stem] for path in lists for image in read_text(path).split()}
    for name, text in texts.items():
        if PHRASE.search(text):
            lines = [PHRASE.sub(r"\1", line) for line in text.split("\n") if line.strip()]
            read.take(names_of(name.stem, name.stem), lines, split_of.get(name.stem), name.stem)
        elif name.stem not in SPLITS:
            read.refused["file without marked phrases"] += 1
    return read


def _split(name: Any) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or name.lower() not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, not {name!r}")
    return SPLITS[name.lower()]


def _all_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; where a name occurs twice, which JSON permits, both values as a list, so that none is lost."""
    once = dict(pairs)
    if len(once) == len(pairs):
        return once
    every: dict[str, list[Any]] = {}
    for name, value in pairs:
        every.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return {name: values if len(values) > 1 else once[name] for name, values in every.items()}
