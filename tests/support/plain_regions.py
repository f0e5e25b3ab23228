"""Regions of a batch as the original reads them: pickles out of an LMDB, every image padded by itself, then stacked.

Only for files that a test or a benchmark has written itself: a pickle that somebody else wrote can run code.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import torch

from comodal.data.regions.region_store import RegionStore


def write_plain(store: RegionStore, folder: Path) -> None:
    """An LMDB of a dictionary per image, as the original's extractor makes it (script/convert_to_lmdb.py)."""
    size = store.features.size * 4 + store.boxes.size * 4
    with lmdb.open(str(folder), map_size=2 * size + 2**24) as environment, environment.begin(write=True) as transaction:
        for row, image in enumerate(store.ids):
            found = store.read_regions(row)
            value = {"image_id": image, "image_h": found.height, "image_w": found.width, "num_boxes": len(found.boxes)}
            value |= {"boxes": np.array(found.boxes), "features": found.features.astype(np.float32)}
            transaction.put(image.encode(), pickle.dumps(value))
        transaction.put(b"keys", pickle.dumps([image.encode() for image in store.ids]))


class PlainReader:
    """Features with their mean before them, and locations, of images by id (the original's image features reader)."""

    def __init__(self, folder: Path, max_regions: int) -> None:
        self.max_regions = max_regions
        self.environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)

    def image(self, image: str) -> tuple[np.ndarray, np.ndarray]:
        """One image, padded to all regions that an image may have."""
        with self.environment.begin() as transaction:
            value = pickle.loads(transaction.get(image.encode()))
        boxes, width, height = value["boxes"], float(value["image_w"]), float(value["image_h"])
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (width * height)
        places = np.column_stack([boxes / [width, height, width, height], areas])
        features = np.concatenate([value["features"].mean(0, keepdims=True), value["features"]])
        places = np.concatenate([[[0, 0, 1, 1, 1]], places])
        count = min(len(features), self.max_regions + 1)
        padded = np.zeros((self.max_regions + 1, features.shape[1]), np.float32)
        padded_places = np.zeros((self.max_regions + 1, 5), np.float32)
        padded[:count], padded_places[:count] = features[:count], places[:count]
        return padded, padded_places

    def batch(self, images: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of a batch; nothing is hidden of them, and no caption is read."""
        read = [self.image(image) for image in images]
        features, places = (np.stack(parts) for parts in zip(*read, strict=True))
        return torch.from_numpy(features), torch.from_numpy(places)

    def close(self) -> None:
        """LMDB keeps one open environment of a file in a process."""
        self.environment.close()
