"""Finds the row of an image in a region store: data sets and stores use different names for one image.

COCO's image 42 is 42, 000000000042, COCO_val2014_000000000042.jpg, or val2014/COCO_val2014_000000000042. In a store
made from a folder, the id is the image's path without the suffix.
"""

from pathlib import PurePosixPath

from comodal.data.image_ids import ImageIdFormat, is_number, parse_coco_image_id
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.media.storage.suffixes import IMAGE_SUFFIXES


class ImageRows:
    """The rows of a store by any name of an image; a short name that two images share finds neither.

    Args:
        store: The regions of the images.
        numbers: The kind of the data set's image ids. COCO's ids match COCO's names, and bare numbers only in a store
            without such names; plain ids (Visual Genome, GQA, Flickr30k) never match COCO's. By default either, unless
            an id is in the store as both.

    Attributes:
        missing: Names that were looked up and not found, in order.
    """

    def __init__(self, store: RegionStore, numbers: ImageIdFormat | None = None) -> None:
        self.store, self.numbers = store, numbers
        self.rows: dict[str, int | None] = {}
        self.coco: dict[str, int | None] = {}
        self.plain: dict[str, int | None] = {}
        self.missing: dict[str, None] = {}
        for row, image in enumerate(store.ids):
            for name in list_image_aliases(image):
                number = parse_coco_image_id(name)
                for known, key in ((self.coco, number), (self.plain if is_number(name) else self.rows, name)):
                    if key is not None:
                        known[key] = None if known.get(key, row) != row else row
        for row, image in enumerate(store.ids):  # a full id is never ambiguous
            (self.plain if is_number(image) else self.rows)[image] = row

    def find(self, image: str) -> int | None:
        """The row of an image, or None."""
        for name in (image, *list_image_aliases(image)):
            row = self.rows.get(name)
            if row is None and is_number(name):
                row = self._of_number(name, self.numbers)
            elif row is None and (number := parse_coco_image_id(name)) is not None:
                row = self._of_number(number, self.numbers and "coco")
            if row is not None:
                return row
        self.missing[image] = None
        return None

    def _of_number(self, number: str, numbers: ImageIdFormat | None) -> int | None:
        if numbers == "plain":
            return self.plain.get(number)
        if numbers == "coco":
            return (self.coco or self.plain).get(number)
        if number in self.coco and number in self.plain:
            return None
        return self.coco.get(number, self.plain.get(number))

    def check(self, file: object, found: int) -> None:
        """Checks that some images were found.

        Raises:
            DataError: None was; the message has the first name and one of the store's.
        """
        if not found and self.missing:
            raise DataError(
                f"{file}: none of its images is in {self.store.folder}; the first is {next(iter(self.missing))!r}, the "
                f"store has {self.store.ids[0]!r}" if len(self.store) else f"{self.store.folder} has no images"
            )  # fmt: skip


def list_image_aliases(image: str) -> list[str]:
    """Shorter names of an image: without its suffix, and without its folder."""
    path = PurePosixPath(image.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return [path.with_name(stem).as_posix() if stem else image, stem]
