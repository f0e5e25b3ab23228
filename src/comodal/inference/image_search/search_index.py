"""The search index of a folder: the regions of its images on disk, kept in sync with the folder.

about.json             the store of the index; written last, so that an interrupted command can be resumed
regions-N/             that store (data/regions/region_store.py); the id of an image is its path and a stamp
refused.jsonl          images that could not be read, with the reason
first_stage-*          their vectors (search_first_stage.py)

The stamp is computed from an image's size, modification time and given boxes. An image with a new stamp is added to
the store (data/regions/region_appender.py), at a cost that does not depend on the other images. Deleted images are
left out of results. When more than half of the store is outdated, the other images are copied into a new store. No
image is read twice.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from comodal.console import print_line
from comodal.data.output_folder import encode_settings_json, lock_output_folder
from comodal.data.regions.region_appender import RegionAppender
from comodal.data.regions.region_compatibility import describe_regions
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import DataError
from comodal.files import encode_json_line, write_bytes_atomically
from comodal.inference.embedding_search.appended_rows import explain_write_errors
from comodal.media.storage.open_media import find_container
from comodal.regions.extract import ExtractionPool, add_extraction_result, track_extraction
from comodal.regions.image_list import ImageList, ImageWithBoxes, list_refused_images, read_image_boxes
from comodal.text_files import read_json_lines, read_json_object
from comodal.workers import select_backend

INDEX_FOLDER = ".comodal-index"  # in the folder of the images
INDEX_KIND = "search index"
INDEX_INFO_FILE, REFUSED_FILE, STORE_PREFIX = "about.json", "refused.jsonl", "regions-"
BOX_SOURCES = ("own", "grid", "selective")  # any other value is a file


@dataclass(frozen=True)
class IndexInfo:
    """The metadata of an index.

    Args:
        store: The folder of its regions, within the index.
        folder: Of the images, relative to the index.
        boxes: Source of the boxes, as given to the command.
    """

    store: str
    folder: str
    boxes: str | None


@dataclass(frozen=True)
class IndexedImages:
    """The images that can be found.

    Args:
        folder: Of the images.
        index: The folder of the index.
        store: Their regions, and those of deleted images.
        names: Their paths relative to the folder, sorted.
        rows: Their rows in the store.
        num_refused: Number of images that cannot be read.
    """

    folder: Path
    index: Path
    store: RegionStore
    names: Sequence[str]
    rows: Int64[np.ndarray, "images"]
    num_refused: int

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder.

    Args:
        images: By their ids in the store, in the order of their paths.
        refused: Images that are rejected without opening them, as lines of the report.
    """

    images: dict[str, ImageWithBoxes]
    refused: Sequence[dict[str, str]]


def update_index(
    folder: Path,
    index: Path,
    model_regions: dict[str, Any],
    boxes: str | None,
    create_pool: Callable[[str | None], ExtractionPool],
) -> IndexedImages:
    """Builds or updates the index of a folder, and returns its images.

    Args:
        folder: Of the images.
        index: Folder of the index.
        model_regions: The metadata of the regions that the model was trained on.
        boxes: Source of the boxes: own, grid, selective or a file; by default that of the index.
        create_pool: Creates the extraction pool for a source of boxes; called only if there are images to extract.

    Raises:
        DataError: There is no image, the index is damaged, of another folder or of other boxes, or cannot be written.
    """
    about = read_index_info(index)
    if about is not None:
        check_index_folder(index, about, folder, boxes)
        check_index_network(index, about, model_regions)
        boxes = about.boxes
    folder_images = list_folder_images(folder, boxes)
    while (indexed_images := read_indexed_images(folder, index, about, folder_images)) is None:
        with explain_write_errors(index), lock_output_folder(index), select_backend("loky"):
            about = extend_index(
                index, about, folder_images, IndexInfo("", os.path.relpath(folder, index), boxes), create_pool(boxes)
            )
    if not indexed_images.names:
        raise DataError(
            f"{folder}: none of its {indexed_images.num_refused:,} images can be read; {index / REFUSED_FILE} lists "
            f"the reasons"
        )
    return indexed_images


def read_indexed_images(
    folder: Path, index: Path, about: IndexInfo | None, folder_images: FolderImages
) -> IndexedImages | None:
    """The images of the index that are in the folder, or None if some are missing."""
    if about is None:
        return None
    store, refused = open_index_store(index, about), read_refused_images(index)
    rows = store.ids.find_rows(list(folder_images.images))
    is_stored = rows >= 0
    if not all(
        is_found or name in refused for name, is_found in zip(folder_images.images, is_stored.tolist(), strict=True)
    ):
        return None
    names = [
        entry.image
        for entry, is_found in zip(folder_images.images.values(), is_stored.tolist(), strict=True)
        if is_found
    ]
    return IndexedImages(
        folder, index, store, names, rows[is_stored], int((~is_stored).sum()) + len(folder_images.refused)
    )


def extend_index(
    index: Path, about: IndexInfo | None, folder_images: FolderImages, new_info: IndexInfo, pool: ExtractionPool
) -> IndexInfo:
    """Adds missing images to the store, or creates a new one if most of the store is outdated."""
    old_store = None if about is None else open_index_store(index, about)
    if about is not None and old_store is not None:
        is_stored = old_store.ids.find_rows(list(folder_images.images)) >= 0
        if 2 * int(is_stored.sum()) >= len(old_store):
            stored_ids = {
                name for name, is_found in zip(folder_images.images, is_stored.tolist(), strict=True) if is_found
            }
            with RegionAppender(old_store) as appender:
                extract_missing_images(index, appender, stored_ids, folder_images, pool)
            print_index_report(index, open_index_store(index, about))
            return about
    store_number = 1 + (int(about.store.removeprefix(STORE_PREFIX)) if about else 0)
    out = index / f"{STORE_PREFIX}{store_number}"
    if not (out / INDEX_INFO_FILE).exists():  # interrupted before it became the index
        network = pool.extractor.network
        with RegionWriter(out, network.feature_dim, network.num_classes, about=pool.extractor.about) as writer:
            if old_store is not None:
                copy_unchanged_regions(old_store, folder_images, writer)
            extract_missing_images(index, writer, writer.written_ids, folder_images, pool)
    new_info = IndexInfo(out.name, new_info.folder, new_info.boxes)
    write_bytes_atomically(
        index / INDEX_INFO_FILE, encode_settings_json({"kind": INDEX_KIND, "format": 1} | asdict(new_info))
    )
    for old in index.glob(f"{STORE_PREFIX}*"):
        if old != out:
            shutil.rmtree(old)
    print_index_report(index, RegionStore(out))
    return new_info


def extract_missing_images(
    index: Path,
    writer: RegionWriter | RegionAppender,
    stored_ids: Collection[str],
    folder_images: FolderImages,
    pool: ExtractionPool,
) -> None:
    """Extracts the regions of images that are neither known nor rejected, and reports those that are rejected."""
    refused = {name: line for name, line in read_refused_images(index).items() if name in folder_images.images}
    todo = {
        name: entry for name, entry in folder_images.images.items() if name not in stored_ids and name not in refused
    }
    results = track_extraction(pool(list(todo.values())), len(folder_images.images), len(todo))
    for name, result in zip(todo, results, strict=True):
        if refusal := add_extraction_result(writer, result, name):
            refused[name] = {"id": name} | refusal._asdict()
    write_bytes_atomically(
        index / REFUSED_FILE, b"".join(encode_json_line(line) for line in [*refused.values(), *folder_images.refused])
    )


def copy_unchanged_regions(before: RegionStore, folder_images: FolderImages, writer: RegionWriter) -> None:
    """Copies the regions of unchanged images."""
    for row, name in enumerate(before.ids):
        if name in folder_images.images and name not in writer.written_ids:
            features, boxes, classes, _, width, height = before.read_regions(row)
            writer.add(name, features, boxes, width, height, classes)


def list_folder_images(folder: Path, boxes: str | None) -> FolderImages:
    """All images of a folder, or those of a file of boxes."""
    image_files = find_image_files(folder)
    image_list = ImageList(
        tuple(ImageWithBoxes(name, None) for name in image_files.names), list_refused_images(image_files)
    )
    if boxes is not None and boxes not in BOX_SOURCES:
        image_list = read_image_boxes(Path(boxes), folder)
    images = {
        f"{entry.image}#{fingerprint_image(folder, entry)}": entry
        for entry in sorted(image_list.images, key=lambda g: g.image)
    }
    return FolderImages(images, [{"id": line.image} | line._asdict() for line in image_list.refused])


def fingerprint_image(folder: Path, image: ImageWithBoxes) -> str:
    """A hash of an image's size, modification time and given boxes; it identifies a version of the image."""
    boxes = "null" if image.boxes is None else json.dumps(image.boxes.tolist())
    try:
        try:
            status = os.stat(f"{folder}/{image.image}")  # noqa: PTH116 (a Path of each takes as long as the rest)
        except NotADirectoryError:
            status = (find_container(folder / image.image) or folder / image.image).stat()
        stamp = f"[{status.st_size}, {status.st_mtime_ns}, {boxes}]"
    except OSError:  # the reason is reported when it is read
        stamp = f"[{boxes}]"
    return hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()


def read_index_info(index: Path) -> IndexInfo | None:
    """The metadata of an index, or None if there is none yet.

    Raises:
        DataError: It is damaged, or something else.
    """
    path = index / INDEX_INFO_FILE
    if not path.exists():
        return None
    try:
        about = read_json_object(path)
    except DataError as error:
        raise DataError(f"{error}. Delete {index}; the next search builds it again") from error
    try:
        if about["kind"] != INDEX_KIND:
            raise DataError(f"{index} holds {about['kind']}, not a {INDEX_KIND}: give another --index")
        if not re.fullmatch(rf"{STORE_PREFIX}\d+", about["store"]):
            raise ValueError(about["store"])
        return IndexInfo(about["store"], str(about["folder"]), about["boxes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): delete {index}; the next search builds it again") from error


def open_index_store(index: Path, about: IndexInfo) -> RegionStore:
    """The region store of an index.

    Raises:
        DataError: It is damaged.
    """
    try:
        return RegionStore(index / about.store)
    except DataError as error:
        raise DataError(f"{error}. Delete {index}; the next search builds it again") from error


def read_refused_images(index: Path) -> dict[str, dict[str, str]]:
    """The lines of the report by the ids of the images."""
    path = index / REFUSED_FILE
    if not path.exists():
        return {}
    try:
        return {str(line["id"]): line for _, line in read_json_lines(path)}
    except (DataError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error!r}): delete {index}; the next search builds it again") from error


def check_index_folder(index: Path, about: IndexInfo, folder: Path, boxes: str | None) -> None:
    """Checks that the index is of this folder and of these boxes.

    Raises:
        DataError: It is not.
    """
    if os.path.relpath(folder, index) != about.folder:
        indexed_folder = os.path.normpath(index / about.folder)
        raise DataError(f"{index} is the index of {indexed_folder}, not of {folder}: give another --index")
    if boxes is not None and boxes != about.boxes:
        indexed_boxes = about.boxes or "the model's kind"
        raise DataError(
            f"{index} was built with boxes of {indexed_boxes}, not {boxes}: give another --index, or delete it"
        )


def check_index_network(index: Path, about: IndexInfo, model_regions: dict[str, Any]) -> None:
    """Checks that the regions were made by the network of the model's own regions.

    Raises:
        DataError: They were not.
    """
    index_regions = open_index_store(index, about).about["provenance"]
    if index_regions.get("fingerprint") != model_regions.get("fingerprint"):
        raise DataError(
            f"{index} has regions of {describe_regions(index_regions)}, "
            f"and the model was trained on those of {describe_regions(model_regions)}: "
            "give another --index, or delete it"
        )


def print_index_report(index: Path, store: RegionStore) -> None:
    """Prints the number of images in the index and of rejected ones, by reason."""
    reasons = Counter(line["reason"] for line in read_refused_images(index).values())
    counts = "".join(f", {count:,} refused ({reason})" for reason, count in reasons.most_common())
    print_line(f"{index}: {len(store):,} images{counts}", stderr=True)
