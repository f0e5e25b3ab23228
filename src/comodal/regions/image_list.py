"""Which images regions are made of: all of a folder, or those of a list with their boxes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from comodal.data.regions.box_units import (
    CORNERS,
    FRACTIONS,
    BoxFault,
    ends_before_it_begins,
    judge_source,
    look_normalized,
)
from comodal.data.sources.image_folder import FoundImages, find_images
from comodal.errors import DataError
from comodal.files import stamp_of
from comodal.media.storage.open_media import container_of
from comodal.text_files import read_json_lines

TWICE = "id twice"
LINE = '{"image": "a.jpg", "boxes": [[0, 0, 10, 20]]}'


class ImageWithBoxes(NamedTuple):
    """An image with its boxes in pixels, or None where they are to be found."""

    image: str  # below the folder
    boxes: Float32[np.ndarray, "regions 4"] | None


class RefusedImage(NamedTuple):
    """A line of the report."""

    image: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ImageList:
    """Images in their order, those that need no opening to be refused, and where given boxes are from."""

    images: tuple[ImageWithBoxes, ...]
    refused: tuple[RefusedImage, ...]
    boxes_from: str | None = None

    def fingerprint(self, folder: Path) -> str:
        """Of the names, the given boxes and the files, so that nothing else is taken for what was begun."""
        digest, stamps = hashlib.sha256(), dict[Path, str]()
        for image, boxes in self.images:
            digest.update(json.dumps([image, None if boxes is None else boxes.tolist()]).encode())
            file = container_of(folder / image) or folder / image
            if file not in stamps:
                stamps[file] = stamp_of(file)
            digest.update(stamps[file].encode())
        return digest.hexdigest()[:16]


def id_of(name: str) -> str:
    """A path without its suffix."""
    return (Path(name).parent / Path(name).stem).as_posix()


def images_of(images: Path) -> ImageList:
    """All images of a folder, a container or a pattern.

    Raises:
        DataError: There is no such folder or file, or no image in it.
    """
    found = find_images(images)
    listed = each_once(ImageWithBoxes(name, None) for name in found.names)
    return replace(listed, refused=(*refused_of(found), *listed.refused))


def refused_of(found: FoundImages) -> tuple[RefusedImage, ...]:
    """Lines of the report about what is damaged in containers."""
    return tuple(RefusedImage(path, *fault) for path, fault in found.damaged)


def read_boxes(path: Path, folder: Path) -> ImageList:
    """Images with their boxes.

    Raises:
        DataError: There is no such folder, the file cannot be read, a line is not as it should be, or the boxes are no
            corners in pixels.
    """
    there(folder)
    given, origin = dict[int, ImageWithBoxes](), path.name
    for number, entry in read_json_lines(path):
        try:
            boxes = np.array(entry["boxes"], np.float32).reshape(-1, 4)
            given[number] = ImageWithBoxes(str(entry["image"]), boxes)
            origin = str(entry.get("from", origin))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: {error!r}; each line is like {LINE}") from error
    if not given:
        raise DataError(f"{path} has no lines; each is like {LINE}")
    check_boxes(path, given)
    return replace(each_once(given.values()), boxes_from=origin)


def check_boxes(path: Path, given: Mapping[int, ImageWithBoxes]) -> None:
    """The boxes of all lines, judged together, are corners in pixels, and none is empty.

    Raises:
        DataError: They are not, or a line has an empty box.
    """
    faults = Counter[str](fault for image in given.values() if (fault := fault_of(image.boxes)) is not None)
    judge_source(path, faults, len(given) - faults.total())
    for number, (_, boxes) in given.items():
        if boxes is not None and not (boxes[:, 2:] > boxes[:, :2]).all():
            raise DataError(
                f"{path}, line {number}: a box is left, top, right, bottom in pixels, and none is empty; each line is "
                f"like {LINE}"
            )


def fault_of(boxes: Float32[np.ndarray, "regions 4"] | None) -> BoxFault | None:
    """What the boxes of an image of any size look like, if not like corners in pixels."""
    if boxes is None:
        return None
    if ends_before_it_begins(boxes):
        return CORNERS
    return FRACTIONS if look_normalized(boxes) else None


def there(folder: Path) -> Path:
    """A folder that is there."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    return folder


def each_once(given: Iterable[ImageWithBoxes]) -> ImageList:
    """Of images that differ in their suffix alone, or stand in the list twice, the first."""
    first: dict[str, ImageWithBoxes] = {}
    refused = []
    for image in given:
        other = first.setdefault(id_of(image.image), image)
        if other is not image:
            refused.append(RefusedImage(image.image, TWICE, f"{other.image} has the same id {id_of(image.image)}"))
    return ImageList(tuple(first.values()), tuple(refused))
