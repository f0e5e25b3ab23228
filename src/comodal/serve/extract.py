"""A folder of images in, a region store out: boxes of a grid, or given ones, with features of a vision network.

For whoever has no detector: grid features serve vision and language models nearly as well as regions (Jiang et al.,
"In Defense of Grid Features for Visual Question Answering", CVPR 2020). Features of other people's detectors come in
through data/convert_regions.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from comodal.data.caption_files import IMAGE_SUFFIXES
from comodal.data.regions import FeatureType, RegionStore, RegionWriter
from comodal.data.sources import walk
from comodal.errors import DataError, MediaError
from comodal.files import write_whole
from comodal.media.image import read_image
from comodal.models.pooling import grid_boxes, pool_boxes
from comodal.serve.backbones import Backbone, load_backbone


class Given(NamedTuple):
    """An image with its boxes in pixels, or None for a grid."""

    image: str  # below the folder
    boxes: Float32[np.ndarray, "regions 4"] | None


def extract_regions(
    images: Path,
    out: Path,
    network: str,
    boxes: Path | None = None,
    grid: int = 6,
    cells: int = 1,
    size: int | None = None,
    dtype: FeatureType = "float16",
) -> dict[str, int]:
    """Make a region store of a folder of images, with a vision network.

    Killed and started again, it goes on; images that cannot be read are refused, each with its reason, in
    OUT/report.jsonl. The id of an image is its path below the folder, without the suffix.

    Args:
        images: The folder of images.
        out: The store to make.
        network: efficientnet_lite0 (ImageNet; extra `lite`), or the folder of an L3-Net run.
        boxes: JSON Lines of `image` (a path below the folder) and `boxes` (left, top, right, bottom in pixels), for
            images with known boxes; without it, a grid.
        grid: Rows and columns of the grid.
        cells: A box is cut into so many rows and columns, whose features stand one behind the other.
        size: Short side of the images as the network sees them.
        dtype: How features are kept.

    Returns:
        images.taken, images.refused and regions.

    Raises:
        DataError: There are no images, OUT holds something else, or the disk is full.
        CheckpointError: There is no such network.
    """
    if grid < 1 or cells < 1:
        raise ValueError(f"grid ({grid}) and cells ({cells}) must be positive")
    backbone = load_backbone(network, size)
    given = read_boxes(boxes, images) if boxes else [Given(name, None) for name in names_of(images)]
    dim = backbone(np.zeros((backbone.size, backbone.size, 3), np.uint8)).shape[0] * cells**2
    about: dict[str, Any] = {"network": backbone.name, "fingerprint": backbone.fingerprint, "size": backbone.size}
    about |= {"boxes": boxes.name if boxes else f"grid {grid} x {grid}", "cells": cells}
    refused: list[dict[str, str]] = []
    if not (out / "about.json").exists():
        with RegionWriter(out, dim, dtype=dtype, about=about) as writer:
            for image, picture in readable(images, given, refused, writer.known):
                found = regions_of(picture, image.boxes, backbone, grid, cells)
                writer.add(id_of(image.image), *found, picture.shape[1], picture.shape[0])
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in refused)
        write_whole(out / "report.jsonl", lines.encode())
    store = RegionStore(out)
    if store.about["made_from"] != about:
        raise DataError(f"{out} was made otherwise, from {store.about['made_from']}: give another folder")
    counts = {"images.taken": len(store), "images.refused": len(given) - len(store), "regions": int(store.firsts[-1])}
    Console().print(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return counts


def regions_of(
    picture: np.ndarray, boxes: Float32[np.ndarray, "regions 4"] | None, backbone: Backbone, grid: int, cells: int
) -> tuple[Float32[np.ndarray, "regions features"], Float32[np.ndarray, "regions 4"]]:
    """Features and boxes in pixels of one picture."""
    height, width = picture.shape[:2]
    sides = np.array([width, height, width, height], np.float32)
    shares: Tensor = grid_boxes(grid, grid) if boxes is None else torch.from_numpy(boxes / sides)
    features = pool_boxes(backbone(picture), shares, cells).numpy()
    return features, shares.numpy() * sides


def readable(
    folder: Path, given: list[Given], refused: list[dict[str, str]], known: set[str]
) -> Iterator[tuple[Given, np.ndarray]]:
    """The images that can be read and are not known yet, with a progress bar; the others are noted."""
    columns = (TextColumn("regions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for image in progress.track(given):
            if id_of(image.image) in known:
                continue
            try:
                picture = read_image(folder / image.image)
            except MediaError as error:
                refused.append({"image": image.image, "reason": str(error.reason), "detail": error.detail})
                continue
            yield image, picture


def names_of(folder: Path) -> list[str]:
    """All images below a folder; of two that differ in their suffix alone, the first."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    names = [name for name in walk(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return list({id_of(name): name for name in reversed(names)}.values())[::-1]


def id_of(name: str) -> str:
    """A path without its suffix."""
    return name.rpartition(".")[0]


def read_boxes(path: Path, images: Path) -> list[Given]:
    """Images with their boxes.

    Raises:
        DataError: The file cannot be read, or a line is not as it should be.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder of images")
    given = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            boxes = np.array(entry["boxes"], np.float32).reshape(-1, 4)
            if not ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).all():
                raise ValueError("a box is left, top, right, bottom, and none is empty")
            given.append(Given(str(entry["image"]), boxes))
        except (ValueError, KeyError, TypeError) as error:
            wanted = '{"image": "a.jpg", "boxes": [[0, 0, 10, 20]]}'
            raise DataError(f"{path}, line {number}: {error!r}; each line is like {wanted}") from error
    return given
