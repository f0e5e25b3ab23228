"""The lists of TUT's and TAU's acoustic scenes (since 2016), which define the training and test files.

meta.csv                              filename, scene_label, identifier (the recording location), source_label
evaluation_setup/foldN_train.csv      filename, scene_label
evaluation_setup/foldN_evaluate.csv   filename, scene_label of the test files
evaluation_setup/foldN_test.csv       filename of the same test files, without labels

All are tab-separated; until 2018 they are .txt without a header. An evaluation set of a challenge is a
separate folder with evaluation_setup/test.csv, and evaluate.txt or a meta file once its labels are published.
"""

import re
from collections.abc import Sequence
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
    build_given_split,
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
        self.sounds: dict[Path, LabeledAudioFile] = {}
        self.places: dict[Path, str] = {}
        self.sources: dict[Path, str] = {}
        self.files: dict[str, Path] = {}

    def read(self, root: Path, path: Path, what: str, labelled: bool, among: set[Path] | None = None) -> list[Path]:
        """Reads the recordings of a list.

        Args:
            root: The folder of the data set.
            path: The list.
            what: Its name on the results card.
            labelled: Whether it must have labels.
            among: The recordings that it may name, None for any.

        Raises:
            DataError: It is missing or damaged, contradicts a label of an earlier list, or names another recording.
        """
        table = read_table(path, SCENE_LIST_COLUMNS)
        check_columns(path, table, SCENE_LIST_COLUMNS[:2] if labelled else SCENE_LIST_COLUMNS[:1])
        check_unique_rows(table.rows, "filename")
        self.files[what] = path
        return [self.add(root, row, among) for row in table.rows]

    def add(self, root: Path, row: TableRow, among: set[Path] | None) -> Path:
        """Adds a row of a list and returns the recording's path."""
        name, scene = row.cells["filename"], row.cells.get("scene_label") or None
        path = root / name
        if among is not None and path not in among:
            raise DataError(f"{row.where}: {name} is not in {META_NAME}: is this a list of another version?")
        known = self.sounds.get(path)
        if known is not None and None not in (known.category, scene) and known.category != scene:
            raise DataError(f"{row.where}: {name} is {scene!r}, but {known.category!r} by {self.sources[path]}")
        if known is None or known.category is None:
            self.sounds[path], self.sources[path] = LabeledAudioFile(path, name, scene), row.where
            self.places[path] = row.cells.get("identifier") or parse_recording_location(path)
        return path


def parse_recording_location(path: Path) -> str:
    """The recording location from the file name, or the file itself."""
    named = TAU_FILE_NAME.fullmatch(path.stem) or TUT_FILE_NAME.fullmatch(path.stem)
    return named.group(1) if named else path.stem


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
    known = set(scenes.read(data, meta, "meta", labelled=True)) if meta is not None else None
    folds = read_scene_folds(scenes, data, known) if (data / SETUP_FOLDER).is_dir() else {}
    if test is not None:
        tested = set(read_evaluation_set(scenes, test))
        pairs = {0: (set(scenes.sounds) - tested, tested)}
    else:
        pairs = folds
    paths = [path for path in scenes.sounds if not pairs or any(path in fit | tests for fit, tests in pairs.values())]
    sounds = [scenes.sounds[path] for path in paths]
    places, labels = [scenes.places[path] for path in paths], [sound.category or "" for sound in sounds]
    rounds = [
        build_given_split(
            number, np.array([p in fit for p in paths]), np.array([p in tests for p in paths]), places, labels, 1
        )
        for number, (fit, tests) in pairs.items()
    ] or build_cross_validation_splits(assign_folds(places, labels) + 1, held_out=1)
    left_out = len(scenes.sounds) - len(paths)
    return AudioDataset(
        task="dcase",
        title=data.resolve().name,
        split=name_test_split(rounds, test, bool(pairs)),
        source=next(iter(scenes.files.values())),
        sounds=sounds,
        classes=tuple(sorted({sound.category for sound in sounds if sound.category is not None})),
        rounds=rounds,
        files=scenes.files | ({"sounds": data / "audio"} if (data / "audio").is_dir() else {}),
        left_out={REASON_IN_NO_FOLD: left_out} if left_out else {},
        recordings=places,
    )


def name_test_split(rounds: Sequence[Split], test: Path | None, official: bool) -> str:
    """The name of the test part."""
    if test is not None:
        return test.resolve().name
    if not official:
        return f"{len(rounds)} folds by place"
    return f"{len(rounds)} folds" if len(rounds) > 1 else f"fold {rounds[0].number}"


def read_scene_folds(scenes: SceneLists, data: Path, known: set[Path] | None) -> dict[int, tuple[set[Path], set[Path]]]:
    """The training and test files of each fold.

    Raises:
        DataError: A list is missing, or a file is both fitted and tested.
    """
    setup = data / SETUP_FOLDER
    names = [named for path in setup.iterdir() if (named := TRAIN_LIST_NAME.fullmatch(path.name)) is not None]
    numbers = sorted({int(named.group(1)) for named in names})
    if not numbers:
        raise DataError(f"{setup}: fold1_train.csv is missing, which says what is fitted")
    if numbers != list(range(1, numbers[-1] + 1)):
        absent = min(set(range(1, numbers[-1])) - set(numbers))
        raise DataError(f"{setup}: fold{absent}_train.csv is missing, and fold{numbers[-1]}_train.csv is there")
    folds = {}
    for number in numbers:
        train = find_scene_list(setup, f"fold{number}_train")
        assert train is not None
        fit = set(scenes.read(data, train, f"fold {number} train", labelled=True, among=known))
        tests = set(read_fold_test(scenes, data, number, known))
        both = min(fit & tests, default=None)
        if both is not None:
            raise DataError(f"{train}: {scenes.sounds[both].name} is both fitted and tested in fold {number}")
        folds[number] = (fit, tests)
    return folds


def read_fold_test(scenes: SceneLists, data: Path, number: int, known: set[Path] | None) -> list[Path]:
    """The test files of a fold: its evaluate list has labels, its test list names the same files without labels."""
    setup = data / SETUP_FOLDER
    evaluate, names = find_scene_list(setup, f"fold{number}_evaluate"), find_scene_list(setup, f"fold{number}_test")
    if evaluate is None and names is None:
        raise DataError(f"{setup}: neither fold{number}_evaluate.csv nor fold{number}_test.csv says what is tested")
    named = scenes.read(data, names, f"fold {number} test", labelled=False) if names is not None else []
    if evaluate is None:
        return named
    told = scenes.read(data, evaluate, f"fold {number} evaluate", labelled=True, among=known)
    other = min(set(told) ^ set(named), default=None) if names is not None else None
    if other is not None:
        here, there = (evaluate, names) if other in set(told) else (names, evaluate)
        raise DataError(f"{here}: {scenes.sounds[other].name} is not in {there}: the lists are of different versions")
    return told


def read_evaluation_set(scenes: SceneLists, test: Path) -> list[Path]:
    """The files of an evaluation set, with labels if they are published.

    Raises:
        DataError: There is no list.
    """
    told = find_scene_list(test / SETUP_FOLDER, "evaluate") or find_scene_list(test, META_NAME)
    if told is not None:
        return scenes.read(test, told, "evaluation", labelled=True)
    names = find_scene_list(test / SETUP_FOLDER, "test") or find_scene_list(test / SETUP_FOLDER, "fold1_test")
    if names is None:
        raise DataError(f"{test}: neither {SETUP_FOLDER}/test.csv nor {META_NAME}.csv says what is tested")
    return scenes.read(test, names, "evaluation", labelled=False)
