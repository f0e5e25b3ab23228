"""The main job on the synthetic world: both systems are trained, evaluated beside their controls, and reported.

`comodal demo DIR` makes videos, shards and a small L3-Net; of images with captions, regions with the features of that
L3-Net and a small ViLBERT; the scores of both beside controls, and a page to look at. The short demo trains both with
the contrastive losses that learn in fewer steps; `--full` trains longer with the papers' objectives, and fine-tunes
ViLBERT on two tasks with labels. Every part goes on where it stopped when the command is given again.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comodal.analysis.page import write_page
from comodal.analysis.report import run_parts
from comodal.console import Table, say, say_heading
from comodal.data.ingest import prepare_videos
from comodal.errors import DataError
from comodal.files import json_line, write_whole
from comodal.playground.make import make_playground
from comodal.recipes import l3net, vilbert
from comodal.serve.extract import extract_regions
from comodal.tasks import entailment, grounding
from comodal.tasks.entailment import evaluate_entailment
from comodal.tasks.grounding import evaluate_grounding
from comodal.tasks.images import evaluate_images
from comodal.tasks.retrieval import evaluate_retrieval
from comodal.tasks.sounds import evaluate_esc50
from comodal.text_files import read_json_lines, read_log
from comodal.training.run import Run, train

VIDEO_SECONDS = 2.5  # room for a second of sound to begin anywhere
EXTRACT_WORKERS = 1  # a worker process takes longer to start than this network to see a thousand images
WARM_UP_STEPS = 50
CACHE_MEGABYTES = 1000  # all decoded clips of the world
TASKS = {"word": "words", "region": "regions", "alignment": "alignment"}
TASK_SETS = {"coco": "images", "flickr30k": "flickr30k-images"}  # of the tasks with labels: RefCOCO+ and SNLI-VE
REFERENCES = ("references", "instances", "regions")
KEYS = {
    "vision": ("trained", "untrained", "pixels"),
    "sound": ("trained", "untrained", "spectrogram", "log_mel"),
}


@dataclass(frozen=True)
class Scale:
    """How much data is made, and how long and by which objectives is trained.

    Args:
        videos: Of the synthetic world.
        frames_per_second: Of these videos.
        sounds: Clips of the ESC-50 folder.
        images: Images in each of the splits train and test of the image folder.
        windows: Seconds of each clip of the ESC-50 folder that are used.
        scenes: Images with captions.
        image_size: Of L3-Net, in pixels; frames are kept at 8/7 of it, which training crops from.
        objective: Of L3-Net.
        steps: Of L3-Net.
        caption_steps: Of ViLBERT.
        contrastive_weight: Of ViLBERT's contrastive loss.
        captions: Of each held-out image in retrieval; the world has three.
        task_epochs: Of each of two tasks with labels; 0 leaves them out.
    """

    videos: int
    frames_per_second: float
    sounds: int
    images: int
    windows: int
    scenes: int
    image_size: int
    objective: l3net.Objective
    steps: int
    caption_steps: int
    contrastive_weight: float
    captions: int
    task_epochs: float


SHORT = Scale(1400, 5.0, 200, 200, 2, 1500, 64, "all_pairs", 500, 600, 1.0, 1, 0.0)
FULL = Scale(1400, 10.0, 400, 400, 10, 1500, 64, "avc", 1800, 1500, 0.0, 3, 4.0)


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

    @property
    def scenes(self) -> Path:
        return self.playground / "scenes"

    @property
    def regions(self) -> Path:
        return self.folder / "regions"

    @property
    def caption_run(self) -> Path:
        return self.folder / "caption_run"

    @property
    def references(self) -> tuple[Path, Path, Path]:
        """RefCOCO+'s two files, and the regions of its pictures."""
        folder = self.playground / "coco" / "refcoco+"
        return folder / "refs(unc).p", folder / "instances.json", self.task_regions("coco")

    def statements(self, split: str) -> Path:
        return self.playground / "flickr30k" / f"snli_ve_{split}.jsonl"

    def task_regions(self, name: str) -> Path:
        return self.folder / f"{name}_regions"

    def task_run(self, name: str) -> Path:
        return self.folder / f"{name}_run"

    def scores(self, name: str) -> Path:
        return self.folder / name


def demo(
    folder: Path,
    full: bool = False,
    videos: int | None = None,
    steps: int | None = None,
    scenes: int | None = None,
    caption_steps: int | None = None,
    task_epochs: float | None = None,
    bert: Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Synthetic videos and images, a small L3-Net, a small ViLBERT, their scores and a report, in minutes.

    Args:
        folder: Where everything goes; the same command goes on where it stopped.
        full: Train for longer with the papers' objectives, and fine-tune ViLBERT on two tasks with labels. By
            default L3-Net scores all pairs of a batch, and ViLBERT has a contrastive loss: they learn in fewer steps.
        videos: Synthetic videos; by default 1,400.
        steps: Of L3-Net; by default 500, 1,800 in the full demo.
        scenes: Images with captions; by default 1,500.
        caption_steps: Of ViLBERT; by default 600, 1,500 in the full demo.
        task_epochs: Of each of two tasks with labels (RefCOCO+, SNLI-VE); by default 0 (left out), 4 in the full demo.
        bert: A Hugging Face BERT that the text stream starts from. By default its weights are random: the few words of
            this world need no BERT, and six layers of MiniLM take five times as long.
        seed: Of the world, the pairs and the first weights.

    Returns:
        The flat numbers of results.json.

    Examples:
        comodal demo demo/
        comodal demo demo-full/ --full
        comodal demo quick/ --videos 100 --steps 50 --scenes 100 --caption-steps 20
    """
    started, parts = time.perf_counter(), Parts(folder)
    given: dict[str, Any] = {
        "videos": videos,
        "steps": steps,
        "scenes": scenes,
        "caption_steps": caption_steps,
        "task_epochs": task_epochs,
    }
    scale = replace(FULL if full else SHORT, **{name: value for name, value in given.items() if value is not None})
    make_data(parts, scale, seed)
    say_heading("L3-Net: audio-visual correspondence")
    learn(parts, scale, seed)
    say_heading("evaluation of L3-Net: linear probes beside their controls")
    numbers = measure(parts, scale)
    say_heading("ViLBERT: images and captions")
    learn_captions(parts, scale, bert, seed)
    numbers |= measure_captions(parts, scale)
    if scale.task_epochs:
        say_heading("ViLBERT: tasks with labels")
        learn_tasks(parts, scale, seed)
        numbers |= measure_tasks(parts)
    report(parts, scale)
    numbers["seconds"] = time.perf_counter() - started
    write_whole(folder / "results.json", (json.dumps(numbers, indent=2) + "\n").encode())
    print_table(numbers)
    say(f"Look at {folder / 'report.html'}; the numbers are in {folder / 'results.json'}.")
    return numbers


def make_data(parts: Parts, scale: Scale, seed: int) -> None:
    """The synthetic world, and the shards of its videos."""
    say_heading("synthetic data: videos with sound, images with captions")
    make_playground(
        parts.playground,
        videos=scale.videos,
        seconds=VIDEO_SECONDS,
        sounds=scale.sounds,
        images=scale.images,
        scenes=scale.scenes,
        frames_per_second=scale.frames_per_second,
        tasks=tuple(TASK_SETS) if scale.task_epochs else (),
        seed=seed,
    )
    say_heading("prepare: videos to shards")
    prepare_videos(
        parts.playground / "videos.jsonl",
        parts.shards,
        short_side=math.ceil(scale.image_size * 8 / 7),
        frames_per_second=5.0,
    )


def learn(parts: Parts, scale: Scale, seed: int) -> None:
    """A small network, long enough to learn this world; one core computes while the other reads pairs."""
    settings: dict[str, Any] = {
        "data": parts.shards,
        "variant": "small",
        "width": 8,
        "image_size": scale.image_size,
        "objective": scale.objective,
        "steps": scale.steps,
        "learning_rate": 2e-3,
        "warm_up_steps": min(WARM_UP_STEPS, scale.steps),
        "final_fraction": 0.02,
        "workers": 1,
        "cache_megabytes": CACHE_MEGABYTES,
        "seed": seed,
    }
    finish(l3net.recipe, settings, parts.run, threads=1)


def finish(recipe: Callable[..., Run], settings: dict[str, Any], out: Path, threads: int | None = None) -> None:
    """Trains to the last step. A training that was stopped (Ctrl-C) stops the demo."""
    if train(recipe, settings, out, resume=True, threads=threads):
        raise KeyboardInterrupt


def learn_captions(parts: Parts, scale: Scale, bert: Path | None, seed: int) -> None:
    """Regions with L3-Net's features of what is in their boxes, and a small ViLBERT."""
    images, boxes = parts.scenes / "images", parts.scenes / "boxes.jsonl"
    extract_regions(images, parts.regions, str(parts.run), boxes, cells=2, workers=EXTRACT_WORKERS)
    settings: dict[str, Any] = {
        "data": parts.regions,
        "captions": parts.scenes / "captions.jsonl",
        "bert": bert,
        "words": None if bert else parts.playground / "vocab.txt",
        "variant": "small",
        "dropout": 0.0,
        "steps": scale.caption_steps,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "contrastive_weight": scale.contrastive_weight,
        "workers": 0,
        "seed": seed,
    }
    finish(vilbert.recipe, settings, parts.caption_run)


def measure_captions(parts: Parts, scale: Scale) -> dict[str, float]:
    """Accuracy of the three tasks on held-out pairs, and zero-shot retrieval among held-out pictures."""
    found = evaluate_retrieval(
        parts.caption_run, write_queries(parts, scale.captions), parts.regions, out=parts.scores("retrieval")
    )
    last = [line for line in read_log(parts.caption_run / "metrics.jsonl") if line["split"] == "validation"][-1]
    numbers = {f"vilbert.{name}.validation": last[f"{key}_accuracy"] for key, name in TASKS.items()}
    for cut in ("r1", "r5", "r10"):
        numbers[f"vilbert.retrieval.text_to_image.{cut}"] = found[f"retrieval.text_to_image.{cut}"]
        numbers[f"vilbert.retrieval.untrained.{cut}"] = found[f"retrieval.untrained.text_to_image.{cut}"]
        numbers[f"vilbert.retrieval.chance.{cut}"] = found[f"retrieval.chance.{cut}"]
    return numbers


def write_queries(parts: Parts, most: int) -> Path:
    """The captions of held-out images that retrieval takes: so many of each image."""
    lines = [line for _, line in read_json_lines(parts.scenes / "captions.jsonl") if line["split"] == "test"]
    queries = parts.folder / "queries.jsonl"
    write_whole(queries, b"".join(json_line(line | {"captions": line["captions"][:most]}) for line in lines))
    return queries


def learn_tasks(parts: Parts, scale: Scale, seed: int) -> None:
    """Which thing an expression means (RefCOCO+), and whether a picture entails a sentence (SNLI-VE)."""
    for name, images in TASK_SETS.items():
        folder = parts.playground / name
        boxes, out = folder / "boxes.jsonl", parts.task_regions(name)
        extract_regions(folder / images, out, str(parts.run), boxes, cells=2, workers=EXTRACT_WORKERS)
    common: dict[str, Any] = {
        "model": parts.caption_run,
        "epochs": scale.task_epochs,
        "batch_size": 64,
        "learning_rate": 5e-4,
        "workers": 0,
        "seed": seed,
    }
    said = {"data": parts.statements("train"), "validation": parts.statements("dev")}
    tasks = (
        ("grounding", grounding.recipe, dict(zip(REFERENCES, parts.references, strict=True))),
        ("entailment", entailment.recipe, said | {"regions": parts.task_regions("flickr30k")}),
    )
    for name, recipe, files in tasks:
        finish(recipe, common | files, parts.task_run(name))


def measure_tasks(parts: Parts) -> dict[str, float]:
    """Accuracy on pictures that were never seen, and of the same networks when one side is blank."""
    run = parts.task_run("grounding")
    found = evaluate_grounding(run, *parts.references, out=parts.scores("grounding"))
    blind = evaluate_grounding(run, *parts.references, blank="text")
    run, statements, regions = parts.task_run("entailment"), parts.statements("test"), parts.task_regions("flickr30k")
    found |= evaluate_entailment(run, statements, regions, out=parts.scores("entailment"))
    blind |= evaluate_entailment(run, statements, regions, blank="picture")
    numbers: dict[str, float] = {}
    for name in ("grounding", "entailment"):
        numbers[f"vilbert.{name}.trained"] = found[f"{name}.accuracy"]
        numbers[f"vilbert.{name}.blind"] = blind[f"{name}.accuracy"]
        numbers[f"vilbert.{name}.chance"] = found[f"{name}.chance"]
    return numbers


def report(parts: Parts, scale: Scale) -> None:
    """One page about both systems."""
    scores = [parts.scores("sounds"), parts.scores("images")]
    page = run_parts(parts.run, parts.shards, scores, truth=parts.playground / "worlds.jsonl")
    tasks = ("grounding", "entailment") if scale.task_epochs else ()
    scores = [parts.scores(name) for name in ("retrieval", *tasks)]
    captions, images = parts.scenes / "captions.jsonl", parts.scenes / "images"
    page += run_parts(parts.caption_run, parts.regions, scores, captions, images)
    write_page(parts.folder / "report.html", "comodal demo", page)


def measure(parts: Parts, scale: Scale) -> dict[str, float]:
    """The numbers that the demo is about, under flat keys."""
    validation = [line for line in read_log(parts.run / "metrics.jsonl") if line["split"] == "validation"]
    if not validation:
        raise DataError(f"{parts.run}: no validation was logged")
    numbers = {"l3net.avc.validation": validation[-1]["accuracy"]}
    found = evaluate_images(parts.run, parts.playground / "images", out=parts.scores("images"))
    found |= evaluate_esc50(parts.run, parts.playground / "sounds", windows=scale.windows, out=parts.scores("sounds"))
    return numbers | {f"l3net.{task}.{name}": found[f"{task}.{name}"] for task, names in KEYS.items() for name in names}


def print_table(numbers: dict[str, float]) -> None:
    """Trained beside its baselines."""
    headings = ("", "trained", "untrained", "pixels or raw spectrogram", "log-mel statistics")
    table = Table(*headings, title="L3-Net, trained on videos alone")
    for task, names in KEYS.items():
        cells = [f"{numbers[f'l3net.{task}.{name}']:.3f}" for name in names]
        table.add_row(f"{task} probe", *cells, *[""] * (len(headings) - 1 - len(cells)))
    table.add_row("audio-visual correspondence", f"{numbers['l3net.avc.validation']:.3f}", "0.500", "", "")
    table.show()
    table = Table("", "R@1", "R@5", "R@10", title="ViLBERT: zero-shot retrieval of images by captions")
    for name, key in (("trained", "text_to_image"), ("untrained", "untrained"), ("chance", "chance")):
        table.add_row(name, *(f"{numbers[f'vilbert.retrieval.{key}.{cut}']:.3f}" for cut in ("r1", "r5", "r10")))
    table.show()
    if "vilbert.grounding.trained" in numbers:
        print_tasks(numbers)
    held_out = ", ".join(f"{name} {numbers[f'vilbert.{name}.validation']:.3f}" for name in TASKS.values())
    say(f"ViLBERT on held-out pairs: {held_out}")
    say(f"{numbers['seconds']:.0f} seconds")


def print_tasks(numbers: dict[str, float]) -> None:
    """Accuracy of the two tasks with labels."""
    table = Table("", "trained", "without text or image", "chance", title="tasks with labels")
    for name, task in (
        ("grounding", "referring expressions (RefCOCO+)"),
        ("entailment", "visual entailment (SNLI-VE)"),
    ):
        table.add_row(task, *(f"{numbers[f'vilbert.{name}.{key}']:.3f}" for key in ("trained", "blind", "chance")))
    table.show()
