"""Which row of a region store an image of a data set has: data sets and stores call one image by several names.

COCO's image 42 is 42, 000000000042, COCO_val2014_000000000042.jpg, or val2014/COCO_val2014_000000000042; in a store
made from a folder its id is its path without the suffix.
"""

import re
from pathlib import PurePosixPath

from comodal.data.regions import RegionStore
from comodal.errors import DataError

NUMBERED = re.compile(r"(?:COCO_\w+_)?0*(\d+)")  # so that no name that only ends with digits is taken for a number


class ImageRows:
    """The rows of a store by any name of an image; a short name that two images share finds neither.

    Args:
        store: The regions of the images.

    Attributes:
        missing: Names that were asked for and not found, in the order of asking.
    """

    def __init__(self, store: RegionStore) -> None:
        self.store = store
        self.rows: dict[str, int | None] = {}
        self.missing: dict[str, None] = {}
        for row, image in enumerate(store.ids):
            for name in names_of(image):
                self.rows[name] = None if self.rows.get(name, row) != row else row
        self.rows |= {image: row for row, image in enumerate(store.ids)}

    def find(self, image: str) -> int | None:
        """The row of an image, or None."""
        for name in (image, *names_of(image)):
            row = self.rows.get(name)
            if row is not None:
                return row
        self.missing[image] = None
        return None

    def check(self, file: object, found: int) -> None:
        """Some images were found.

        Raises:
            DataError: None was; the first name and one of the store's are shown.
        """
        if not found and self.missing:
            raise DataError(
                f"{file}: none of its images is in {self.store.folder}; the first is {next(iter(self.missing))!r}, the "
                f"store has {self.store.ids[0]!r}" if len(self.store) else f"{self.store.folder} has no images"
            )  # fmt: skip


def names_of(image: str) -> list[str]:
    """Shorter names of an image: without its folder, without its suffix, its number alone."""
    path = PurePosixPath(image.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    number = NUMBERED.fullmatch(stem)
    without_suffix = path.with_name(stem).as_posix() if stem else image
    return [without_suffix, stem, *([str(int(number.group(1)))] if number else [])]


SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
