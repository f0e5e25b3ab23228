"""`comodal demo`: trains both models on synthetic data, evaluates them against baselines, and writes a report.

`comodal demo DIR` synthesizes videos and trains a small L3-Net on their shards. It synthesizes images with captions,
extracts regions with the features of that L3-Net, and trains a small ViLBERT. It evaluates both against baselines and
writes a page. The short demo trains both with contrastive losses, which need fewer steps. `--full` trains longer with
the papers' objectives, and fine-tunes ViLBERT on two labeled tasks. Parts that do not depend on a training run in a
second process at the same time. An interrupted demo continues when it is run again.
"""

import contextlib
import io
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from joblib.externals.loky import ProcessPoolExecutor

from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.page_parts import PageSection
from comodal.analysis.reports.report import build_run_parts
from comodal.analysis.reports.run_sections import ReportInputs
from comodal.console import Table, print_heading, print_line, print_text
from comodal.data.shards.ingest import prepare_videos
from comodal.demo.demo_parts import DEFAULT_SIZES, FULL_SCALE, SHORT_SCALE, DemoFolders, DemoScale, DemoSizes
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import AUTOMATIC, ComputeOptions
from comodal.recipes import avc_pretraining, vilbert_pretraining
from comodal.regions.extract import extract_regions
from comodal.synthetic.synthesize import synthesize
from comodal.tasks.audio.esc50 import evaluate_esc50
from comodal.tasks.image.linear_classification import evaluate_images
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.tasks.retrieval.pair_scores import ScoreType
from comodal.tasks.vision_language import snli_ve
from comodal.tasks.vision_language.grounding import refcoco
from comodal.tasks.vision_language.grounding.refcoco import evaluate_grounding
from comodal.tasks.vision_language.snli_ve import evaluate_entailment
from comodal.text_files import read_metrics
from comodal.training.recipe_run import Run
from comodal.training.run import train
from comodal.workers import watch_parent_process

EXTRACT_WORKERS = 1  # starting a worker process takes longer than a thousand images with this network
WARMUP_STEPS = 50
CACHE_MEGABYTES = 1000  # all decoded clips of the synthetic data
CAPTION_TASKS = {"token": "tokens", "region": "regions", "alignment": "alignment"}
TASK_IMAGE_FOLDERS = {
    "coco": "images",
    "flickr30k": "flickr30k-images",
}  # of the labeled tasks: RefCOCO+ and SNLI-VE
REFCOCO_PARAMETERS = ("references", "instances", "regions")
RESULT_KEYS = {
    "vision": ("trained", "untrained", "pixels"),
    "audio": ("trained", "untrained", "spectrogram", "log_mel"),
}


@flatten_parameters
def run_demo(
    out: Path,
    full: bool = False,
    sizes: DemoSizes = DEFAULT_SIZES,
    bert: Path | None = None,
    seed: int = 0,
    compute: ComputeOptions = AUTOMATIC,
) -> dict[str, float]:
    """Synthetic videos and images, a small L3-Net, a small ViLBERT, their scores and a report, in minutes.

    Args:
        out: Output folder; the same command continues an interrupted demo in it.
        full: Train longer with the papers' objectives, and fine-tune ViLBERT on two labeled tasks. By default L3-Net
            scores all pairs of a batch, and ViLBERT has a contrastive loss, which need fewer steps.
        sizes: The amount of data and the length of training, where they differ from the demo's.
        bert: A Hugging Face BERT to initialize the text stream. By default it is randomly initialized: the small
            vocabulary of this data needs no BERT, and six layers of MiniLM take several times as long.
        seed: Of the synthetic data, the pairs and the initial weights.
        compute: Device and precision of all parts.

    Returns:
        The flat dict of metrics in results.json.

    Examples:
        comodal demo demo/
        comodal demo demo-full/ --full
        comodal demo quick/ --videos 100 --steps 50 --scenes 100 --caption-steps 20
    """
    start_seconds, parts = time.perf_counter(), DemoFolders(out)
    scale = replace(sizes.apply(FULL_SCALE if full else SHORT_SCALE), compute=compute)
    with start_second_process() as pool:
        synthesize_videos(parts, scale, seed)
        labeled_media = pool.submit(synthesize_labeled_media, parts, scale, seed)
        print_heading("L3-Net: audio-visual correspondence")
        train_l3net(parts, scale, seed)
        labeled_media.result()
        pending_evaluation = pool.submit(evaluate_l3net, parts, scale)
        print_heading("ViLBERT: images and captions")
        pretrain_vilbert(parts, scale, bert, seed)
        metrics = evaluate_vilbert(parts, scale)
        print_heading("evaluation of L3-Net: linear probes compared with baselines")
        evaluation = pending_evaluation.result()
    print_text(evaluation.text)
    metrics = evaluation.metrics | metrics
    if scale.task_epochs:
        print_heading("ViLBERT: tasks with labels")
        fine_tune_tasks(parts, scale, seed)
        metrics |= evaluate_tasks(parts, scale)
    write_page(out / "report.html", "comodal demo", evaluation.page + report_vilbert(parts, scale))
    metrics["seconds"] = time.perf_counter() - start_seconds
    write_bytes_atomically(out / "results.json", (json.dumps(metrics, indent=2) + "\n").encode())
    print_demo_results(metrics)
    print_line(f"Report: {out / 'report.html'}; metrics: {out / 'results.json'}.")
    return metrics


class L3NetEvaluation(NamedTuple):
    """The results of the second process: flat numbers, sections of the page, and printed output."""

    metrics: dict[str, float]
    page: list[PageSection]
    text: str


@contextlib.contextmanager
def start_second_process() -> Iterator[ProcessPoolExecutor]:
    """A second process with one compute thread. It ends with this process in every case."""
    pool = ProcessPoolExecutor(max_workers=1, timeout=None, initializer=prepare_process, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def prepare_process(command: int) -> None:
    """Makes the second process ignore Ctrl-C, which the command that started it handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_parent_process(command)
    torch.set_num_threads(1)


def synthesize_videos(parts: DemoFolders, scale: DemoScale, seed: int) -> None:
    """Synthesizes the videos and writes their shards."""
    print_heading("synthetic data: videos with audio")
    synthesize(
        parts.videos,
        videos=scale.videos,
        seconds=scale.video_seconds,
        audio=0,
        images=0,
        scenes=0,
        side=scale.side,
        frames_per_second=scale.frames_per_second,
        seed=seed,
    )
    print_heading("prepare: videos to shards")
    prepare_videos(
        parts.videos / "videos.jsonl",
        parts.shards,
        short_side=math.ceil(scale.image_size * 8 / 7),
        frames_per_second=5.0,
    )


def synthesize_labeled_media(parts: DemoFolders, scale: DemoScale, seed: int) -> None:
    """Synthesizes labeled audio and images, and images with captions."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        synthesize(
            parts.synthetic_data,
            videos=0,
            audio=scale.audio,
            images=scale.images,
            scenes=scale.scenes,
            side=scale.side,
            tasks=tuple(TASK_IMAGE_FOLDERS) if scale.task_epochs else (),
            seed=seed,
            workers=1,
        )


def train_l3net(parts: DemoFolders, scale: DemoScale, seed: int) -> None:
    """Trains a small L3-Net on the synthetic videos; one core computes while the other reads pairs."""
    settings: dict[str, Any] = {
        "data": parts.shards,
        "variant": "small",
        "width": 8,
        "image_size": scale.image_size,
        "objective": scale.objective,
        "steps": scale.steps,
        "learning_rate": scale.learning_rate,
        "warmup_steps": min(WARMUP_STEPS, scale.steps),
        "min_lr_ratio": 0.02,
        "workers": 1,
        "cache_megabytes": CACHE_MEGABYTES,
        "seed": seed,
    }
    train_to_last_step(avc_pretraining.recipe, settings, parts.run, scale.compute, threads=1)


def train_to_last_step(
    recipe: Callable[..., Run],
    settings: dict[str, Any],
    out: Path,
    compute: ComputeOptions,
    threads: int | None = None,
) -> None:
    """Trains to the last step. An interrupted training (Ctrl-C) ends the demo."""
    if train(recipe, settings, out, resume=True, threads=threads, **asdict(compute)):
        raise KeyboardInterrupt


def pretrain_vilbert(parts: DemoFolders, scale: DemoScale, bert: Path | None, seed: int) -> None:
    """Extracts regions with L3-Net's features of their boxes, and trains a small ViLBERT."""
    images, boxes = parts.scenes / "images", parts.scenes / "boxes.jsonl"
    extract_regions(
        images, parts.regions, str(parts.run), boxes, cells=2, workers=EXTRACT_WORKERS, device=scale.compute.device
    )
    settings: dict[str, Any] = {
        "data": parts.regions,
        "captions": parts.scenes / "captions.jsonl",
        "bert": bert,
        "vocabulary": None if bert else parts.synthetic_data / "vocab.txt",
        "variant": "small",
        "dropout": 0.0,
        "steps": scale.caption_steps,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "contrastive_weight": scale.contrastive_weight,
        "workers": 0,
        "seed": seed,
    }
    train_to_last_step(vilbert_pretraining.recipe, settings, parts.caption_run, scale.compute)


def evaluate_vilbert(parts: DemoFolders, scale: DemoScale) -> dict[str, float]:
    """Accuracy of the three tasks on held-out pairs, and zero-shot retrieval among held-out images."""
    captions = parts.scenes / "captions.jsonl"
    scores: ScoreType = "contrastive" if scale.contrastive_weight else "alignment"
    results = evaluate_retrieval(
        parts.caption_run,
        captions,
        parts.regions,
        scores=scores,
        out=parts.scores("retrieval"),
        **asdict(scale.compute),
    )
    last = [line for line in read_metrics(parts.caption_run / "metrics.jsonl") if line["split"] == "validation"][-1]
    metrics = {f"vilbert.{name}.validation": last[f"{key}_accuracy"] for key, name in CAPTION_TASKS.items()}
    for cut in ("r1", "r5", "r10"):
        metrics[f"vilbert.retrieval.text_to_image.{cut}"] = results[f"retrieval.text_to_image.{cut}"]
        metrics[f"vilbert.retrieval.untrained.{cut}"] = results[f"retrieval.untrained.text_to_image.{cut}"]
        metrics[f"vilbert.retrieval.chance_level.{cut}"] = results[f"retrieval.chance_level.{cut}"]
    return metrics


def fine_tune_tasks(parts: DemoFolders, scale: DemoScale, seed: int) -> None:
    """Fine-tunes on referring expressions (RefCOCO+) and visual entailment (SNLI-VE)."""
    for name, images in TASK_IMAGE_FOLDERS.items():
        folder = parts.synthetic_data / name
        boxes, out = folder / "boxes.jsonl", parts.task_regions(name)
        extract_regions(
            folder / images, out, str(parts.run), boxes, cells=2, workers=EXTRACT_WORKERS, device=scale.compute.device
        )
    common: dict[str, Any] = {
        "model": parts.caption_run,
        "epochs": scale.task_epochs,
        "batch_size": 64,
        "learning_rate": 5e-4,
        "workers": 0,
        "seed": seed,
    }
    statement_files = {"data": parts.statements("train"), "validation": parts.statements("dev")}
    tasks = (
        ("grounding", refcoco.recipe, dict(zip(REFCOCO_PARAMETERS, parts.references, strict=True))),
        ("entailment", snli_ve.recipe, statement_files | {"regions": parts.task_regions("flickr30k")}),
    )
    for name, recipe, files in tasks:
        train_to_last_step(recipe, common | files, parts.task_run(name), scale.compute)


def evaluate_tasks(parts: DemoFolders, scale: DemoScale) -> dict[str, float]:
    """Accuracy on held-out images, and of the same networks with one modality ablated."""
    run, compute = parts.task_run("grounding"), asdict(scale.compute)
    results = evaluate_grounding(run, *parts.references, out=parts.scores("grounding"), **compute)
    ablated = evaluate_grounding(run, *parts.references, ablate="text", **compute)
    run, statements, regions = parts.task_run("entailment"), parts.statements("test"), parts.task_regions("flickr30k")
    results |= evaluate_entailment(run, statements, regions, out=parts.scores("entailment"), **compute)
    ablated |= evaluate_entailment(run, statements, regions, ablate="image", **compute)
    metrics: dict[str, float] = {}
    for name in ("grounding", "entailment"):
        metrics[f"vilbert.{name}.trained"] = results[f"{name}.accuracy"]
        metrics[f"vilbert.{name}.ablated"] = ablated[f"{name}.accuracy"]
        metrics[f"vilbert.{name}.chance_level"] = results[f"{name}.chance_level"]
    return metrics


def report_vilbert(parts: DemoFolders, scale: DemoScale) -> list[PageSection]:
    """The sections of the page about ViLBERT."""
    tasks = ("grounding", "entailment") if scale.task_epochs else ()
    scores = [parts.scores(name) for name in ("retrieval", *tasks)]
    captions, images = parts.scenes / "captions.jsonl", parts.scenes / "images"
    inputs = ReportInputs(parts.regions, scores, captions, images)
    return build_run_parts(parts.caption_run, inputs, scale.compute.resolve())


def evaluate_l3net(parts: DemoFolders, scale: DemoScale) -> L3NetEvaluation:
    """L3-Net's numbers and its sections of the page, in the second process."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
        metrics = collect_results(parts, scale)
        scores = [parts.scores("audio"), parts.scores("images")]
        inputs = ReportInputs(parts.shards, scores, ground_truth=parts.videos / "worlds.jsonl")
        page = build_run_parts(parts.run, inputs, scale.compute.resolve())
    return L3NetEvaluation(metrics, page, text.getvalue())


def collect_results(parts: DemoFolders, scale: DemoScale) -> dict[str, float]:
    """The demo's main metrics, under flat keys."""
    validation = [line for line in read_metrics(parts.run / "metrics.jsonl") if line["split"] == "validation"]
    if not validation:
        raise DataError(f"{parts.run}: no validation was logged")
    metrics = {"l3net.avc.validation": validation[-1]["accuracy"]}
    results = evaluate_images(
        parts.run, parts.synthetic_data / "images", out=parts.scores("images"), **asdict(scale.compute)
    )
    results |= evaluate_esc50(
        parts.run,
        parts.synthetic_data / "esc50",
        windows=scale.windows,
        out=parts.scores("audio"),
        **asdict(scale.compute),
    )
    return metrics | {
        f"l3net.{task}.{name}": results[f"{task}.{name}"] for task, names in RESULT_KEYS.items() for name in names
    }


def print_demo_results(metrics: dict[str, float]) -> None:
    """Prints the scores of the trained models and their baselines."""
    headings = ("", "trained", "untrained", "pixels or raw spectrogram", "log-mel statistics")
    table = Table(*headings, title="L3-Net, trained on unlabeled videos")
    for task, names in RESULT_KEYS.items():
        cells = [f"{metrics[f'l3net.{task}.{name}']:.3f}" for name in names]
        table.add_row(f"{task} probe", *cells, *[""] * (len(headings) - 1 - len(cells)))
    table.add_row("audio-visual correspondence", f"{metrics['l3net.avc.validation']:.3f}", "0.500", "", "")
    table.show()
    table = Table("", "R@1", "R@5", "R@10", title="ViLBERT: zero-shot retrieval of images by captions")
    for name, key in (("trained", "text_to_image"), ("untrained", "untrained"), ("chance_level", "chance_level")):
        table.add_row(name, *(f"{metrics[f'vilbert.retrieval.{key}.{cut}']:.3f}" for cut in ("r1", "r5", "r10")))
    table.show()
    if "vilbert.grounding.trained" in metrics:
        print_task_results(metrics)
    accuracies = ", ".join(f"{name} {metrics[f'vilbert.{name}.validation']:.3f}" for name in CAPTION_TASKS.values())
    print_line(f"ViLBERT on held-out pairs: {accuracies}")
    print_line(f"{metrics['seconds']:.0f} seconds")


def print_task_results(metrics: dict[str, float]) -> None:
    """Prints the accuracy of the two labeled tasks."""
    table = Table("", "trained", "without text or image", "chance_level", title="tasks with labels")
    for name, task in (
        ("grounding", "referring expressions (RefCOCO+)"),
        ("entailment", "visual entailment (SNLI-VE)"),
    ):
        table.add_row(
            task, *(f"{metrics[f'vilbert.{name}.{key}']:.3f}" for key in ("trained", "ablated", "chance_level"))
        )
    table.show()
