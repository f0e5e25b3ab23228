"""Urban sound classification on UrbanSound8K (Salamon, Jacoby and Bello 2014), by L3-Net's protocol for ESC-50.

The ten folds are the official ones and are never shuffled. All slices of one recording are in one fold, whereas a
random split would put near-duplicates on both sides. Each fold is tested once by a probe that is fitted on the other
nine; C is chosen on the fold that follows it. The accuracy is the mean over the folds. L3-Net's paper does not report
this data set.
"""

from pathlib import Path

import numpy as np

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset, AudioProbeOptions, run_audio_probe
from comodal.tasks.audio.audio_tables import TableRow, check_class_names, check_columns, check_unique_rows, read_table
from comodal.tasks.evaluation.cross_validation import build_cross_validation_splits

METADATA_FILES = ("metadata/UrbanSound8K.csv", "UrbanSound8K.csv", "metadata/metadata.csv")
URBANSOUND8K_COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
NUM_FOLDS = 10


US8K_PROBE = AudioProbeOptions(windows=8)


@flatten_parameters
def evaluate_us8k(
    model: Path,
    data: Path,
    *,
    probe: AudioProbeOptions = US8K_PROBE,
) -> dict[str, float]:
    """Classifies UrbanSound8K from frozen features; baselines are an untrained network, the raw
    spectrogram and log-mel statistics.

    Args:
        model: run folder or model folder.
        data: UrbanSound8K's folder: metadata/UrbanSound8K.csv and audio/fold1/ to audio/fold10/.
        classifier: "svm" (linear, one-vs-all), "logistic", or "mlp" (two hidden layers).
        windows: number of equally spaced windows of each slice; a slice lasts at most four seconds.
        probe: the options of all evaluations of audio.

    Returns:
        Metrics: audio.trained, and of the baselines audio.untrained, audio.spectrogram and audio.log_mel, each
        with its ten folds and its interval.

    Raises:
        DataError: the table is missing or of another version, a fold is missing, or no file of a class can be read.

    Examples:
        comodal evaluate us8k --model RUN --data UrbanSound8K/ --out results/us8k
    """
    return run_audio_probe(read_urbansound8k(data), model, probe)


def read_urbansound8k(data: Path) -> AudioDataset:
    """All slices, in the official folds.

    Raises:
        DataError: the table is missing or of another version, or a fold is missing.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    path = next((data / relative_path for relative_path in METADATA_FILES if (data / relative_path).is_file()), None)
    if path is None:
        raise DataError(f"{data}: {METADATA_FILES[0]} is missing")
    table = read_table(path)
    check_columns(path, table, URBANSOUND8K_COLUMNS)
    check_unique_rows(table.rows, "slice_file_name")
    folds = np.array([parse_fold(row) for row in table.rows])
    absent = sorted(set(range(1, NUM_FOLDS + 1)) - set(folds.tolist()))
    if absent:
        raise DataError(f"{path}: no slice is in fold {absent[0]}; the {NUM_FOLDS} official folds must be complete")
    audio_files = [
        LabeledAudioFile(
            find_slice_file(data, row), f"fold{row.cells['fold']}/{row.cells['slice_file_name']}", row.cells["class"]
        )
        for row in table.rows
    ]
    class_ids = [row.parse_integer("classID", 0) for row in table.rows]
    classes = [row.cells["class"] for row in table.rows]
    check_class_names(path, list(zip([audio_file.name for audio_file in audio_files], class_ids, classes, strict=True)))
    return AudioDataset(
        task="us8k",
        title="UrbanSound8K",
        split=f"{NUM_FOLDS} folds",
        source=path,
        audio_files=audio_files,
        classes=tuple(dict(sorted(zip(class_ids, classes, strict=True))).values()),
        splits=build_cross_validation_splits(folds, num_held_out=1),
        files={"metadata": path, "audio": data / "audio"},
        recordings=[row.cells["fsID"] for row in table.rows],
    )


def parse_fold(row: TableRow) -> int:
    """The fold of a row, 1 to 10."""
    fold = row.parse_integer("fold", 1)
    if fold > NUM_FOLDS:
        raise DataError(f"{row.location}: fold {fold}; there are {NUM_FOLDS}")
    return fold


def find_slice_file(data: Path, row: TableRow) -> Path:
    """The file of a slice, in the folder of its fold; a file in another fold's folder is of another version.

    The file name also has the recording and the class: FSID-CLASSID-OCCURRENCE-SLICE.wav.
    """
    name, fold = row.cells["slice_file_name"], row.cells["fold"]
    name_parts = name.removesuffix(".wav").split("-")
    if len(name_parts) == 4 and name_parts[:2] != [row.cells["fsID"], row.cells["classID"]]:
        raise DataError(
            f"{row.location}: {name} is of recording {name_parts[0]} and class {name_parts[1]} by its name, of "
            f"recording "
            f"{row.cells['fsID']} and class {row.cells['classID']} by the table: is this the table of another version?"
        )
    path = data / "audio" / f"fold{fold}" / name
    if not path.is_file():
        elsewhere = next((n for n in range(1, NUM_FOLDS + 1) if (data / "audio" / f"fold{n}" / name).is_file()), None)
        if elsewhere is not None:
            raise DataError(
                f"{row.location}: {name} is in fold {fold} by the table, but is in fold{elsewhere}: is this the table "
                "of another version?"
            )
    return path
