"""The results of sound source localization: metrics with intervals by video, a table, files and the results card."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from comodal.console import Table
from comodal.files import write_bytes_atomically
from comodal.tasks.correspondence.avc_results import get_score_entry
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval, describe_intervals
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.localization.localization_metrics import SUCCESS_CIOU, compute_curve_areas, compute_harmonic_mean
from comodal.tasks.localization.localization_scores import LocalizationScores, NegativeScores
from comodal.tasks.localization.sounding_boxes import LocalizationSet, SoundingImage

LOCALIZATION_TASK = "localization"
SYSTEM_LABELS = {
    "trained": "",
    "offscreen": ", off-screen audio",
    "untrained": ", untrained",
    "center": ", center of the image",
    "random": ", random map",
}


@dataclass(frozen=True)
class LocalizationResults:
    """The scores of a test set.

    Args:
        dataset: The test set.
        images: The images that were scored.
        scores: Their scores.
        excluded: Number of images that were not scored, by reason.
    """

    dataset: LocalizationSet
    images: Sequence[SoundingImage]
    scores: LocalizationScores
    excluded: Mapping[str, int]

    @property
    def videos(self) -> list[str]:
        """The video of each image, whose images are resampled together."""
        return [image.video for image in self.images]

    def compute_metrics(self) -> dict[str, float]:
        """All numbers by name; fractions are from 0 to 1."""
        flat: dict[str, float] = {}
        for system, ciou in self.scores.ciou.items():
            prefix = LOCALIZATION_TASK if system == "trained" else f"{LOCALIZATION_TASK}.{system}"
            flat |= self.compute_interval(f"{prefix}.ciou", ciou >= SUCCESS_CIOU)
            flat |= self.compute_interval(f"{prefix}.auc", compute_curve_areas(ciou))
        for name, negatives in self.scores.negatives.items():
            prefix = LOCALIZATION_TASK if name == "trained" else f"{LOCALIZATION_TASK}.{name}"
            flat |= self.compute_negative_metrics(prefix, negatives)
        flat[f"{LOCALIZATION_TASK}.images"] = float(len(self.images))
        return flat

    def compute_negative_metrics(self, prefix: str, negatives: NegativeScores) -> dict[str, float]:
        """The metrics with one threshold for all images; the last two combine positive and negative audio."""
        flat = {f"{prefix}.threshold": negatives.threshold}
        flat |= self.compute_interval(f"{prefix}.ciou_at_threshold", negatives.ciou)
        flat |= self.compute_interval(f"{prefix}.auc_at_threshold", compute_curve_areas(negatives.ciou))
        curve_areas = []
        for kind, areas in negatives.areas.items():
            curve_areas.append(compute_curve_areas(areas, is_negative=True))
            flat |= self.compute_interval(f"{prefix}.{kind}.pia", areas)
            flat |= self.compute_interval(f"{prefix}.{kind}.auc_n", curve_areas[-1])
        mean_area, mean_auc = float(np.mean(list(negatives.areas.values()))), float(np.mean(curve_areas))
        flat[f"{prefix}.f_ciou"] = compute_harmonic_mean(flat[f"{prefix}.ciou_at_threshold"], 1.0 - mean_area)
        flat[f"{prefix}.f_auc"] = compute_harmonic_mean(flat[f"{prefix}.auc_at_threshold"], mean_auc)
        return flat

    def compute_interval(self, key: str, values: Float[np.ndarray, " images"] | np.ndarray) -> dict[str, float]:
        """The mean of a value of each image, with its interval by video."""
        low, high = compute_bootstrap_interval(values, np.random.default_rng(0), groups=self.videos)
        return {key: float(values.mean()), f"{key}.low": low, f"{key}.high": high}


def report_localization(
    results: LocalizationResults, model: Path, settings: Mapping[str, Any], seed: int, out: Path | None
) -> dict[str, float]:
    """Prints the scores; with `out`, writes results.json, images.csv and the results card."""
    metrics = results.compute_metrics()
    build_localization_table(results, metrics).show()
    report_results(metrics, build_localization_card(results, metrics, model, settings, seed), out)
    if out is not None:
        write_bytes_atomically(out / "images.csv", format_image_table(results).encode("utf-8", "backslashreplace"))
    return metrics


def build_localization_table(results: LocalizationResults, metrics: Mapping[str, float]) -> Table:
    """cIoU and AUC of the network and its controls."""
    table = Table("system", "cIoU >= 0.5", "95 %", "AUC", "95 %", title=results.dataset.title)
    for system, label in SYSTEM_LABELS.items():
        prefix = LOCALIZATION_TASK if system == "trained" else f"{LOCALIZATION_TASK}.{system}"
        cells = [label.removeprefix(", ") or "trained"]
        for key in (f"{prefix}.ciou", f"{prefix}.auc"):
            cells += [f"{metrics[key]:.4f}", f"{metrics[f'{key}.low']:.3f}-{metrics[f'{key}.high']:.3f}"]
        table.add_row(*cells)
    return table


def format_image_table(results: LocalizationResults) -> str:
    """One row for each image: name, class, video, cIoU of each system, and pIA of the network by negative audio."""
    text = io.StringIO()
    rows = csv.writer(text)
    systems, negatives = results.scores.ciou, results.scores.negatives["trained"].areas
    rows.writerow(
        ["image", "class", "video", *(f"ciou {name}" for name in systems), *(f"pia {kind}" for kind in negatives)]
    )
    for index, image in enumerate(results.images):
        values = [column[index] for column in (*systems.values(), *negatives.values())]
        rows.writerow([image.name, image.category or "", image.video, *(f"{value:.4f}" for value in values)])
    return text.getvalue()


def build_localization_card(
    results: LocalizationResults,
    metrics: Mapping[str, float],
    model: Path,
    settings: Mapping[str, Any],
    seed: int,
) -> ResultsCard:
    """The results card. It has no score of a paper, for none evaluates these networks on these sets."""
    scores: dict[str, ScoreEntry] = {}
    for system, label in SYSTEM_LABELS.items():
        prefix = LOCALIZATION_TASK if system == "trained" else f"{LOCALIZATION_TASK}.{system}"
        scores[f"cIoU >= {SUCCESS_CIOU}{label}"] = get_score_entry(metrics, f"{prefix}.ciou")
        scores[f"AUC{label}"] = get_score_entry(metrics, f"{prefix}.auc")
    for name, negatives in results.scores.negatives.items():
        prefix = LOCALIZATION_TASK if name == "trained" else f"{LOCALIZATION_TASK}.{name}"
        label = SYSTEM_LABELS[name]
        scores[f"mean cIoU, one threshold{label}"] = get_score_entry(metrics, f"{prefix}.ciou_at_threshold")
        scores[f"AUC, one threshold{label}"] = get_score_entry(metrics, f"{prefix}.auc_at_threshold")
        for kind in negatives.areas:
            scores[f"pIA, {kind}{label}"] = get_score_entry(metrics, f"{prefix}.{kind}.pia")
            scores[f"AUC_N, {kind}{label}"] = get_score_entry(metrics, f"{prefix}.{kind}.auc_n")
        scores[f"harmonic mean of cIoU and 1 - pIA{label}"] = ScoreEntry(metrics[f"{prefix}.f_ciou"])
        scores[f"harmonic mean of AUC and AUC_N{label}"] = ScoreEntry(metrics[f"{prefix}.f_auc"])
    dataset, is_whole = results.dataset, not results.excluded
    interval = describe_intervals(
        {key: value for key, value in metrics.items() if ".auc" in key}, results.videos, "videos", is_graded=True
    )
    return ResultsCard(
        task=LOCALIZATION_TASK,
        title=dataset.title,
        split="official test set" if dataset.is_official and is_whole else "other images than the official test set",
        scores=scores,
        model=str(model),
        counts={
            "items": len(dataset.images),
            "predicted": len(results.images),
            "videos": len(set(results.videos)),
            **results.excluded,
        },
        files=dataset.files,
        seeds={"noise, off-screen audio, random map, untrained": seed},
        settings={
            **settings,
            "threshold": metrics[f"{LOCALIZATION_TASK}.threshold"],
            **({} if interval is None else {INTERVAL_NAME: interval}),
            **read_training_settings(model),
        },
    )
