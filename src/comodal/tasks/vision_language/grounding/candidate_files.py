"""The files of Visual7W's pointing questions and of GuessWhat?!: texts that refer to one of several boxes of an image.

Visual7W    dataset_v7w_pointing.json (yukezhu/visual7w-toolkit): `boxes` with box_id, x, y, width, height; `images`
            with image_id, filename, split and qa_pairs; a question has the box of its answer and three other boxes
GuessWhat?! guesswhat.{train,valid,test}.jsonl, unpacked (GuessWhatGame/guesswhat): a game per line, with questions and
            answers (`qas`), the objects of the image, and the object that was to be guessed

As in facebookresearch/vilbert-multi-task, the text of a game is its dialog, with "start", "answer" and "stop" between
the turns, and games that were lost or not finished are kept.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from comodal.errors import DataError
from comodal.text_files import read_json, read_json_lines

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class CandidateItem(NamedTuple):
    """A text that refers to one of the candidate boxes of an image.

    Args:
        key: Identifier of the question or game.
        image: Id of the image: Visual Genome's, or COCO's.
        file_name: The image's file name, if the data set states it; else empty.
        split: Its split.
        text: The question, or the dialog.
        candidates: Identifiers of the candidates.
        boxes: Their boxes.
        answer: Index of the correct candidate.
    """

    key: str
    image: str
    file_name: str
    split: str
    text: str
    candidates: tuple[int, ...]
    boxes: tuple[Box, ...]
    answer: int


def read_visual7w_questions(path: Path) -> list[CandidateItem]:
    """The pointing questions of all splits. Candidates are sorted by their ids, so their order tells nothing.

    Raises:
        DataError: The file cannot be read, or is not Visual7W's.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("boxes", "images")):
        raise DataError(f"{path}: not Visual7W's dataset_v7w_pointing.json, it has no lists of boxes and images")
    boxes: dict[int, Box] = {}
    for index, entry in enumerate(content["boxes"]):
        location = f"{path}, box {index}"
        sides = [get_field(location, entry, side, (int, float)) for side in ("x", "y", "width", "height")]
        boxes[get_field(location, entry, "box_id", int)] = build_box(location, sides)
    items = []
    for index, entry in enumerate(content["images"]):
        location = f"{path}, image {index}"
        image, split = str(get_field(location, entry, "image_id", (int, str))), get_field(location, entry, "split", str)
        for question in get_field(location, entry, "qa_pairs", list):
            answer = get_field(location, question, "answer", int)
            candidates = tuple(sorted({answer, *get_field(location, question, "multiple_choices", list)}))
            if unknown := [box for box in candidates if box not in boxes]:
                raise DataError(f"{location}: a question has the box {unknown[0]!r}, which is not among the boxes")
            key, text = (
                get_field(location, question, "qa_id", (int, str)),
                get_field(location, question, "question", str),
            )
            items.append(
                CandidateItem(
                    str(key), image, str(entry.get("filename", "")), split, text, candidates,
                    tuple(boxes[box] for box in candidates), candidates.index(answer),
                )
            )  # fmt: skip
    return check_unique_keys(path, items)


def read_guesswhat_games(path: Path) -> list[CandidateItem]:
    """The games of a file; the split is the part of its name before the suffix.

    Raises:
        DataError: The file cannot be read, or a line is not GuessWhat?!'s.
    """
    split, items = path.stem.rpartition(".")[2], []
    for line, entry in read_json_lines(path):
        location = f"{path}, line {line}"
        image = get_field(location, get_field(location, entry, "image", dict), "id", (int, str))
        boxes: dict[int, Box] = {}
        for candidate in get_field(location, entry, "objects", list):
            boxes[get_field(location, candidate, "id", int)] = build_box(
                location, get_field(location, candidate, "bbox", list)
            )
        target = get_field(location, entry, "object_id", int)
        if target not in boxes:
            raise DataError(f"{location}: the object {target} is not among the objects")
        turns = [
            f"start {get_field(location, turn, 'question', str)} answer {get_field(location, turn, 'answer', str)} stop"
            for turn in get_field(location, entry, "qas", list)
        ]
        candidates, key = tuple(sorted(boxes)), str(get_field(location, entry, "id", (int, str)))
        ordered = tuple(boxes[candidate] for candidate in candidates)
        items.append(
            CandidateItem(key, str(image), "", split, " ".join(turns), candidates, ordered, candidates.index(target))
        )
    return check_unique_keys(path, items)


def check_unique_keys(path: Path, items: list[CandidateItem]) -> list[CandidateItem]:
    """The items, if no two have the same id.

    Raises:
        DataError: Two have.
    """
    keys = Counter(item.key for item in items)
    if duplicates := [key for key, count in keys.items() if count > 1]:
        raise DataError(f"{path}: two questions or games have the id {duplicates[0]}")
    return items


def list_candidate_boxes(items: Iterable[CandidateItem]) -> dict[str, list[Box]]:
    """The different candidate boxes of each image, in order, by its file name or else by its id."""
    boxes: dict[str, dict[Box, None]] = {}
    for item in items:
        boxes.setdefault(item.file_name or item.image, {}).update(dict.fromkeys(item.boxes))
    return {name: list(image_boxes) for name, image_boxes in boxes.items()}


def get_field(location: str, entry: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an entry that has to be of a type; booleans are no numbers.

    Raises:
        DataError: The entry has no such field.
    """
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{location}: {name!r} is {value!r:.40}; is it an official file?")
    return value


def build_box(location: str, sides: list[Any]) -> Box:
    """A box from left, top, width and height.

    Raises:
        DataError: They are not four numbers, or it is empty.
    """
    try:
        left, top, width, height = map(float, sides)
    except (TypeError, ValueError) as error:
        raise DataError(f"{location}: the box {sides!r:.60} is not left, top, width and height") from error
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) < 0:
        raise DataError(f"{location}: the box {sides!r:.60} is not left, top, width and height")
    return left, top, left + width, top + height
