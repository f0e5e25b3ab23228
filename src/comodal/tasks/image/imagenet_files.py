"""Labeled images: the official files of ImageNet classification (ILSVRC 2012), or any ImageFolder tree.

The supported layouts of ImageNet are:
- Kaggle's: ROOT/ILSVRC/Data/CLS-LOC/{train/WNID,val} with ROOT/LOC_val_solution.csv and LOC_synset_mapping.txt;
- ROOT/{train/WNID,val} (or ILSVRC2012_img_train, ILSVRC2012_img_val) with ROOT/ILSVRC2012_devkit_t12.

The validation images are in one folder, or in one folder per class. The devkit's class ids are not in the order of the
class names (1 is a kit fox), so they are read from its meta.mat or map_clsloc.txt.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from comodal.errors import DataError
from comodal.media.storage.suffixes import IMAGE_SUFFIXES
from comodal.tasks.evaluation.class_folders import (
    LabeledFile,
    check_labeled_items,
    list_class_files,
    list_labeled_files,
)
from comodal.text_files import parse_csv, read_lines, read_text

IMAGENET_SUFFIXES = frozenset(IMAGE_SUFFIXES)
WNID = re.compile(r"n\d{8}")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
NUM_TRAINING_IMAGES, NUM_VALIDATION_IMAGES, NUM_CLASSES = 1_281_167, 50_000, 1000  # images of ILSVRC 2012
ROOT_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", ".")
SPLIT_FOLDERS = (("train", "val"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val"))
DEVKIT_FOLDERS = (
    "ILSVRC2012_devkit_t12/data",
    "ILSVRC2012_devkit_t12",
    "ILSVRC/devkit/data",
    "devkit/data",
    "data",
    ".",
)
SOLUTION_FILE, CLASS_NAME_FILES = "LOC_val_solution.csv", ("LOC_synset_mapping.txt", "synset_words.txt")
REASON_UNTRAINED_CLASS = "its class has no training image"


class LabeledImages(NamedTuple):
    """Labeled images and their metadata.

    Args:
        items: All images, the training images first.
        split: Name of the test part.
        names: Class names, where the files have them.
        files: The files that the labels were read from.
        excluded: Number of excluded images, by reason.
        is_imagenet: Whether the classes are ImageNet's.
    """

    items: list[LabeledFile]
    split: str
    names: Mapping[str, str]
    files: Mapping[str, Path]
    excluded: Mapping[str, int]
    is_imagenet: bool

    @property
    def is_official(self) -> bool:
        """Whether these are exactly the images that the papers use."""
        tests = [item for item in self.items if item.is_test]
        counts = (len(self.items) - len(tests), len(tests), len({item.category for item in self.items}))
        has_official_names = all(VALIDATION_NAME.match(item.path.name) for item in tests)
        return (
            self.is_imagenet
            and counts == (NUM_TRAINING_IMAGES, NUM_VALIDATION_IMAGES, NUM_CLASSES)
            and has_official_names
        )


def read_labeled_images(data: Path) -> LabeledImages:
    """All labeled images of a folder.

    Raises:
        DataError: The folder has another layout, or a label file is missing or damaged.
    """
    folders = find_imagenet_folders(data)
    if folders is None:
        items = list_labeled_files(data, IMAGENET_SUFFIXES)
        test_name = next(item.name.split("/")[0] for item in items if item.is_test)
        return LabeledImages(items, test_name if (data / "train").is_dir() else "a fifth", {}, {}, {}, False)
    train, validation = folders
    items = list(list_class_files(train, data, IMAGENET_SUFFIXES, is_test=False))
    files: dict[str, Path] = {}
    excluded: dict[str, int] = {}
    if any(path.is_dir() for path in validation.iterdir()):
        test_items = list(list_class_files(validation, data, IMAGENET_SUFFIXES, is_test=True))
    else:
        categories, files = read_validation_labels(data, validation)
        test_items, excluded = read_flat_folder(data, validation, categories, {item.category for item in items})
    check_labeled_items(data, [*items, *test_items])
    return LabeledImages([*items, *test_items], "val", read_class_names(data), files, excluded, True)


def find_imagenet_folders(data: Path) -> tuple[Path, Path] | None:
    """The training and validation folders, if their classes are ImageNet's."""
    for root in ROOT_FOLDERS:
        for names in SPLIT_FOLDERS:
            train, validation = (data / root / name for name in names)
            if train.is_dir() and validation.is_dir():
                first = next((path for path in train.iterdir() if path.is_dir()), None)
                if first is not None and WNID.fullmatch(first.name):
                    return train, validation
    return None


def read_flat_folder(
    data: Path, validation: Path, categories: Mapping[str, str], train_classes: set[str]
) -> tuple[list[LabeledFile], dict[str, int]]:
    """The images of a folder without class folders, and the number of excluded ones.

    Raises:
        DataError: An image has no label, or one of a known class is missing, which the devkit's evaluation refuses.
    """
    paths = sorted(path for path in validation.iterdir() if path.suffix.lower() in IMAGENET_SUFFIXES)
    if not paths:
        raise DataError(f"{validation}: no images")
    unlabeled = [path for path in paths if path.stem not in categories]
    if unlabeled:
        raise DataError(f"{unlabeled[0]}: no label; {len(unlabeled):,} of {len(paths):,} images have none")
    items = [LabeledFile(path, path.relative_to(data).as_posix(), categories[path.stem], True) for path in paths]
    usable = [item for item in items if item.category in train_classes]
    stems = {path.stem for path in paths}
    missing = [name for name, category in categories.items() if category in train_classes and name not in stems]
    if missing:
        raise DataError(
            f"{validation}: {len(missing):,} of {len(usable) + len(missing):,} labeled images are missing, the first "
            f"is {missing[0]}; move the others into class folders to score a part of them"
        )
    return usable, {REASON_UNTRAINED_CLASS: len(items) - len(usable)} if len(usable) < len(items) else {}


def read_validation_labels(data: Path, validation: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """The class of each validation image by its name without suffix, and the label files."""
    for folder in list_label_folders(data):
        solution = folder / SOLUTION_FILE
        if solution.is_file():
            return read_kaggle_solution(solution), {"labels": solution}
        for devkit in DEVKIT_FOLDERS:
            truth = sorted((folder / devkit).glob("ILSVRC*validation_ground_truth.txt"))
            if truth:
                return read_ground_truth(truth[0])
    raise DataError(
        f"{validation}: its images are not in class folders; {SOLUTION_FILE} or ILSVRC2012_devkit_t12 must be in {data}"
    )


def list_label_folders(data: Path) -> Sequence[Path]:
    """Folders that may hold label files: the given folder and its parents."""
    return [data, *data.resolve().parents[:3]]


def read_kaggle_solution(path: Path) -> dict[str, str]:
    """Kaggle's file: the image, then its class and boxes, separated by spaces."""
    categories = {}
    rows = parse_csv(read_text(path), path)
    if next(rows, (0, []))[1] != ["ImageId", "PredictionString"]:
        raise DataError(f"{path}: its first line must be ImageId,PredictionString")
    for line, row in rows:
        if len(row) != 2 or not WNID.match(row[1]):
            raise DataError(f"{path}, line {line}: {','.join(row)[:60]!r} is not an image and its class")
        categories[row[0]] = row[1].split()[0]
    return categories


def read_ground_truth(path: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """The devkit's file: a class id for each image, in the order of the images."""
    classes, source = read_class_ids(path)
    categories = {}
    for line, text in enumerate(read_text(path).split(), start=1):
        if not text.isdigit() or int(text) not in classes:
            raise DataError(f"{path}, line {line}: {text!r} is not a class id of {source}")
        categories[f"ILSVRC2012_val_{line:08d}"] = classes[int(text)]
    return categories, {"labels": path, "class ids": source}


def read_class_ids(truth: Path) -> tuple[dict[int, str], Path]:
    """The WordNet id of each class id of the devkit, from the file next to the ground truth."""
    list_path, meta_path = truth.with_name("map_clsloc.txt"), truth.with_name("meta.mat")
    if meta_path.is_file():
        return {class_id: wnid for class_id, wnid, _ in read_devkit_meta(meta_path)}, meta_path
    if not list_path.is_file():
        raise DataError(f"{truth}: neither meta.mat nor map_clsloc.txt, which list the class ids, is next to it")
    rows = [line.split() for line in read_lines(list_path) if line.strip()]
    for line, row in enumerate(rows, start=1):
        if len(row) < 2 or not WNID.fullmatch(row[0]) or not row[1].isdigit():
            raise DataError(f"{list_path}, line {line}: {' '.join(row)!r} is not a class and its id")
    return {int(row[1]): row[0] for row in rows}, list_path


def read_devkit_meta(path: Path) -> list[tuple[int, str, str]]:
    """Class id, WordNet id and words of the devkit's classes; synsets with children are not classes of the task."""
    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = [(row["num_children"], row["ILSVRC2012_ID"], row["WNID"], row["words"]) for row in synsets]
        return [
            (int(class_id), str(wnid), str(words)) for children, class_id, wnid, words in rows if int(children) == 0
        ]
    except (OSError, KeyError, ValueError, TypeError, IndexError, MatReadError, NotImplementedError) as error:
        raise DataError(f"{path}: not the devkit's list of classes ({error})") from error


def read_class_names(data: Path) -> dict[str, str]:
    """The first word for each class, from the first mapping file found: `n01440764 tench, Tinca tinca`."""
    for folder in list_label_folders(data):
        for name in CLASS_NAME_FILES:
            if (folder / name).is_file():
                lines = read_lines(folder / name)
                return {wnid: words.split(",")[0] for wnid, _, words in (line.partition(" ") for line in lines)}
        for devkit in DEVKIT_FOLDERS:
            if (folder / devkit / "meta.mat").is_file():
                return {wnid: words.split(",")[0] for _, wnid, words in read_devkit_meta(folder / devkit / "meta.mat")}
    return {}
