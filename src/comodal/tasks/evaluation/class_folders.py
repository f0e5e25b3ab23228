"""Labeled files in class folders: an ImageFolder tree of images, or the same tree of audio files.

The layout is ROOT/train/CLASS/FILE and ROOT/test/CLASS/FILE (or val/, validation/), or ROOT/CLASS/FILE alone. In the
latter a fifth of the files is the test set, selected by a hash of the file's name.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from comodal.errors import DataError
from comodal.files import encode_for_hash
from comodal.tasks.evaluation.cross_validation import Split, predict_splits
from comodal.tasks.evaluation.linear_probe import Classifier
from comodal.tasks.evaluation.system_comparison import Comparison

TEST_FOLDERS = ("test", "val", "validation")
NUM_HASH_PARTS = 5  # without a test folder, one part in five is tested; one in five training items chooses C


class LabeledFile(NamedTuple):
    """A file of a class folder; `is_test` is true in the test set."""

    path: Path
    name: str
    category: str
    is_test: bool


def list_labeled_files(data: Path, suffixes: frozenset[str]) -> list[LabeledFile]:
    """All files of the tree with these suffixes, sorted by name."""
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    test_folder = next((data / name for name in TEST_FOLDERS if (data / name).is_dir()), None)
    if (data / "train").is_dir():
        if test_folder is None:
            raise DataError(f"{data}: train/ exists, but none of {', '.join(f'{name}/' for name in TEST_FOLDERS)}")
        items = list(list_class_files(data / "train", data, suffixes, is_test=False)) + list(
            list_class_files(test_folder, data, suffixes, is_test=True)
        )
    else:
        items = [
            item._replace(is_test=assign_hash_part(item.name) == 0)
            for item in list_class_files(data, data, suffixes, is_test=False)
        ]
    check_labeled_items(data, items)
    return items


def check_labeled_items(data: Path, items: Sequence[LabeledFile]) -> None:
    """Checks that there are at least two classes to fit, something to test, and no class that is only tested.

    Raises:
        DataError: They are not.
    """
    categories = {item.category for item in items if not item.is_test}
    unknown = {item.category for item in items if item.is_test} - categories
    if len(categories) < 2:
        raise DataError(f"{data}: {len(categories)} class folders with files to fit; at least two are needed")
    if unknown:
        raise DataError(f"{data}: class {sorted(unknown)[0]!r} is tested and has no file to fit")
    if not any(item.is_test for item in items):
        raise DataError(f"{data}: no file to test")


def list_class_files(folder: Path, data: Path, suffixes: frozenset[str], is_test: bool) -> Iterator[LabeledFile]:
    """The files of FOLDER/CLASS/**."""
    for category in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(category.rglob("*")):
            if path.suffix.lower() in suffixes:
                yield LabeledFile(path, path.relative_to(data).as_posix(), category.name, is_test)


def hash_labeled_files(items: Iterable[LabeledFile]) -> str:
    """A hash of the names, classes, splits and sizes of files, equal on every machine; a missing file has no size."""
    digest = hashlib.sha256()
    for item in items:
        size = item.path.stat().st_size if item.path.exists() else None
        digest.update(encode_for_hash(f"{item.name} {item.category} {item.is_test} {size}\n"))
    return digest.hexdigest()[:16]


def assign_hash_part(name: str) -> int:
    """One of `NUM_HASH_PARTS` parts, which depends on the name alone."""
    return int.from_bytes(hashlib.sha256(encode_for_hash(name)).digest()[:8], "big") % NUM_HASH_PARTS


def build_folder_split(items: Sequence[LabeledFile]) -> Split:
    """The split of the tree; C is chosen on a fifth of the training items, selected by a hash of the name."""
    is_test = np.array([item.is_test for item in items])
    inner_folds = np.array([assign_hash_part(f"C {item.name}") for item in items])
    return Split(0, ~is_test, is_test, inner_folds, (0,))


def compare_folder_systems(
    task: str,
    items: Sequence[LabeledFile],
    features: dict[str, Float[Tensor, "items _ _"]],
    classifier: Classifier,
    title: str,
) -> Comparison:
    """Each system's predictions for the test items; C is chosen on a fifth of the training items."""
    classes = tuple(sorted({item.category for item in items}))
    truth = np.array([classes.index(item.category) for item in items])
    is_test = np.array([item.is_test for item in items])
    predictions = predict_splits(features, truth, [build_folder_split(items)], len(classes), classifier)
    names = tuple(item.name for item in items if item.is_test)
    return Comparison(
        task, title, names, classes, truth[is_test], predictions.folds, predictions.predictions, predictions.c_values
    )
