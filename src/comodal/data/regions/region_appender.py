"""Appends images to a finished region store, at a cost that does not depend on its size.

Rows are appended to the data files, and a line for each image to `added-N.jsonl`, N being the number of images in the
index file. They become visible when about.json is replaced atomically. An interrupted process leaves the store of its
last commit, and the next one truncates everything after it. When more images were appended than the index file has, a
new index file is written, so that opening a store stays fast.
"""

import hashlib
import json
import os
import time
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from comodal.data.output_folder import translate_os_errors
from comodal.data.regions.region_index import pack_region_index
from comodal.data.regions.region_store import (
    INDEX_FILE,
    RegionStore,
    check_regions_fit_store,
    compute_row_bytes,
    read_store_index,
    write_regions,
    write_store_about,
)
from comodal.errors import DataError
from comodal.files import open_to_write, write_bytes_atomically

COMMIT_SECONDS = 10.0  # how much work an interrupted process may lose


class RegionAppender:
    """Appends images to a store.

    Args:
        store: An open store without visual tokens, which are computed from all regions.

    Raises:
        DataError: It has visual tokens, or cannot be written.
    """

    def __init__(self, store: RegionStore) -> None:
        if store.tokens:
            raise DataError(f"{store.folder} has visual tokens: no image can be added")
        self.store, self.folder, self.about = store, store.folder, dict(store.about)
        self.added_ids: set[str] = set()
        self.files: dict[str, BinaryIO] = {}
        self.index_lines: list[bytes] = []
        self.regions = 0  # of the uncommitted images
        self.committed = time.monotonic()

    def __enter__(self) -> "RegionAppender":
        with translate_os_errors(self.folder):
            if "added" not in self.about:
                self.about |= {"added": 0, "added_file": f"added-{self.about['images']}.jsonl"}
                self.about |= {"indexed": self.about["images"]}
                write_store_about(self.folder, self.about)  # from here on files may be longer than the committed data
            for name, width in compute_row_bytes(self.about).items():
                self.files[name] = file = open_to_write(self.folder / name, "r+")
                file.truncate(self.about["regions"] * width)
                file.seek(0, os.SEEK_END)
            self.index_file = open_to_write(self.folder / self.about["added_file"], "a")
            self.index_file.truncate(self.about["added"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with translate_os_errors(self.folder):
            try:
                self.commit()
                if self.about["images"] > 2 * self.about["indexed"]:
                    self._write_index()
            finally:
                for file in (*self.files.values(), self.index_file):
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
        """Append an image.

        Raises:
            ValueError: It is in the store already, shapes do not match, or values are not finite.
        """
        if image in self.added_ids or self.store.find(image) is not None:
            raise ValueError(f"image {image} is in the store already")
        check_regions_fit_store(self.about, image, features, boxes, width, height, classes)
        with translate_os_errors(self.folder):
            write_regions(self.files, np.dtype(self.about["dtype"]), features, boxes, classes)
        self.index_lines.append(json.dumps([image, len(boxes), width, height]).encode() + b"\n")
        self.regions += len(boxes)
        self.added_ids.add(image)
        if time.monotonic() - self.committed > COMMIT_SECONDS:
            with translate_os_errors(self.folder):
                self.commit()

    def commit(self) -> None:
        """Make the images that were appended so far part of the store."""
        if not self.index_lines:
            return
        data = b"".join(self.index_lines)
        self.index_file.write(data)
        for file in (*self.files.values(), self.index_file):
            file.flush()
            os.fsync(file.fileno())
        fresh = self.about | {"added": self.about["added"] + len(data)}
        fresh |= {
            "images": self.about["images"] + len(self.index_lines),
            "regions": self.about["regions"] + self.regions,
        }
        fresh["fingerprint"] = hashlib.sha256(self.about["fingerprint"].encode() + data).hexdigest()[:16]
        write_store_about(self.folder, fresh)
        self.about, self.index_lines, self.regions, self.committed = fresh, [], 0, time.monotonic()

    def _write_index(self) -> None:
        """Write one index file of all images; older ones are removed afterwards."""
        old = [self.folder / self.about.get("index", INDEX_FILE), self.folder / self.about["added_file"]]
        images = self.about["images"]
        fresh: dict[str, Any] = {"index": f"index-{images}.bin", "added_file": f"added-{images}.jsonl"}
        write_bytes_atomically(
            self.folder / fresh["index"], pack_region_index(read_store_index(self.folder, self.about))
        )
        write_bytes_atomically(self.folder / fresh["added_file"], b"")
        self.about |= fresh | {"added": 0, "indexed": images}
        write_store_about(self.folder, self.about)
        for path in old:
            path.unlink(missing_ok=True)
