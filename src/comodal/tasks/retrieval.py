"""Zero-shot retrieval: how well alignment alone finds the image of a caption, and the caption of an image.

ViLBERT, section 3.3 (Zero-Shot Caption-Based Image Retrieval): the alignment head of pretraining scores every pair.
Beside the trained network stand chance and an untrained one of the same shape. With `rerank` a cheap first stage
(first_stage.py) ranks the gallery and the model scores only the best of it; what that loses is measured.
The first stage has learnt from captions, and lifts an untrained network as well: its own recall stands beside both.

A text-to-image query is a caption, and its own image alone is right. An image-to-text query is an image, and any of
its captions is right, in whoever's words.
"""

import csv
import io
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from comodal.errors import DataError
from comodal.files import write_whole
from comodal.media.text import Words
from comodal.models.checkpoint import untrained_like
from comodal.models.single_stream import SingleStream, load_pretrained
from comodal.models.vilbert import ViLBERT
from comodal.tasks.first_stage import MOST_CAPTIONS, Search, fit
from comodal.tasks.gallery import Gallery, Pairs, Split, gallery_of, gather
from comodal.tasks.pair_scores import BATCH, Precision, Scorer
from comodal.tasks.ranks import (
    CUTS,
    DIRECTIONS,
    Answers,
    Ranks,
    answers_to_images,
    answers_to_texts,
    chance,
    figures,
    of_captions,
    ranks_of,
    ranks_of_matrix,
)

TASK = "retrieval"
LEAST_SAMPLE = 20  # queries whose whole gallery is scored beside re-ranking


class Material(NamedTuple):
    """What is searched, and what the first stage is fitted on."""

    gallery: Gallery
    train: Pairs
    words: Words


class Settings(NamedTuple):
    """How a network is asked."""

    precision: Precision
    batch_size: int
    max_regions: int
    rerank: int | None
    seed: int
    device: torch.device


class Result(NamedTuple):
    """The ranks that a network gives, those of the first stage alone if there was one, and other numbers."""

    ranks: Ranks
    first_stage: Ranks | None
    numbers: dict[str, float]


def evaluate_retrieval(
    model: Path,
    captions: Path,
    regions: Path,
    split: Split = "test",
    zero_shot: bool = True,
    rerank: int | None = None,
    precision: Precision = "fp32",
    batch_size: int = BATCH,
    max_regions: int = 36,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Finds images by captions and captions by images, by the alignment that pretraining has learnt.

    Args:
        model: Run folder or model folder of a ViLBERT (or of one stream, its baseline), with its vocabulary.
        captions: Any file that `comodal train vilbert` reads.
        regions: The region store of the images, made as that of the training.
        split: Which images are searched; where the captions name no split, "validation" is what the run held out.
        zero_shot: By the alignment head of pretraining; there is no other way.
        rerank: A first stage ranks everything, the model so many of each query's best; without it, everything.
        precision: bf16 is faster, and changes ranks of pairs that hardly differ.
        batch_size: Pairs at once; more take more memory.
        max_regions: Regions of an image.
        out: Folder for results.json and ranks.csv; nothing is written without it.
        seed: Of the untrained network and of the first stage.

    Returns:
        Flat numbers: retrieval.text_to_image.r1 (r5, r10, median, mean; .low and .high of 95 % intervals) and
        retrieval.image_to_text, the same under retrieval.untrained, and retrieval.chance.

    Raises:
        DataError: A file is missing or damaged, does not fit the model, or the split has no captions.
        CheckpointError: There is no ViLBERT in the folder.

    Examples:
        comodal evaluate retrieval --zero-shot --model RUN --captions captions.jsonl --regions regions/ --out results/
        comodal evaluate retrieval --zero-shot --model RUN --captions cc.tsv --regions cc/ --split all --rerank 50
    """
    if not zero_shot:
        raise ValueError("retrieval is evaluated zero-shot, by the alignment head of pretraining: give --zero-shot")
    if rerank is not None and rerank < 1:
        raise ValueError(f"rerank ({rerank}) must be at least 1")
    started, console = time.perf_counter(), Console()
    trained = load_pretrained(model)
    material = Material(*gather(model, trained.config, captions, regions, split, max_regions))
    gallery = material.gallery
    console.print(describe(gallery, split))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(precision, batch_size, max_regions, rerank, seed, device)
    results = {"trained": ask(trained, material, settings, "trained")}
    results["untrained"] = ask(untrained_like(trained, seed), material, settings, "untrained")
    systems = {name: result.ranks for name, result in results.items()}
    if (first := results["trained"].first_stage) is not None:
        systems["first_stage"] = first
    numbers = numbers_of(systems, gallery) | {f"{TASK}.{k}": v for k, v in results["trained"].numbers.items()}
    numbers[f"{TASK}.seconds"] = time.perf_counter() - started
    console.print(table_of(list(systems), numbers))
    if rerank is not None:
        console.print(cost_of(numbers, rerank))
    if out is not None:
        write(out, numbers, systems, gallery)
    return numbers


def describe(gallery: Gallery, split: Split) -> str:
    """One line about what is searched."""
    captions, texts = len(gallery.text_of), len(gallery.lengths)
    same = f", {captions - texts:,} in words that another has" if texts < captions else ""
    cut = f", {gallery.truncated:,} cut at their end" if gallery.truncated else ""
    return f"{split}: {captions:,} captions{same}{cut}; {len(gallery.counts):,} images"


def ask(model: ViLBERT | SingleStream, material: Material, settings: Settings, name: str) -> Result:
    """The ranks by one network."""
    scorer = new_scorer(model, material.gallery, settings)
    if settings.rerank is not None:
        return search(scorer, material, settings)
    started = time.perf_counter()
    scores = scorer.matrix(lambda tiles: iter(track(tiles, f"scoring pairs, {name}")))
    rate = scores.size / (time.perf_counter() - started)
    return Result(ranks_of_matrix(scores, material.gallery), None, {"pairs_per_second": rate})


def new_scorer(model: ViLBERT | SingleStream, gallery: Gallery, settings: Settings) -> Scorer:
    """A scorer with these settings."""
    return Scorer(model, gallery, settings.precision, settings.batch_size, settings.device)


def search(scorer: Scorer, material: Material, settings: Settings) -> Result:
    """Both directions in two stages, and on a sample of the queries what the whole gallery scored would have given."""
    assert settings.rerank is not None
    gallery, rng = scorer.gallery, np.random.default_rng(settings.seed)
    chosen = rng.permutation(len(material.train))[:MOST_CAPTIONS].tolist()
    if not chosen:
        raise DataError("the first stage of --rerank is fitted on captions of the training split, and there are none")
    known = gallery_of(
        [material.train[i] for i in chosen], gallery.store, material.words, scorer.model.config, settings.max_regions
    )
    two_stages = Search(scorer, fit(new_scorer(scorer.model, known, settings), settings.seed))
    to_texts, to_images = answers_to_texts(gallery), answers_to_images(gallery)
    texts, images = np.arange(len(gallery.lengths)), np.arange(len(gallery.counts))
    by_text = two_stages.of_texts(texts, to_texts, settings.rerank)
    by_image = two_stages.of_images(images, to_images, settings.rerank)
    numbers = {"rerank.kept": float(settings.rerank)}
    for direction, found in zip(DIRECTIONS, (by_text, by_image), strict=True):
        numbers[f"rerank.{direction}.recall"] = float((found.first < settings.rerank).mean())
    numbers |= sampled(two_stages, settings.rerank, rng)
    return Result(
        Ranks(of_captions(by_text.reranked, gallery), by_image.reranked),
        Ranks(of_captions(by_text.first, gallery), by_image.first),
        numbers,
    )


def sampled(two_stages: Search, keep: int, rng: np.random.Generator) -> dict[str, float]:
    """Recall in two stages and with the whole gallery scored, on as many queries as double the work, or 20."""
    gallery = two_stages.scorer.gallery
    texts, images = len(gallery.lengths), len(gallery.counts)
    ways = (
        (texts, images, answers_to_texts(gallery), two_stages.of_texts),
        (images, texts, answers_to_images(gallery), two_stages.of_images),
    )
    numbers: dict[str, float] = {}
    for direction, (queries, candidates, answers, find) in zip(DIRECTIONS, ways, strict=True):
        count = min(queries, max(LEAST_SAMPLE, keep * queries // candidates))
        some = np.sort(rng.permutation(queries)[:count])
        sides = np.repeat(some, candidates), np.tile(np.arange(candidates), count)
        scores = two_stages.scorer.pairs(*(sides if direction == DIRECTIONS[0] else sides[::-1]))
        right = Answers([answers.right[query] for query in some.tolist()], answers.weights)
        exact = ranks_of(scores.reshape(count, candidates), right)
        reranked = find(some, answers, keep).reranked
        numbers[f"rerank.{direction}.sample"] = float(count)
        for cut in CUTS:
            numbers[f"rerank.{direction}.sample.r{cut}"] = float((reranked < cut).mean())
            numbers[f"rerank.{direction}.sample.r{cut}.exact"] = float((exact < cut).mean())
    return numbers


def numbers_of(systems: dict[str, Ranks], gallery: Gallery) -> dict[str, float]:
    """Flat keys: the trained network's directly under the task, the others' and chance under their names."""
    flat = {
        f"{TASK}.captions": float(len(gallery.text_of)),
        f"{TASK}.texts": float(len(gallery.lengths)),
        f"{TASK}.images": float(len(gallery.counts)),
    }
    for system, ranks in systems.items():
        prefix = TASK if system == "trained" else f"{TASK}.{system}"
        for direction, found in zip(DIRECTIONS, ranks, strict=True):
            flat |= {f"{prefix}.{direction}.{name}": number for name, number in figures(found).items()}
    flat |= {f"{TASK}.chance.{name}": number for name, number in chance(gallery).items()}
    return flat | {f"{TASK}.chance.r{cut}": flat[f"{TASK}.chance.{DIRECTIONS[0]}.r{cut}"] for cut in CUTS}


def table_of(systems: list[str], numbers: dict[str, float]) -> Table:
    """Recall and median rank of each system, both directions."""
    counts = f"{numbers[f'{TASK}.captions']:,.0f} captions, {numbers[f'{TASK}.images']:,.0f} images"
    table = Table(title="zero-shot retrieval", caption=f"{counts}; 95 %: bootstrap over the queries")
    for name in ("system", "direction"):
        table.add_column(name)
    for name in ("R@1", "95 %", "R@5", "R@10", "median"):
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        for system in [*systems, "chance"]:
            key = f"{TASK}.{direction}" if system == "trained" else f"{TASK}.{system}.{direction}"
            recalls = [f"{numbers[f'{key}.r{cut}']:.3f}" for cut in CUTS]
            low, high, median = (numbers.get(f"{key}.{name}") for name in ("r1.low", "r1.high", "median"))
            interval = "" if low is None else f"{low:.3f}-{high:.3f}"
            middle = "" if median is None else f"{median:.0f}"
            table.add_row(system, direction.replace("_", " "), recalls[0], interval, *recalls[1:], middle)
    return table


def cost_of(numbers: dict[str, float], keep: int) -> str:
    """What scoring only the best of the first stage lost."""
    lines = []
    for direction in DIRECTIONS:
        key = f"{TASK}.rerank.{direction}"
        pairs = [
            f"R@{cut} {numbers[f'{key}.sample.r{cut}']:.3f} (all scored: {numbers[f'{key}.sample.r{cut}.exact']:.3f})"
            for cut in CUTS
        ]
        share, count = numbers[f"{key}.recall"], numbers[f"{key}.sample"]
        found = f"the first stage has the right one among its first {keep} for {share:.1%} of the queries"
        lines.append(f"{direction.replace('_', ' ')}: {found}; on {count:.0f} of them {', '.join(pairs)}")
    return "\n".join(lines)


def write(out: Path, numbers: dict[str, float], systems: dict[str, Ranks], gallery: Gallery) -> None:
    """results.json (flat) and ranks.csv: of every query the rank of its answer, counted from 1."""
    write_whole(out / "results.json", (json.dumps(numbers, indent=2) + "\n").encode())
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["direction", "caption", "image", *systems])
    images = gallery.store.ids
    queries = {
        DIRECTIONS[0]: gallery.names,
        DIRECTIONS[1]: [("", images[row]) for row in gallery.rows.tolist()],
    }
    for place, direction in enumerate(DIRECTIONS):
        for number, names in enumerate(queries[direction]):
            rows.writerow([direction, *names, *(int(ranks[place][number]) + 1 for ranks in systems.values())])
    write_whole(out / "ranks.csv", text.getvalue().encode())
