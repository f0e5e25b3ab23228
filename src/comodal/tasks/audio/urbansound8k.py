"""UrbanSound8K, sounds of the city (Salamon, Jacoby and Bello 2014), by the protocol of L3-Net's ESC-50.

Ten folds that are the data set's own and never shuffled: slices of one recording are all in one fold, so that a split
by chance would have near-copies on both sides. Each fold is tested once by a probe of the other nine; C is chosen on
the fold that follows it. The accuracy is the mean over the folds. L3-Net's paper does not report this data set.
"""

from pathlib import Path

import numpy as np

from comodal.errors import DataError
from comodal.hardware import DeviceName, Precision, resolve
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset, AudioProbeOptions, measure
from comodal.tasks.audio.audio_tables import TableRow, need, one_name_each, only_once, read_table
from comodal.tasks.evaluation.cross_validation import AnyClassifier, cross_validation

TABLES = ("metadata/UrbanSound8K.csv", "UrbanSound8K.csv", "metadata/metadata.csv")
COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
FOLDS = 10


def evaluate_us8k(
    model: Path,
    data: Path,
    *,
    classifier: AnyClassifier = "svm",
    windows: int = 8,
    out: Path | None = None,
    seed: int = 0,
    workers: int = 2,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> dict[str, float]:
    """Classifies sounds of UrbanSound8K from frozen features; baselines are an untrained network, the raw
    spectrogram and log-mel statistics.

    Args:
        model: run folder or model folder.
        data: UrbanSound8K's folder: metadata/UrbanSound8K.csv and audio/fold1/ to audio/fold10/.
        classifier: "svm" (linear, one against all), "logistic", or "mlp" (two hidden layers).
        windows: how many equally spaced seconds of each slice are used; a slice lasts four at most.
        out: folder for results.json, answers.csv, classes.csv, confusion.png and the results card; nothing is written
            without it.
        seed: of the untrained network's weights, and of the mlp.
        workers: threads that read sound files.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Returns:
        Flat numbers: sound.trained, and of the baselines sound.untrained, sound.spectrogram and sound.log_mel, each
        with its ten folds and interval.

    Raises:
        DataError: the table is missing or of another version, a fold is missing, or no sound of a class can be read.

    Examples:
        comodal evaluate us8k --model RUN --data UrbanSound8K/ --out results/us8k
    """
    return measure(
        read_urban_sounds(data),
        model,
        AudioProbeOptions(classifier, windows, seed, workers, resolve(device, precision)),
        out,
    )


def read_urban_sounds(data: Path) -> AudioDataset:
    """All slices, in their own folds.

    Raises:
        DataError: the table is missing or of another version, or a fold is missing.
    """
    if not data.is_dir():
        raise DataError(f"{data}: there is no such folder")
    path = next((data / place for place in TABLES if (data / place).is_file()), None)
    if path is None:
        raise DataError(f"{data}: {TABLES[0]} is not there")
    table = read_table(path)
    need(path, table, COLUMNS)
    only_once(table.rows, "slice_file_name")
    folds = np.array([fold_of(row) for row in table.rows])
    absent = sorted(set(range(1, FOLDS + 1)) - set(folds.tolist()))
    if absent:
        raise DataError(f"{path}: no slice is in fold {absent[0]}; the {FOLDS} folds are used as they are")
    sounds = [LabeledAudioFile(find_slice(data, row), f"fold{row.cells['fold']}/{row.cells['slice_file_name']}",
                    row.cells["class"]) for row in table.rows]  # fmt: skip
    numbers = [row.number("classID", 0) for row in table.rows]
    classes = [row.cells["class"] for row in table.rows]
    one_name_each(path, list(zip([sound.name for sound in sounds], numbers, classes, strict=True)))
    return AudioDataset(
        task="us8k",
        title="UrbanSound8K",
        split=f"{FOLDS} folds",
        source=path,
        sounds=sounds,
        classes=tuple(dict(sorted(zip(numbers, classes, strict=True))).values()),
        rounds=cross_validation(folds, held_out=1),
        files={"metadata": path, "sounds": data / "audio"},
        recordings=[row.cells["fsID"] for row in table.rows],
    )


def fold_of(row: TableRow) -> int:
    """One of the ten."""
    fold = row.number("fold", 1)
    if fold > FOLDS:
        raise DataError(f"{row.where}: fold {fold}; there are {FOLDS}")
    return fold


def find_slice(data: Path, row: TableRow) -> Path:
    """The file of a slice, in the folder of its fold; one that lies in another fold's is of another version.

    The name says the recording and the class as well: FSID-CLASSID-OCCURRENCE-SLICE.wav.
    """
    name, fold = row.cells["slice_file_name"], row.cells["fold"]
    told = name.removesuffix(".wav").split("-")
    if len(told) == 4 and told[:2] != [row.cells["fsID"], row.cells["classID"]]:
        raise DataError(
            f"{row.where}: {name} is of recording {told[0]} and class {told[1]} by its name, of recording "
            f"{row.cells['fsID']} and class {row.cells['classID']} by the table: is this the table of another version?"
        )
    path = data / "audio" / f"fold{fold}" / name
    if not path.is_file():
        elsewhere = next((n for n in range(1, FOLDS + 1) if (data / "audio" / f"fold{n}" / name).is_file()), None)
        if elsewhere is not None:
            raise DataError(
                f"{row.where}: {name} is in fold {fold} by the table, and lies in fold{elsewhere}: is this the table "
                "of another version?"
            )
    return path
