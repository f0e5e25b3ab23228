"""The results of audio-visual correspondence: metrics, tables, files and the results card."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from comodal.console import Table, print_line
from comodal.data.shards.dataset_record import format_dataset_record, read_dataset_record
from comodal.files import write_bytes_atomically
from comodal.tasks.correspondence.pair_decisions import CrossModalRanks, ExamplePairs
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval, describe_intervals
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.retrieval.retrieval_ranks import RECALL_CUTOFFS, summarize_ranks

AVC_TASK = "avc"
AVC_DIRECTIONS = ("image_to_audio", "audio_to_image")


class AVCDecisions(NamedTuple):
    """The decisions of one model: which pairs it takes as matched, and its ranks."""

    says_match: Bool[np.ndarray, " pairs"]
    ranks: CrossModalRanks


@dataclass(frozen=True)
class AVCResults:
    """The decisions of all models on the same pairs.

    Args:
        pairs: The pairs, as indices of examples.
        systems: The decisions by model: trained, untrained.
        sources: Source video of each example.
        labels: Labels of the clip of each example.
        gallery: Number of clips of the ranking: the first ones.
    """

    pairs: ExamplePairs
    systems: Mapping[str, AVCDecisions]
    sources: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    gallery: int

    @property
    def pair_sources(self) -> list[str]:
        """The source video of the image of each pair."""
        return [self.sources[example] for example in self.pairs.image.tolist()]

    def compute_metrics(self) -> dict[str, float]:
        """All numbers by name; fractions are from 0 to 1."""
        flat: dict[str, float] = {}
        for system, decisions in self.systems.items():
            prefix = AVC_TASK if system == "trained" else f"{AVC_TASK}.{system}"
            is_correct = decisions.says_match == self.pairs.is_match
            low, high = compute_bootstrap_interval(is_correct, np.random.default_rng(0), groups=self.pair_sources)
            flat |= {f"{prefix}.accuracy": float(is_correct.mean())}
            flat |= {f"{prefix}.accuracy.low": low, f"{prefix}.accuracy.high": high}
            flat[f"{prefix}.matched"] = float(is_correct[self.pairs.is_match].mean())
            flat[f"{prefix}.mismatched"] = float(is_correct[~self.pairs.is_match].mean())
            for direction in AVC_DIRECTIONS:
                ranks = summarize_ranks(getattr(decisions.ranks, direction), self.sources[: self.gallery])
                flat |= {
                    f"{prefix}.{direction}.{name}": value
                    for name, value in ranks.items()
                    if not name.endswith(".predicted")
                }
                wins = decisions.ranks.compute_pairwise_accuracy(direction)
                sources = self.sources[: self.gallery]
                low, high = compute_bootstrap_interval(wins, np.random.default_rng(0), groups=sources)
                name = f"{prefix}.{direction}.pairwise"
                flat |= {name: float(wins.mean()), f"{name}.low": low, f"{name}.high": high}
        flat |= {f"{AVC_TASK}.class.{row.name}": row.accuracy for row in self.list_classes()}
        flat[f"{AVC_TASK}.chance_level"] = 0.5
        candidates = self.systems["trained"].ranks.candidates
        for cut in RECALL_CUTOFFS:
            flat[f"{AVC_TASK}.chance_level.r{cut}"] = float(np.minimum(cut / candidates, 1.0).mean())
        flat[f"{AVC_TASK}.chance_level.median"] = float(np.median((candidates + 1) / 2))
        flat[f"{AVC_TASK}.pairs"] = float(len(self.pairs.image))
        return flat

    def list_classes(self) -> "list[AVCClass]":
        """The accuracy of the trained model on the pairs whose image is of each class; clips of several labels count
        for each of them.
        """
        names = sorted({label for labels in self.labels for label in labels})
        is_correct = self.systems["trained"].says_match == self.pairs.is_match
        rows, sources = [], np.array(self.pair_sources)
        for name in names:
            of_example = np.array([name in labels for labels in self.labels])
            of_pair = of_example[self.pairs.image]
            low, high = compute_bootstrap_interval(
                is_correct[of_pair], np.random.default_rng(0), groups=sources[of_pair].tolist()
            )
            matched = self.pairs.is_match[of_pair]
            correct = is_correct[of_pair]
            rows.append(
                AVCClass(
                    name,
                    int(of_pair.sum()),
                    float(correct.mean()),
                    low,
                    high,
                    float(correct[matched].mean()),
                    float(correct[~matched].mean()),
                )
            )
        return rows


class AVCClass(NamedTuple):
    """The accuracy on the pairs whose image is of one class, with its 95 % interval, and on both kinds of pairs."""

    name: str
    pairs: int
    accuracy: float
    low: float
    high: float
    matched: float
    mismatched: float


def report_avc(
    results: AVCResults, model: Path, data: Path, split: str, seed: int, settings: dict[str, Any], out: Path | None
) -> dict[str, float]:
    """Prints the scores; with `out`, writes results.json, classes.csv and the results card."""
    metrics = results.compute_metrics()
    build_avc_table(results, metrics).show()
    record = read_dataset_record(data)
    if record:
        settings = settings | {"data": format_dataset_record(record, split)}
        print_line(str(settings["data"]))
    card = build_avc_card(results, metrics, model, split, seed, settings, record.get("name", data.resolve().name))
    report_results(metrics, card, out)
    if out is not None and (rows := results.list_classes()):
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(("class", *AVCClass._fields[1:]))
        table.writerows(rows)
        write_bytes_atomically(out / "classes.csv", text.getvalue().encode())
    return metrics


def build_avc_table(results: AVCResults, metrics: Mapping[str, float]) -> Table:
    """Accuracy and ranking of each model, next to the chance level."""
    table = Table("system", "accuracy", "95 %", "image to audio R@1", "R@10", "audio to image R@1", "R@10")
    for system in results.systems:
        prefix = AVC_TASK if system == "trained" else f"{AVC_TASK}.{system}"
        recalls = [f"{metrics[f'{prefix}.{direction}.r{cut}']:.3f}" for direction in AVC_DIRECTIONS for cut in (1, 10)]
        interval = f"{metrics[f'{prefix}.accuracy.low']:.3f}-{metrics[f'{prefix}.accuracy.high']:.3f}"
        table.add_row(system, f"{metrics[f'{prefix}.accuracy']:.4f}", interval, *recalls)
    chance = [f"{metrics[f'{AVC_TASK}.chance_level.r{cut}']:.3f}" for cut in (1, 10)]
    table.add_row("chance level", "0.5000", "", *chance, *chance)
    return table


def build_avc_card(
    results: AVCResults,
    metrics: Mapping[str, float],
    model: Path,
    split: str,
    seed: int,
    settings: Mapping[str, Any],
    name: str,
) -> ResultsCard:
    """The results card. It has no score of the paper: the paper's split of the clips is not published."""
    scores: dict[str, ScoreEntry] = {}
    for system in results.systems:
        prefix, suffix = (AVC_TASK, "") if system == "trained" else (f"{AVC_TASK}.{system}", f", {system}")
        scores[f"accuracy{suffix}"] = get_score_entry(metrics, f"{prefix}.accuracy")
        for direction in AVC_DIRECTIONS:
            for cut in RECALL_CUTOFFS:
                label = f"{direction.replace('_', ' ')} R@{cut}{suffix}"
                scores[label] = get_score_entry(metrics, f"{prefix}.{direction}.r{cut}")
            label = f"{direction.replace('_', ' ')} pairwise accuracy{suffix}"
            scores[label] = get_score_entry(metrics, f"{prefix}.{direction}.pairwise")
            scores[f"{direction.replace('_', ' ')} median rank{suffix}"] = ScoreEntry(
                metrics[f"{prefix}.{direction}.median"]
            )
    scores["accuracy, chance level"] = ScoreEntry(metrics[f"{AVC_TASK}.chance_level"])
    scores |= {
        f"R@{cut}, chance level": ScoreEntry(metrics[f"{AVC_TASK}.chance_level.r{cut}"]) for cut in RECALL_CUTOFFS
    }
    if rows := results.list_classes():
        scores["accuracy, mean of the classes"] = ScoreEntry(float(np.mean([row.accuracy for row in rows])))
    interval = describe_intervals(
        {key: value for key, value in metrics.items() if ".accuracy" in key}, results.pair_sources, "source videos"
    )
    return ResultsCard(
        task=AVC_TASK,
        title=f"Audio-visual correspondence, {name}",
        split=split,
        scores=scores,
        model=str(model),
        counts={
            "items": len(results.pairs.image),
            "source videos": len(set(results.sources)),
            "gallery": results.gallery,
        },
        seeds={"examples, pairs, untrained": seed},
        settings={
            **settings,
            **({} if interval is None else {INTERVAL_NAME: interval}),
            **read_training_settings(model),
        },
    )


def get_score_entry(metrics: Mapping[str, float], key: str) -> ScoreEntry:
    """A metric with its interval."""
    return ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
