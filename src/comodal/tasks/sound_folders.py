"""Linear classification of sounds from frozen features, on class folders of sounds: spoken digits, say.

The protocol is that of ESC-50 in `tasks/sounds.py` (windows of a second, conv4_2 max-pooled, z-scored), with one split
instead of five folds. Beside the trained network stand an untrained one and the statistics of a plain spectrogram.
"""

import time
from pathlib import Path

from rich.console import Console

from comodal.tasks.linear import Classifier
from comodal.tasks.sounds import LabelledSound, extract
from comodal.tasks.tree import compare, read_tree

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff", ".m4a"})


def evaluate_sounds(
    model: Path,
    data: Path,
    *,
    classifier: Classifier = "logistic",
    windows: int = 1,
    out: Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> dict[str, float]:
    """Classifies sounds in class folders from frozen features, beside an untrained network and a plain spectrogram.

    Args:
        model: run folder or model folder.
        data: train/CLASS/SOUND and test/ (or val/, validation/) CLASS/SOUND; or CLASS/SOUND alone, of which a fifth is
            the test by a hash of the file's name.
        classifier: "logistic" or "svm" (linear, one against all).
        windows: how many equally spaced seconds of each sound are used; shorter sounds are padded with silence.
        out: folder for results.json, answers.csv and confusion.png; nothing is written without it.
        seed: of the untrained network's weights.
        workers: threads that read sound files.

    Returns:
        Flat numbers: sound.trained, sound.untrained, sound.spectrogram, each with its interval.

    Raises:
        DataError: the folder has another layout, or a sound cannot be read.

    Examples:
        comodal evaluate sounds --model RUN --data spoken_digits/ --out results/digits
    """
    started = time.perf_counter()
    console = Console()
    if windows < 1:
        raise ValueError(f"windows must be at least 1, not {windows}")
    items = read_tree(data, SUFFIXES)
    tests = sum(item.test for item in items)
    console.print(f"{len(items)} sounds of {data}: {len(items) - tests} to fit, {tests} to test")
    clips = [LabelledSound(item.path, 1, 0, item.category) for item in items]
    features = extract(model, clips, windows, seed, workers)
    comparison = compare("sound", items, features, classifier, f"{data.name}, {classifier}")
    numbers = comparison.numbers() | {"sound.seconds": time.perf_counter() - started}
    comparison.print_table(console)
    if out is not None:
        comparison.write(out, numbers)
    return numbers
