"""Acoustic scene classification on the DCASE challenges, by the protocol of L3-Net (section 4.2; it reports 2013).

- 2013 (also called 2014, when its second half was published): two folders of CLASSNN.wav, 30 seconds each. Each folder
  has ten recordings of each of ten scenes; one folder is fitted, the other tested.
- TUT and TAU (2016 and later): audio/, meta and evaluation_setup/, read by `tasks/audio/dcase_lists.py`.

Test recordings without published labels get a submission file and no score.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.storage.suffixes import AUDIO_SUFFIXES
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset, AudioProbeOptions, PaperResult, run_audio_probe
from comodal.tasks.audio.dcase_lists import has_scene_lists, read_scene_lists
from comodal.tasks.evaluation.cross_validation import NUM_INNER_FOLDS, build_predefined_split

HALF_FOLDERS = (("scenes_stereo", "scenes_stereo_testset"), ("train", "test"), ("train", "val"))
SCENE_NAMES = ("bus", "busystreet", "office", "openairmarket", "park", "quietstreet", "restaurant", "supermarket",
    "tube", "tubestation")  # fmt: skip
TAKES_PER_SCENE = 10  # recordings of each scene in each half
DCASE_PAPER_RESULT = PaperResult({"trained": 0.93, "untrained": 0.85}, windows=60, min_seconds=29.0)
SCENE_FILE_NAME = re.compile(r"(?:test_)?([^\W\d]\D*?)_?(\d+)")


DCASE_PROBE = AudioProbeOptions()


@flatten_parameters
def evaluate_dcase(
    model: Path,
    data: Path,
    *,
    test: Path | None = None,
    probe: AudioProbeOptions = DCASE_PROBE,
) -> dict[str, float]:
    """Classifies acoustic scenes from frozen features; baselines are an untrained network, the raw
    spectrogram and log-mel statistics.

    The paper reports for the 2013 challenge: trained 0.93, random weights 0.85.

    Args:
        model: run folder or model folder.
        data: 2013 and 2014: scenes_stereo/ and scenes_stereo_testset/ (or train/ and test/) of CLASSNN.wav. TUT and
            TAU, 2016 and later: audio/ with meta.csv and evaluation_setup/foldN_train.csv, foldN_evaluate.csv or
            foldN_test.csv (or .txt); without evaluation_setup, five folds by recording location.
        test: folder of a separate test set (the challenges' evaluation sets); all of `data` is then fitted.
        windows: number of equally spaced windows of each recording; by default two for each second of the first
            recording (the paper: 60 for 30 seconds).
        out: folder for results.json, predictions.csv, classes.csv, confusion.png and the results card, or
            submission.csv where the scene labels are unknown; nothing is written without it.
        probe: the options of all evaluations of audio.

    Returns:
        Metrics: audio.trained, and of the baselines audio.untrained, audio.spectrogram and audio.log_mel, each
        with its interval, and each fold if there are several.

    Raises:
        DataError: the folder has another layout, a list is missing or of another version, or no file of a class can be
            read.

    Examples:
        comodal evaluate dcase --model RUN --data dcase2013/ --out results/dcase2013
        comodal evaluate dcase --model RUN --data TAU-development/ --test TAU-evaluation/ --out submission/
    """
    return run_audio_probe(read_dcase(data, test), model, probe)


def read_dcase(data: Path, test: Path | None = None) -> AudioDataset:
    """Reads the recordings of any of the challenges.

    Raises:
        DataError: The folder has another layout, or a list is missing or of another version.
    """
    for folder in (data, *([test] if test is not None else [])):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    if has_scene_lists(data):
        return read_scene_lists(data, test)
    for names in HALF_FOLDERS:
        train_folder = data / names[0]
        test_folder = test if test is not None else data / names[1]
        if train_folder.is_dir() and test_folder.is_dir():
            return read_scene_halves(data, find_inner_folder(train_folder), find_inner_folder(test_folder))
    if (data / HALF_FOLDERS[0][0]).is_dir():
        raise DataError(f"{data}: {HALF_FOLDERS[0][1]}/ is missing; pass another test folder with --test")
    raise DataError(
        f"{data}: there is neither {HALF_FOLDERS[0][0]}/ and {HALF_FOLDERS[0][1]}/ (2013, 2014) "
        "nor meta.csv and evaluation_setup/ (2016 "
        "and later)"
    )


def find_inner_folder(folder: Path) -> Path:
    """The folder itself, or its subfolder of the same name: archives are unpacked either way."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def read_scene_halves(data: Path, train_folder: Path, test_folder: Path) -> AudioDataset:
    """The two halves of 2013; the file names contain the scene labels."""
    train_files, test_files = [list_scene_files(folder, data) for folder in (train_folder, test_folder)]
    first = next((audio_file for audio_file in train_files if audio_file.category is None), None)
    if first is not None:
        raise DataError(f"{first.path}: expected a file name with the scene, such as bus01.wav")
    classes = sorted({audio_file.category for audio_file in train_files if audio_file.category is not None})
    unknown = next((audio_file for audio_file in test_files if audio_file.category not in (None, *classes)), None)
    if unknown is not None:
        raise DataError(
            f"{unknown.path}: scene {unknown.category!r} is not in {train_folder.name}/: {', '.join(classes)}"
        )
    audio_files = train_files + test_files
    is_test = np.arange(len(audio_files)) >= len(train_files)
    return AudioDataset(
        task="dcase",
        title="DCASE 2013" if tuple(classes) == SCENE_NAMES else data.resolve().name,
        split=test_folder.name,
        source=test_folder,
        audio_files=audio_files,
        classes=tuple(classes),
        splits=[
            build_predefined_split(
                0,
                ~is_test,
                is_test,
                [s.path.name for s in audio_files],
                [s.category or "" for s in audio_files],
                NUM_INNER_FOLDS,
            )
        ],
        files={"to fit": train_folder, "to test": test_folder},
        paper_result=DCASE_PAPER_RESULT
        if is_official_dcase_half(train_files) and is_official_dcase_half(test_files)
        else None,
    )


def list_scene_files(folder: Path, data: Path) -> list[LabeledAudioFile]:
    """The audio files of a folder; a file name without letters has no label.

    Raises:
        DataError: There are none.
    """
    audio_files = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES):
        match = SCENE_FILE_NAME.fullmatch(path.stem)
        name = path.relative_to(data).as_posix() if path.is_relative_to(data) else path.name
        audio_files.append(LabeledAudioFile(path, name, None if match is None else match.group(1)))
    if not audio_files:
        raise DataError(f"{folder}: no audio files")
    return audio_files


def is_official_dcase_half(half: Sequence[LabeledAudioFile]) -> bool:
    """Whether there are ten recordings of each of the ten scenes."""
    return Counter(audio_file.category for audio_file in half) == dict.fromkeys(SCENE_NAMES, TAKES_PER_SCENE)
