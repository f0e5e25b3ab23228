"""A store of image regions: features, boxes, class probabilities and visual tokens in flat memory-mapped files.

features.bin   rows x dim, fp16 or fp32; the regions of an image are consecutive, images in the order of the index
boxes.bin      rows x 4 fp32: left, top, right, bottom in pixels of the image
classes.bin    rows x classes fp16: probabilities of a detector's classes, or of visual tokens (optional)
tokens.bin     rows of uint16 or uint32 (written by `comodal prepare tokens`)
index.bin      the id of each image, its first row, its number of rows, its width and height (region_index.py)
network/       the network that extracted them, where that is a model folder (tasks/vision_language/region_record.py)
about.json     the metadata of the store; written last, so a store without it is unfinished

Processes that open one store share its pages. Data is read on demand, and no file is a pickle.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Num, Shaped
from torch import Tensor

from comodal.data.output_folder import encode_settings_json, translate_os_errors
from comodal.data.regions.region_index import (
    ImageIds,
    IndexedImage,
    build_index_arrays,
    concatenate_indexes,
    pack_region_index,
    read_appended_images,
    read_region_index,
)
from comodal.errors import DataError
from comodal.files import open_to_write, write_bytes_atomically
from comodal.text_files import read_json_object

FEATURES_FILE, BOXES_FILE, CLASSES_FILE, TOKENS_FILE, INDEX_FILE, JOURNAL_FILE = (
    "features.bin", "boxes.bin", "classes.bin", "tokens.bin", "index.bin", ".journal.part",
)  # fmt: skip
MAX_SIDE_PIXELS = 2**31 - 1  # of an image's side
FeatureType = Literal["float16", "float32"]


class Regions(NamedTuple):
    """The regions of one image; views of the files, not copies. Classes and tokens are None if the store has none."""

    features: Float[np.ndarray, "regions dim"]
    boxes: Float32[np.ndarray, "regions 4"]
    classes: Float[np.ndarray, "regions classes"] | None
    visual_tokens: Num[np.ndarray, " regions"] | None
    width: int
    height: int


def compute_spatials(
    boxes: Float[np.ndarray, "regions 4"], width: int, height: int
) -> Float32[np.ndarray, "regions 5"]:
    """Left, top, right, bottom and area as fractions of the image (spatials; ViLBERT, section 3.1)."""
    scaled = boxes / np.array([width, height, width, height], np.float32)
    areas = (scaled[:, 2] - scaled[:, 0]) * (scaled[:, 3] - scaled[:, 1])
    return np.column_stack([scaled, areas]).astype(np.float32)


class RegionStore:
    """Reads a store.

    Args:
        folder: A folder written by a RegionWriter.

    Raises:
        DataError: There is no store, or it is damaged or not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.about = read_store_about(self.folder)
        arrays = read_store_index(self.folder, self.about)
        self.ids = ImageIds(arrays["id_bytes"], arrays["id_ends"], arrays["hashes"], arrays["order"])
        self.firsts: Shaped[np.ndarray, " images_and_one"] = arrays["firsts"]
        self.sizes: Shaped[np.ndarray, "images 2"] = arrays["sizes"]
        self.dim, self.classes, self.tokens = (int(self.about[name]) for name in ("dim", "classes", "tokens"))
        self.has_soft_classes = bool(self.about.get("classes_from_tokens"))  # classes are a soft assignment to tokens
        self.fingerprint = str(self.about["fingerprint"])
        rows = int(self.firsts[-1])
        self.features = self._map_file(FEATURES_FILE, self.about["dtype"], rows, self.dim)
        self.feature_rows = self._map_features(rows)
        self.boxes = self._map_file(BOXES_FILE, "<f4", rows, 4)
        self.probabilities = self._map_file(CLASSES_FILE, "<f2", rows, self.classes) if self.classes else None
        self.token_rows = (
            self._map_file(TOKENS_FILE, choose_token_dtype(self.tokens), rows, 1)[:, 0] if self.tokens else None
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __reduce__(self) -> tuple[type["RegionStore"], tuple[Path]]:
        """A worker reopens the files and shares their pages."""
        return RegionStore, (self.folder,)

    @property
    def counts(self) -> Shaped[np.ndarray, " images"]:
        """Regions of each image."""
        return np.diff(self.firsts)

    def find(self, image: str) -> int | None:
        """The row of an image, or None."""
        return self.ids.find(image)

    def encode_provenance(self) -> bytes:
        """The origin of the regions; a model trained on them keeps it, to reject others and to extract its own."""
        about = {"dim": self.dim, "provenance": self.about["provenance"], "fingerprint": self.fingerprint}
        return (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()

    def read_regions(self, row: int) -> Regions:
        """The regions of the image in a row."""
        inside = slice(int(self.firsts[row]), int(self.firsts[row + 1]))
        return Regions(
            self.features[inside],
            self.boxes[inside],
            None if self.probabilities is None else self.probabilities[inside],
            None if self.token_rows is None else self.token_rows[inside],
            int(self.sizes[row, 0]),
            int(self.sizes[row, 1]),
        )

    def fill_features(self, rows: Sequence[int], out: Float32[Tensor, "batch max_regions dim"]) -> None:
        """Write the features of images into a batch: the first `max_regions` of each, and 0 where it has fewer."""
        max_regions = out.shape[1]
        for image, row in zip(out, rows, strict=True):
            first, last = int(self.firsts[row]), int(self.firsts[row + 1])
            count = min(last - first, max_regions)
            image[:count].copy_(self.feature_rows[first : first + count])  # twenty times as fast as numpy from fp16
            image[count:].zero_()

    def _map_features(self, rows: int) -> Float[Tensor, "regions dim"]:
        """The features as a torch tensor: the same pages, without a copy."""
        kind = torch.float16 if self.features.dtype == np.float16 else torch.float32
        if not rows:
            return torch.empty((0, self.dim), dtype=kind)
        path = str(self.folder / FEATURES_FILE)
        return torch.from_file(path, shared=False, size=rows * self.dim, dtype=kind).view(rows, self.dim)

    def _map_file(self, name: str, dtype: Any, rows: int, columns: int) -> np.ndarray:
        path, expected_bytes = self.folder / name, rows * columns * np.dtype(dtype).itemsize
        file_bytes = path.stat().st_size if path.is_file() else -1
        if file_bytes < expected_bytes or (file_bytes > expected_bytes and "added" not in self.about):
            problem = "is not there" if file_bytes < 0 else f"has {file_bytes:,} bytes, not {expected_bytes:,}"
            raise DataError(f"{path} {problem}: the store is damaged; create it again, or copy it again")
        if not expected_bytes:
            return np.empty((rows, columns), dtype)
        # An ndarray view: numpy's memmap class makes every slice slower
        return np.asarray(np.memmap(path, dtype, "r", shape=(rows, columns)))


class RegionWriter:
    """Writes a store image by image; an interrupted writer resumes after the last complete image.

    Args:
        folder: The store; created if it does not exist.
        dim: Number of features of a region.
        classes: Number of class probabilities of a region; 0 for none.
        dtype: The type of stored features. fp16 keeps 11 bits, and needs half the disk space.
        about: What the features are, for users and for `comodal inspect`: JSON values.

    Raises:
        DataError: The folder holds another store, or something else, or the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        classes: int = 0,
        dtype: FeatureType = "float16",
        about: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.dim, self.classes = Path(folder), dim, classes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.about = {"dim": dim, "classes": classes, "dtype": self.dtype.str, "provenance": about or {}}
        self.images: list[IndexedImage] = []
        self.written_ids: set[str] = set()
        self.files: dict[str, BinaryIO] = {}
        self.journal: BinaryIO

    def __enter__(self) -> "RegionWriter":
        with translate_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / "about.json").exists():
                raise DataError(f"{self.folder} is already finished; use another folder, or delete this one")
            self._resume()
            rows = sum(image.regions for image in self.images)
            for name, width in compute_row_bytes(self.about).items():
                part = self.folder / f".{name}.part"
                if (self.folder / name).exists():  # killed while it renamed the files
                    (self.folder / name).replace(part)
                file = open_to_write(part, "a", self.folder / name)
                self.files[name] = file
                if file.tell() < rows * width:
                    raise DataError(f"{self.folder}: .{name}.part is damaged; delete the folder and start again")
                file.truncate(rows * width)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with translate_os_errors(self.folder):
            try:
                if kind is None:
                    self._finish()
            finally:
                for file in (*self.files.values(), self.journal):
                    file.close()

    def add(
        self,
        image: str,
        features: Float[np.ndarray, "regions dim"],
        boxes: Float[np.ndarray, "regions 4"],
        width: int,
        height: int,
        classes: Float[np.ndarray, "regions classes"] | None = None,
    ) -> None:
        """Add an image.

        Raises:
            ValueError: It is in the store already, shapes do not match, or values are not finite.
        """
        if image in self.written_ids:
            raise ValueError(f"image {image} is in the store already")
        check_regions_fit_store(self.about, image, features, boxes, width, height, classes)
        with translate_os_errors(self.folder):
            write_regions(self.files, self.dtype, features, boxes, classes)
            self.journal.write(json.dumps([image, len(boxes), width, height]).encode() + b"\n")
            self.journal.flush()
        self.images.append(IndexedImage(image, len(boxes), width, height))
        self.written_ids.add(image)

    def _resume(self) -> None:
        """Read which images an interrupted writer completed."""
        path, begun = self.folder / JOURNAL_FILE, json.dumps(self.about, sort_keys=True)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last line may be incomplete
        if lines:
            if lines[0].decode() != begun:
                raise DataError(
                    f"{self.folder} was started with other settings; use another folder, or delete this one"
                )
            self.images = [IndexedImage(*json.loads(line)) for line in lines[1:]]
            self.written_ids = {image[0] for image in self.images}
            self.journal = open_to_write(path, "r+")
            self.journal.truncate(sum(len(line) + 1 for line in lines))
            self.journal.seek(0, os.SEEK_END)
        elif any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise DataError(f"{self.folder} is not empty and not a region store: give another folder")
        else:
            self.journal = open_to_write(path, "w")
            self.journal.write(begun.encode() + b"\n")
            self.journal.flush()

    def _finish(self) -> None:
        for name, file in self.files.items():
            file.flush()
            os.fsync(file.fileno())
            (self.folder / f".{name}.part").replace(self.folder / name)
        index = pack_region_index(build_index_arrays(self.images))
        write_bytes_atomically(self.folder / INDEX_FILE, index)
        digest = hashlib.sha256(index)
        digest.update(json.dumps(self.about, sort_keys=True).encode())
        about = self.about | {"kind": "regions", "format": 1, "tokens": 0, "fingerprint": digest.hexdigest()[:16]}
        about |= {"images": len(self.images), "regions": sum(image.regions for image in self.images)}
        write_store_about(self.folder, about)
        (self.folder / JOURNAL_FILE).unlink()


def read_store_index(folder: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a store's index, including images that were appended later (region_appender.py)."""
    arrays = read_region_index(folder / about.get("index", INDEX_FILE))
    added = read_appended_images(folder / about["added_file"], about["added"]) if "added" in about else []
    return concatenate_indexes(arrays, build_index_arrays(added)) if added else arrays


def check_regions_fit_store(
    about: dict[str, Any],
    image: str,
    features: np.ndarray,
    boxes: np.ndarray,
    width: int,
    height: int,
    classes: np.ndarray | None,
) -> None:
    """Check that the regions of an image fit a store.

    Raises:
        ValueError: They do not, or values are not finite.
    """
    rows, dim, columns, dtype = len(boxes), about["dim"], about["classes"], np.dtype(about["dtype"])
    has_lone_surrogate = image != image.encode("utf-8", "replace").decode()  # pickles can hold text that no file can
    if has_lone_surrogate or max(width, height) > MAX_SIDE_PIXELS:
        raise ValueError(f"image {image!r} of {width} x {height} pixels: not a valid image id or size")
    if features.shape != (rows, dim) or boxes.shape != (rows, 4) or width < 1 or height < 1:
        shapes = f"features {features.shape} and boxes {boxes.shape} of {width} x {height} pixels"
        raise ValueError(f"image {image}: {shapes}; features have {dim} columns, boxes 4")
    if (classes is None and columns) or (classes is not None and classes.shape != (rows, columns)):
        shape = "no" if classes is None else f"{classes.shape}"
        raise ValueError(f"image {image}: {shape} class probabilities; the store has {columns} of each region")
    largest = np.finfo(dtype).max
    for name, values in (("features", features), ("boxes", boxes), ("classes", classes)):
        if values is not None and not (np.abs(values) <= largest).all():
            raise ValueError(f"image {image}: {name} are not finite, or too large for {dtype.name}")


def compute_row_bytes(about: dict[str, Any]) -> dict[str, int]:
    """The files of a store that grow with its regions, and the bytes of a region in each."""
    widths = {
        FEATURES_FILE: about["dim"] * np.dtype(about["dtype"]).itemsize,
        BOXES_FILE: 16,
        CLASSES_FILE: 2 * about["classes"],
    }
    return {name: width for name, width in widths.items() if width}


def write_regions(
    files: dict[str, BinaryIO], dtype: np.dtype, features: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None
) -> None:
    """Append the regions of an image, and flush them."""
    files[FEATURES_FILE].write(encode_features(features, dtype))
    files[BOXES_FILE].write(boxes.astype("<f4").tobytes())
    if classes is not None:
        files[CLASSES_FILE].write(encode_features(classes, np.dtype("<f2")))
    for file in files.values():
        file.flush()


def encode_features(values: Float[np.ndarray, "regions columns"], dtype: np.dtype) -> bytes:
    """Encodes values as stored in a file. Torch rounds to fp16 a hundred times as fast as NumPy, to the same bits."""
    if dtype.itemsize == 2:
        return torch.from_numpy(values.astype(np.float32)).half().numpy().tobytes()
    return values.astype(dtype).tobytes()


def read_store_about(folder: Path) -> dict[str, Any]:
    """The metadata of a store."""
    path = folder / "about.json"
    if not path.is_file():
        begun = (folder / JOURNAL_FILE).exists()
        what = "is not finished: run the same command again" if begun else "is not a region store: it has no about.json"
        raise DataError(f"{folder} {what}")
    about = read_json_object(path)
    if about.get("kind") != "regions":
        raise DataError(f"{folder} holds {about.get('kind', 'something else')}, not regions")
    return about


def write_store_about(folder: Path, about: dict[str, Any]) -> None:
    """Write about.json atomically."""
    write_bytes_atomically(folder / "about.json", encode_settings_json(about))


def choose_token_dtype(tokens: int) -> np.dtype:
    """The dtype of stored visual tokens, by vocabulary size."""
    return np.dtype("<u2" if tokens <= 2**16 else "<u4")


def remove_visual_tokens(folder: Path) -> None:
    """Remove visual tokens before new ones are written, with class probabilities that were derived from them."""
    about = read_store_about(folder)
    has_soft_classes = bool(about.get("classes_from_tokens"))
    write_store_about(
        folder,
        about | {"tokens": 0, "classes": 0 if has_soft_classes else about["classes"], "classes_from_tokens": False},
    )


def register_visual_tokens(folder: Path, tokens: int, classes: int) -> None:
    """Record that tokens.bin is complete, and class probabilities derived from tokens if `classes` is not 0."""
    about = read_store_about(folder) | {"tokens": tokens}
    write_store_about(folder, about | ({"classes": classes, "classes_from_tokens": True} if classes else {}))
