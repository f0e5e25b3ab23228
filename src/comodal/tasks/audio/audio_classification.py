"""Sounds by class, with an L3-Net that is trained end to end for them (`tasks/audio/esc50.py` has the frozen probe).

Class folders of sounds, or the official files of ESC-50, DCASE or UrbanSound8K, of which one fold is tested. Training
hears any second of a sound, louder or softer as in pretraining; a test sound is heard in equally spaced seconds, whose
answers are averaged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from comodal.console import print_line
from comodal.data.loader import Workers
from comodal.errors import CheckpointError, DataError
from comodal.hardware import DeviceName, Precision, resolve_compute
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
    L3FineTuneConfig,
    L3NetStart,
    build_classifier,
    build_l3net_run,
    check_item_classes,
    check_readable_tests,
    predict_class_probabilities,
    read_model_classes,
)
from comodal.tasks.evaluation.results_card import format_exclusions
from comodal.tasks.evaluation.unreadable_files import count_exclusions, exclude_unreadable
from comodal.training.run import Run

AudioLayout = Literal["folders", "esc50", "esc10", "dcase", "us8k"]


@dataclass(frozen=True)
class AudioReader:
    """As many samples as the network hears: from anywhere and louder or softer by chance, or from the middle."""

    sample_rate: int
    samples: int
    volume: float

    def whole(self, item: LabeledFile) -> np.ndarray:
        """The whole sound, at least so long."""
        return pad_with_silence(
            read_all_samples(LabeledAudioFile(item.path, item.name, item.category), self.sample_rate), self.samples
        )

    def __call__(self, item: LabeledFile, rng: np.random.Generator | None, /) -> np.ndarray:
        sound = self.whole(item)
        room = len(sound) - self.samples
        start = room // 2 if rng is None else int(rng.integers(room + 1))
        heard = sound[start : start + self.samples]
        return heard if rng is None else jitter_gain(heard, self.volume, rng)


@dataclass(frozen=True)
class AudioViews:
    """Equally spaced windows of a sound, the first at its beginning, the last at its end."""

    reader: AudioReader
    windows: int

    def __call__(self, item: LabeledFile, /) -> np.ndarray:
        return cut_windows(self.reader.whole(item), self.windows, self.reader.samples)


def build_audio_reader(config: L3NetConfig, volume: float) -> AudioReader:
    """What a network hears."""
    return AudioReader(config.sample_rate, round(config.sound_seconds * config.sample_rate), volume)


def read_labeled_audio(data: Path, layout: AudioLayout) -> AudioDataset:
    """The sounds of class folders, or of official files, and their rounds.

    Raises:
        DataError: The folder has another layout.
    """
    if layout == "folders":
        sounds = read_audio_folders(data)
    elif layout == "dcase":
        sounds = read_dcase(data)
    elif layout == "us8k":
        sounds = read_urbansound8k(data)
    else:
        sounds = read_esc50(data, layout)
    sounds.check()
    return sounds


def find_fold_split(sounds: AudioDataset, fold: int) -> Split:
    """The round in which a fold is tested; the only one where there is one split.

    Raises:
        DataError: There is no such fold.
    """
    found = [one for one in sounds.rounds if one.number == fold or len(sounds.rounds) == 1]
    if not found:
        raise DataError(f"{sounds.source}: there is no fold {fold}; there are {[one.number for one in sounds.rounds]}")
    return found[0]


def select_audio_files(sounds: AudioDataset, which: np.ndarray, test: bool) -> list[LabeledFile]:
    """Some of the sounds, whose classes must be known."""
    some = [sound for sound, is_in in zip(sounds.sounds, which, strict=True) if is_in]
    unknown = next((sound for sound in some if sound.category is None), None)
    if unknown is not None:
        raise DataError(f"{unknown.path}: {sounds.source} does not tell its class")
    return [LabeledFile(sound.path, sound.name, str(sound.category), test) for sound in some]


def read_training_split(model: Path) -> tuple[AudioLayout, int]:
    """The layout, and the fold that a model was not trained on, by its own record."""
    parameters = read_model_about(model).get("parameters")
    told = parameters if isinstance(parameters, dict) else {}
    layout = next((name for name in get_args(AudioLayout) if name == told.get("layout")), None)
    fold = told.get("fold")
    if layout is None or not isinstance(fold, int):
        raise CheckpointError(f"{model}: its config.json does not say on which layout and fold it was trained")
    return layout, fold


def recipe(
    model: Path,
    data: Path,
    layout: AudioLayout = "folders",
    fold: int = 1,
    start: L3NetStart = "pretrained",
    epochs: float = 40.0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    head_rate: float = 1e-3,
    dropout: float = 0.0,
    volume: float = 0.1,
    validation_share: float = 0.0,
    workers: Workers = "auto",
    seed: int = 0,
) -> Run:
    """Fine-tunes an L3-Net end to end to tell classes of sounds.

    Args:
        model: Run or model folder of an L3-Net, or of a fine-tuned one.
        data: The folder of the sounds.
        layout: How they lie there: "folders" are train/CLASS/SOUND and test/ (or val/, validation/) CLASS/SOUND, or
            CLASS/SOUND alone, of which a fifth is the test by a hash of the file's name; the others are the official
            files of ESC-50, ESC-10, DCASE's acoustic scenes and UrbanSound8K.
        fold: Where there are several: the one that is tested and never trained on.
        start: From the pretrained weights, or the same network from chance: the control.
        epochs: How often every sound is heard, each time another second of it.
        batch_size: Sounds in a step, over all processes.
        learning_rate: Of what was pretrained.
        head_rate: Of the new layer, and of a network from chance.
        dropout: Of the features.
        volume: Change the volume of sounds by up to this fraction.
        validation_share: Share of the training sounds that is held out and scored in the log.
        workers: Processes that read data; auto: two for a CPU, more for a GPU.
        seed: Of a network from chance, the order and the seconds.

    Examples:
        comodal train sound_classes --model RUN --data spoken_digits/ --out runs/digits
        comodal train sound_classes --model RUN --data ESC-50-master/ --layout esc50 --fold 5 --out runs/fold5
    """
    setup = L3FineTuneConfig(
        model, start, epochs, batch_size, learning_rate, head_rate, dropout, validation_share, workers, seed
    )
    network, sounds = build_classifier(setup), read_labeled_audio(data, layout)
    items = select_audio_files(sounds, find_fold_split(sounds, fold).fitted, test=False)
    return build_l3net_run(network, "sound", items, build_audio_reader(network.config, volume), setup)


def evaluate_sound_classes(
    model: Path,
    data: Path,
    windows: int = 10,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
    workers: int = 2,
) -> dict[str, float]:
    """Tells the classes of the test sounds with a network that was fine-tuned for them.

    Args:
        model: Run or model folder that `comodal train sound_classes` made.
        data: The same folder as in training, or another of the same layout and classes; of several folds, the one is
            tested that was not trained on.
        windows: How many equally spaced seconds of each sound are heard.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.
        out: Folder for results.json, answers.csv, confusion.png and the results card; nothing is written without it.
        workers: Threads that read sounds.

    Returns:
        sound.fine_tuned with its interval, and how often the right class is among the first five of more (.top5).

    Raises:
        DataError: The folder has another layout or other classes, or no sound of a class can be read.
        CheckpointError: There is no such model.

    Examples:
        comodal evaluate sound_classes --model runs/digits --data spoken_digits/ --out results/digits
    """
    if windows < 1:
        raise ValueError(f"windows must be at least 1, not {windows}")
    network, classes = load_l3_classifier(model, "sound"), read_model_classes(model)
    compute = resolve_compute(device, precision)
    layout, fold = read_training_split(model)
    sounds = read_labeled_audio(data, layout)
    one = find_fold_split(sounds, fold)
    tested = select_audio_files(sounds, one.tested, test=True)
    check_item_classes(tested, classes)
    print_line(f"{data}: {len(tested):,} sounds to test{format_exclusions(sounds.left_out)}")
    shots = AudioViews(build_audio_reader(network.config.l3net, 0.0), windows)
    scores, problems = predict_class_probabilities(network, tested, shots, compute, workers)
    check_readable_tests(data, tested, problems)
    recordings = np.array(sounds.recordings)[one.tested].tolist() if sounds.recordings else []
    answers = ClassProbabilities(
        "sound_classes",
        "sound",
        sounds.title,
        f"fold {one.number}" if one.number else sounds.split,
        model,
        exclude_unreadable(tested, problems),
        classes,
        scores,
        {"windows": windows, "precision": compute.precision},
        sounds.files,
        count_exclusions(sounds.left_out, problems),
        tuple(exclude_unreadable(recordings, problems)),
    )
    return answers.tell(out)
