"""The main job on the built-in world: from videos to representations that beat their baselines, in minutes.

`comodal demo DIR` makes a playground, shards and a small L3-Net; of pictures with captions, regions with the features
of that L3-Net and a small ViLBERT, which then learns two tasks; the scores of all beside controls, and a page to look
at. Every part goes on where it stopped when the command is given again.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comodal.analysis.page import write_page
from comodal.analysis.report import run_parts
from comodal.console import Table, say, say_heading
from comodal.data.ingest import prepare_videos
from comodal.errors import DataError
from comodal.files import write_whole
from comodal.playground.make import make_playground
from comodal.recipes import l3net, vilbert
from comodal.serve.extract import extract_regions
from comodal.tasks import entailment, grounding
from comodal.tasks.entailment import evaluate_entailment
from comodal.tasks.grounding import evaluate_grounding
from comodal.tasks.images import evaluate_images
from comodal.tasks.retrieval import evaluate_retrieval
from comodal.tasks.sounds import evaluate_esc50
from comodal.text_files import read_log
from comodal.training.run import train

VIDEO_SECONDS = 2.5  # room for a second of sound to begin anywhere
IMAGE_SIZE = 64
SHORT_SIDE = 73  # 8/7 of the picture's side: what training crops from
TASKS = {"word": "words", "region": "regions", "alignment": "alignment"}
TASK_SETS = {"coco": "images", "flickr30k": "flickr30k-images"}  # of the tasks with labels: RefCOCO+ and SNLI-VE
REFERENCES = ("references", "instances", "regions")
KEYS = {
    "vision": ("trained", "untrained", "pixels"),
    "sound": ("trained", "untrained", "spectrogram", "log_mel"),
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
    videos: int = 1400,
    steps: int = 1800,
    scenes: int = 1500,
    caption_steps: int = 1500,
    task_epochs: float = 4.0,
    bert: Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Playground, a small L3-Net, a small ViLBERT, their scores and a report: the whole way, in minutes on two cores.

    Args:
        folder: Where everything goes; the same command goes on where it stopped.
        videos: How many videos the playground has.
        steps: How long L3-Net is trained.
        scenes: How many pictures with captions it has.
        caption_steps: How long ViLBERT is trained.
        task_epochs: How often it then sees the examples of each of two tasks with labels.
        bert: A Hugging Face BERT that its text stream begins from; by default it begins from chance, since the few
            words of this world need no BERT, and six layers of MiniLM take five times as long.
        seed: Of the world, the pairs and the first weights.

    Returns:
        The flat numbers of results.json.

    Examples:
        comodal demo demo/
        comodal demo quick/ --videos 100 --steps 50 --scenes 100 --caption-steps 20 --task-epochs 1
    """
    started, parts, threads = time.perf_counter(), Parts(folder), torch.get_num_threads()
    say_heading("playground: a made-up world of videos, and of pictures with captions")
    sets = tuple(TASK_SETS)
    make_playground(parts.playground, videos=videos, seconds=VIDEO_SECONDS, scenes=scenes, tasks=sets, seed=seed)
    say_heading("prepare: videos to shards")
    prepare_videos(parts.playground / "videos.jsonl", parts.shards, short_side=SHORT_SIDE, frames_per_second=5.0)
    say_heading("L3-Net: what is seen, what is heard")
    learn(parts, steps, seed)
    say_heading("evaluate: what was learnt, beside its baselines")
    numbers = measure(parts)
    say_heading("ViLBERT: what is seen, what is said")
    torch.set_num_threads(threads)
    learn_captions(parts, caption_steps, bert, seed)
    numbers |= measure_captions(parts)
    say_heading("tasks: what is meant, what follows")
    learn_tasks(parts, task_epochs, seed)
    numbers |= measure_tasks(parts)
    numbers["seconds"] = time.perf_counter() - started
    report(parts)
    write_whole(folder / "results.json", (json.dumps(numbers, indent=2) + "\n").encode())
    print_table(numbers)
    say(f"Look at {folder / 'report.html'}; the numbers are in {folder / 'results.json'}.")
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
    status = train(l3net.recipe, settings, parts.run, resume=True, threads=1)
    if status:
        raise KeyboardInterrupt


def learn_captions(parts: Parts, steps: int, bert: Path | None, seed: int) -> None:
    """Regions with L3-Net's features of what is in their boxes, and a small ViLBERT. All cores compute, for reading
    takes no time."""
    images, boxes = parts.scenes / "images", parts.scenes / "boxes.jsonl"
    extract_regions(images, parts.regions, str(parts.run), boxes, cells=2)
    settings: dict[str, Any] = {
        "data": parts.regions,
        "captions": parts.scenes / "captions.jsonl",
        "bert": bert,
        "words": None if bert else parts.playground / "vocab.txt",
        "variant": "small",
        "dropout": 0.0,
        "steps": steps,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "workers": 0,
        "seed": seed,
    }
    status = train(vilbert.recipe, settings, parts.caption_run, resume=True, threads=torch.get_num_threads())
    if status:
        raise KeyboardInterrupt


def measure_captions(parts: Parts) -> dict[str, float]:
    """Accuracy of the three tasks on held-out pairs, and zero-shot retrieval among held-out pictures."""
    found = evaluate_retrieval(
        parts.caption_run, parts.scenes / "captions.jsonl", parts.regions, out=parts.scores("retrieval")
    )
    last = [line for line in read_log(parts.caption_run / "metrics.jsonl") if line["split"] == "validation"][-1]
    numbers = {f"vilbert.{name}.validation": last[f"{key}_accuracy"] for key, name in TASKS.items()}
    for cut in ("r1", "r5", "r10"):
        numbers[f"vilbert.retrieval.text_to_image.{cut}"] = found[f"retrieval.text_to_image.{cut}"]
        numbers[f"vilbert.retrieval.untrained.{cut}"] = found[f"retrieval.untrained.text_to_image.{cut}"]
        numbers[f"vilbert.retrieval.chance.{cut}"] = found[f"retrieval.chance.{cut}"]
    return numbers


def learn_tasks(parts: Parts, epochs: float, seed: int) -> None:
    """Which thing an expression means (RefCOCO+), and whether a picture entails a sentence (SNLI-VE)."""
    for name, images in TASK_SETS.items():
        folder = parts.playground / name
        extract_regions(folder / images, parts.task_regions(name), str(parts.run), folder / "boxes.jsonl", cells=2)
    common: dict[str, Any] = {
        "model": parts.caption_run,
        "epochs": epochs,
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
        status = train(recipe, common | files, parts.task_run(name), resume=True, threads=torch.get_num_threads())
        if status:
            raise KeyboardInterrupt


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


def report(parts: Parts) -> None:
    """One page about both systems."""
    scores = [parts.scores("sounds"), parts.scores("images")]
    page = run_parts(parts.run, parts.shards, scores, truth=parts.playground / "worlds.jsonl")
    scores = [parts.scores(name) for name in ("retrieval", "grounding", "entailment")]
    captions, images = parts.scenes / "captions.jsonl", parts.scenes / "images"
    page += run_parts(parts.caption_run, parts.regions, scores, captions, images)
    write_page(parts.folder / "report.html", "comodal demo: what was learnt", page)


def measure(parts: Parts) -> dict[str, float]:
    """The numbers that the demo is about, under flat keys."""
    validation = [line for line in read_log(parts.run / "metrics.jsonl") if line["split"] == "validation"]
    if not validation:
        raise DataError(f"{parts.run}: no validation was logged")
    numbers = {"l3net.avc.validation": validation[-1]["accuracy"]}
    found = evaluate_images(parts.run, parts.playground / "images", out=parts.scores("images"))
    found |= evaluate_esc50(parts.run, parts.playground / "sounds", out=parts.scores("sounds"))
    return numbers | {f"l3net.{task}.{name}": found[f"{task}.{name}"] for task, names in KEYS.items() for name in names}


def print_table(numbers: dict[str, float]) -> None:
    """Trained beside its baselines."""
    headings = ("", "trained", "untrained", "pixels or raw spectrogram", "log-mel statistics")
    table = Table(*headings, title="what was learnt from videos alone")
    for task, names in KEYS.items():
        cells = [f"{numbers[f'l3net.{task}.{name}']:.3f}" for name in names]
        table.add_row(f"{task} probe", *cells, *[""] * (len(headings) - 1 - len(cells)))
    table.add_row("do these belong together?", f"{numbers['l3net.avc.validation']:.3f}", "0.500", "", "")
    table.show()
    table = Table("", "R@1", "R@5", "R@10", title="pictures found by their captions, zero-shot")
    for name, key in (("trained", "text_to_image"), ("untrained", "untrained"), ("chance", "chance")):
        table.add_row(name, *(f"{numbers[f'vilbert.retrieval.{key}.{cut}']:.3f}" for cut in ("r1", "r5", "r10")))
    table.show()
    table = Table("", "trained", "without text or picture", "chance", title="tasks with labels")
    for name, asked in (("grounding", "which thing is meant?"), ("entailment", "does the picture entail it?")):
        table.add_row(asked, *(f"{numbers[f'vilbert.{name}.{key}']:.3f}" for key in ("trained", "blind", "chance")))
    table.show()
    held_out = ", ".join(f"{name} {numbers[f'vilbert.{name}.validation']:.3f}" for name in TASKS.values())
    say(f"ViLBERT on held-out pairs: {held_out}")
    say(f"{numbers['seconds']:.0f} seconds")
