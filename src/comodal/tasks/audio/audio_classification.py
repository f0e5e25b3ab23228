"""Sound classification by an L3-Net that is fine-tuned end to end (`tasks/audio/esc50.py` has the linear probe).

The data are class folders of audio files, or the official files of ESC-50, DCASE or UrbanSound8K, of which one fold is
tested. Training crops one window at a random position and applies gain jitter, as in pretraining. A test clip is
classified from equally spaced windows, whose predictions are averaged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from comodal.console import print_line
from comodal.errors import CheckpointError, DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.augmentation import jitter_gain
from comodal.models.checkpoint import read_model_about
from comodal.models.l3net.l3net import L3NetConfig
from comodal.models.l3net.l3net_classifier import load_l3_classifier
from comodal.tasks.audio.audio_features import LabeledAudioFile, cut_windows, pad_with_silence, read_all_samples
from comodal.tasks.audio.audio_folders import read_audio_folders
from comodal.tasks.audio.audio_probe import AudioDataset
from comodal.tasks.audio.dcase import read_dcase
from comodal.tasks.audio.esc50 import read_esc50
from comodal.tasks.audio.urbansound8k import read_urbansound8k
from comodal.tasks.evaluation.class_folders import LabeledFile
from comodal.tasks.evaluation.classification_results import ClassProbabilities
from comodal.tasks.evaluation.cross_validation import Split
from comodal.tasks.evaluation.l3net_fine_tuning import (
    DEFAULT_L3_EVALUATION,
    L3EvaluationOptions,
    L3FineTuneConfig,
    build_l3net_run,
    check_item_classes,
    check_readable_tests,
    load_initial_l3net,
    predict_class_probabilities,
    read_model_classes,
)
from comodal.tasks.evaluation.results_card import format_exclusions
from comodal.tasks.evaluation.unreadable_files import count_exclusions, exclude_unreadable
from comodal.training.recipe_run import Run

AudioLayout = Literal["folders", "esc50", "esc10", "dcase", "us8k"]


@dataclass(frozen=True)
class AudioReader:
    """Reads a window of the network's length: a random crop with gain jitter in training, the center crop otherwise."""

    sample_rate: int
    num_samples: int
    gain_jitter: float

    def read_waveform(self, item: LabeledFile) -> np.ndarray:
        """The whole waveform, padded with silence to at least one window."""
        return pad_with_silence(
            read_all_samples(LabeledAudioFile(item.path, item.name, item.category), self.sample_rate), self.num_samples
        )

    def __call__(self, item: LabeledFile, rng: np.random.Generator | None, /) -> np.ndarray:
        waveform = self.read_waveform(item)
        max_start = len(waveform) - self.num_samples
        start = max_start // 2 if rng is None else int(rng.integers(max_start + 1))
        window = waveform[start : start + self.num_samples]
        return window if rng is None else jitter_gain(window, self.gain_jitter, rng)


@dataclass(frozen=True)
class AudioViews:
    """Equally spaced windows of a waveform, the first at its beginning, the last at its end."""

    reader: AudioReader
    windows: int

    def __call__(self, item: LabeledFile, /) -> np.ndarray:
        return cut_windows(self.reader.read_waveform(item), self.windows, self.reader.num_samples)


def build_audio_reader(config: L3NetConfig, gain_jitter: float) -> AudioReader:
    """A reader with the sample rate and window length of a network."""
    return AudioReader(config.sample_rate, round(config.audio_seconds * config.sample_rate), gain_jitter)


def read_labeled_audio(data: Path, layout: AudioLayout) -> AudioDataset:
    """Reads the clips of class folders, or of official files, and their splits.

    Raises:
        DataError: The folder has another layout.
    """
    if layout == "folders":
        dataset = read_audio_folders(data)
    elif layout == "dcase":
        dataset = read_dcase(data)
    elif layout == "us8k":
        dataset = read_urbansound8k(data)
    else:
        dataset = read_esc50(data, layout)
    dataset.check()
    return dataset


def find_fold_split(dataset: AudioDataset, fold: int) -> Split:
    """The split in which a fold is tested; the only one where there is one split.

    Raises:
        DataError: There is no such fold.
    """
    splits = [split for split in dataset.splits if split.fold == fold or len(dataset.splits) == 1]
    if not splits:
        raise DataError(
            f"{dataset.source}: there is no fold {fold}; there are {[split.fold for split in dataset.splits]}"
        )
    return splits[0]


def select_audio_files(dataset: AudioDataset, mask: np.ndarray, is_test: bool) -> list[LabeledFile]:
    """The selected clips, whose labels must be known."""
    audio_files = [audio_file for audio_file, is_selected in zip(dataset.audio_files, mask, strict=True) if is_selected]
    unknown = next((audio_file for audio_file in audio_files if audio_file.category is None), None)
    if unknown is not None:
        raise DataError(f"{unknown.path}: {dataset.source} has no class for it")
    return [
        LabeledFile(audio_file.path, audio_file.name, str(audio_file.category), is_test) for audio_file in audio_files
    ]


def read_training_split(model: Path) -> tuple[AudioLayout, int]:
    """The layout and the held-out test fold of a trained model, read from its config.json."""
    parameters = read_model_about(model).get("parameters")
    settings = parameters if isinstance(parameters, dict) else {}
    layout = next((name for name in get_args(AudioLayout) if name == settings.get("layout")), None)
    fold = settings.get("fold")
    if layout is None or not isinstance(fold, int):
        raise CheckpointError(f"{model}: its config.json has no layout and fold of the training")
    return layout, fold


SOUND_FINE_TUNING = L3FineTuneConfig(batch_size=32)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    layout: AudioLayout = "folders",
    fold: int = 1,
    gain_jitter: float = 0.1,
    fine_tune: L3FineTuneConfig = SOUND_FINE_TUNING,
) -> Run:
    """Fine-tunes an L3-Net end to end for sound classification.

    Args:
        model: Run or model folder of an L3-Net, or of a fine-tuned one.
        data: The folder of the audio files.
        layout: Layout of the folder: "folders" is train/CLASS/FILE and test/ (or val/, validation/) CLASS/FILE, or
            CLASS/FILE alone, of which a fifth is the test by a hash of the file's name; the others are the official
            files of ESC-50, ESC-10, DCASE's acoustic scenes and UrbanSound8K.
        fold: The test fold, which is never trained on, where there are several.
        gain_jitter: Gain jitter: the gain changes by up to this fraction.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train sound_classes --model RUN --data spoken_digits/ --out runs/digits
        comodal train sound_classes --model RUN --data ESC-50-master/ --layout esc50 --fold 5 --out runs/fold5
    """
    network, dataset = load_initial_l3net(model, fine_tune), read_labeled_audio(data, layout)
    items = select_audio_files(dataset, find_fold_split(dataset, fold).train_mask, is_test=False)
    return build_l3net_run(network, "audio", items, build_audio_reader(network.config, gain_jitter), fine_tune)


@flatten_parameters
def evaluate_sound_classes(
    model: Path,
    data: Path,
    windows: int = 10,
    evaluation: L3EvaluationOptions = DEFAULT_L3_EVALUATION,
) -> dict[str, float]:
    """Classifies the test clips with a fine-tuned network.

    Args:
        model: Run or model folder written by `comodal train sound_classes`.
        data: The training folder, or another of the same layout and classes. Of several folds, the test fold is the one
            that was not trained on.
        windows: Number of equally spaced windows of each clip.
        evaluation: The options of all evaluations of a fine-tuned L3-Net.

    Returns:
        audio.fine_tuned (accuracy) with its interval, and top-5 accuracy (.top5) for more than five classes.

    Raises:
        DataError: The folder has another layout or other classes, or no file of a class can be read.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate sound_classes --model runs/digits --data spoken_digits/ --out results/digits
    """
    if windows < 1:
        raise ValueError(f"windows must be at least 1, not {windows}")
    network, classes = load_l3_classifier(model, "audio"), read_model_classes(model)
    compute = evaluation.resolve()
    layout, fold = read_training_split(model)
    dataset = read_labeled_audio(data, layout)
    split = find_fold_split(dataset, fold)
    test_items = select_audio_files(dataset, split.test_mask, is_test=True)
    check_item_classes(test_items, classes)
    print_line(f"{data}: {len(test_items):,} audio files to test{format_exclusions(dataset.excluded)}")
    views = AudioViews(build_audio_reader(network.config.l3net, 0.0), windows)
    scores, problems = predict_class_probabilities(network, test_items, views, compute, evaluation.workers)
    check_readable_tests(data, test_items, problems)
    recordings = np.array(dataset.recordings)[split.test_mask].tolist() if dataset.recordings else []
    results = ClassProbabilities(
        "sound_classes",
        "audio",
        dataset.title,
        f"fold {split.fold}" if split.fold else dataset.split,
        model,
        exclude_unreadable(test_items, problems),
        classes,
        scores,
        {"windows": windows, "precision": compute.precision},
        dataset.files,
        count_exclusions(dataset.excluded, problems),
        tuple(exclude_unreadable(recordings, problems)),
    )
    return results.report(evaluation.out)
