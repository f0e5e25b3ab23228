"""Environmental sound classification on ESC-50 and ESC-10 (Piczak 2015), by the protocol of L3-Net (section 4.2).

- Ten equally spaced one-second windows of each clip.
- Features: the map of the last convolution, max-pooled (6144 in the paper's network), z-scored.
- A linear one-vs-all SVM, or another probe, whose C is chosen within the training folds.
- The score of a clip is the mean over its windows.
- The five folds are the official ones.

The baselines are an untrained network of the same shape, the raw spectrogram and log-mel statistics, under the same
protocol.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.audio.audio_features import LabeledAudioFile
from comodal.tasks.audio.audio_probe import AudioDataset, AudioProbeOptions, PaperResult, run_audio_probe
from comodal.tasks.audio.audio_tables import (
    TableRow,
    check_audio_files,
    check_class_names,
    check_columns,
    check_unique_rows,
    read_table,
)
from comodal.tasks.evaluation.cross_validation import build_cross_validation_splits

ESCSubset = Literal["esc50", "esc10"]
ESC50_PAPER_RESULT = PaperResult({"trained": 0.793, "untrained": 0.625}, windows=10)
REASON_NOT_ESC10 = "not in ESC-10"
OFFICIAL_FILE_NAME = re.compile(r"(\d)-\d+-[A-Z]+-\d+\.wav")
RECORDING_FILE_NAME = re.compile(r"\d-(\d+)-[A-Z]+-\d+\.\w+")  # fold-recording-take-class
META_FILES = ("meta/esc50.csv", "meta.csv", "esc50.csv")


class ESC50Clip(NamedTuple):
    """One row of the meta file; `recording` is the source recording of the clip."""

    path: Path
    fold: int
    target: int
    category: str
    recording: str


ESC50_PROBE = AudioProbeOptions(windows=10)


@flatten_parameters
def evaluate_esc50(
    model: Path,
    data: Path,
    *,
    subset: ESCSubset = "esc50",
    probe: AudioProbeOptions = ESC50_PROBE,
) -> dict[str, float]:
    """Classifies environmental sounds from frozen features; baselines are an untrained network, the raw
    spectrogram and log-mel statistics.

    The paper reports for ESC-50: trained 0.793, random weights 0.625, humans 0.813.

    Args:
        model: run folder or model folder.
        data: folder in ESC-50's layout (meta/esc50.csv and audio/), or with meta.csv and the audio files next to it.
        subset: "esc50" takes every row; "esc10" the rows marked in the meta file, or all rows of a file of ten classes.
        windows: number of equally spaced windows of each clip (the paper: 10).
        probe: the options of all evaluations of audio.

    Returns:
        Metrics: audio.trained, and of the baselines audio.untrained, audio.spectrogram and audio.log_mel, each
        with each fold and its interval.

    Raises:
        DataError: the meta file is missing or damaged, an audio file is missing, or no file of a class can be read.

    Examples:
        comodal evaluate esc50 --model RUN --data ESC-50-master --subset esc10 --out results/esc10
    """
    return run_audio_probe(read_esc50(data, subset), model, probe)


def read_esc50(data: Path, subset: ESCSubset) -> AudioDataset:
    """The clips of the subset, in the official folds.

    Raises:
        DataError: the meta file is missing or damaged, or an audio file is missing.
    """
    clips, num_excluded = read_esc50_meta(data, subset)
    meta, folds = find_esc50_meta(data), np.array([clip.fold for clip in clips])
    categories = sorted({(clip.target, clip.category) for clip in clips})
    return AudioDataset(
        task="esc50",
        title="ESC-50" if subset == "esc50" else "ESC-10",
        split=f"{len(set(folds.tolist()))} folds",
        source=meta,
        audio_files=[LabeledAudioFile(clip.path, clip.path.name, clip.category) for clip in clips],
        classes=tuple(category for _, category in categories),
        splits=build_cross_validation_splits(folds, num_held_out=len(folds)),
        files={"meta": meta, "audio": clips[0].path.parent},
        excluded={REASON_NOT_ESC10: num_excluded} if num_excluded else {},
        paper_result=ESC50_PAPER_RESULT if is_official_esc50(clips) else None,
        recordings=[clip.recording for clip in clips],
    )


def is_official_esc50(clips: list[ESC50Clip]) -> bool:
    """Whether these are the 2,000 official clips in the official folds: eight of each of 50 classes in every fold."""
    counts = {(fold, target): 0 for fold in range(1, 6) for target in range(50)}
    for clip in clips:
        match = OFFICIAL_FILE_NAME.fullmatch(clip.path.name)
        if match is None or (clip.fold, clip.target) not in counts:
            return False
        counts[clip.fold, clip.target] += 1
    return set(counts.values()) == {8}


def find_esc50_meta(data: Path) -> Path:
    """The file that holds the labels."""
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    meta = next((data / relative_path for relative_path in META_FILES if (data / relative_path).is_file()), None)
    if meta is None:
        raise DataError(f"{data}: there is neither meta/esc50.csv nor meta.csv")
    return meta


def read_esc50_meta(data: Path, subset: ESCSubset) -> tuple[list[ESC50Clip], int]:
    """The rows of the meta file that are in the subset, and the number of the others."""
    meta = find_esc50_meta(data)
    audio = data / "audio" if (data / "audio").is_dir() else data
    table = read_table(meta)
    is_first_revision = (
        "category_name" in table.columns
    )  # the first revision: `category` is the id, `category_name` the name
    id_column, name_column = ("category", "category_name") if is_first_revision else ("target", "category")
    check_columns(meta, table, ["filename", "fold", id_column, name_column])
    check_unique_rows(table.rows, "filename")
    clips = [parse_esc50_row(audio, row, id_column, name_column) for row in table.rows]
    if subset == "esc10":
        if "esc10" in table.columns:
            marked = [row.cells["esc10"].lower() == "true" for row in table.rows]
            clips = [clip for clip, mark in zip(clips, marked, strict=True) if mark]
        elif len({clip.category for clip in clips}) != 10:
            raise DataError(f"{meta}: no column 'esc10', and not ten categories: ESC-10 cannot be selected")
    check_clips(meta, clips)
    return clips, len(table.rows) - len(clips)


def parse_esc50_row(audio: Path, row: TableRow, id_column: str, name_column: str) -> ESC50Clip:
    """Parses one row; errors (fold or class not an integer, or not as in the file name) name the line."""
    path = audio / row.cells["filename"]
    match, recording_match = OFFICIAL_FILE_NAME.fullmatch(path.name), RECORDING_FILE_NAME.fullmatch(path.name)
    recording = recording_match.group(1) if recording_match else path.name
    clip = ESC50Clip(
        path, row.parse_integer("fold", 1), row.parse_integer(id_column, 0), row.cells[name_column], recording
    )
    if match is not None and int(match.group(1)) != clip.fold:
        raise DataError(
            f"{row.location}: {clip.path.name} is of fold {match.group(1)} by its name, of fold {clip.fold} by the "
            f"table: "
            "is this the table of another version?"
        )
    return clip


def check_clips(meta: Path, clips: list[ESC50Clip]) -> None:
    """Checks for three or more folds (one to test, one to choose C), every class in each fold, and one class per id."""
    check_audio_files(meta, [clip.path for clip in clips])
    folds, categories = {clip.fold for clip in clips}, {clip.category for clip in clips}
    if len(folds) < 3:
        raise DataError(f"{meta}: {len(clips)} audio files in folds {sorted(folds)}; at least three folds are needed")
    for fold in sorted(folds):
        without = categories - {clip.category for clip in clips if clip.fold == fold}
        if without:
            raise DataError(f"{meta}: fold {fold} has no {sorted(without)[0]!r}")
    check_class_names(meta, [(clip.path.name, clip.target, clip.category) for clip in clips])
