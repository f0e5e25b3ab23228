"""Reader of the AVE dataset (Tian et al., ECCV 2018): videos of ten seconds, each with an event that is seen and heard.

The folder holds AVE/VIDEO.mp4 and the lists trainSet.txt, valSet.txt and testSet.txt. A line is
`category&video&quality&start&end`, in whole seconds: the seconds from start to end, end excluded, have the event, and
the others are background. A video may have several lines, each with its own category; the authors' code takes each as a
sample of its own. Annotations.txt has the lines of all lists, with a header.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from comodal.errors import DataError
from comodal.files import encode_for_hash
from comodal.text_files import read_lines

VIDEO_SECONDS = 10
AVE_LISTS = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
AVE_HEADER = "Category&VideoID&Quality&StartTime&EndTime"
BACKGROUND = "background"
# SHA-256 of the sorted lines of the three lists
OFFICIAL_HASHES = {
    "train": "3714550d427da8f994ae33fba69306d049c7c035476cc50a3d3f75c626955602",
    "validation": "54e73c8b526338757fbe9105f6844f1a937b736abb01ae2fcc1bf113ac366029",
    "test": "b8961c30c420df770278033bbc8211bf97b954db078ecddc76c8282f14409103",
}


class VideoEvent(NamedTuple):
    """An event of a video: its category, and its first second and the one after its last."""

    category: str
    video: str
    start_seconds: int
    end_seconds: int

    def list_labels(self) -> list[str]:
        """The label of each second: the category or background."""
        return [
            self.category if self.start_seconds <= second < self.end_seconds else BACKGROUND
            for second in range(VIDEO_SECONDS)
        ]


def read_ave_lists(data: Path) -> dict[str, list[VideoEvent]]:
    """The events of each split.

    Raises:
        DataError: A list is missing, a line is not in this format, or a class is only tested.
    """
    events = {split: read_ave_list(data / name) for split, name in AVE_LISTS.items()}
    train_categories = {event.category for event in events["train"]}
    for split in ("validation", "test"):
        unknown = sorted({event.category for event in events[split]} - train_categories)
        if unknown:
            raise DataError(f"{data / AVE_LISTS[split]}: {unknown[0]!r} is not in {AVE_LISTS['train']}")
    return events


def read_ave_list(path: Path) -> list[VideoEvent]:
    """The events of one list.

    Raises:
        DataError: It cannot be read, is empty, or a line is not in this format.
    """
    events = [
        parse_ave_line(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(read_lines(path), 1)
        if line.strip() and line.strip() != AVE_HEADER
    ]
    if not events:
        raise DataError(f"{path}: it has no events")
    return events


def parse_ave_line(line: str, location: str) -> VideoEvent:
    """One line of a list.

    Raises:
        DataError: It is not in this format, or the seconds are not from 0 to 10 in order.
    """
    parts = line.split("&")
    try:
        category, video, _, start, end = parts
        start_seconds, end_seconds = int(start), int(end)
    except ValueError:
        raise DataError(f"{location}: {line!r:.80} is not category&video&quality&start&end") from None
    if not category or not video or category == BACKGROUND:
        raise DataError(f"{location}: {line!r:.80} has no category or no video")
    if not 0 <= start_seconds <= end_seconds <= VIDEO_SECONDS:
        raise DataError(f"{location}: the event lasts from {start_seconds} to {end_seconds} of {VIDEO_SECONDS} seconds")
    return VideoEvent(category, video, start_seconds, end_seconds)


def list_classes(events: Sequence[VideoEvent]) -> tuple[str, ...]:
    """The categories in alphabetic order, and background as the last class."""
    return (*sorted({event.category for event in events}), BACKGROUND)


def encode_labels(events: Sequence[VideoEvent], classes: Sequence[str]) -> Int[np.ndarray, "events seconds"]:
    """The class of each second of each event's video."""
    class_ids = {name: index for index, name in enumerate(classes)}
    labels = [[class_ids[label] for label in event.list_labels()] for event in events]
    return np.array(labels, dtype=np.int64).reshape(len(events), VIDEO_SECONDS)


def is_official_ave(events: Mapping[str, Sequence[VideoEvent]]) -> bool:
    """Whether these are the official lists: 3,339, 402 and 402 lines."""
    return {split: hash_events(part) for split, part in events.items()} == OFFICIAL_HASHES


def hash_events(events: Sequence[VideoEvent]) -> str:
    """SHA-256 of the events, in any order."""
    return hashlib.sha256(encode_for_hash(json.dumps(sorted(events)))).hexdigest()
