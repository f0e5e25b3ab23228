"""Linear probing of a labeled audio data set by L3-Net's protocol (section 4.2), for ESC-50, DCASE and UrbanSound8K.

A reader lists the clips and their splits. This module embeds them, fits a probe for each split, and reports the
accuracy of each fold, mean and std, a confusion matrix, per-class scores and a results card. Where the test labels are
unknown, the predictions are written and there is no score.
"""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from comodal.console import print_line
from comodal.errors import DataError, MediaError
from comodal.files import write_bytes_atomically
from comodal.hardware import ComputeOptions
from comodal.tasks.audio.audio_features import AudioFeatures, LabeledAudioFile, extract_audio_features
from comodal.tasks.audio.audio_tables import check_audio_files
from comodal.tasks.evaluation.cross_validation import AnyClassifier, ProbePredictions, Split, predict_splits
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME, count_items
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, format_exclusions, write_card
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.tasks.evaluation.unreadable_files import (
    check_readable_classes,
    count_exclusions,
    exclude_unreadable,
    mask_readable,
)
from comodal.training.run_log import REASON_UNREADABLE, report_unreadable

SUBMISSION_FILE = "submission.csv"
REASON_PADDED = "shorter than a window, padded with silence"


@dataclass(frozen=True)
class AudioProbeOptions(ComputeOptions):
    """The options that the audio evaluation commands share.

    Args:
        classifier: "svm" (linear, one-vs-all; the paper's), "logistic", or "mlp" (two hidden layers).
        windows: number of equally spaced windows of each clip; by default two for each second of the first one.
        out: folder for results.json, predictions.csv, classes.csv, confusion.png and the results card; nothing is
            written without it.
        seed: seed of the untrained network's weights and of the mlp.
        workers: threads that read audio files.
    """

    classifier: AnyClassifier = "svm"
    windows: int | None = None
    out: Path | None = None
    seed: int = 0
    workers: int = 2


class PaperResult(NamedTuple):
    """The accuracies reported in papers, and the protocol and clip duration that they hold for."""

    scores: Mapping[str, float]
    windows: int
    min_seconds: float = 0.0

    def get_scores(self, options: AudioProbeOptions, features: AudioFeatures) -> Mapping[str, float]:
        """The reported accuracies, if protocol and durations are those of the paper; otherwise none."""
        is_same_protocol = options.classifier == "svm" and features.windows == self.windows
        return self.scores if is_same_protocol and features.seconds.min() >= self.min_seconds else {}


@dataclass(frozen=True)
class AudioDataset:
    """Labeled audio files and their splits.

    Args:
        task: Name on the command line.
        title: Display name.
        split: Name of the test part.
        source: The file that holds the labels, for errors.
        audio_files: All clips.
        classes: Class names in the order of their indices.
        splits: The splits, each with what is fitted and tested.
        files: The files that were read, by role.
        excluded: Number of excluded clips, by reason.
        paper_result: The papers' accuracies, if clips and splits are the official ones.
        recordings: The recording that each clip was cut from. Without it, clips are independent.
    """

    task: str
    title: str
    split: str
    source: Path
    audio_files: Sequence[LabeledAudioFile]
    classes: tuple[str, ...]
    splits: Sequence[Split]
    files: Mapping[str, Path]
    excluded: Mapping[str, int] = field(default_factory=dict)
    paper_result: PaperResult | None = None
    recordings: Sequence[str] = ()

    @property
    def truth(self) -> Int[np.ndarray, " clips"]:
        """The class index of each clip, -1 where it is unknown."""
        class_ids = {name: index for index, name in enumerate(self.classes)}
        return np.array([-1 if s.category is None else class_ids[s.category] for s in self.audio_files], dtype=np.int64)

    def check(self) -> bool:
        """Checks that every split fits at least two classes, and every class that it tests.

        Returns:
            Whether the test labels are known.

        Raises:
            DataError: A split is invalid, a file is missing, or only some test clips have a label.
        """
        is_split_member = np.any([split.train_mask | split.test_mask for split in self.splits], axis=0)
        check_audio_files(
            self.source,
            [audio_file.path for audio_file, is_used in zip(self.audio_files, is_split_member, strict=True) if is_used],
        )
        truth = self.truth
        for split in self.splits:
            self.check_split(split, truth)
        is_tested = np.any([split.test_mask for split in self.splits], axis=0)
        unknown = [
            audio_file.name
            for audio_file, class_id, is_test in zip(self.audio_files, truth, is_tested, strict=True)
            if is_test and class_id < 0
        ]
        if unknown and len(unknown) < is_tested.sum():
            raise DataError(
                f"{self.source}: {len(unknown)} of {is_tested.sum()} test files have no class, the first is "
                f"{unknown[0]}; either all or none must have one"
            )
        return not unknown

    def without_problems(self, problems: Mapping[int, MediaError]) -> "AudioDataset":
        """The data set without the clips that cannot be read; no paper's accuracy applies to it.

        Raises:
            DataError: A class has no other clip to fit or to test in a split.
        """
        if not problems:
            return self
        classes = [audio_file.category for audio_file in self.audio_files]
        for split in self.splits:
            fold_text = f" in fold {split.fold}" if split.fold else ""
            for part_name, mask in (("to fit", split.train_mask), ("to test", split.test_mask)):
                indices = np.flatnonzero(mask).tolist()
                part_problems = {
                    position: problems[index] for position, index in enumerate(indices) if index in problems
                }
                check_readable_classes(
                    self.source, f"{part_name}{fold_text}", [classes[index] for index in indices], part_problems
                )
        is_readable = mask_readable(len(self.audio_files), problems)
        return replace(
            self,
            audio_files=exclude_unreadable(self.audio_files, problems),
            recordings=exclude_unreadable(self.recordings, problems),
            splits=[split.select(is_readable) for split in self.splits],
            excluded=count_exclusions(self.excluded, problems),
            paper_result=None,
        )

    def check_split(self, split: Split, truth: Int[np.ndarray, " clips"]) -> None:
        """Checks that there are two classes to fit, something to test, and no class that is only tested."""
        split_name = f"fold {split.fold}" if split.fold else f"the split {self.split!r}"
        train_classes, test_classes = set(truth[split.train_mask].tolist()), set(truth[split.test_mask].tolist()) - {-1}
        if len(train_classes) < 2:
            raise DataError(
                f"{self.source}: {split_name} has {len(train_classes)} classes to fit; at least two are needed"
            )
        if not split.test_mask.any():
            raise DataError(f"{self.source}: {split_name} has nothing to test")
        if test_classes - train_classes:
            name = self.classes[min(test_classes - train_classes)]
            first = next(
                s.name
                for s, is_test in zip(self.audio_files, split.test_mask, strict=True)
                if is_test and s.category == name
            )
            raise DataError(
                f"{self.source}: class {name!r} of {first} is tested in {split_name} and has nothing to fit"
            )


def run_audio_probe(data: AudioDataset, model: Path, options: AudioProbeOptions) -> dict[str, float]:
    """Embeds the clips, fits the probes, reports and writes the results; returns a flat dict of metrics.

    Raises:
        DataError: The data set cannot be probed, or no file of a class can be read.
    """
    start_seconds = time.perf_counter()
    if options.windows is not None and options.windows < 1:
        raise ValueError(f"windows must be at least 1, not {options.windows}")
    has_labels, compute, out = data.check(), options.resolve(), options.out
    num_test = sum(int(fold_split.test_mask.sum()) for fold_split in data.splits)
    print_audio_dataset(data, num_test)
    train_mask = np.any([fold_split.train_mask for fold_split in data.splits], axis=0)
    unlabeled = [audio_file for audio_file, is_used in zip(data.audio_files, train_mask, strict=True) if is_used]
    features = extract_audio_features(
        model, data.audio_files, unlabeled, options.windows, options.seed, options.workers, compute
    )
    report_unreadable(features.problems.values())
    data, features = data.without_problems(features.problems), features.without_problems()
    predictions = predict_splits(
        features.systems, data.truth, data.splits, len(data.classes), options.classifier, options.seed
    )
    metrics = {"audio.items": float(num_test)}
    comparison = compare_audio_systems(data, predictions, options)
    if has_labels:
        metrics = comparison.compute_metrics()
        comparison.print_table()
    else:
        print_line("The test files have no classes: predictions are written, but no score.")
    metrics |= {
        "audio.excluded": float(sum(data.excluded.values())),
        "audio.seconds": time.perf_counter() - start_seconds,
    }
    if out is not None:
        if has_labels:
            comparison.write_files(out, metrics)
        else:
            write_dcase_submission(out, data, predictions)
        counts = count_items(num_test, len(predictions.items), f"{REASON_UNREADABLE}, to test")
        write_card(
            build_audio_card(
                data, model, options, features, predictions, metrics, counts, comparison.describe_intervals(metrics)
            ),
            out,
        )
    return metrics


def print_audio_dataset(data: AudioDataset, num_test: int) -> None:
    """Prints the number of files and of folds; of a single fold, its parts."""
    num_train = int(data.splits[0].train_mask.sum())
    split = f"{len(data.splits)} folds" if len(data.splits) > 1 else f"{num_train:,} to fit, {num_test:,} to test"
    print_line(f"{data.title}: {len(data.audio_files):,} audio files, {split}{format_exclusions(data.excluded)}")


def compare_audio_systems(data: AudioDataset, predictions: ProbePredictions, options: AudioProbeOptions) -> Comparison:
    """The predictions of each system, compared with the labels."""
    names = tuple(data.audio_files[item].name for item in predictions.items)
    truth, title = data.truth[predictions.items], f"{data.title}, {options.classifier}"
    groups = tuple(data.recordings[item] for item in predictions.items) if data.recordings else ()
    folds, classes_by_system, c_values = predictions.folds, predictions.predictions, predictions.c_values
    return Comparison("audio", title, names, data.classes, truth, folds, classes_by_system, c_values, groups)


def write_dcase_submission(out: Path, data: AudioDataset, predictions: ProbePredictions) -> None:
    """Writes the trained system's predictions in DCASE's format: file name, tab, class name."""
    text = io.StringIO()
    for item, class_id in zip(predictions.items, predictions.predictions["trained"], strict=True):
        text.write(f"{data.audio_files[item].name}\t{data.classes[class_id]}\n")
    write_bytes_atomically(out / SUBMISSION_FILE, text.getvalue().encode())


def build_audio_scores(
    systems: Sequence[str], metrics: Mapping[str, float], paper_scores: Mapping[str, float], folds: Sequence[object]
) -> dict[str, ScoreEntry]:
    """The scores of each system with their intervals, those of each fold, and the chance level."""
    scores: dict[str, ScoreEntry] = {}
    for system in systems:
        key, label = f"audio.{system}", "accuracy" if system == "trained" else f"accuracy {system}"
        if key not in metrics:
            continue
        scores[label] = ScoreEntry(
            metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"], paper_scores.get(system)
        )
        if f"{key}.std" in metrics:
            scores[label.replace("accuracy", "std")] = ScoreEntry(metrics[f"{key}.std"])
    if "audio.trained" in metrics:
        keys = {f"fold {fold}": f"audio.trained.fold{fold}" for fold in folds}
        scores |= {label: ScoreEntry(metrics[key]) for label, key in keys.items() if key in metrics}
        scores["largest class"] = ScoreEntry(metrics["audio.chance_level"])
    return scores


def build_audio_card(
    data: AudioDataset, model: Path, options: AudioProbeOptions, features: AudioFeatures,
    predictions: ProbePredictions, metrics: Mapping[str, float],
    counts: Mapping[str, int], interval: str | None,
) -> ResultsCard:  # fmt: skip
    """The results card; it has the papers' scores where clips, splits and protocol are the papers'."""
    paper_scores = data.paper_result.get_scores(options, features) if data.paper_result is not None else {}
    folds = [split.fold for split in data.splits]
    scores = build_audio_scores(tuple(predictions.predictions), metrics, paper_scores, folds)
    num_short = int((features.seconds < features.window_seconds).sum())
    counts = {**counts, **data.excluded} | ({REASON_PADDED: num_short} if num_short else {})
    c_settings = {
        f"C {system}": ", ".join(f"{value:g}" for value in c_by_fold.values())
        for system, c_by_fold in predictions.c_values.items()
    }
    return ResultsCard(
        task=data.task,
        title=data.title,
        split=data.split,
        scores=scores,
        model=str(model),
        counts=counts,
        files=data.files,
        seeds={"untrained weights, mlp": options.seed},
        settings={
            "classifier": options.classifier,
            "windows": features.windows,
            "untrained network": features.control,
            **({} if interval is None else {INTERVAL_NAME: interval}),
            **c_settings,
        },
    )
