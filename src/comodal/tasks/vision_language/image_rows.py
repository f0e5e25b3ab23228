"""Finds the row of an image in a region store: data sets and stores use different names for one image.

COCO's image 42 is 42, 000000000042, COCO_val2014_000000000042.jpg, or val2014/COCO_val2014_000000000042. In a store
made from a folder, the id is the image's path without the suffix.
"""

from pathlib import PurePosixPath

from comodal.data.image_ids import ImageIdFormat, is_visual_genome_id, parse_coco_image_id
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.media.storage.suffixes import IMAGE_SUFFIXES


class ImageRows:
    """The rows of a store by any name of an image; a short name that two images share finds neither.

    Args:
        store: The regions of the images.
        id_format: The kind of the data set's image ids. COCO's ids match COCO's names, and integers only in a store
            without such names; bare ids (Visual Genome, GQA, Flickr30k) never match COCO's. By default either, unless
            an id is in the store as both.

    Attributes:
        missing: Names that were looked up and not found, in order.
    """

    def __init__(self, store: RegionStore, id_format: ImageIdFormat | None = None) -> None:
        self.store, self.id_format = store, id_format
        self.rows: dict[str, int | None] = {}
        self.coco: dict[str, int | None] = {}
        self.numeric: dict[str, int | None] = {}
        self.missing: dict[str, None] = {}
        for row, image in enumerate(store.ids):
            for name in list_image_aliases(image):
                coco_id = parse_coco_image_id(name)
                for rows_by_name, key in (
                    (self.coco, coco_id),
                    (self.numeric if is_visual_genome_id(name) else self.rows, name),
                ):
                    if key is not None:
                        rows_by_name[key] = None if rows_by_name.get(key, row) != row else row
        for row, image in enumerate(store.ids):  # a full id is never ambiguous
            (self.numeric if is_visual_genome_id(image) else self.rows)[image] = row

    def find(self, image: str) -> int | None:
        """The row of an image, or None."""
        for name in (image, *list_image_aliases(image)):
            row = self.rows.get(name)
            if row is None and is_visual_genome_id(name):
                row = self._find_by_number(name, self.id_format)
            elif row is None and (coco_id := parse_coco_image_id(name)) is not None:
                row = self._find_by_number(coco_id, self.id_format and "coco")
            if row is not None:
                return row
        self.missing[image] = None
        return None

    def _find_by_number(self, image_id: str, id_format: ImageIdFormat | None) -> int | None:
        if id_format == "visual_genome":
            return self.numeric.get(image_id)
        if id_format == "coco":
            return (self.coco or self.numeric).get(image_id)
        if image_id in self.coco and image_id in self.numeric:
            return None
        return self.coco.get(image_id, self.numeric.get(image_id))

    def check(self, file: object, num_found: int) -> None:
        """Checks that some images were found.

        Raises:
            DataError: None was; the message has the first name and one of the store's.
        """
        if not num_found and self.missing:
            raise DataError(
                f"{file}: none of its images is in {self.store.folder}; the first is {next(iter(self.missing))!r}, the "
                f"store has {self.store.ids[0]!r}" if len(self.store) else f"{self.store.folder} has no images"
            )  # fmt: skip


def list_image_aliases(image: str) -> list[str]:
    """Shorter names of an image: without its suffix, and without its folder."""
    path = PurePosixPath(image.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return [path.with_name(stem).as_posix() if stem else image, stem]
