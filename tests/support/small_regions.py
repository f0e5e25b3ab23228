"""Small region stores for tests: made-up features, boxes, class probabilities and visual tokens."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.data.regions.region_store import RegionStore, RegionWriter, choose_token_dtype, register_visual_tokens

DIM, CLASSES, TOKENS, WIDTH, HEIGHT = 8, 5, 30, 64, 48


class Image(NamedTuple):
    """The regions of one image."""

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    tokens: np.ndarray


def some_images(counts: list[int], seed: int = 0) -> list[Image]:
    """Images with so many regions; no feature is 0, so that what is 0 was hidden."""
    rng = np.random.default_rng(seed)
    images = []
    for count in counts:
        corners = np.sort(rng.random((count, 2, 2)) * [WIDTH - 1, HEIGHT - 1], axis=1).reshape(count, 4)
        images.append(
            Image(
                features=(rng.random((count, DIM)) + 0.5).astype(np.float32),
                boxes=corners.astype(np.float32),
                classes=rng.dirichlet(np.ones(CLASSES), count).astype(np.float32).reshape(count, CLASSES),
                tokens=rng.integers(0, TOKENS, count),
            )
        )
    return images


def write_store(folder: Path, images: list[Image], bare: bool = False) -> RegionStore:
    """A store of them, called image0, image1, ...; a bare one has neither class probabilities nor tokens."""
    with RegionWriter(folder, DIM, 0 if bare else CLASSES) as writer:
        for number, image in enumerate(images):
            classes = None if bare else image.classes
            writer.add(f"image{number}", image.features, image.boxes, WIDTH, HEIGHT, classes)
    if not bare:
        tokens = np.concatenate([image.tokens for image in images])
        (folder / "tokens.bin").write_bytes(tokens.astype(choose_token_dtype(TOKENS)).tobytes())
        register_visual_tokens(folder, TOKENS, classes=0)
    return RegionStore(folder)
