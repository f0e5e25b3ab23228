"""The results of VGGSounder: metrics of each subset of labels, modality confusion, a table and the results card."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from comodal.console import Table
from comodal.files import write_bytes_atomically
from comodal.tasks.clip_events.multi_label_metrics import (
    compute_curve_means,
    compute_f1_interval,
    compute_hits,
    compute_micro_f1,
    compute_modality_confusion,
    mark_top_k,
)
from comodal.tasks.clip_events.vggsounder_labels import LABEL_SUBSETS, MODALITIES, VGGSounderLabels, get_youtube_id
from comodal.tasks.evaluation.metrics import check_finite_scores, compute_bootstrap_interval
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results

VGGSOUNDER_TASK = "vggsounder"
TOP_K = (1, 3, 5, 10)  # as in the package's benchmark
SYSTEM_SUFFIXES = {"trained": "", "untrained": ", untrained", "prior": ", training frequencies"}
SUBSET_TITLES = {
    "a": "audible labels from audio",
    "v": "visible labels from image",
    "av": "audible and visible labels from both",
    "a_only": "only audible labels from audio",
    "v_only": "only visible labels from image",
}
CONFUSION_TITLES = {"a": "audio", "v": "image", "av": "audio and image"}


class ModalityScores(NamedTuple):
    """The class scores of each clip from its audio, its image, and both."""

    a: Float[np.ndarray, "items classes"]
    v: Float[np.ndarray, "items classes"]
    av: Float[np.ndarray, "items classes"]


@dataclass(frozen=True)
class VGGSounderResults:
    """The scores of all systems for the same clips.

    Args:
        labels: The labels of all videos.
        videos: The scored videos.
        systems: Their class scores by system: trained, untrained, prior.
    """

    labels: VGGSounderLabels
    videos: Sequence[str]
    systems: Mapping[str, ModalityScores]

    def compute_metrics(self) -> dict[str, float]:
        """All numbers by name; fractions are from 0 to 1. A subset that no video has is left out."""
        flat: dict[str, float] = {}
        for system, scores in self.systems.items():
            check_finite_scores(np.stack(scores), f"scores of the {system} probes")
            prefix = VGGSOUNDER_TASK if system == "trained" else f"{VGGSOUNDER_TASK}.{system}"
            for subset, modalities in LABEL_SUBSETS.items():
                truth = self.labels.build_truth(self.videos, modalities)
                has_label = truth.any(1)
                if has_label.any():
                    subset_scores = getattr(scores, subset.removesuffix("_only"))[has_label]
                    groups = [get_youtube_id(self.videos[row]) for row in np.flatnonzero(has_label).tolist()]
                    flat |= compute_subset_metrics(f"{prefix}.{subset}", subset_scores, truth[has_label], groups)
            flat |= self.compute_confusion(f"{prefix}.confusion", scores)
        flat[f"{VGGSOUNDER_TASK}.videos"] = float(len(self.videos))
        return flat

    def compute_confusion(self, prefix: str, scores: ModalityScores) -> dict[str, float]:
        """The modality confusion over all videos, with its intervals by YouTube video."""
        truth = self.labels.build_truth(self.videos, MODALITIES)
        confusion = compute_modality_confusion(scores.a, scores.v, scores.av, truth)
        groups = [get_youtube_id(video) for video in self.videos]
        flat: dict[str, float] = {}
        for name, is_confused in confusion._asdict().items():
            flat |= compute_interval(f"{prefix}.{name}", is_confused, groups)
        return flat


def compute_subset_metrics(
    prefix: str,
    scores: Float[np.ndarray, "items classes"],
    truth: Bool[np.ndarray, "items classes"],
    groups: Sequence[str],
) -> dict[str, float]:
    """F1 and hit rate of the highest scores, and the areas under the curves."""
    flat: dict[str, float] = {}
    for k in TOP_K:
        chosen = mark_top_k(scores, k)
        low, high = compute_f1_interval(chosen, truth, groups, np.random.default_rng(0))
        name = f"{prefix}.f1_{k}"
        flat |= {name: compute_micro_f1(chosen, truth), f"{name}.low": low, f"{name}.high": high}
        flat |= compute_interval(f"{prefix}.hit_rate_{k}", compute_hits(chosen, truth), groups)
    flat[f"{prefix}.auc_roc"], flat[f"{prefix}.auc_pr"] = compute_curve_means(scores, truth)
    flat[f"{prefix}.videos"] = float(len(truth))
    return flat


def compute_interval(key: str, values: Bool[np.ndarray, " items"], groups: Sequence[str]) -> dict[str, float]:
    """The mean of a value of each video, with its interval."""
    low, high = compute_bootstrap_interval(values, np.random.default_rng(0), groups=groups)
    return {key: float(values.mean()), f"{key}.low": low, f"{key}.high": high}


def report_vggsounder(
    results: VGGSounderResults,
    model: Path,
    files: Mapping[str, Path],
    counts: Mapping[str, int],
    settings: Mapping[str, str],
    seed: int,
    out: Path | None,
) -> dict[str, float]:
    """Prints the scores; with `out`, writes results.json, scores.npz and the results card."""
    metrics = results.compute_metrics()
    build_vggsounder_table(results, metrics).show()
    is_official = results.labels.version != "unknown" and counts["items"] == counts["predicted"]
    card = ResultsCard(
        task=VGGSOUNDER_TASK,
        title="VGGSounder",
        split=f"official labels {results.labels.version}" if is_official else "other videos than the official ones",
        scores=build_vggsounder_scores(results, metrics),
        model=str(model),
        counts=counts,
        files=files,
        seeds={"untrained weights": seed},
        settings={
            **settings,
            "version of the labels": results.labels.version,
            INTERVAL_NAME: f"{len({get_youtube_id(video) for video in results.videos}):,} YouTube videos resampled",
            **read_training_settings(model),
        },
    )
    report_results(metrics, card, out)
    if out is not None:
        arrays = {
            f"{name}_{key}": rows for name, scores in results.systems.items() for key, rows in scores._asdict().items()
        }
        data = io.BytesIO()
        np.savez_compressed(data, videos=np.array(results.videos), classes=np.array(results.labels.classes), **arrays)
        write_bytes_atomically(out / "scores.npz", data.getvalue())
    return metrics


def build_vggsounder_table(results: VGGSounderResults, metrics: Mapping[str, float]) -> Table:
    """F1 and hit rate of the highest score, areas and confusion of each system."""
    table = Table("labels", "system", "videos", "F1@1", "hit@1", "hit@5", "AUC ROC", "AUC PR", title="VGGSounder")
    for subset, title in SUBSET_TITLES.items():
        for system in results.systems:
            key = f"{VGGSOUNDER_TASK}{'' if system == 'trained' else f'.{system}'}.{subset}"
            if f"{key}.f1_1" in metrics:
                names = ("f1_1", "hit_rate_1", "hit_rate_5", "auc_roc", "auc_pr")
                cells = [f"{metrics[f'{key}.{name}']:.4f}" for name in names]
                table.add_row(title, system, f"{metrics[f'{key}.videos']:.0f}", *cells)
    return table


def build_vggsounder_scores(results: VGGSounderResults, metrics: Mapping[str, float]) -> dict[str, ScoreEntry]:
    """The scores of the card. It has none of the paper, whose models are not linear probes of these embeddings."""
    scores: dict[str, ScoreEntry] = {}
    for system in results.systems:
        prefix = VGGSOUNDER_TASK if system == "trained" else f"{VGGSOUNDER_TASK}.{system}"
        suffix = SYSTEM_SUFFIXES[system]
        for subset, title in SUBSET_TITLES.items():
            key = f"{prefix}.{subset}"
            if f"{key}.auc_roc" not in metrics:
                continue
            for k in TOP_K:
                for name, label in ((f"f1_{k}", f"F1@{k}"), (f"hit_rate_{k}", f"hit rate@{k}")):
                    low, high = metrics[f"{key}.{name}.low"], metrics[f"{key}.{name}.high"]
                    scores[f"{label}, {title}{suffix}"] = ScoreEntry(metrics[f"{key}.{name}"], low, high)
            scores[f"AUC ROC, {title}{suffix}"] = ScoreEntry(metrics[f"{key}.auc_roc"])
            scores[f"AUC PR, {title}{suffix}"] = ScoreEntry(metrics[f"{key}.auc_pr"])
        for name, title in CONFUSION_TITLES.items():
            key = f"{prefix}.confusion.{name}"
            entry = ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
            scores[f"modality confusion, {title}{suffix}"] = entry
    return scores
