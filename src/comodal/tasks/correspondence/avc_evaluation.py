"""Audio-visual correspondence on held-out clips: accuracy, accuracy by class, and cross-modal ranking.

Look, Listen and Learn, table 1: an image and a second of audio, half of the pairs from the same moment of a video and
half from two videos. The paper reports the accuracy alone. Each image and each second of audio is embedded once. Only
the fusion network runs for each pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import nn

from comodal.console import print_line
from comodal.data.loader import Workers
from comodal.data.shards.clip_labels import read_clip_labels
from comodal.data.shards.shard_reader import ShardReader
from comodal.data.sources.split_names import SPLITS
from comodal.errors import CheckpointError, DataError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import Compute, ComputeOptions
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import load_model, make_untrained_copy
from comodal.models.l3net.clip_classifier import ClipClassifier
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.correspondence.avc_results import AVCDecisions, AVCResults, report_avc
from comodal.tasks.correspondence.clip_features import (
    AVCExampleDataset,
    ExampleFeatures,
    compute_example_features,
    read_first_examples,
)
from comodal.tasks.correspondence.pair_decisions import (
    choose_threshold,
    compute_margin_matrix,
    compute_pair_margins,
    draw_example_pairs,
    rank_examples,
)

MAX_GALLERY = 20_000  # whose margins take 1.6 GB
MAX_CALIBRATION_EXAMPLES = 256
MIN_CALIBRATION_EXAMPLES = 32  # one batch of statistics
CALIBRATION_RATIO = 8  # otherwise an eighth of the examples, so that small evaluations do not mostly calibrate
UNTRAINED_SYSTEM = "untrained"


@dataclass(frozen=True)
class AVCEvaluation(ComputeOptions):
    """The options of the evaluation.

    Args:
        split: The split of the shards: train, validation or test.
        examples_per_clip: Examples of each clip, an image with a second of audio each. An example gives one matched
            and one mismatched pair.
        clips: Use only this many clips; by default all.
        gallery: Number of clips of the cross-modal ranking, one example each.
        threshold_split: Split on which the threshold of a pair of classifiers is chosen.
        out: Folder for results.json, classes.csv and the results card; nothing is written without it.
        workers: Data loader processes; auto: two for a CPU, more for a GPU.
        seed: Seed of the examples, the pairs and the untrained network.
    """

    split: str = "test"
    examples_per_clip: int = 4
    clips: int | None = None
    gallery: int = 1000
    threshold_split: str = "validation"
    out: Path | None = None
    workers: Workers = "auto"
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if an option is out of range."""
        check_number("examples_per_clip", self.examples_per_clip, 1, 1000)
        check_number("gallery", self.gallery, 2, MAX_GALLERY)
        check_number("clips", 2 if self.clips is None else self.clips, 2, float("inf"))
        for name in (self.split, self.threshold_split):
            if name not in SPLITS:
                raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {name!r}")


DEFAULT_AVC_EVALUATION = AVCEvaluation()


@flatten_parameters
def evaluate_avc(model: Path, data: Path, evaluation: AVCEvaluation = DEFAULT_AVC_EVALUATION) -> dict[str, float]:
    """Evaluates audio-visual correspondence, with an untrained network of the same shape as a control.

    The ranking searches the own audio of each image among the audio of other clips, and the other way round. Clips of
    the same source video are no candidates. Ties count as ahead of the correct one.

    Args:
        model: Run or model folder of an L3-Net, of an AVE-Net, or of `comodal train clip_classes`, whose decision is
            the scalar product of the two vectors of class probabilities ("supervised direct combination").
        data: Folder written by `comodal prepare`.
        evaluation: The options.

    Returns:
        avc.accuracy with its interval, avc.matched and avc.mismatched, avc.class.NAME where clips have labels, and
        avc.image_to_audio and avc.audio_to_image with recall at 1, 5 and 10, median and mean rank, and the pairwise
        accuracy (the fraction of the other clips that rank behind the correct one, by chance 0.5); the same of the
        untrained network below avc.untrained, and avc.chance_level.

    Raises:
        DataError: The split has too few clips, or cannot be read.
        CheckpointError: The folder holds no such model, or one without a fusion network.

    Examples:
        comodal evaluate avc --model runs/first --data shards/ --out results/avc
        comodal evaluate avc --model runs/classes --data shards/ --split validation --threshold-split train
    """
    evaluation.check()
    trained = load_correspondence_model(model)
    needs_threshold = isinstance(trained, ClipClassifier)
    if needs_threshold and evaluation.threshold_split == evaluation.split:
        raise ValueError(f"--threshold-split {evaluation.split}: the threshold must be chosen on another split")
    compute = evaluation.resolve()
    examples = open_examples(data, evaluation.split, trained, evaluation)
    models = {"trained": trained, UNTRAINED_SYSTEM: build_untrained_control(trained, examples, evaluation.seed)}
    features, seconds = compute_example_features(models, examples, compute, evaluation.workers)
    groups = number_sources(examples.sources)
    pairs = draw_example_pairs(groups, evaluation.seed)
    gallery = min(evaluation.gallery, len(examples))
    thresholds = choose_thresholds(models, data, compute, evaluation) if needs_threshold else dict.fromkeys(models, 0.0)
    systems = {
        name: AVCDecisions(
            compute_pair_margins(one, features[name], pairs) > thresholds[name],
            rank_examples(compute_margin_matrix(one, features[name], gallery), groups[:gallery]),
        )
        for name, one in models.items()
    }
    clip_labels = read_clip_labels(examples.shards)
    labels = [clip_labels[clip] for clip in examples.list_example_clips()]
    results = AVCResults(pairs=pairs, systems=systems, sources=examples.sources, labels=labels, gallery=gallery)
    print_line(
        f"{data / evaluation.split}: {len(examples):,} clips, {examples.num_examples:,} examples, {len(pairs.image):,} "
        f"pairs; {len(pairs.image) / max(seconds, 1e-9):,.0f} pairs a second with {len(models)} networks"
    )
    settings: dict[str, Any] = {
        "examples_per_clip": evaluation.examples_per_clip,
        "gallery": gallery,
        "precision": compute.precision,
        "fingerprint": examples.shards.fingerprint,
    }
    if needs_threshold:
        settings |= {"threshold": thresholds["trained"], "threshold split": evaluation.threshold_split}
    return report_avc(results, model, data, evaluation.split, evaluation.seed, settings, evaluation.out)


def build_untrained_control(trained: nn.Module, examples: AVCExampleDataset, seed: int) -> nn.Module:
    """An untrained network of the same shape, whose batch norms are calibrated on the first examples."""
    untrained = make_untrained_copy(trained, seed)
    count = count_calibration_examples(examples.num_examples)
    calibrate_batch_norms(untrained, untrained, *read_first_examples(examples, count))
    return untrained


def count_calibration_examples(num_examples: int) -> int:
    """The number of examples that calibrate the untrained network: an eighth, from 32 to 256, and at most all."""
    return min(
        num_examples, max(MIN_CALIBRATION_EXAMPLES, min(MAX_CALIBRATION_EXAMPLES, num_examples // CALIBRATION_RATIO))
    )


def load_correspondence_model(path: Path) -> L3Net | AVENet | ClipClassifier:
    """Loads a model that scores pairs.

    Raises:
        CheckpointError: The folder holds another model, or one without a fusion network.
    """
    model = load_model(path)
    if isinstance(model, ClipClassifier):
        return model
    if isinstance(model, AVENet):
        return model
    if not isinstance(model, L3Net):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs an L3Net, an AVENet or a ClipClassifier")
    if not bool(model.fc1.weight.any()):
        raise CheckpointError(f"{path}: it has no fusion network, so it cannot score pairs; OpenL3's files have none")
    return model


def open_examples(
    data: Path, split: str, model: L3Net | AVENet | ClipClassifier, evaluation: AVCEvaluation
) -> AVCExampleDataset:
    """The examples of a split."""
    config = model.config.l3net if isinstance(model, ClipClassifier) else model.config
    folder = data / split
    try:
        return AVCExampleDataset(
            ShardReader(folder), config, evaluation.clips, evaluation.examples_per_clip, evaluation.seed
        )
    except DataError as error:
        raise error if str(folder) in str(error) else DataError(f"{folder}: {error}") from error


def number_sources(sources: list[str]) -> Int64[np.ndarray, " examples"]:
    """The index of the source video of each example."""
    return np.unique(sources, return_inverse=True)[1]


def choose_thresholds(
    models: Mapping[str, nn.Module], data: Path, compute: Compute, evaluation: AVCEvaluation
) -> dict[str, float]:
    """The threshold of each model, of the highest accuracy on the pairs of another split."""
    trained = models["trained"]
    assert isinstance(trained, ClipClassifier)
    examples = open_examples(data, evaluation.threshold_split, trained, evaluation)
    features: dict[str, ExampleFeatures]
    features, _ = compute_example_features(models, examples, compute, evaluation.workers)
    pairs = draw_example_pairs(number_sources(examples.sources), evaluation.seed)
    return {
        name: choose_threshold(compute_pair_margins(one, features[name], pairs), pairs.is_match)
        for name, one in models.items()
    }
