"""Retrieval of audio by images and of images by audio, on held-out clips (Objects that Sound, section 3.3).

A query is the image or the second of audio of one example of each clip. The own one of the other modality is correct;
other clips of the same source video are no candidates. Recall depends on the size of the gallery, so several sizes are
reported. Where clips have labels, clips of the same class are also counted as relevant (class_ranking.py).

The systems are the model, an untrained network of the same shape, and, with an L3-Net, canonical correlation analysis
between its features, fitted on the training clips: the paper's baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from comodal.console import Table, print_line
from comodal.data.loader import Workers
from comodal.data.shards.clip_labels import read_clip_labels
from comodal.data.shards.dataset_record import format_dataset_record, read_dataset_record
from comodal.data.shards.shard_reader import ShardReader
from comodal.data.sources.split_names import SPLITS
from comodal.errors import CheckpointError, DataError, check_number
from comodal.hardware import Compute, ComputeOptions
from comodal.models.ave_net.ave_net import AVENetConfig
from comodal.models.l3net.clip_classifier import ClipClassifier
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.tasks.correspondence.avc_evaluation import (
    MAX_GALLERY,
    UNTRAINED_SYSTEM,
    build_untrained_control,
    choose_split,
    load_correspondence_model,
    number_sources,
)
from comodal.tasks.correspondence.avc_results import AVC_DIRECTIONS, get_score_entry
from comodal.tasks.correspondence.class_ranking import CLASS_METRICS, find_shared_labels, rank_by_class
from comodal.tasks.correspondence.clip_features import AVCExampleDataset, ExampleFeatures, compute_example_features
from comodal.tasks.correspondence.linear_alignment import LinearAlignment, fit_linear_alignment
from comodal.tasks.correspondence.pair_decisions import compute_margin_matrix, rank_examples
from comodal.tasks.evaluation.metrics import check_finite_scores, compute_bootstrap_interval, describe_intervals
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, report_results
from comodal.tasks.retrieval.retrieval_ranks import RECALL_CUTOFFS, summarize_ranks
from comodal.tasks.retrieval.retrieval_results import RETRIEVAL_TASK

TRAINED_SYSTEM, LINEAR_MAP_SYSTEM = "trained", "linear_map"
MAX_TRAINING_CLIPS = 20_000  # that the linear map is fitted on
Scores = Float[np.ndarray, "images clips"]


@dataclass(frozen=True)
class ClipRetrieval:
    """The options of the retrieval of images and audio.

    Args:
        galleries: Sizes of galleries that are evaluated besides all clips: the first clips, in the order of a hash.
        linear_map: Run or model folder of an L3-Net: a linear map between its features, fitted on the clips of the
            train split, is the baseline.
        clips: Use only this many clips; by default all, at most 20,000.
        workers: Data loader processes; auto: two for a CPU, more for a GPU.
    """

    galleries: Sequence[int] = (100, 1000)
    linear_map: Path | None = None
    clips: int | None = None
    workers: Workers = "auto"

    def check(self) -> None:
        """Raises ValueError if an option is out of range."""
        check_number("clips", 2 if self.clips is None else self.clips, 2, MAX_GALLERY)
        for size in self.galleries:
            check_number("galleries", size, 2, MAX_GALLERY)


@dataclass(frozen=True)
class ClipScores:
    """The scores of all systems on the same clips.

    Args:
        systems: The score of every image with every audio, by system.
        sources: Source video of each clip.
        labels: Labels of each clip.
    """

    systems: Mapping[str, Scores]
    sources: Sequence[str]
    labels: Sequence[tuple[str, ...]]

    def compute_metrics(self, galleries: Sequence[int]) -> dict[str, float]:
        """All metrics: of all clips as NAME, of a smaller gallery of N clips as gallery.N.NAME."""
        count = len(self.sources)
        metrics = self.compute_gallery_metrics(count)
        for size in galleries:
            if size < count:
                metrics |= {f"gallery.{size}.{k}": v for k, v in self.compute_gallery_metrics(size).items()}
        return metrics

    def compute_gallery_metrics(self, size: int) -> dict[str, float]:
        """Recall, ranks, pairwise accuracy and ranking by class in both directions, by system, and the chance level."""
        sources, groups = self.sources[:size], number_sources(list(self.sources))[:size]
        is_candidate = (groups[:, None] != groups) | np.eye(size, dtype=bool)
        has_labels = all(self.labels[:size])
        relevant = find_shared_labels(self.labels[:size]) if has_labels else np.eye(size, dtype=bool)
        metrics: dict[str, float] = {}
        for system, all_scores in self.systems.items():
            scores = all_scores[:size, :size]
            ranks = rank_examples(scores, groups)
            for direction, query_scores in zip(AVC_DIRECTIONS, (scores, scores.T), strict=True):
                prefix = direction if system == TRAINED_SYSTEM else f"{system}.{direction}"
                summary = summarize_ranks(getattr(ranks, direction), sources)
                metrics |= {f"{prefix}.{k}": v for k, v in summary.items() if not k.endswith(".predicted")}
                values = {"pairwise": ranks.compute_pairwise_accuracy(direction)}
                if has_labels:
                    by_class = rank_by_class(query_scores, relevant, is_candidate)
                    values |= dict(zip(CLASS_METRICS, (by_class.precision, by_class.ndcg), strict=True))
                    random = (by_class.random_precision.mean(), by_class.random_ndcg.mean())
                    metrics |= {f"chance_level.{k}": float(v) for k, v in zip(CLASS_METRICS, random, strict=True)}
                for name, one in values.items():
                    low, high = compute_bootstrap_interval(one, np.random.default_rng(0), groups=list(sources))
                    metrics |= {f"{prefix}.{name}": float(one.mean()), f"{prefix}.{name}.low": low}
                    metrics[f"{prefix}.{name}.high"] = high
        candidates = is_candidate.sum(1)
        for cut in RECALL_CUTOFFS:
            metrics[f"chance_level.r{cut}"] = float(np.minimum(cut / candidates, 1.0).mean())
        metrics |= {"chance_level.pairwise": 0.5, "chance_level.median": float(np.median((candidates + 1) / 2))}
        return metrics | {"clips": float(size), "source_videos": float(len(set(sources)))}


def evaluate_clip_retrieval(
    model: Path,
    data: Path,
    split: str | None,
    options: ClipRetrieval,
    compute: ComputeOptions,
    seed: int,
    out: Path | None,
) -> dict[str, float]:
    """Retrieves audio by images and images by audio; see `evaluate_retrieval`."""
    options.check()
    if split is not None and split not in SPLITS:
        raise ValueError(f"a split of shards is one of {', '.join(SPLITS)}, got {split!r}")
    trained, resolved = load_correspondence_model(model), compute.resolve()
    split = split or choose_split(data)
    max_clips = options.clips or MAX_GALLERY
    shards = ShardReader(data / split)
    config = trained.config.l3net if isinstance(trained, ClipClassifier) else trained.config
    examples = open_clip_examples(shards, config, max_clips, seed)
    models = {TRAINED_SYSTEM: trained, UNTRAINED_SYSTEM: build_untrained_control(trained, examples, seed)}
    features = compute_example_features(models, examples, resolved, options.workers).features
    systems = {name: compute_margin_matrix(one, features[name], len(examples)) for name, one in models.items()}
    settings: dict[str, Any] = {"precision": resolved.precision, "fingerprint": shards.fingerprint}
    if options.linear_map is not None:
        l3net = load_l3net_baseline(options.linear_map)
        training = open_clip_examples(ShardReader(data / "train"), l3net.config, MAX_TRAINING_CLIPS, seed)
        alignment = fit_alignment(l3net, training, resolved, options.workers)
        own = open_clip_examples(shards, l3net.config, max_clips, seed)
        found = embed_clips(l3net, own, resolved, options.workers)
        systems[LINEAR_MAP_SYSTEM] = alignment.score_all_pairs(to_numpy(found.image), to_numpy(found.audio))
        settings["linear map"] = f"{options.linear_map}, fitted on {len(training):,} clips of train"
    for name, scores in systems.items():
        check_finite_scores(scores, f"scores of images and audio, {name}")
    labels = read_clip_labels(shards)
    scored = ClipScores(systems, examples.sources, [labels[clip] for clip in examples.clips.tolist()])
    metrics = {f"{RETRIEVAL_TASK}.{k}": v for k, v in scored.compute_metrics(options.galleries).items()}
    build_clip_table(metrics, list(systems)).show()
    record = read_dataset_record(data)
    if record:
        settings["data"] = format_dataset_record(record, split)
        print_line(str(settings["data"]))
    name = record.get("name", data.resolve().name)
    report_results(metrics, build_clip_card(metrics, scored, model, split, seed, settings, name), out)
    return metrics


def open_clip_examples(
    shards: ShardReader, config: L3NetConfig | AVENetConfig, max_clips: int, seed: int
) -> AVCExampleDataset:
    """One example of each clip, in the sizes of a network.

    Raises:
        DataError: The clips are of one source video.
    """
    try:
        return AVCExampleDataset(shards, config, max_clips, 1, seed)
    except DataError as error:
        raise error if str(shards.folder) in str(error) else DataError(f"{shards.folder}: {error}") from error


def load_l3net_baseline(path: Path) -> L3Net:
    """The L3-Net whose features the linear map connects.

    Raises:
        CheckpointError: The folder holds another model.
    """
    model = load_correspondence_model(path)
    if not isinstance(model, L3Net):
        raise CheckpointError(f"{path}: a {type(model).__name__}; --linear-map needs an L3-Net")
    return model


def embed_clips(model: L3Net, examples: AVCExampleDataset, compute: Compute, workers: Workers) -> ExampleFeatures:
    """The features that the fusion network takes."""
    return compute_example_features({"l3net": model}, examples, compute, workers).features["l3net"]


def fit_alignment(model: L3Net, examples: AVCExampleDataset, compute: Compute, workers: Workers) -> LinearAlignment:
    """The linear map between the image and audio features of training clips."""
    features = embed_clips(model, examples, compute, workers)
    return fit_linear_alignment(to_numpy(features.image), to_numpy(features.audio))


def to_numpy(features: Tensor) -> Float[np.ndarray, "rows features"]:
    """Features in fp64."""
    return features.double().cpu().numpy()


def list_shown_metrics(metrics: Mapping[str, float]) -> list[str]:
    """The metrics of a direction that are shown; those by class only where clips have labels."""
    names = [f"r{cut}" for cut in RECALL_CUTOFFS] + ["pairwise"]
    return names + [name for name in CLASS_METRICS if f"{RETRIEVAL_TASK}.chance_level.{name}" in metrics]


def list_galleries(metrics: Mapping[str, float]) -> list[str]:
    """The prefixes of the galleries, the largest first."""
    found = {key.split(".")[2] for key in metrics if key.startswith(f"{RETRIEVAL_TASK}.gallery.")}
    return [f"{RETRIEVAL_TASK}.", *(f"{RETRIEVAL_TASK}.gallery.{n}." for n in sorted(found, key=int, reverse=True))]


def build_clip_table(metrics: Mapping[str, float], systems: Sequence[str]) -> Table:
    """Each gallery, direction and system, compared with the chance level."""
    names = list_shown_metrics(metrics)
    table = Table(title="Retrieval of images and audio", caption="95 %: source videos resampled")
    for heading in ("gallery", "direction", "system"):
        table.add_column(heading)
    for heading in (*(name.upper() if name[1:].isdigit() else name for name in names), "R10, 95 %", "median"):
        table.add_column(heading, right=True)
    for gallery in list_galleries(metrics):
        size = f"{metrics[f'{gallery}clips']:,.0f}"
        for direction in AVC_DIRECTIONS:
            for system in systems:
                key = f"{gallery}{direction}" if system == TRAINED_SYSTEM else f"{gallery}{system}.{direction}"
                interval = f"{metrics[f'{key}.r10.low']:.3f}-{metrics[f'{key}.r10.high']:.3f}"
                values = [f"{metrics[f'{key}.{name}']:.3f}" for name in names]
                table.add_row(
                    size, direction.replace("_", " "), system, *values, interval, f"{metrics[f'{key}.median']:.0f}"
                )
        chance = [f"{metrics[f'{gallery}chance_level.{name}']:.3f}" for name in names]
        table.add_row(size, "", "chance level", *chance, "", f"{metrics[f'{gallery}chance_level.median']:.0f}")
    return table


def build_clip_card(
    metrics: Mapping[str, float],
    scored: ClipScores,
    model: Path,
    split: str,
    seed: int,
    settings: Mapping[str, Any],
    name: str,
) -> ResultsCard:
    """The results card. It has no score of the paper: AudioSet-Instruments is not among the data."""
    scores: dict[str, ScoreEntry] = {}
    names = list_shown_metrics(metrics)
    for gallery in list_galleries(metrics):
        size = f"{metrics[f'{gallery}clips']:,.0f} clips"
        for system in scored.systems:
            prefix, suffix = ("", "") if system == TRAINED_SYSTEM else (f"{system}.", f", {system.replace('_', ' ')}")
            for direction in AVC_DIRECTIONS:
                label = f"{direction.replace('_', ' ')}"
                for metric in names:
                    key = f"{gallery}{prefix}{direction}.{metric}"
                    scores[f"{label} {metric}{suffix}, {size}"] = get_score_entry(metrics, key)
                key = f"{gallery}{prefix}{direction}.median"
                scores[f"{label} median rank{suffix}, {size}"] = ScoreEntry(metrics[key])
        for metric in names:
            scores[f"{metric}, chance level, {size}"] = ScoreEntry(metrics[f"{gallery}chance_level.{metric}"])
    shown = {key: value for key, value in metrics.items() if ".r10" in key and ".gallery." not in key}
    return ResultsCard(
        task=RETRIEVAL_TASK,
        title=f"Retrieval of images and audio, {name}",
        split=split,
        scores=scores,
        model=str(model),
        counts={"items": len(scored.sources), "source videos": len(set(scored.sources))},
        seeds={"examples, untrained": seed},
        settings={
            **settings,
            INTERVAL_NAME: describe_intervals(shown, list(scored.sources), "source videos"),
            **read_training_settings(model),
        },
    )
