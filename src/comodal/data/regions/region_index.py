"""The index of a region store: the ids of its images, their rows, and their sizes, as flat arrays."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int64

from comodal.data.numpy_files import DAMAGED_NUMPY_ERRORS, read_npy
from comodal.errors import DataError
from comodal.files import encode_for_hash

INDEX_ARRAY_NAMES = ("id_bytes", "id_ends", "hashes", "order", "firsts", "sizes")


class IndexedImage(NamedTuple):
    """An image of a store."""

    image: str
    regions: int
    width: int
    height: int


class ImageIds(Sequence[str]):
    """The images' ids in the order of the store, with a lookup by hash; flat arrays that processes share."""

    def __init__(self, id_bytes: np.ndarray, id_ends: np.ndarray, hashes: np.ndarray, order: np.ndarray) -> None:
        self.id_bytes, self.id_ends, self.hashes, self.order = id_bytes, id_ends, hashes, order

    def __len__(self) -> int:
        return len(self.id_ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        first = int(self.id_ends[row - 1]) if row else 0
        return self.id_bytes[first : int(self.id_ends[row])].tobytes().decode()

    def find(self, image: str) -> int | None:
        """The row of an id, or None."""
        id_hash = hash_image_id(image)
        for index in range(*np.searchsorted(self.hashes, [id_hash, id_hash + np.uint64(1)]).tolist()):
            if self[int(self.order[index])] == image:
                return int(self.order[index])
        return None

    def find_rows(self, images: Sequence[str]) -> Int64[np.ndarray, " images"]:
        """The rows of many ids at once, -1 for unknown ids."""
        rows = np.full(len(images), -1, np.int64)
        if not len(self):
            return rows
        id_hashes = np.array([hash_image_id(image) for image in images], np.uint64)
        positions = np.searchsorted(self.hashes, id_hashes)
        for index in np.flatnonzero(self.hashes[np.minimum(positions, len(self) - 1)] == id_hashes).tolist():
            row = int(self.order[positions[index]])
            row_or_none = (
                row if self[row] == images[index] else self.find(images[index])
            )  # another id may have the same hash
            rows[index] = -1 if row_or_none is None else row_or_none
        return rows


def hash_image_id(image: str) -> np.uint64:
    """Eight bytes of a hash of an id; below the maximum, so that adding one does not overflow."""
    value = int.from_bytes(hashlib.blake2b(encode_for_hash(image), digest_size=8).digest(), "little")
    return np.uint64(min(value, 2**64 - 2))


def build_index_arrays(images: Iterable[IndexedImage]) -> dict[str, np.ndarray]:
    """The arrays of an index: image ids, first rows, sizes, and hashes of the ids for lookup."""
    listed = list(images)
    names = [image[0].encode() for image in listed]
    hashes = np.array([hash_image_id(image[0]) for image in listed], np.uint64)
    order = np.argsort(hashes, kind="stable")
    return {
        "id_bytes": np.frombuffer(b"".join(names), np.uint8),
        "id_ends": np.cumsum([len(name) for name in names], dtype=np.uint64),
        "hashes": hashes[order],
        "order": order.astype(np.uint64),
        "firsts": np.cumsum([0, *(image[1] for image in listed)], dtype=np.int64),
        "sizes": np.array([image[2:] for image in listed], np.uint32).reshape(-1, 2),
    }


def concatenate_indexes(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of two indexes as those of one."""
    hashes = np.concatenate([first["hashes"], second["hashes"]])
    order = np.argsort(hashes, kind="stable")
    rows = np.concatenate([first["order"], second["order"] + np.uint64(len(first["order"]))])
    return {
        "id_bytes": np.concatenate([first["id_bytes"], second["id_bytes"]]),
        "id_ends": np.concatenate([first["id_ends"], second["id_ends"] + np.uint64(len(first["id_bytes"]))]),
        "hashes": hashes[order],
        "order": rows[order],
        "firsts": np.concatenate([first["firsts"], second["firsts"][1:] + first["firsts"][-1]]),
        "sizes": np.concatenate([first["sizes"], second["sizes"]]),
    }


def pack_region_index(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of the index file: concatenated NumPy arrays, without objects."""
    file = io.BytesIO()
    for name in INDEX_ARRAY_NAMES:
        np.save(file, arrays[name], allow_pickle=False)
    return file.getvalue()


def read_region_index(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an index file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return {name: read_npy(file, size - file.tell()) for name in INDEX_ARRAY_NAMES}
    except DAMAGED_NUMPY_ERRORS as error:
        raise DataError(f"{path} is damaged ({error}); create the store again, or copy it again") from error


def read_appended_images(path: Path, size: int) -> list[IndexedImage]:
    """The images that were appended after the index file was written: the first bytes of a file of lines."""
    try:
        with path.open("rb") as file:
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{len(data):,} bytes instead of {size:,}")
        return [IndexedImage(*json.loads(line)) for line in data.splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); create the store again, or copy it again") from error
