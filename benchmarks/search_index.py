"""What one more picture costs an index of N: the folder listed and stamped, the store extended, and the store copied.

A folder of N empty pictures is listed and stamped. One image is added to a small store and to one of N images in turn.
Copying the large store, which is what one more image cost before, is timed once.

    python benchmarks/search_index.py [--pictures 100000] [--dim 2048] [--regions 2] [--out results.json]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from comodal.data.regions.region_appender import RegionAppender
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.inference.image_search.search_index import list_folder_images
from machine import clock, describe_machine, save

SMALL = 1_000  # images of the other store
REPEATS = 15


def regions_of(rng: np.random.Generator, count: int, dim: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Features, boxes, width and height of an image."""
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (count, 1))
    return rng.standard_normal((count, dim), np.float32), boxes, 640, 480


def write_store(folder: Path, images: int, regions: int, dim: int) -> Path:
    rng = np.random.default_rng(0)
    features, boxes, width, height = regions_of(rng, regions, dim)
    with RegionWriter(folder, dim) as writer:
        for image in range(images):
            writer.add(f"folder/picture {image}.jpg#0123456789abcdef", features, boxes, width, height)
    return folder


def seconds_of_one_more(folder: Path, name: str, regions: int, dim: int) -> tuple[float, float]:
    """Opening the store, and adding an image to it."""
    one = regions_of(np.random.default_rng(1), regions, dim)
    start = clock()
    store = RegionStore(folder)
    opened = clock()
    with RegionAppender(store) as appender:
        appender.add(name, *one)
    return opened - start, clock() - opened


def seconds_of_copy(folder: Path, out: Path) -> float:
    """The store copied image by image."""
    start, store = clock(), RegionStore(folder)
    with RegionWriter(out, store.dim) as writer:
        for row, name in enumerate(store.ids):
            features, boxes, _, _, width, height = store.read_regions(row)
            writer.add(name, features, boxes, width, height)
    return clock() - start


def seconds_of_listing(folder: Path, pictures: int) -> list[float]:
    """Listing and stamping a folder, with its entries in the system's memory."""
    for number in range(pictures):
        path = folder / f"{number // 1000:03d}" / f"{number}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    seconds = []
    for _ in range(4):
        start = clock()
        assert len(list_folder_images(folder, None).images) == pictures
        seconds.append(clock() - start)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--regions", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listing = statistics.median(seconds_of_listing(folder / "pictures", options.pictures))
        stores = {
            images: write_store(folder / str(images), images, options.regions, options.dim)
            for images in (SMALL, options.pictures)
        }
        seconds: dict[int, list[tuple[float, float]]] = {images: [] for images in stores}
        for number in range(REPEATS):
            for images, store in stores.items():
                seconds[images].append(seconds_of_one_more(store, f"new {number}", options.regions, options.dim))
        copied = seconds_of_copy(stores[options.pictures], folder / "copy")
    print(f"{options.pictures:,} pictures listed and stamped in {listing:.2f} s (target for 100,000: 1 s)")
    for images, found in seconds.items():
        opening, adding = (statistics.median(column) for column in zip(*found, strict=True))
        numbers |= {f"opened {images}.seconds": opening, f"one more of {images}.seconds": adding}
        print(f"a store of {images:,} images: opened in {1000 * opening:.1f} ms, one more in {1000 * adding:.2f} ms")
    growth = numbers[f"one more of {options.pictures}.seconds"] / numbers[f"one more of {SMALL}.seconds"]
    times = options.pictures / SMALL
    print(f"in a store {times:,.0f} times as large, one more takes {growth:.2f} times as long (target: 1)")
    ratio = copied / numbers[f"one more of {options.pictures}.seconds"]
    print(f"copied image by image in {copied:.2f} s: {ratio:,.0f} times as long")
    save(numbers | {"listing.seconds": listing, "copy.seconds": copied, "ratio": ratio}, options.out)


if __name__ == "__main__":
    main()
