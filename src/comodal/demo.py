"""The main job on the built-in world: from videos to representations that beat their baselines, in minutes.

`comodal demo DIR` makes a playground, shards, a small L3-Net, its scores beside untrained ones, and a page to look at.
Every part goes on where it stopped when the command is given again.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from comodal.analysis.report import write_report
from comodal.data.ingest import prepare_videos
from comodal.errors import DataError
from comodal.files import write_whole
from comodal.playground.make import make_playground
from comodal.recipes.l3net import recipe
from comodal.tasks.images import evaluate_images
from comodal.tasks.sounds import evaluate_esc50
from comodal.train.log import read_log
from comodal.train.run import train

VIDEO_SECONDS = 2.5  # room for a second of sound to begin anywhere
IMAGE_SIZE = 64
SHORT_SIDE = 73  # 8/7 of the picture's side: what training crops from
KEYS = {
    "vision": ("trained", "untrained", "pixels"),
    "sound": ("trained", "untrained", "spectrogram"),
}


@dataclass(frozen=True)
class Parts:
    """Where each part of the demo lies."""

    folder: Path

    @property
    def playground(self) -> Path:
        return self.folder / "playground"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def scores(self, name: str) -> Path:
        return self.folder / name


def demo(folder: Path, videos: int = 1400, steps: int = 2200, seed: int = 0) -> dict[str, float]:
    """Playground, shards, a small L3-Net, its scores and a report: the whole way, in minutes on two cores.

    Args:
        folder: Where everything goes; the same command goes on where it stopped.
        videos: How many videos the playground has.
        steps: How long the network is trained.
        seed: Of the world, the pairs and the first weights.

    Returns:
        The flat numbers of results.json.

    Examples:
        comodal demo demo/
        comodal demo quick/ --videos 100 --steps 50
    """
    started, console, parts = time.perf_counter(), Console(), Parts(folder)
    console.rule("playground: a made-up world of videos")
    make_playground(parts.playground, videos=videos, seconds=VIDEO_SECONDS, seed=seed)
    console.rule("prepare: videos to shards")
    prepare_videos(parts.playground / "videos.jsonl", parts.shards, short_side=SHORT_SIDE, frames_per_second=5.0)
    console.rule("train: what is seen, what is heard")
    learn(parts, steps, seed)
    console.rule("evaluate: what was learnt, beside its baselines")
    numbers = measure(parts)
    numbers["seconds"] = time.perf_counter() - started
    write_report(
        parts.run, folder / "report.html", data=parts.shards, results=[parts.scores("sounds"), parts.scores("images")]
    )
    write_whole(folder / "results.json", (json.dumps(numbers, indent=2) + "\n").encode())
    print_table(console, numbers)
    console.print(f"Look at {folder / 'report.html'}; the numbers are in {folder / 'results.json'}.")
    return numbers


def learn(parts: Parts, steps: int, seed: int) -> None:
    """A small network, long enough to learn this world; one core computes while the other reads pairs."""
    settings: dict[str, Any] = {
        "data": parts.shards,
        "variant": "small",
        "width": 8,
        "image_size": IMAGE_SIZE,
        "steps": steps,
        "learning_rate": 2e-3,
        "warm_up_steps": min(100, steps),
        "final_fraction": 0.02,
        "workers": 1,
        "seed": seed,
    }
    status = train(recipe, settings, parts.run, resume=True, threads=1)
    if status:
        raise KeyboardInterrupt


def measure(parts: Parts) -> dict[str, float]:
    """The numbers that the demo is about, under flat keys."""
    validation = [line for line in read_log(parts.run / "metrics.jsonl") if line["split"] == "validation"]
    if not validation:
        raise DataError(f"{parts.run}: no validation was logged")
    numbers = {"l3net.avc.validation": validation[-1]["accuracy"]}
    found = evaluate_images(parts.run, parts.playground / "images", out=parts.scores("images"))
    found |= evaluate_esc50(parts.run, parts.playground / "sounds", out=parts.scores("sounds"))
    return numbers | {f"l3net.{task}.{name}": found[f"{task}.{name}"] for task, names in KEYS.items() for name in names}


def print_table(console: Console, numbers: dict[str, float]) -> None:
    """Trained beside its baselines."""
    table = Table("", "trained", "untrained", "pixels or spectrogram", title="what was learnt from videos alone")
    for task, names in KEYS.items():
        table.add_row(f"{task} probe", *(f"{numbers[f'l3net.{task}.{name}']:.3f}" for name in names))
    table.add_row("do these belong together?", f"{numbers['l3net.avc.validation']:.3f}", "0.500", "")
    console.print(table)
    console.print(f"{numbers['seconds']:.0f} seconds")
