"""Multi-label classification of VGGSounder's videos (Zverev et al., ICCV 2025) by linear probes on frozen embeddings.

VGGSounder relabels VGGSound's test videos with several classes each, and says of each label whether it is audible,
visible or both. Three probes are fitted on VGGSound's training videos, which have one label each: on the embeddings of
the audio, of the frames, and of both. A video's embedding is the mean over its ten seconds. The scores are compared
with the labels as in the package's benchmark: the audio probe with the audible labels (a), the image probe with the
visible ones (v), both with the labels that are audible and visible (av).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comodal.console import print_line
from comodal.errors import DataError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.tasks.clip_events.second_embeddings import (
    EmbeddedVideos,
    build_untrained_embedder,
    embed_videos,
    index_videos,
    load_embedding_model,
)
from comodal.tasks.clip_events.vggsounder_labels import (
    VGGSounderLabels,
    get_youtube_id,
    read_training_clips,
    read_vggsounder,
)
from comodal.tasks.clip_events.vggsounder_results import ModalityScores, VGGSounderResults, report_vggsounder
from comodal.tasks.evaluation.cross_validation import assign_folds, select_usable_folds
from comodal.tasks.evaluation.linear_probe import Classifier, fit_probe
from comodal.training.run_log import REASON_UNREADABLE, report_unreadable

CLIP_SECONDS = 10
PROBE_INPUTS = ("a", "v", "av")
HELD_OUT_FOLDS = (0,)  # of five: a fit of many clips is slow
REASON_MISSING_VIDEO = "video is missing"
MAX_WORKERS = 64


@dataclass(frozen=True)
class VGGSounderEvaluation(ComputeOptions):
    """The options of the evaluation.

    Args:
        classifier: logistic or svm (linear, one-vs-all).
        out: Folder for results.json, scores.npz and the results card; nothing is written without it.
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


DEFAULT_VGGSOUNDER_EVALUATION = VGGSounderEvaluation()


class ClipVideos(NamedTuple):
    """The videos that can be read: rows of the embeddings and classes of training clips, rows and names of test
    clips.
    """

    train_rows: list[int]
    train_names: list[str]
    train_labels: list[str]
    test_rows: list[int]
    test_names: list[str]


@flatten_parameters
def evaluate_vggsounder(
    model: Path,
    data: Path,
    labels: Path,
    train_list: Path,
    evaluation: VGGSounderEvaluation = DEFAULT_VGGSOUNDER_EVALUATION,
) -> dict[str, float]:
    """Classifies VGGSounder's videos with several labels each, from frozen embeddings of audio and image.

    Args:
        model: Run or model folder of an L3-Net, an AVE-Net or an AVOL-Net.
        data: Folder of VGGSound's training and test clips, ID_START.mp4 with six digits of seconds.
        labels: vggsounder+background-music.csv, with classes.csv beside it, of the PyPI package `vggsounder`.
        train_list: VGGSound's vggsound.csv.
        evaluation: The options.

    Returns:
        vggsounder.SUBSET.f1_K and .hit_rate_K for K of 1, 3, 5 and 10, .auc_roc and .auc_pr, where SUBSET is a, v, av,
        a_only or v_only; and the modality confusion vggsounder.confusion.a, .v and .av. The same of the controls
        untrained and prior (the frequencies of the training classes).

    Raises:
        DataError: A file is missing or damaged, or no training or no test video can be read.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate vggsounder --model RUN --data clips/ --labels vggsounder.csv --train-list vggsound.csv
    """
    evaluation.check()
    trained, compute = load_embedding_model(model), evaluation.resolve()
    truth = read_vggsounder(labels)
    training_clips = read_training_clips(train_list, truth.classes)
    shared = sorted(training_clips.keys() & truth.labels.keys())
    if shared:
        raise DataError(f"{train_list}: {len(shared):,} training clips are in {labels.name}, the first is {shared[0]}")
    found = index_videos(data)
    train_names = [name for name in training_clips if name in found]
    test_names = [name for name in truth.labels if name in found]
    check_found_clips(data, train_names, test_names)
    files = [found[name] for name in (*train_names, *test_names)]
    untrained = build_untrained_embedder(trained, files, CLIP_SECONDS, evaluation.seed)
    networks = {"trained": trained, "untrained": untrained}
    embedded = embed_videos(networks, files, CLIP_SECONDS, compute, evaluation.workers)
    report_unreadable(embedded.problems.values())
    videos = select_clips(train_names, test_names, training_clips, embedded)
    check_found_clips(data, videos.train_names, videos.test_names)
    print_line(
        f"VGGSounder {truth.version}: {len(videos.test_names):,} of {len(truth.labels):,} videos; probes of "
        f"{len(videos.train_names):,} training clips, {len(set(videos.train_labels))} of {len(truth.classes)} classes"
    )
    systems = {name: score_clips(embedded, name, videos, truth, evaluation.classifier) for name in networks}
    systems["prior"] = count_class_frequencies(videos, truth)
    num_lost = len(truth.labels) - len(videos.test_names)
    return report_vggsounder(
        VGGSounderResults(truth, videos.test_names, systems),
        model,
        {"labels": labels, "classes": labels.parent / "classes.csv", "training list": train_list},
        {
            "items": len(truth.labels),
            "predicted": len(videos.test_names),
            **({f"{REASON_MISSING_VIDEO} or {REASON_UNREADABLE}": num_lost} if num_lost else {}),
            "training clips": len(videos.train_names),
            "classes without training clip": len(truth.classes) - len(set(videos.train_labels)),
            "videos shorter than ten seconds, padded": embedded.num_padded,
        },
        {"classifier": evaluation.classifier, "embedding": "mean over ten seconds", "precision": compute.precision},
        evaluation.seed,
        evaluation.out,
    )


def check_found_clips(data: Path, train_names: Sequence[str], test_names: Sequence[str]) -> None:
    """Checks that there are videos of both parts.

    Raises:
        DataError: There are none of one.
    """
    for part, names in (("training list", train_names), ("labeled test videos", test_names)):
        if not names:
            raise DataError(f"{data}: no video of the {part} can be read; they are named ID_START.mp4, as "
                            f"---g-f_I2yQ_000001.mp4")  # fmt: skip


def select_clips(
    train_names: Sequence[str],
    test_names: Sequence[str],
    training_clips: Mapping[str, str],
    embedded: EmbeddedVideos,
) -> ClipVideos:
    """The clips whose video was read, by their rows: training clips first."""
    train = [(row, name) for row, name in enumerate(train_names) if row not in embedded.problems]
    test = [(row, name) for row, name in enumerate(test_names, len(train_names)) if row not in embedded.problems]
    return ClipVideos(
        [row for row, _ in train],
        [name for _, name in train],
        [training_clips[name] for _, name in train],
        [row for row, _ in test],
        [name for _, name in test],
    )


def score_clips(
    embedded: EmbeddedVideos, network: str, videos: ClipVideos, truth: VGGSounderLabels, classifier: Classifier
) -> ModalityScores:
    """The class scores of the test clips by probes of the audio, of the image, and of both."""
    features = embedded.features[network]
    image, audio = features.image.mean(1), features.audio.mean(1)
    inputs = {"a": audio, "v": image, "av": torch.cat([audio, image], 1)}
    return ModalityScores(*(score_input(inputs[name], videos, truth, classifier) for name in PROBE_INPUTS))


def score_input(
    features: Float[Tensor, "videos features"], videos: ClipVideos, truth: VGGSounderLabels, classifier: Classifier
) -> Float[np.ndarray, "items classes"]:
    """The class scores of the test clips by one probe, whose C is chosen on a fifth of the training videos."""
    class_ids = {name: index for index, name in enumerate(truth.classes)}
    target = torch.tensor([class_ids[name] for name in videos.train_labels])
    folds = assign_folds([get_youtube_id(name) for name in videos.train_names], videos.train_labels)
    held_out = select_usable_folds(HELD_OUT_FOLDS, folds)
    train = features[videos.train_rows][:, None]
    probe = fit_probe(train, target, folds, held_out, len(truth.classes), classifier)
    return probe.compute_scores(features[videos.test_rows][:, None]).numpy()


def count_class_frequencies(videos: ClipVideos, truth: VGGSounderLabels) -> ModalityScores:
    """The frequencies of the training classes as the scores of every clip: a baseline that sees and hears nothing."""
    counts = np.array([videos.train_labels.count(name) for name in truth.classes], dtype=np.float64)
    scores = np.tile(counts / counts.sum(), (len(videos.test_names), 1))
    return ModalityScores(scores, scores, scores)
