"""Audio-visual event localization on the AVE dataset (Tian et al., ECCV 2018): the event of each second of a video.

A linear probe classifies each second from the embeddings of its audio and of its middle frame, as one of 28 categories
or background. It is fitted on the official training list; its C is chosen on the official validation list. The accuracy
over the seconds of the test list is that of the authors' code (`compute_acc` of YapengTian/AVE-ECCV18). Their networks
are recurrent and attend to positions of the frame; a probe of single seconds is neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from comodal.console import print_line
from comodal.errors import DataError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.tasks.clip_events.ave_lists import (
    AVE_LISTS,
    BACKGROUND,
    VIDEO_SECONDS,
    VideoEvent,
    encode_labels,
    is_official_ave,
    list_classes,
    read_ave_lists,
)
from comodal.tasks.clip_events.second_embeddings import (
    EmbeddedVideos,
    VideoFile,
    build_untrained_embedder,
    embed_videos,
    index_videos,
    load_embedding_model,
)
from comodal.tasks.evaluation.linear_probe import (
    LINEAR_PROBE_C_VALUES,
    MAX_FIT_ITERATIONS,
    Classifier,
    LinearProbeProblem,
    choose_c,
)
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME
from comodal.tasks.evaluation.results_card import (
    ResultsCard,
    ScoreEntry,
    read_training_settings,
    write_card,
)
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.training.run_log import REASON_UNREADABLE, report_unreadable

AVE_TASK = "ave"
VIDEO_FOLDER = "AVE"
REASON_MISSING_VIDEO = "video is missing"
MAX_WORKERS = 64


@dataclass(frozen=True)
class AVEEvaluation(ComputeOptions):
    """The options of the evaluation.

    Args:
        classifier: svm (linear, one-vs-all) or logistic.
        out: Folder for results.json, predictions.csv, classes.csv, confusion.png and the results card; nothing is
            written without it.
        workers: Threads that read videos.
        seed: Seed of the untrained network.
    """

    classifier: Classifier = "logistic"
    out: Path | None = None
    workers: int = 2
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if an option is out of range."""
        check_number("workers", self.workers, 1, MAX_WORKERS)


DEFAULT_AVE_EVALUATION = AVEEvaluation()


class LabeledSeconds(NamedTuple):
    """The events of a split whose video can be read, with the index of their video and the class of each second."""

    events: list[VideoEvent]
    videos: list[int]
    labels: Int[np.ndarray, "events seconds"]


@flatten_parameters
def evaluate_ave(model: Path, data: Path, evaluation: AVEEvaluation = DEFAULT_AVE_EVALUATION) -> dict[str, float]:
    """Classifies the event of each second of the AVE dataset, from frozen embeddings of audio and image.

    Args:
        model: Run or model folder of an L3-Net, an AVE-Net or an AVOL-Net.
        data: The folder of the dataset: AVE/ with the videos, trainSet.txt, valSet.txt and testSet.txt.
        evaluation: The options.

    Returns:
        ave.trained, the accuracy over seconds with its interval by video; the same from one modality, ave.audio and
        ave.image, and of an untrained network, ave.untrained; and ave.chance_level, the largest class.

    Raises:
        DataError: A list is missing or damaged, or no video of a class can be read.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate ave --model runs/l3net --data AVE_Dataset/ --out results/ave
    """
    evaluation.check()
    trained, compute = load_embedding_model(model), evaluation.resolve()
    events = read_ave_lists(data)
    classes = list_classes(events["train"])
    names, files = find_event_videos(data, events)
    untrained = build_untrained_embedder(trained, files, VIDEO_SECONDS, evaluation.seed)
    networks = {"trained": trained, "untrained": untrained}
    embedded = embed_videos(networks, files, VIDEO_SECONDS, compute, evaluation.workers)
    report_unreadable(embedded.problems.values())
    is_readable = [index not in embedded.problems for index in range(len(files))]
    rows = {name: index for index, name in enumerate(names) if is_readable[index]}
    splits = {split: select_events(part, rows, classes) for split, part in events.items()}
    check_split_classes(data, events, splits)
    print_line(
        f"AVE: {', '.join(f'{len(part.events):,} of {len(events[split]):,} {split}' for split, part in splits.items())}"
        f" events, {len(rows):,} videos, {len(classes) - 1} categories"
    )
    predictions, c_values = {}, {}
    for system, features in list_systems(embedded).items():
        predictions[system], c_values[system] = classify_seconds(features, splits, len(classes), evaluation.classifier)
    test = splits["test"]
    comparison = Comparison(
        AVE_TASK,
        f"AVE, {evaluation.classifier}",
        tuple(f"{event.video} {second}" for event in test.events for second in range(VIDEO_SECONDS)),
        classes,
        test.labels.reshape(-1),
        np.zeros(test.labels.size, dtype=np.int64),
        predictions,
        {system: {0: C} for system, C in c_values.items()},
        tuple(event.video for event in test.events for _ in range(VIDEO_SECONDS)),
        "videos",
    )
    metrics = comparison.compute_metrics()
    comparison.print_table()
    if evaluation.out is not None:
        comparison.write_files(evaluation.out, metrics)
        card = build_ave_card(data, model, events, splits, embedded, comparison, metrics, evaluation)
        write_card(card, evaluation.out)
    return metrics


def find_event_videos(data: Path, events: Mapping[str, Sequence[VideoEvent]]) -> tuple[list[str], list[VideoFile]]:
    """The names of the videos of all lists that are in the folder, training videos first, and their files.

    Raises:
        DataError: There is no such folder, or it has none of them.
    """
    files = index_videos(data / VIDEO_FOLDER)
    names = list(dict.fromkeys(event.video for part in events.values() for event in part if event.video in files))
    if not names:
        raise DataError(f"{data / VIDEO_FOLDER}: none of the videos of the lists is in it")
    return names, [files[name] for name in names]


def select_events(events: Sequence[VideoEvent], rows: Mapping[str, int], classes: Sequence[str]) -> LabeledSeconds:
    """The events whose video has a row."""
    chosen = [event for event in events if event.video in rows]
    return LabeledSeconds(chosen, [rows[event.video] for event in chosen], encode_labels(chosen, classes))


def check_split_classes(
    data: Path, events: Mapping[str, Sequence[VideoEvent]], splits: Mapping[str, LabeledSeconds]
) -> None:
    """Checks that each split still has each of its categories.

    Raises:
        DataError: A category has no video that can be read.
    """
    for split, part in splits.items():
        lost = {event.category for event in events[split]} - {event.category for event in part.events}
        if lost:
            raise DataError(f"{data / AVE_LISTS[split]}: no video of the category {min(lost)!r} can be read")


def list_systems(embedded: EmbeddedVideos) -> dict[str, Float[Tensor, "videos seconds features"]]:
    """The features of the compared systems."""
    trained = embedded.features["trained"]
    return {
        "trained": trained.concatenate(),
        "audio": trained.audio,
        "image": trained.image,
        "untrained": embedded.features["untrained"].concatenate(),
    }


def classify_seconds(
    features: Float[Tensor, "videos seconds features"],
    splits: Mapping[str, LabeledSeconds],
    classes: int,
    classifier: Classifier,
) -> tuple[Int[np.ndarray, " items"], float]:
    """The class of each second of the test list by a linear probe, and its C, chosen on the validation list."""
    rows = {split: features[part.videos].flatten(0, 1)[:, None] for split, part in splits.items()}
    targets = {split: torch.from_numpy(part.labels.reshape(-1)) for split, part in splits.items()}
    fitted = ("train", "validation")
    is_validation = np.repeat([0, 1], [len(rows[split]) for split in fitted])

    def build_problem(items: Tensor, target: Tensor) -> LinearProbeProblem:
        return LinearProbeProblem(items, target, classes, classifier)

    both = torch.cat([rows[split] for split in fitted]), torch.cat([targets[split] for split in fitted])
    C = choose_c(*both, is_validation, (1,), build_problem, LINEAR_PROBE_C_VALUES)
    probe = build_problem(rows["train"], targets["train"]).fit(C, MAX_FIT_ITERATIONS)
    return probe.predict(rows["test"]), C


def build_ave_card(
    data: Path,
    model: Path,
    events: Mapping[str, Sequence[VideoEvent]],
    splits: Mapping[str, LabeledSeconds],
    embedded: EmbeddedVideos,
    comparison: Comparison,
    metrics: Mapping[str, float],
    evaluation: AVEEvaluation,
) -> ResultsCard:
    """The results card. It has no score of the paper, whose networks are not linear probes of single seconds."""
    scores = {}
    for system in comparison.predictions:
        key, label = f"{AVE_TASK}.{system}", "accuracy" if system == "trained" else f"accuracy, {system}"
        scores[label] = ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
    scores["largest class"] = ScoreEntry(metrics[f"{AVE_TASK}.chance_level"])
    train_videos = {event.video for event in events["train"]}
    is_complete = all(len(splits[split].events) == len(events[split]) for split in events)
    num_missing = sum(len(part) for part in events.values()) - sum(len(part.events) for part in splits.values())
    lost = {REASON_MISSING_VIDEO + " or " + REASON_UNREADABLE + ", events": num_missing} if num_missing else {}
    interval = comparison.describe_intervals(metrics)
    return ResultsCard(
        task=AVE_TASK,
        title="AVE, event of each second",
        split="official test list" if is_complete and is_official_ave(events) else "test list, not the official",
        scores=scores,
        model=str(model),
        counts={
            "items": len(events["test"]) * VIDEO_SECONDS,
            "predicted": len(comparison.items),
            "test videos that are also in the training list": len(
                {event.video for event in events["test"]} & train_videos
            ),
            "videos shorter than ten seconds, padded": embedded.num_padded,
            **lost,
        },
        files={split: data / name for split, name in AVE_LISTS.items()},
        seeds={"untrained weights": evaluation.seed},
        settings={
            "classifier": evaluation.classifier,
            "classes": f"{len(comparison.classes) - 1} categories and {BACKGROUND}",
            **{f"C {system}": c_by_fold[0] for system, c_by_fold in comparison.c_values.items()},
            **({} if interval is None else {INTERVAL_NAME: interval}),
            **read_training_settings(model),
        },
    )
