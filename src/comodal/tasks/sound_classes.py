"""Sounds by class, with an L3-Net that is trained end to end for them (`tasks/sounds.py` has the frozen probe).

Class folders of sounds, or ESC-50's layout, of which one fold is tested. Training hears any second of a sound, louder
or softer as in pretraining; a test sound is heard in equally spaced seconds, whose answers are averaged.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from comodal.errors import CheckpointError, DataError, MediaError
from comodal.media.audio import read_sound
from comodal.media.augment import random_gain
from comodal.models.checkpoint import read_about
from comodal.models.l3_classifier import load_l3_classifier
from comodal.models.l3net import Config
from comodal.tasks.class_results import Answers
from comodal.tasks.classes import Precision, Setup, Start, answer, check_known, classes_of, network_of, new_run
from comodal.tasks.sound_folders import SUFFIXES
from comodal.tasks.sounds import METAS, read_meta
from comodal.tasks.tree import Labelled, read_tree
from comodal.train.run import Run


@dataclass(frozen=True)
class SoundReader:
    """As many samples as the network hears: from anywhere and louder or softer by chance, or from the middle."""

    sample_rate: int
    samples: int
    volume: float

    def whole(self, item: Labelled) -> np.ndarray:
        """The whole sound, at least so long; a file that cannot be read is an error of the data set."""
        try:
            sound = read_sound(item.path, self.sample_rate)
        except MediaError as error:
            raise DataError(f"a sound of class {item.category!r} cannot be read: {error}") from error
        return np.pad(sound, (0, max(0, self.samples - len(sound))))

    def __call__(self, item: Labelled, rng: np.random.Generator | None, /) -> np.ndarray:
        sound = self.whole(item)
        room = len(sound) - self.samples
        start = room // 2 if rng is None else int(rng.integers(room + 1))
        heard = sound[start : start + self.samples]
        return heard if rng is None else random_gain(heard, self.volume, rng)


@dataclass(frozen=True)
class SoundShots:
    """Equally spaced windows of a sound, the first at its beginning, the last at its end."""

    reader: SoundReader
    windows: int

    def __call__(self, item: Labelled, /) -> np.ndarray:
        sound, length = self.reader.whole(item), self.reader.samples
        starts = np.linspace(0, len(sound) - length, self.windows).round().astype(int)
        return np.stack([sound[start : start + length] for start in starts])


def reader_for(config: Config, volume: float) -> SoundReader:
    """What a network hears."""
    return SoundReader(config.sample_rate, round(config.sound_seconds * config.sample_rate), volume)


def read_sounds(data: Path, fold: int) -> list[Labelled]:
    """The sounds of class folders, or of ESC-50's layout with one fold as the test.

    Raises:
        DataError: The folder has another layout, or there is no such fold.
    """
    if not any((data / meta).is_file() for meta in METAS):
        return read_tree(data, SUFFIXES)
    clips, _ = read_meta(data, "esc50")
    if fold not in {clip.fold for clip in clips}:
        raise DataError(f"{data}: there is no fold {fold}; there are {sorted({clip.fold for clip in clips})}")
    return [Labelled(clip.path, clip.path.name, clip.category, clip.fold == fold) for clip in clips]


def fold_of(model: Path) -> int:
    """The fold that a model was not trained on, by its own record."""
    parameters = read_about(model).get("parameters")
    fold = parameters.get("fold") if isinstance(parameters, dict) else None
    if not isinstance(fold, int):
        raise CheckpointError(f"{model}: its config.json does not say which fold it was not trained on")
    return fold


def recipe(
    model: Path,
    data: Path,
    fold: int = 1,
    start: Start = "pretrained",
    epochs: float = 40.0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    head_rate: float = 1e-3,
    dropout: float = 0.0,
    volume: float = 0.1,
    validation_share: float = 0.0,
    workers: int = 2,
    seed: int = 0,
) -> Run:
    """Fine-tunes an L3-Net end to end to tell classes of sounds.

    Args:
        model: Run or model folder of an L3-Net, or of a fine-tuned one.
        data: train/CLASS/SOUND and test/ (or val/, validation/) CLASS/SOUND; CLASS/SOUND alone, of which a fifth is
            the test by a hash of the file's name; or ESC-50's layout (meta/esc50.csv and audio/).
        fold: Of ESC-50's layout: the one that is tested and never trained on.
        start: From the pretrained weights, or the same network from chance: the control.
        epochs: How often every sound is heard, each time another second of it.
        batch_size: Sounds in a step, over all processes.
        learning_rate: Of what was pretrained.
        head_rate: Of the new layer, and of a network from chance.
        dropout: Of the features.
        volume: Change the volume of sounds by up to this fraction.
        validation_share: Share of the training sounds that is held out and scored in the log.
        workers: Processes that read data.
        seed: Of a network from chance, the order and the seconds.

    Examples:
        comodal train sound_classes --model RUN --data spoken_digits/ --out runs/digits
        comodal train sound_classes --model RUN --data ESC-50-master/ --fold 5 --out runs/esc50_fold5
    """
    setup = Setup(model, start, epochs, batch_size, learning_rate, head_rate, dropout, validation_share, workers, seed)
    network = network_of(setup)
    return new_run(network, "sound", read_sounds(data, fold), reader_for(network.config, volume), setup)


def evaluate_sound_classes(
    model: Path,
    data: Path,
    windows: int = 10,
    precision: Precision = "bf16",
    out: Path | None = None,
    workers: int = 2,
) -> dict[str, float]:
    """Tells the classes of the test sounds with a network that was fine-tuned for them.

    Args:
        model: Run or model folder that `comodal train sound_classes` made.
        data: The same folder as in training, or another with the same classes; of ESC-50's layout, the fold is tested
            that was not trained on.
        windows: How many equally spaced seconds of each sound are heard.
        precision: bf16 is faster.
        out: Folder for results.json, answers.csv, confusion.png and the results card; nothing is written without it.
        workers: Threads that read sounds.

    Returns:
        sound.fine_tuned with its interval, and how often the right class is among the first five of more (.top5).

    Raises:
        DataError: The folder has another layout or other classes, or a sound cannot be read.
        CheckpointError: There is no such model.

    Examples:
        comodal evaluate sound_classes --model runs/digits --data spoken_digits/ --out results/digits
    """
    if windows < 1:
        raise ValueError(f"windows must be at least 1, not {windows}")
    network, classes = load_l3_classifier(model, "sound"), classes_of(model)
    fold = fold_of(model)
    items = read_sounds(data, fold)
    tested = [item for item in items if item.test]
    check_known(tested, classes)
    Console().print(f"{data}: {len(tested):,} sounds to test")
    folds = any((data / meta).is_file() for meta in METAS)
    shots = SoundShots(reader_for(network.config.l3net, 0.0), windows)
    answers = Answers(
        "sound_classes",
        "sound",
        data.resolve().name,
        f"fold {fold}" if folds else "test",
        model,
        tested,
        classes,
        answer(network, tested, shots, precision, workers),
        {"windows": windows, "precision": precision},
    )
    return answers.tell(out)
