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
    REASON_UNREADABLE,
    check_readable_classes,
    count_exclusions,
    exclude_unreadable,
    mask_readable,
    report_unreadable,
)

SUBMISSION_FILE = "submission.csv"
REASON_PADDED = "shorter than a window, padded with silence"


@dataclass(frozen=True)
class AudioProbeOptions(ComputeOptions):
    """The options that the audio evaluation commands share.

    Args:
        classifier: "svm" (linear, one-vs-all; the paper's), "logistic", or "mlp" (two hidden layers).
        windows: number of equally spaced windows of each clip; by default two for each second of the first one.
        out: folder for results.json, answers.csv, classes.csv, confusion.png and the results card; nothing is written
            without it.
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
    least_seconds: float = 0.0

    def scores_for(self, how: AudioProbeOptions, features: AudioFeatures) -> Mapping[str, float]:
        """The reported accuracies, if protocol and durations are those of the paper; otherwise none."""
        same = how.classifier == "svm" and features.windows == self.windows
        return self.scores if same and features.seconds.min() >= self.least_seconds else {}


@dataclass(frozen=True)
class AudioDataset:
    """Labeled audio files and their splits.

    Args:
        task: Name on the command line.
        title: Display name.
        split: Name of the test part.
        source: The file that holds the labels, for errors.
        sounds: All clips.
        classes: Class names in the order of their indices.
        rounds: The splits, each with what is fitted and tested.
        files: The files that were read, by role.
        left_out: Number of excluded clips, by reason.
        cell: The papers' accuracies, if clips and splits are the official ones.
        recordings: The recording that each clip was cut from. Without it, clips are independent.
    """

    task: str
    title: str
    split: str
    source: Path
    sounds: Sequence[LabeledAudioFile]
    classes: tuple[str, ...]
    rounds: Sequence[Split]
    files: Mapping[str, Path]
    left_out: Mapping[str, int] = field(default_factory=dict)
    cell: PaperResult | None = None
    recordings: Sequence[str] = ()

    @property
    def truth(self) -> Int[np.ndarray, " sounds"]:
        """The class index of each clip, -1 where it is unknown."""
        number = {name: place for place, name in enumerate(self.classes)}
        return np.array([-1 if s.category is None else number[s.category] for s in self.sounds], dtype=np.int64)

    def check(self) -> bool:
        """Checks that every split fits at least two classes, and every class that it tests.

        Returns:
            Whether the test labels are known.

        Raises:
            DataError: A split is invalid, a file is missing, or only some test clips have a label.
        """
        used = np.any([one.fitted | one.tested for one in self.rounds], axis=0)
        check_audio_files(self.source, [sound.path for sound, use in zip(self.sounds, used, strict=True) if use])
        truth = self.truth
        for one in self.rounds:
            self.check_round(one, truth)
        tested = np.any([one.tested for one in self.rounds], axis=0)
        unknown = [sound.name for sound, number, test in zip(self.sounds, truth, tested, strict=True)
                   if test and number < 0]  # fmt: skip
        if unknown and len(unknown) < tested.sum():
            raise DataError(
                f"{self.source}: {len(unknown)} of {tested.sum()} sounds to test have no class, the first is "
                f"{unknown[0]}; all or none must have one"
            )
        return not unknown

    def without_problems(self, problems: Mapping[int, MediaError]) -> "AudioDataset":
        """The data set without the clips that cannot be read; no paper's accuracy applies to it.

        Raises:
            DataError: A class has no other clip to fit or to test in a split.
        """
        if not problems:
            return self
        classes = [sound.category for sound in self.sounds]
        for one in self.rounds:
            where = f" in fold {one.number}" if one.number else ""
            for side, which in (("to fit", one.fitted), ("to test", one.tested)):
                places = np.flatnonzero(which).tolist()
                theirs = {number: problems[place] for number, place in enumerate(places) if place in problems}
                check_readable_classes(self.source, f"{side}{where}", [classes[place] for place in places], theirs)
        kept = mask_readable(len(self.sounds), problems)
        return replace(
            self,
            sounds=exclude_unreadable(self.sounds, problems),
            recordings=exclude_unreadable(self.recordings, problems),
            rounds=[one.of(kept) for one in self.rounds],
            left_out=count_exclusions(self.left_out, problems),
            cell=None,
        )

    def check_round(self, one: Split, truth: Int[np.ndarray, " sounds"]) -> None:
        """Checks that there are two classes to fit, something to test, and no class that is only tested."""
        where = f"fold {one.number}" if one.number else f"the split {self.split!r}"
        fitted, tested = set(truth[one.fitted].tolist()), set(truth[one.tested].tolist()) - {-1}
        if len(fitted) < 2:
            raise DataError(f"{self.source}: {where} has {len(fitted)} classes to fit; at least two are needed")
        if not one.tested.any():
            raise DataError(f"{self.source}: {where} has nothing to test")
        if tested - fitted:
            name = self.classes[min(tested - fitted)]
            first = next(s.name for s, test in zip(self.sounds, one.tested, strict=True) if test and s.category == name)
            raise DataError(f"{self.source}: class {name!r} of {first} is tested in {where} and has nothing to fit")


def run_audio_probe(data: AudioDataset, model: Path, how: AudioProbeOptions) -> dict[str, float]:
    """Embeds the clips, fits the probes, reports and writes the results; returns flat numbers.

    Raises:
        DataError: The data set cannot be probed, or no file of a class can be read.
    """
    started = time.perf_counter()
    if how.windows is not None and how.windows < 1:
        raise ValueError(f"windows must be at least 1, not {how.windows}")
    labelled, compute, out = data.check(), how.resolve(), how.out
    fits = sum(int(one.fitted.sum()) for one in data.rounds) / len(data.rounds)
    tests = sum(int(one.tested.sum()) for one in data.rounds)
    split = f"{len(data.rounds)} folds" if len(data.rounds) > 1 else f"{fits:,.0f} to fit, {tests:,} to test"
    print_line(f"{data.title}: {len(data.sounds):,} sounds, {split}{format_exclusions(data.left_out)}")
    fitted = np.any([one.fitted for one in data.rounds], axis=0)
    unlabeled = [sound for sound, use in zip(data.sounds, fitted, strict=True) if use]
    features = extract_audio_features(model, data.sounds, unlabeled, how.windows, how.seed, how.workers, compute)
    report_unreadable(features.problems.values())
    data, features = data.without_problems(features.problems), features.without_problems()
    answered = predict_splits(features.systems, data.truth, data.rounds, len(data.classes), how.classifier, how.seed)
    numbers = {"sound.items": float(tests)}
    comparison = compare_audio_systems(data, answered, how)
    if labelled:
        numbers = comparison.numbers()
        comparison.print_table()
    else:
        print_line("The sounds to test have no classes: there are answers, and no score.")
    numbers |= {"sound.left_out": float(sum(data.left_out.values())), "sound.seconds": time.perf_counter() - started}
    if out is not None:
        if labelled:
            comparison.write(out, numbers)
        else:
            write_dcase_submission(out, data, answered)
        counts = count_items(tests, len(answered.items), f"{REASON_UNREADABLE}, to test")
        write_card(build_audio_card(data, model, how, features, answered, numbers, counts, comparison.interval()), out)
    return numbers


def compare_audio_systems(data: AudioDataset, answered: ProbePredictions, how: AudioProbeOptions) -> Comparison:
    """The predictions of each system, compared with the labels."""
    names = tuple(data.sounds[item].name for item in answered.items)
    truth, title = data.truth[answered.items], f"{data.title}, {how.classifier}"
    groups = tuple(data.recordings[item] for item in answered.items) if data.recordings else ()
    rounds, answers, strengths = answered.rounds, answered.answers, answered.strengths
    return Comparison("sound", title, names, data.classes, truth, rounds, answers, strengths, groups)


def write_dcase_submission(out: Path, data: AudioDataset, answered: ProbePredictions) -> None:
    """Writes the trained system's predictions in DCASE's format: file name, tab, class name."""
    text = io.StringIO()
    for item, answer in zip(answered.items, answered.answers["trained"], strict=True):
        text.write(f"{data.sounds[item].name}\t{data.classes[answer]}\n")
    write_bytes_atomically(out / SUBMISSION_FILE, text.getvalue().encode())


def build_audio_card(
    data: AudioDataset, model: Path, how: AudioProbeOptions, features: AudioFeatures,
    answered: ProbePredictions, numbers: Mapping[str, float],
    counts: Mapping[str, int], interval: str,
) -> ResultsCard:  # fmt: skip
    """The results card; it has the papers' numbers where clips, splits and protocol are the papers'."""
    papers = data.cell.scores_for(how, features) if data.cell is not None else {}
    scores: dict[str, ScoreEntry] = {}
    for system in answered.answers:
        key, label = f"sound.{system}", "accuracy" if system == "trained" else f"accuracy {system}"
        if key not in numbers:
            continue
        scores[label] = ScoreEntry(numbers[key], numbers[f"{key}.low"], numbers[f"{key}.high"], papers.get(system))
        if f"{key}.deviation" in numbers:
            scores[label.replace("accuracy", "deviation")] = ScoreEntry(numbers[f"{key}.deviation"])
    if "sound.trained" in numbers:
        folds = [one.number for one in data.rounds if f"sound.trained.fold{one.number}" in numbers]
        scores |= {f"fold {fold}": ScoreEntry(numbers[f"sound.trained.fold{fold}"]) for fold in folds}
        scores["largest class"] = ScoreEntry(numbers["sound.chance"])
    short = int((features.seconds < features.window_seconds).sum())
    counts = {**counts, **data.left_out} | ({REASON_PADDED: short} if short else {})
    penalties = {
        f"C {system}": ", ".join(f"{value:g}" for value in chosen.values())
        for system, chosen in answered.strengths.items()
    }
    return ResultsCard(
        task=data.task,
        title=data.title,
        split=data.split,
        scores=scores,
        model=str(model),
        counts=counts,
        files=data.files,
        seeds={"untrained weights, mlp": how.seed},
        settings={
            "classifier": how.classifier,
            "windows": features.windows,
            "untrained network": features.control,
            INTERVAL_NAME: interval,
            **penalties,
        },
    )
