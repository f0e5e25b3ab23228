"""The results of a retrieval evaluation: metrics, table, files and results card."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from comodal.console import Table
from comodal.files import write_bytes_atomically
from comodal.tasks.baselines.baseline_names import BASELINE_LABELS, LINEAR_MAPS
from comodal.tasks.evaluation.metrics import describe_intervals
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME, build_score_entries, count_items, is_paper_protocol
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings
from comodal.tasks.retrieval.gallery import Gallery, RetrievalData
from comodal.tasks.retrieval.linear_baseline import LINEAR_MAPS_SYSTEM
from comodal.tasks.retrieval.retrieval_ranks import (
    DIRECTIONS,
    RECALL_CUTOFFS,
    RetrievalRanks,
    compute_random_recall,
    summarize_ranks,
)

RETRIEVAL_TASK = "retrieval"
# ViLBERT, table 1: captions to images among the 1,000 of Flickr30k's test split (Karpathy's), of 5 captions each
RETRIEVAL_PAPER_RECALL = {
    "zero-shot": {"r1": 0.3186, "r5": 0.6112, "r10": 0.7280},
    "fine-tuned": {"r1": 0.5820, "r5": 0.8490, "r10": 0.9152},
}
OFFICIAL_GALLERY = ("flickr30k", "test", 5000, 1000)  # in the file's name, split, captions, images


class RankingMethod(NamedTuple):
    """How pairs are ranked.

    Args:
        scored_by: The score: alignment head of pretraining, fine-tuned head, contrastive embeddings, or a dual encoder.
        num_fitted: Number of training captions that the first stage is fitted on; 0 for a dual encoder, None without a
            first stage.
        is_paper_setting: Whether network and settings are the paper's.
    """

    scored_by: Literal["zero-shot", "fine-tuned", "contrastive", "dual encoder"]
    num_fitted: int | None
    is_paper_setting: bool

    @property
    def title(self) -> str:
        """The name of the method; with a first stage fitted on the data set's captions it is not zero-shot."""
        if self.num_fitted is None:
            return self.scored_by
        if not self.num_fitted:
            return f"first stage by a dual encoder, re-ranked {self.scored_by}"
        return f"first stage fitted on {self.num_fitted:,} training captions, re-ranked {self.scored_by}"


def collect_retrieval_metrics(
    systems: dict[str, RetrievalRanks], gallery: Gallery, missing: Sequence[str] = ()
) -> dict[str, float]:
    """Flat keys: the trained network directly under the task, other systems and chance level under their names.

    Args:
        systems: The ranks by each system.
        gallery: The gallery.
        missing: The images that are not in the store, one entry per caption.
    """
    captions, images = len(gallery.text_of), len(gallery.counts)
    flat = {
        f"{RETRIEVAL_TASK}.captions": float(captions + len(missing)),
        f"{RETRIEVAL_TASK}.captions.predicted": float(captions),
        f"{RETRIEVAL_TASK}.texts": float(len(gallery.lengths)),
        f"{RETRIEVAL_TASK}.images": float(images + len(set(missing))),
        f"{RETRIEVAL_TASK}.images.predicted": float(images),
    }
    queries = dict(zip(DIRECTIONS, list_queries(gallery, missing), strict=True))
    lost = dict(zip(DIRECTIONS, (list(missing), sorted(set(missing))), strict=True))
    worst_ranks = dict(zip(DIRECTIONS, (images, captions), strict=True))
    for system, ranks in systems.items():
        key_prefix = RETRIEVAL_TASK if system == "trained" else f"{RETRIEVAL_TASK}.{system}"
        for direction, direction_ranks in zip(DIRECTIONS, ranks, strict=True):
            groups = queries[direction][: len(direction_ranks)]
            metrics = summarize_ranks(direction_ranks, groups, lost[direction], worst_ranks[direction])
            flat |= {f"{key_prefix}.{direction}.{name}": value for name, value in metrics.items()}
    for name, value in compute_random_recall(gallery).items():
        direction = name.partition(".")[0]
        num_predicted = len(queries[direction]) - len(lost[direction])
        flat[f"{RETRIEVAL_TASK}.chance_level.{name}"] = value * num_predicted / len(queries[direction])
    return flat | {
        f"{RETRIEVAL_TASK}.chance_level.r{cut}": flat[f"{RETRIEVAL_TASK}.chance_level.{DIRECTIONS[0]}.r{cut}"]
        for cut in RECALL_CUTOFFS
    }


def list_queries(gallery: Gallery, missing: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image of every query in both directions, those of missing images last."""
    images = [gallery.store.ids[row] for row in gallery.rows.tolist()]
    return [images[index] for index in gallery.image_of.tolist()] + list(missing), images + sorted(set(missing))


def build_retrieval_table(systems: list[str], metrics: dict[str, float], method_title: str) -> Table:
    """Recall and median rank of each system, in both directions."""
    counts = f"{metrics[f'{RETRIEVAL_TASK}.captions']:,.0f} captions, {metrics[f'{RETRIEVAL_TASK}.images']:,.0f} images"
    lost = metrics[f"{RETRIEVAL_TASK}.captions"] - metrics[f"{RETRIEVAL_TASK}.captions.predicted"]
    counts += f", {lost:,.0f} of the captions without their image (not retrieved)" if lost else ""
    table = Table(title=f"{method_title} retrieval", caption=f"{counts}; 95 %: Wilson, images resampled")
    for name in ("system", "direction"):
        table.add_column(name)
    for name in ("R@1", "95 %", "R@5", "R@10", "median"):
        table.add_column(name, right=True)
    for direction in DIRECTIONS:
        for system in [*systems, "chance_level"]:
            key = f"{RETRIEVAL_TASK}.{direction}" if system == "trained" else f"{RETRIEVAL_TASK}.{system}.{direction}"
            recalls = [f"{metrics[f'{key}.r{cut}']:.3f}" for cut in RECALL_CUTOFFS]
            low, high, median = (metrics.get(f"{key}.{name}") for name in ("r1.low", "r1.high", "median"))
            interval = "" if low is None else f"{low:.3f}-{high:.3f}"
            middle = "" if median is None else f"{median:.0f}"
            table.add_row(system, direction.replace("_", " "), recalls[0], interval, *recalls[1:], middle)
    return table


def format_reranking_cost(metrics: dict[str, float], top_k: int) -> str:
    """The recall lost by scoring only the top candidates of the first stage."""
    lines = []
    for direction in DIRECTIONS:
        key = f"{RETRIEVAL_TASK}.rerank.{direction}"
        pairs = [
            f"R@{cut} {metrics[f'{key}.sample.r{cut}']:.3f} (all scored: {metrics[f'{key}.sample.r{cut}.exact']:.3f})"
            for cut in RECALL_CUTOFFS
        ]
        recall, count = metrics[f"{key}.recall"], metrics[f"{key}.sample"]
        summary = f"first stage: recall@{top_k} {recall:.1%}"
        lines.append(f"{direction.replace('_', ' ')}: {summary}; on {count:.0f} of them {', '.join(pairs)}")
    return ". ".join(lines)


def write_retrieval_results(
    out: Path, metrics: dict[str, float], systems: dict[str, RetrievalRanks], gallery: Gallery
) -> None:
    """Writes results.json (flat) and ranks.csv: the rank of the correct candidate of every query, counted from 1."""
    write_bytes_atomically(out / "results.json", (json.dumps(metrics, indent=2) + "\n").encode())
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["direction", "caption", "image", *systems])
    images = gallery.store.ids
    queries = {
        DIRECTIONS[0]: gallery.names,
        DIRECTIONS[1]: [("", images[row]) for row in gallery.rows.tolist()],
    }
    for direction_index, direction in enumerate(DIRECTIONS):
        for index, names in enumerate(queries[direction]):
            rows.writerow([direction, *names, *(int(ranks[direction_index][index]) + 1 for ranks in systems.values())])
    write_bytes_atomically(out / "ranks.csv", text.getvalue().encode())


def list_baseline_entries(metrics: Mapping[str, float]) -> dict[str, ScoreEntry]:
    """The card's entries of a random order and, where they are fitted, of the linear maps."""
    entries: dict[str, ScoreEntry] = {}
    for direction in DIRECTIONS:
        for cut in RECALL_CUTOFFS:
            name = f"{direction}.r{cut}"
            entries[f"random order: {direction} R@{cut}"] = ScoreEntry(metrics[f"{RETRIEVAL_TASK}.chance_level.{name}"])
            key = f"{RETRIEVAL_TASK}.{LINEAR_MAPS_SYSTEM}.{name}"
            if key in metrics:
                label = f"{BASELINE_LABELS[LINEAR_MAPS]}, {direction} R@{cut}"
                entries[label] = ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
    return entries


def build_retrieval_card(
    metrics: dict[str, float],
    retrieval_data: RetrievalData,
    split: str,
    method: RankingMethod,
    model: Path,
    captions: Path,
    settings: Mapping[str, str | int | None],
    seed: int,
) -> ResultsCard:
    """The results card; it has the paper's scores where gallery and run are the paper's."""
    gallery, training = retrieval_data.gallery, read_training_settings(model)
    counts = count_items(len(gallery.text_of) + len(retrieval_data.missing_images), len(gallery.text_of))
    name, official_split, *size = OFFICIAL_GALLERY
    is_paper_setting = (
        name in captions.name.lower() and split == official_split and size == [counts["items"], len(gallery.counts)]
    )
    is_paper_setting &= method.is_paper_setting and is_paper_protocol(counts, gallery.ablate, training)
    scores: dict[str, ScoreEntry] = {}
    for direction in DIRECTIONS:
        for cut in RECALL_CUTOFFS:
            paper = (
                RETRIEVAL_PAPER_RECALL[method.scored_by][f"r{cut}"]
                if is_paper_setting and direction == DIRECTIONS[0]
                else None
            )
            scores |= build_score_entries(
                f"{direction} R@{cut}", f"{RETRIEVAL_TASK}.{direction}.r{cut}", metrics, counts, paper
            )
        scores[f"{direction} median rank"] = ScoreEntry(metrics[f"{RETRIEVAL_TASK}.{direction}.median"])
    scores |= list_baseline_entries(metrics)
    groups = dict(zip(DIRECTIONS, list_queries(gallery, retrieval_data.missing_images), strict=True))
    intervals = []
    for direction, images in groups.items():
        prefix = f"{RETRIEVAL_TASK}.{direction}."
        shown = {key: value for key, value in metrics.items() if key.startswith(prefix)}
        intervals.append(f"{direction.replace('_', ' ')}: {describe_intervals(shown, images, 'images')}")
    return ResultsCard(
        task=RETRIEVAL_TASK,
        title=f"Retrieval, {method.title}",
        split=split,
        scores=scores,
        model=str(model),
        counts=counts
        | {"images": int(metrics[f"{RETRIEVAL_TASK}.images"]), "truncated": gallery.num_truncated}
        | {f"{reason} (all splits)": count for reason, count in retrieval_data.excluded.items()},
        files={"captions": captions},
        regions=str(gallery.store.about["provenance"]),
        seeds={"untrained": seed},
        settings={**settings, "ablate": gallery.ablate, INTERVAL_NAME: "; ".join(intervals), **training},
    )
