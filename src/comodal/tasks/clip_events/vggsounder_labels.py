"""Readers of VGGSounder's labels (Zverev et al., ICCV 2025) and of VGGSound's list.

- VGGSounder: a CSV file with the columns video_id, label, modality (A: audible, V: visible, AV: both),
  background_music, static_image and voice_over, and one row for each label of a video. classes.csv beside it has the
  columns index, mid and display_name. Both are in the PyPI package `vggsounder`, folder data.
- VGGSound: vggsound.csv, without header: YouTube id, start in seconds, label, train or test.

A video is named by its YouTube id and its start: `---g-f_I2yQ_000001`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from comodal.errors import DataError
from comodal.files import encode_for_hash
from comodal.tasks.audio.audio_tables import check_columns, check_unique_rows, read_table

CLASSES_FILE = "classes.csv"
LABEL_COLUMNS = ("video_id", "label", "modality")
CLASS_COLUMNS = ("index", "display_name")
TRAIN_COLUMNS = ("youtube_id", "start", "label", "split")
MODALITIES = ("A", "V", "AV")
# The labels that each evaluation takes, as in the package's benchmark
LABEL_SUBSETS = {"a": ("A", "AV"), "v": ("V", "AV"), "av": ("AV",), "a_only": ("A",), "v_only": ("V",)}
YOUTUBE_ID_LENGTH = 11
# SHA-256 of the sorted rows (video, label, modality) of vggsounder+background-music.csv, which the benchmark takes
OFFICIAL_VERSIONS = {
    "c849325d58da25741c22bdc20970c7f0f383aa784e989a6ed32a26350cb07f35": "1.0",
    "3b2c95ea8373eab729451bbe92dfef363aab41e57b1ddc2f593b638085070782": "0.1.6",
}


class VGGSounderLabels(NamedTuple):
    """The labels of all videos.

    Args:
        classes: Class names in the order of their indices.
        labels: Modality of each label by video and class name.
        version: Version of the official labels, or "unknown".
    """

    classes: tuple[str, ...]
    labels: dict[str, dict[str, str]]
    version: str

    def build_truth(self, videos: Sequence[str], modalities: Sequence[str]) -> Bool[np.ndarray, "videos classes"]:
        """Which classes each video has with one of these modalities."""
        class_ids = {name: index for index, name in enumerate(self.classes)}
        truth = np.zeros((len(videos), len(self.classes)), dtype=bool)
        for row, video in enumerate(videos):
            for name, modality in self.labels[video].items():
                truth[row, class_ids[name]] = modality in modalities
        return truth


def read_vggsounder(path: Path) -> VGGSounderLabels:
    """Reads the labels, and the classes from classes.csv beside them.

    Raises:
        DataError: A file is missing or is not in this format, or a label is not among the classes.
    """
    classes = read_vggsound_classes(path.parent / CLASSES_FILE)
    table = read_table(path)
    check_columns(path, table, LABEL_COLUMNS)
    class_names = set(classes)
    labels: dict[str, dict[str, str]] = {}
    for row in table.rows:
        video, label, modality = (row.cells[column] for column in LABEL_COLUMNS)
        if label not in class_names:
            raise DataError(f"{row.location}: the label {label!r} is not in {CLASSES_FILE}")
        if modality not in MODALITIES:
            raise DataError(f"{row.location}: the modality is {modality!r}; it is one of {', '.join(MODALITIES)}")
        if label in labels.setdefault(video, {}):
            raise DataError(f"{row.location}: {video} has the label {label!r} before")
        labels[video][label] = modality
    if not labels:
        raise DataError(f"{path}: it has no labels")
    return VGGSounderLabels(classes, labels, OFFICIAL_VERSIONS.get(hash_labels(labels), "unknown"))


def read_vggsound_classes(path: Path) -> tuple[str, ...]:
    """The class names in the order of the file.

    Raises:
        DataError: It cannot be read or is not in this format.
    """
    table = read_table(path)
    check_columns(path, table, CLASS_COLUMNS)
    check_unique_rows(table.rows, "display_name")
    return tuple(row.cells["display_name"] for row in table.rows)


def read_training_clips(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """The class of each training clip of vggsound.csv, by the name of its video.

    Raises:
        DataError: It cannot be read, is not in this format, has no training clips, or a label is not a class.
    """
    table = read_table(path, TRAIN_COLUMNS)
    check_columns(path, table, TRAIN_COLUMNS)
    class_names, clips = set(classes), {}
    for row in table.rows:
        if row.cells["split"] not in ("train", "test"):
            raise DataError(f"{row.location}: the split is {row.cells['split']!r}; it is train or test")
        if row.cells["split"] == "train":
            if row.cells["label"] not in class_names:
                raise DataError(f"{row.location}: the label {row.cells['label']!r} is not in {CLASSES_FILE}")
            clips[f"{row.cells['youtube_id']}_{row.parse_integer('start', 0):06d}"] = row.cells["label"]
    if not clips:
        raise DataError(f"{path}: it has no training clips")
    return clips


def get_youtube_id(video: str) -> str:
    """The YouTube id of a clip, whose clips are correlated."""
    return video[:YOUTUBE_ID_LENGTH]


def hash_labels(labels: Mapping[str, Mapping[str, str]]) -> str:
    """SHA-256 of the rows, in any order."""
    rows = sorted(f"{video}\t{name}\t{modality}" for video, own in labels.items() for name, modality in own.items())
    return hashlib.sha256(encode_for_hash("\n".join(rows))).hexdigest()
