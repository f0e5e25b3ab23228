"""The lists of TUT's and TAU's acoustic scenes (since 2016), which define the training and test files.

meta.csv                              filename, scene_label, identifier (the recording location), source_label
evaluation_setup/foldN_train.csv      filename, scene_label
evaluation_setup/foldN_evaluate.csv   filename, scene_label of the test files
evaluation_setup/foldN_test.csv       filename of the same test files, without labels

All are tab-separated; until 2018 they are .txt without a header. An evaluation set of a challenge is a
separate folder with evaluation_setup/test.csv, and evaluate.txt or a meta file once its labels are published.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from comodal.errors import DataError
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset
from comodal.tasks.audio.audio_tables import TableRow, check_columns, check_unique_rows, read_table
from comodal.tasks.evaluation.cross_validation import (
    Split,
    assign_folds,
    build_cross_validation_splits,
    build_predefined_split,
)

SETUP_FOLDER, META_NAME, LIST_SUFFIXES = "evaluation_setup", "meta", (".csv", ".txt")
SCENE_LIST_COLUMNS = ("filename", "scene_label", "identifier", "source_label")
TRAIN_LIST_NAME = re.compile(r"fold(\d+)_train\.(?:csv|txt)")
TAU_FILE_NAME = re.compile(r"(\w+-\w+-\d+)-\d+.*")  # scene-city-location-segment-device
TUT_FILE_NAME = re.compile(r"([a-z]\d+)_\d+_\d+")  # location, start, end
REASON_IN_NO_FOLD = "in no fold"


class SceneLists:
    """The recordings that the lists of a data set name, each once; labels must agree between lists."""

    def __init__(self) -> None:
        self.audio_files: dict[Path, LabeledAudioFile] = {}
        self.locations: dict[Path, str] = {}
        self.sources: dict[Path, str] = {}
        self.files: dict[str, Path] = {}

    def read_list(
        self, root: Path, path: Path, role: str, has_labels: bool, allowed: set[Path] | None = None
    ) -> list[Path]:
        """Reads the recordings of a list.

        Args:
            root: The folder of the data set.
            path: The list.
            role: Its name on the results card.
            has_labels: Whether it must have labels.
            allowed: The recordings that it may name, None for any.

        Raises:
            DataError: It is missing or damaged, contradicts a label of an earlier list, or names another recording.
        """
        table = read_table(path, SCENE_LIST_COLUMNS)
        check_columns(path, table, SCENE_LIST_COLUMNS[:2] if has_labels else SCENE_LIST_COLUMNS[:1])
        check_unique_rows(table.rows, "filename")
        self.files[role] = path
        return [self.add_row(root, row, allowed) for row in table.rows]

    def add_row(self, root: Path, row: TableRow, allowed: set[Path] | None) -> Path:
        """Adds a row of a list and returns the recording's path."""
        name, scene = row.cells["filename"], row.cells.get("scene_label") or None
        path = root / name
        if allowed is not None and path not in allowed:
            raise DataError(f"{row.location}: {name} is not in {META_NAME}: is this a list of another version?")
        previous = self.audio_files.get(path)
        if previous is not None and None not in (previous.category, scene) and previous.category != scene:
            raise DataError(f"{row.location}: {name} is {scene!r}, but {previous.category!r} by {self.sources[path]}")
        if previous is None or previous.category is None:
            self.audio_files[path], self.sources[path] = LabeledAudioFile(path, name, scene), row.location
            self.locations[path] = row.cells.get("identifier") or parse_recording_location(path)
        return path


def parse_recording_location(path: Path) -> str:
    """The recording location from the file name, or the file itself."""
    match = TAU_FILE_NAME.fullmatch(path.stem) or TUT_FILE_NAME.fullmatch(path.stem)
    return match.group(1) if match else path.stem


def has_scene_lists(data: Path) -> bool:
    """Whether a folder has lists."""
    return (data / SETUP_FOLDER).is_dir() or find_scene_list(data, META_NAME) is not None


def find_scene_list(folder: Path, name: str) -> Path | None:
    """The list of that name, .csv or .txt."""
    return next((folder / f"{name}{kind}" for kind in LIST_SUFFIXES if (folder / f"{name}{kind}").is_file()), None)


def read_scene_lists(data: Path, test: Path | None) -> AudioDataset:
    """The recordings and folds of a data set; with `test`, all of `data` is fitted and all of `test` is tested.

    Raises:
        DataError: A list is missing or damaged, or two lists are inconsistent.
    """
    scenes = SceneLists()
    meta = find_scene_list(data, META_NAME)
    meta_paths = set(scenes.read_list(data, meta, "meta", has_labels=True)) if meta is not None else None
    folds = read_scene_folds(scenes, data, meta_paths) if (data / SETUP_FOLDER).is_dir() else {}
    if test is not None:
        tested_paths = set(read_evaluation_set(scenes, test))
        pairs = {0: (set(scenes.audio_files) - tested_paths, tested_paths)}
    else:
        pairs = folds
    paths = [
        path
        for path in scenes.audio_files
        if not pairs or any(path in train_paths | test_paths for train_paths, test_paths in pairs.values())
    ]
    audio_files = [scenes.audio_files[path] for path in paths]
    locations = [scenes.locations[path] for path in paths]
    labels = [audio_file.category or "" for audio_file in audio_files]
    splits = build_scene_splits(paths, pairs, locations, labels)
    num_excluded = len(scenes.audio_files) - len(paths)
    return AudioDataset(
        task="dcase",
        title=data.resolve().name,
        split=name_test_split(splits, test, bool(pairs)),
        source=next(iter(scenes.files.values())),
        audio_files=audio_files,
        classes=tuple(sorted({audio_file.category for audio_file in audio_files if audio_file.category is not None})),
        splits=splits,
        files=scenes.files | ({"audio": data / "audio"} if (data / "audio").is_dir() else {}),
        excluded={REASON_IN_NO_FOLD: num_excluded} if num_excluded else {},
        recordings=locations,
    )


def build_scene_splits(
    paths: Sequence[Path],
    pairs: Mapping[int, tuple[set[Path], set[Path]]],
    locations: Sequence[str],
    labels: Sequence[str],
) -> list[Split]:
    """The splits of the lists, from (training paths, test paths) by fold; without lists, one for each location fold."""
    if not pairs:
        return build_cross_validation_splits(assign_folds(locations, labels) + 1, num_held_out=1)
    return [
        build_predefined_split(
            fold,
            np.array([path in train for path in paths]),
            np.array([path in test for path in paths]),
            locations,
            labels,
            1,
        )
        for fold, (train, test) in pairs.items()
    ]


def name_test_split(splits: Sequence[Split], test: Path | None, has_lists: bool) -> str:
    """The name of the test part."""
    if test is not None:
        return test.resolve().name
    if not has_lists:
        return f"{len(splits)} folds by location"
    return f"{len(splits)} folds" if len(splits) > 1 else f"fold {splits[0].fold}"


def read_scene_folds(
    scenes: SceneLists, data: Path, meta_paths: set[Path] | None
) -> dict[int, tuple[set[Path], set[Path]]]:
    """The training and test files of each fold.

    Raises:
        DataError: A list is missing, or a file is both fitted and tested.
    """
    setup = data / SETUP_FOLDER
    matches = [match for path in setup.iterdir() if (match := TRAIN_LIST_NAME.fullmatch(path.name)) is not None]
    fold_ids = sorted({int(match.group(1)) for match in matches})
    if not fold_ids:
        raise DataError(f"{setup}: fold1_train.csv, the training list, is missing")
    if fold_ids != list(range(1, fold_ids[-1] + 1)):
        absent = min(set(range(1, fold_ids[-1])) - set(fold_ids))
        raise DataError(f"{setup}: fold{absent}_train.csv is missing, but fold{fold_ids[-1]}_train.csv exists")
    folds = {}
    for fold in fold_ids:
        train_list = find_scene_list(setup, f"fold{fold}_train")
        assert train_list is not None
        train_paths = set(scenes.read_list(data, train_list, f"fold {fold} train", has_labels=True, allowed=meta_paths))
        test_paths = set(read_fold_test(scenes, data, fold, meta_paths))
        duplicate = min(train_paths & test_paths, default=None)
        if duplicate is not None:
            raise DataError(
                f"{train_list}: {scenes.audio_files[duplicate].name} is in training and test set of fold {fold}"
            )
        folds[fold] = (train_paths, test_paths)
    return folds


def read_fold_test(scenes: SceneLists, data: Path, fold: int, meta_paths: set[Path] | None) -> list[Path]:
    """The test files of a fold: its evaluate list has labels, its test list names the same files without labels."""
    setup = data / SETUP_FOLDER
    evaluate_list, test_list = (
        find_scene_list(setup, f"fold{fold}_evaluate"),
        find_scene_list(setup, f"fold{fold}_test"),
    )
    if evaluate_list is None and test_list is None:
        raise DataError(f"{setup}: neither fold{fold}_evaluate.csv nor fold{fold}_test.csv, the test list, exists")
    test_paths = (
        scenes.read_list(data, test_list, f"fold {fold} test", has_labels=False) if test_list is not None else []
    )
    if evaluate_list is None:
        return test_paths
    evaluate_paths = scenes.read_list(data, evaluate_list, f"fold {fold} evaluate", has_labels=True, allowed=meta_paths)
    difference = min(set(evaluate_paths) ^ set(test_paths), default=None) if test_list is not None else None
    if difference is not None:
        first_list, second_list = (
            (evaluate_list, test_list) if difference in set(evaluate_paths) else (test_list, evaluate_list)
        )
        raise DataError(
            f"{first_list}: {scenes.audio_files[difference].name} is not in {second_list}: the lists are of different "
            f"versions"
        )
    return evaluate_paths


def read_evaluation_set(scenes: SceneLists, test: Path) -> list[Path]:
    """The files of an evaluation set, with labels if they are published.

    Raises:
        DataError: There is no list.
    """
    labeled_list = find_scene_list(test / SETUP_FOLDER, "evaluate") or find_scene_list(test, META_NAME)
    if labeled_list is not None:
        return scenes.read_list(test, labeled_list, "evaluation", has_labels=True)
    test_list = find_scene_list(test / SETUP_FOLDER, "test") or find_scene_list(test / SETUP_FOLDER, "fold1_test")
    if test_list is None:
        raise DataError(f"{test}: neither {SETUP_FOLDER}/test.csv nor {META_NAME}.csv, the test list, exists")
    return scenes.read_list(test, test_list, "evaluation", has_labels=False)
