"""Readers of the boxes of sound sources: Flickr-SoundNet's XML files and VGG-SS's vggss.json.

- Flickr-SoundNet (Senocak et al., CVPR 2018): a folder of XML files, one for each image, with an element for each
  annotator that holds `bbox` elements. A `bbox` has five children: a label, then left, top, right and bottom in pixels
  of an image of 256 x 256. The published evaluations take the 249 images of a list (metadata/flickr_test.csv of
  hche11/Localizing-Visual-Sounds-the-Hard-Way).
- VGG-SS (Chen et al., CVPR 2021): a JSON list of objects with `file` (YouTube id and start), `class`, and `bbox`, a
  list of boxes as fractions of the image. There are 5,158 of 5,017 videos.

Boxes are rounded down to pixels of 224 x 224 and cut at the edges of the image, as in the published scripts.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from comodal.errors import DataError
from comodal.files import encode_for_hash
from comodal.tasks.localization.localization_metrics import MAP_SIZE, PixelBox
from comodal.text_files import parse_csv, read_json, read_text, read_xml

FLICKR_IMAGE_SIZE = 256  # pixels of the images whose boxes were drawn
YOUTUBE_ID_LENGTH = 11
# SHA-256 of the sorted names of flickr_test.csv, and of the sorted names, classes and boxes of vggss.json
FLICKR_TEST_HASH = "b120630560980ff47cf6c7551f48988eece1cb4b04bba2f7de318a91343351a9"
VGGSS_HASH = "bbccadf40a0ea12b6ee49cd470394372da2503bf2e2344bc535dd100a04faa03"


class SoundingImage(NamedTuple):
    """An annotated image with its audio.

    Args:
        name: Name of the files of its frame and audio, without suffix.
        boxes: The boxes of all annotators, in pixels of 224 x 224.
        category: Class of its sound; None where it is unknown.
        video: The video that it is from.
    """

    name: str
    boxes: tuple[PixelBox, ...]
    category: str | None
    video: str


@dataclass(frozen=True)
class LocalizationSet:
    """A test set.

    Args:
        title: Display name.
        images: The annotated images.
        is_consensus: Whether boxes of several annotators are combined (Flickr-SoundNet).
        is_official: Whether it is the published test set, neither more nor less.
        files: The files that were read, by role.
    """

    title: str
    images: Sequence[SoundingImage]
    is_consensus: bool
    is_official: bool
    files: dict[str, Path] = field(default_factory=dict)


def read_localization_set(annotations: Path, test_list: Path | None = None) -> LocalizationSet:
    """Reads a test set: a folder of XML files is Flickr-SoundNet's, a JSON file is VGG-SS's.

    Args:
        annotations: The folder or the file.
        test_list: CSV file whose first column names the images to evaluate, without header; by default all are.

    Raises:
        DataError: A file cannot be read or is not in this format, or the list names an image without annotation.
    """
    names = None if test_list is None else read_test_list(test_list)
    files = {"annotations": annotations} | ({} if test_list is None else {"test list": test_list})
    if annotations.is_dir():
        images = read_flickr_soundnet(annotations, names)
        is_official = hash_values(sorted(image.name for image in images)) == FLICKR_TEST_HASH
        return LocalizationSet("Flickr-SoundNet", images, True, is_official, files)
    rows = read_json(annotations)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{annotations}: expected a list of objects with file, class and bbox, as in vggss.json")
    all_images = {}
    for index, row in enumerate(rows):
        image = parse_vggss_row(row, f"{annotations}, entry {index}")
        if image.name in all_images:
            raise DataError(f"{annotations}, entry {index}: {image.name} has an entry before")
        all_images[image.name] = image
    chosen = select_images(all_images, names, annotations)
    is_official = len(chosen) == len(rows) and hash_vggss(rows) == VGGSS_HASH
    return LocalizationSet("VGG-SS", chosen, False, is_official, files)


def read_test_list(path: Path) -> list[str]:
    """The names in the first column of a CSV file without header.

    Raises:
        DataError: It cannot be read, is empty, or names an image twice.
    """
    names = [row[0].strip() for _, row in parse_csv(read_text(path), path)]
    if not names:
        raise DataError(f"{path}: it names no image")
    if len(set(names)) < len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise DataError(f"{path}: it names {repeated} twice")
    return names


def select_images(
    images: dict[str, SoundingImage], names: Sequence[str] | None, annotations: Path
) -> list[SoundingImage]:
    """The images of a list, or all.

    Raises:
        DataError: One has no annotation.
    """
    unknown = [name for name in names or () if name not in images]
    if unknown:
        raise DataError(f"{annotations}: {len(unknown):,} images of the list have no entry, the first is {unknown[0]}")
    return list(images.values()) if names is None else [images[name] for name in names]


def read_flickr_soundnet(folder: Path, names: Sequence[str] | None) -> list[SoundingImage]:
    """The images of a folder of XML files, or those of a list. Every image is of a video of its own.

    Raises:
        DataError: A file is missing or is not in this format, or no file has a box.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.xml"))}
    if not paths:
        raise DataError(f"{folder}: there are no XML files of Flickr-SoundNet in it")
    unknown = [name for name in names or () if name not in paths]
    if unknown:
        raise DataError(f"{folder}: {len(unknown):,} images of the list have no XML file, the first is {unknown[0]}")
    images = [
        SoundingImage(name, parse_flickr_boxes(read_xml(paths[name]), paths[name]), None, name)
        for name in (names or paths)
    ]
    if not any(image.boxes for image in images):
        raise DataError(f"{folder}: none of its {len(images):,} XML files has a bbox element of an annotator")
    return images


def parse_flickr_boxes(root: Element, path: Path) -> tuple[PixelBox, ...]:
    """The boxes of all annotators.

    Raises:
        DataError: A box does not have five children of which the last four are integers.
    """
    boxes = []
    for element in (element for annotator in root for element in annotator.findall("bbox")):
        texts = [child.text or "" for child in element]
        try:
            left, top, right, bottom = (int(text) for text in texts[1:])
        except ValueError:
            raise DataError(
                f"{path}: a bbox holds {texts!r:.80}; expected a label and four integers (left, top, right, bottom)"
            ) from None
        boxes.append(scale_box([edge / FLICKR_IMAGE_SIZE for edge in (left, top, right, bottom)]))
    return tuple(boxes)


def parse_vggss_row(row: Any, location: str) -> SoundingImage:
    """One entry of vggss.json.

    Raises:
        DataError: It has no file, class or boxes, or a box is not of four numbers.
    """
    values = row if isinstance(row, dict) else {}
    name, category, boxes = values.get("file"), values.get("class"), values.get("bbox")
    if not isinstance(name, str) or not name or not isinstance(category, str) or not isinstance(boxes, list):
        raise DataError(f"{location}: expected an object with file, class and bbox, got {row!r:.80}")
    for box in boxes:
        is_box = isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
        if not is_box or any(edge != edge for edge in box):
            raise DataError(f"{location}: a bbox is {box!r:.80}; expected four numbers (left, top, right, bottom)")
    return SoundingImage(name, tuple(scale_box(box) for box in boxes), category, name[:YOUTUBE_ID_LENGTH])


def scale_box(fractions: Sequence[float]) -> PixelBox:
    """A box in fractions of the image, cut at its edges, in pixels of 224 x 224, rounded down."""
    left, top, right, bottom = (int(MAP_SIZE * min(max(edge, 0.0), 1.0)) for edge in fractions)
    return left, top, right, bottom


def hash_vggss(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of the entries, in any order."""
    return hash_values(sorted([row["file"], row["class"], row["bbox"]] for row in rows))


def hash_values(values: Sequence[Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(encode_for_hash(json.dumps(values))).hexdigest()
