"""Sound source localization on Flickr-SoundNet and VGG-SS, with controls and with negative audio.

A network scores each position of an image with a second of audio (`score_positions`). The map of these margins is
compared with boxes of the source, by the published protocol (localization_metrics.py). The controls on the same images
are the trained network with off-screen audio, an untrained network of the same shape, the center of the image, and a
random map. With the audio of another image, a network that localizes sound should score lower than with its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from comodal.console import print_line
from comodal.errors import CheckpointError, DataError, MediaError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import Compute, ComputeOptions
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.l3net.l3net import L3Net
from comodal.tasks.correspondence.avc_evaluation import count_calibration_examples, load_correspondence_model
from comodal.tasks.evaluation.unreadable_files import exclude_unreadable, try_read
from comodal.tasks.localization.localization_results import LocalizationResults, report_localization
from comodal.tasks.localization.localization_scores import score_maps
from comodal.tasks.localization.position_maps import (
    MediaPair,
    choose_offscreen,
    compute_audio_vectors,
    compute_position_maps,
    match_media_files,
    read_center_audio,
    read_square_image,
)
from comodal.tasks.localization.sounding_boxes import read_localization_set
from comodal.training.run_log import REASON_UNREADABLE, report_unreadable

MAX_WORKERS = 64
REASON_MISSING_MEDIA = "frame or audio file is missing"


@dataclass(frozen=True)
class LocalizationEvaluation(ComputeOptions):
    """The options of the evaluation.

    Args:
        test_list: CSV file whose first column names the images to evaluate, as flickr_test.csv; by default all images
            with annotations.
        threshold: Margin above which a position counts as a source, for negative audio; by default the third quartile
            of the maxima of all maps with negative audio. 0 is the network's own decision.
        out: Folder for results.json, images.csv and the results card; nothing is written without it.
        workers: Threads that read files.
        seed: Seed of the noise, the off-screen audio, the random map and the untrained network.
    """

    test_list: Path | None = None
    threshold: float | None = None
    out: Path | None = None
    workers: int = 2
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if an option is out of range."""
        check_number("workers", self.workers, 1, MAX_WORKERS)
        if self.threshold is not None:
            check_number("threshold", self.threshold, -1e6, 1e6)


DEFAULT_LOCALIZATION_EVALUATION = LocalizationEvaluation()


@flatten_parameters
def evaluate_localization(
    model: Path,
    data: Path,
    annotations: Path,
    evaluation: LocalizationEvaluation = DEFAULT_LOCALIZATION_EVALUATION,
) -> dict[str, float]:
    """Evaluates where in an image a sound comes from, on Flickr-SoundNet or VGG-SS, with controls and negative audio.

    The audio is the second at the center of each file.

    Args:
        model: Run or model folder of an L3-Net, an AVE-Net or an AVOL-Net.
        data: Folder with the folders frames (NAME.jpg) and audio (NAME.wav).
        annotations: Flickr-SoundNet's folder of XML files, or VGG-SS's vggss.json.
        evaluation: The options.

    Returns:
        localization.ciou (the fraction of images with a cIoU of at least 0.5) and localization.auc, each with its
        interval; the same of the controls offscreen, untrained, center and random; and for negative audio
        localization.silence.pia and .auc_n, of noise and offscreen too, with localization.threshold,
        .ciou_at_threshold, .auc_at_threshold, .f_ciou and .f_auc.

    Raises:
        DataError: The annotations or the data cannot be read, or no image has both files.
        CheckpointError: The folder holds no such model, or one without a fusion network.

    Examples:
        comodal evaluate localization --model runs/avol --data vggss/ --annotations vggss.json --out results/vggss
        comodal evaluate localization --model RUN --data flickr/ --annotations Annotations/ --test-list flickr_test.csv
    """
    evaluation.check()
    out = evaluation.out
    trained, compute = load_localization_model(model), evaluation.resolve()
    dataset = read_localization_set(annotations, evaluation.test_list)
    pairs = match_media_files(data, dataset.images)
    print_line(
        f"{dataset.title}: {len(dataset.images):,} annotated images, {len(pairs):,} of them with frame and audio"
    )
    models = {"trained": trained, "untrained": build_untrained_localizer(trained, pairs, evaluation.seed)}
    for network in models.values():
        network.to(compute.device).eval()
    vectors, problems = compute_audio_vectors(models, pairs, compute, evaluation.workers, evaluation.seed)
    errors = list(problems.values())
    pairs = exclude_unreadable(pairs, problems)
    partners = choose_offscreen([pair.image for pair in pairs], evaluation.seed)
    maps, problems = compute_position_maps(models, pairs, vectors, partners, compute, evaluation.workers)
    errors += problems.values()
    images = [pair.image for pair in exclude_unreadable(pairs, problems)]
    report_unreadable(errors)
    scores = score_maps(maps, images, dataset.is_consensus, evaluation.threshold, evaluation.seed)
    excluded = {
        REASON_MISSING_MEDIA: len(dataset.images) - len(images) - len(errors),
        REASON_UNREADABLE: len(errors),
    }
    results = LocalizationResults(dataset, images, scores, {reason: n for reason, n in excluded.items() if n})
    return report_localization(results, model, describe_settings(trained, compute, evaluation), evaluation.seed, out)


def load_localization_model(path: Path) -> L3Net | AVENet:
    """Loads a model that scores positions.

    Raises:
        CheckpointError: The folder holds another model, or one without a fusion network.
    """
    model = load_correspondence_model(path)
    if not isinstance(model, L3Net | AVENet):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs an L3Net or an AVENet")
    return model


def build_untrained_localizer(trained: L3Net | AVENet, pairs: Sequence[MediaPair], seed: int) -> L3Net | AVENet:
    """An untrained network of the same shape, whose batch norms are calibrated on the first images and their audio.

    Raises:
        DataError: None of them can be read.
    """
    config, untrained = trained.config, make_untrained_copy(trained, seed)
    length = round(config.audio_seconds * config.sample_rate)
    images, waveforms = [], []
    for pair in pairs[: count_calibration_examples(len(pairs))]:
        image = try_read(lambda frame: read_square_image(frame, config.image_size), pair.frame)
        samples = try_read(lambda audio: read_center_audio(audio, config.sample_rate, length), pair.audio)
        if not isinstance(image, MediaError) and not isinstance(samples, MediaError):
            images.append(image)
            waveforms.append(torch.from_numpy(samples))
    if not images:
        raise DataError(f"{pairs[0].frame.path.parent.parent}: none of the first images can be read with its audio")
    calibrate_batch_norms(untrained, untrained, torch.stack(images), torch.stack(waveforms))
    return untrained


def describe_settings(
    trained: L3Net | AVENet, compute: Compute, evaluation: LocalizationEvaluation
) -> dict[str, str | int | float]:
    """The settings of the results card."""
    rule = "third quartile of the maxima with negative audio" if evaluation.threshold is None else "given"
    return {
        "network": type(trained).__name__,
        "comparison": trained.config.comparison if isinstance(trained, AVENet) else "fusion network",
        "image size": trained.config.image_size,
        "audio": f"{trained.config.audio_seconds:g} s at the center",
        "choice of the threshold": rule,
        "precision": compute.precision,
    }
