"""What a retrieval found, as numbers, as a table, as files and as a results card."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from comodal.console import Table
from comodal.files import write_whole
from comodal.tasks.card import Card, Score, training_of
from comodal.tasks.gallery import Gallery
from comodal.tasks.ranks import CUTS, DIRECTIONS, Ranks, chance, figures

TASK = "retrieval"
# ViLBERT, table 1: captions to images among the 1,000 of Flickr30k's test split (Karpathy's), of 5 captions each
PAPER = {
    "zero-shot": {"r1": 0.3186, "r5": 0.6112, "r10": 0.7280},
    "fine-tuned": {"r1": 0.5820, "r5": 0.8490, "r10": 0.9152},
}
OFFICIAL = ("flickr30k", "test", 5000, 1000)  # in the file's name, split, captions, images


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


def table_of(systems: list[str], numbers: dict[str, float], way: str) -> Table:
    """Recall and median rank of each system, both directions."""
    counts = f"{numbers[f'{TASK}.captions']:,.0f} captions, {numbers[f'{TASK}.images']:,.0f} images"
    table = Table(title=f"{way} retrieval", caption=f"{counts}; 95 %: bootstrap over the queries")
    for name in ("system", "direction"):
        table.add_column(name)
    for name in ("R@1", "95 %", "R@5", "R@10", "median"):
        table.add_column(name, right=True)
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


def card_of(
    numbers: dict[str, float], gallery: Gallery, split: str, way: str, model: Path, captions: Path, seed: int,
    left_out: Mapping[str, int],
) -> Card:  # fmt: skip
    """The results card; the paper's numbers stand on it where the gallery is the paper's."""
    name, official, *counts = OFFICIAL
    same = name in captions.name.lower() and split == official
    same &= counts == [len(gallery.text_of), len(gallery.counts)]
    scores = {}
    for direction in DIRECTIONS:
        for cut in CUTS:
            key = f"{TASK}.{direction}.r{cut}"
            paper = PAPER[way][f"r{cut}"] if same and direction == DIRECTIONS[0] else None
            low, high = numbers.get(f"{key}.low"), numbers.get(f"{key}.high")
            scores[f"{direction} R@{cut}"] = Score(numbers[key], low, high, paper)
        scores[f"{direction} median rank"] = Score(numbers[f"{TASK}.{direction}.median"])
    numbered = {"items": len(gallery.text_of), "images": len(gallery.counts), "truncated": gallery.truncated}
    kept = numbers.get(f"{TASK}.rerank.kept")
    return Card(
        task=TASK,
        title=f"Retrieval, {way}",
        split=split,
        scores=scores,
        model=str(model),
        counts=numbered | {f"{reason} (all splits)": count for reason, count in left_out.items()},
        files={"captions": captions},
        regions=str(gallery.store.about["made_from"]),
        seeds={"untrained": seed},
        settings={"rerank": None if kept is None else int(kept), "blank": gallery.blank, **training_of(model)},
    )
