"""Lists the images to extract regions of: all images of a folder, or those of a file with their boxes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from comodal.data.image_ids import make_image_id
from comodal.data.regions.box_units import (
    BOXES_ARE_FRACTIONS,
    BOXES_ARE_NOT_CORNERS,
    BoxFault,
    SizedBoxes,
    check_source_units,
    find_sized_box_fault,
    has_inverted_box,
    has_normalized_boxes,
)
from comodal.data.sources.image_folder import FoundImages, find_image_files
from comodal.errors import DataError, MediaError
from comodal.files import fingerprint_file
from comodal.media.image import read_image
from comodal.media.storage.open_media import find_container
from comodal.text_files import read_json_lines

SIZED_IMAGES = 64  # of a list: opened before the extraction to judge the units of its boxes
DUPLICATE_ID = "id twice"
EXAMPLE_LINE = '{"image": "a.jpg", "boxes": [[0, 0, 10, 20]]}'


class ImageWithBoxes(NamedTuple):
    """An image with its boxes in pixels, or None if none are given."""

    image: str  # relative to the folder
    boxes: Float32[np.ndarray, "regions 4"] | None


class RefusedImage(NamedTuple):
    """A line of the report: an image that was rejected, with the reason."""

    image: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ImageList:
    """Images in order, those that are rejected without opening them, and the source of given boxes."""

    images: tuple[ImageWithBoxes, ...]
    refused: tuple[RefusedImage, ...]
    boxes_from: str | None = None

    def compute_fingerprint(self, folder: Path) -> str:
        """A fingerprint of the names, the given boxes and the files; it must be the same to resume an extraction."""
        digest, stamps = hashlib.sha256(), dict[Path, str]()
        for image, boxes in self.images:
            digest.update(json.dumps([image, None if boxes is None else boxes.tolist()]).encode())
            file = find_container(folder / image) or folder / image
            if file not in stamps:
                stamps[file] = fingerprint_file(file)
            digest.update(stamps[file].encode())
        return digest.hexdigest()[:16]


def list_images(images: Path) -> ImageList:
    """All images of a folder, a container or a pattern.

    Raises:
        DataError: There is no such folder or file, or no image in it.
    """
    images_found = find_image_files(images)
    image_list = drop_duplicate_ids(ImageWithBoxes(name, None) for name in images_found.names)
    return replace(image_list, refused=(*list_refused_images(images_found), *image_list.refused))


def list_refused_images(images_found: FoundImages) -> tuple[RefusedImage, ...]:
    """Report lines for damaged parts of containers."""
    return tuple(RefusedImage(path, *fault) for path, fault in images_found.damaged)


def read_image_boxes(path: Path, folder: Path) -> ImageList:
    """Images with their boxes.

    Raises:
        DataError: There is no such folder, the file cannot be read, a line is invalid, or the boxes are not corners in
            pixels.
    """
    check_folder_exists(folder)
    images_by_line, origin = dict[int, ImageWithBoxes](), path.name
    for line_number, entry in read_json_lines(path):
        try:
            boxes = np.array(entry["boxes"], np.float32).reshape(-1, 4)
            if not isinstance(entry["image"], str | int) or isinstance(entry["image"], bool):
                raise ValueError(f"the image {entry['image']!r:.40} is not text")
            if not np.isfinite(boxes).all():
                raise ValueError("a side of a box is not finite")
            images_by_line[line_number] = ImageWithBoxes(str(entry["image"]), boxes)
            origin = str(entry.get("from", origin))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {line_number}: {error!r}; each line is like {EXAMPLE_LINE}") from error
    if not images_by_line:
        raise DataError(f"{path} has no lines; each is like {EXAMPLE_LINE}")
    check_image_boxes(path, images_by_line)
    check_boxes_with_images(path, folder, list(images_by_line.values()))
    return replace(drop_duplicate_ids(images_by_line.values()), boxes_from=origin)


def check_image_boxes(path: Path, images_by_line: Mapping[int, ImageWithBoxes]) -> None:
    """Checks that the boxes of all lines are corners in pixels, and that none is empty.

    Raises:
        DataError: They are not, or a line has an empty box.
    """
    faults = Counter[str](
        fault for image in images_by_line.values() if (fault := find_box_fault(image.boxes)) is not None
    )
    check_source_units(path, faults, (), len(images_by_line) - faults.total())
    for line_number, (_, boxes) in images_by_line.items():
        if boxes is not None and not (boxes[:, 2:] > boxes[:, :2]).all():
            raise DataError(
                f"{path}, line {line_number}: a box is left, top, right, bottom in pixels, and none is empty; each "
                f"line is "
                f"like {EXAMPLE_LINE}"
            )


def check_boxes_with_images(path: Path, folder: Path, images: Sequence[ImageWithBoxes]) -> None:
    """Checks the boxes of some images against the size of these images. Images that cannot be read are left out.

    Raises:
        DataError: The boxes are in other units.
    """
    faults, valid = Counter[str](), list[SizedBoxes]()
    step = -(-len(images) // SIZED_IMAGES)
    for image, boxes in images[::step]:
        try:
            height, width = read_image(folder / image).shape[:2]
        except (MediaError, OSError):
            continue
        sized = SizedBoxes(boxes if boxes is not None else np.empty((0, 4), np.float32), width, height)
        if (fault := find_sized_box_fault(sized)) is None:
            valid.append(sized)
        else:
            faults[fault] += 1
    check_source_units(path, faults, valid, len(valid))


def find_box_fault(boxes: Float32[np.ndarray, "regions 4"] | None) -> BoxFault | None:
    """The fault of the boxes of an image of any size, if they are not corners in pixels."""
    if boxes is None:
        return None
    if has_inverted_box(boxes):
        return BOXES_ARE_NOT_CORNERS
    return BOXES_ARE_FRACTIONS if has_normalized_boxes(boxes) else None


def check_folder_exists(folder: Path) -> Path:
    """Checks that a folder exists, and returns it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    return folder


def drop_duplicate_ids(images: Iterable[ImageWithBoxes]) -> ImageList:
    """Keeps the first of images that are listed twice or differ only in their suffix."""
    first_by_id: dict[str, ImageWithBoxes] = {}
    refused = []
    for image in images:
        first_image = first_by_id.setdefault(make_image_id(image.image), image)
        if first_image is not image:
            refused.append(
                RefusedImage(
                    image.image, DUPLICATE_ID, f"{first_image.image} has the same id {make_image_id(image.image)}"
                )
            )
    return ImageList(tuple(first_by_id.values()), tuple(refused))
