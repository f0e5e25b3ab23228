"""A tiny world of images with captions: each image has two things, the caption names both, a region shows each."""

import json
from pathlib import Path

import numpy as np

from comodal.data.regions.region_store import RegionWriter

KINDS = ("ball", "bell", "bird", "clock", "drum", "frog")
DIM = 16


def write_captions(folder: Path, images: int = 60, seed: int = 0) -> tuple[Path, Path]:
    """A region store and a caption file; the last sixth is for validation, then for testing."""
    rng = np.random.default_rng(seed)
    appearance = rng.normal(size=(len(KINDS), DIM))
    lines = []
    with RegionWriter(folder / "regions", DIM, len(KINDS)) as writer:
        for number in range(images):
            things = rng.choice(len(KINDS), 2, replace=False)
            features = (appearance[things] + 0.1 * rng.normal(size=(2, DIM))).astype(np.float32)
            boxes = np.float32([[0, 0, 40, 40], [50, 20, 90, 80]])
            classes = np.eye(len(KINDS), dtype=np.float32)[things]
            writer.add(f"{number:04d}", features, boxes, 100, 100, classes)
            split = {4: "validation", 5: "test"}.get(number % 6, "train")
            caption = f"A {KINDS[things[0]]} and a {KINDS[things[1]]}."
            lines.append(json.dumps({"image": f"{number:04d}.jpg", "caption": caption, "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "regions", folder / "captions.jsonl"
