"""The files of VCR (Zellers et al., CVPR 2019): questions with four answers and four rationales, and a submission.

{train,val,test}.jsonl      words; lists of indices among them refer to objects of the image
vcr1images/.../NAME.json    the names and boxes of objects, next to NAME.jpg

An object is named by its class, a person by a name drawn once per question, as in the original; the list of names is
our own. The original's later code tokenizes twice, so that `skate ##board` becomes `skate # # board`; its first code
and comodal do not.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.text_files import read_json, read_json_lines

NUM_VCR_CHOICES = 4
MAX_VCR_COORDINATE = 1 << 20  # pixels; NaN is never less, so it is refused as well
PERSON_NAMES = (
    "Alex", "Avery", "Blake", "Cameron", "Casey", "Charlie", "Dakota", "Drew", "Emerson", "Finley", "Harper", "Hayden",
    "Jamie", "Jordan", "Kendall", "Logan", "Morgan", "Parker", "Peyton", "Quinn", "Reese", "Riley", "Robin", "Rowan",
    "Sage", "Sam", "Skyler", "Taylor",
)  # fmt: skip
PERSON_CLASS = "person"
VCR_SUBMISSION_COLUMNS = [
    "annot_id",
    *(f"answer_{i}" for i in range(NUM_VCR_CHOICES)),
    *(f"rationale_conditioned_on_a{i}_{j}" for i in range(NUM_VCR_CHOICES) for j in range(NUM_VCR_CHOICES)),
]


class VCRExample(NamedTuple):
    """A question with its choices, as text; labels are None in the test split."""

    key: str
    image: str
    question: str
    answers: tuple[str, ...]
    rationales: tuple[str, ...]
    answer: int | None
    rationale: int | None


def read_vcr_examples(path: Path, seed: int) -> list[VCRExample]:
    """The questions of train.jsonl, val.jsonl or test.jsonl.

    Args:
        path: The file.
        seed: Seed of the names of people.

    Raises:
        DataError: The file cannot be read, or a line is not VCR's.
    """
    examples, lines = [], dict[str, int]()
    for line_number, entry in read_json_lines(path):
        location = f"{path}, line {line_number}"
        key, image, objects = (entry.get(name) for name in ("annot_id", "img_fn", "objects"))
        if not (isinstance(key, str) and isinstance(image, str) and isinstance(objects, list)):
            raise DataError(f"{location}: no 'annot_id', 'img_fn' or 'objects'; is it a file of VCR?")
        for kind in objects:
            if not isinstance(kind, str):
                raise DataError(f"{location}: {kind!r:.40} in 'objects' is not a class name")
        if lines.setdefault(key, line_number) != line_number:
            raise DataError(f"{location}: {key} is already in line {lines[key]}")
        names = assign_object_names(objects, key, seed)
        texts = {name: parse_choices(location, entry, name, names) for name in ("answer_choices", "rationale_choices")}
        labels = [parse_choice_label(location, entry, name) for name in ("answer_label", "rationale_label")]
        question = join_vcr_words(location, entry.get("question"), names)
        examples.append(VCRExample(key, image, question, texts["answer_choices"], texts["rationale_choices"], *labels))
    if not examples:
        raise DataError(f"{path}: no questions")
    return examples


def assign_object_names(objects: Sequence[str], key: str, seed: int) -> list[str]:
    """The name of each object in one question; people have distinct names while there are enough."""
    rng = np.random.default_rng([seed, *key.encode()])
    people = iter(
        [*rng.permutation(PERSON_NAMES).tolist(), *(str(name) for name in rng.choice(PERSON_NAMES, len(objects)))]
    )
    return [next(people) if kind == PERSON_CLASS else kind for kind in objects]


def join_vcr_words(location: str, words: Any, names: Sequence[str]) -> str:
    """Joins words and object references to a sentence."""
    if not isinstance(words, list):
        raise DataError(f"{location}: {words!r} is not a list of words")
    parts: list[str] = []
    for word in words:
        if isinstance(word, str):
            parts.append(word)
        elif isinstance(word, list) and all(isinstance(i, int) and 0 <= i < len(names) for i in word):
            parts += [names[i] for i in word]
        else:
            raise DataError(f"{location}: {word!r} is neither a word nor a list of the {len(names)} objects' indices")
    return " ".join(parts)


def parse_choices(location: str, entry: Mapping[str, Any], name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The four choices as sentences."""
    sentences = entry.get(name)
    if not isinstance(sentences, list) or len(sentences) != NUM_VCR_CHOICES:
        raise DataError(f"{location}: {name!r} does not have {NUM_VCR_CHOICES} choices")
    return tuple(join_vcr_words(location, words, names) for words in sentences)


def parse_choice_label(location: str, entry: Mapping[str, Any], name: str) -> int | None:
    """The index of the correct choice, if it is known."""
    value = entry.get(name)
    if value is not None and (type(value) is not int or value not in range(NUM_VCR_CHOICES)):
        raise DataError(f"{location}: {name!r} is {value!r}, not 0 to {NUM_VCR_CHOICES - 1}")
    return value


def read_vcr_boxes(folder: Path) -> list[tuple[str, list[list[float]]]]:
    """The boxes of every image of vcr1images/, for `comodal prepare boxes`."""
    boxes_by_image = []
    for path in sorted(folder.rglob("*.json")):
        content = read_json(path)
        boxes = content.get("boxes") if isinstance(content, dict) else None
        if not isinstance(boxes, list) or not all(isinstance(box, list) and is_vcr_box(box[:4]) for box in boxes):
            raise DataError(f"{path}: no 'boxes' of left, top, right, bottom; is it VCR's metadata?")
        image = path.with_suffix(".jpg").relative_to(folder).as_posix()
        boxes_by_image.append((image, [[float(side) for side in box[:4]] for box in boxes]))
    if not boxes_by_image:
        raise DataError(f"{folder}: no metadata (.json next to the images)")
    return boxes_by_image


def is_vcr_box(sides: Sequence[Any]) -> bool:
    """Whether a value is four pixel coordinates."""
    return len(sides) == 4 and all(isinstance(side, int | float) and abs(side) < MAX_VCR_COORDINATE for side in sides)


def write_vcr_submission(path: Path, keys: Sequence[str], scores: Mapping[str, np.ndarray]) -> None:
    """Writes the server's submission file: for each question 4 probabilities of answers and 16 of rationales.

    Args:
        path: The output file.
        keys: The annotation ids, in the order of the rows.
        scores: Scores by annotation id, (5, 4): of answers, then of rationales given each answer.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(VCR_SUBMISSION_COLUMNS)
    for key in keys:
        exponential = np.exp(scores[key] - scores[key].max(1, keepdims=True))
        probabilities = exponential / exponential.sum(1, keepdims=True)
        rows.writerow([key, *(f"{probability:.6f}" for probability in probabilities.ravel())])
    write_bytes_atomically(path, text.getvalue().encode())


@dataclass(frozen=True)
class BoxCounts:
    """What a file of boxes holds.

    Args:
        images: Number of images with boxes.
        boxes: Number of their boxes.
    """

    images: int
    boxes: int


def write_vcr_boxes(folder: Path, out: Path) -> BoxCounts:
    """Writes the boxes of vcr1images/ as JSON Lines with image, boxes and their source."""
    image_boxes = [(image, [box for box in boxes if box[2] > box[0] and box[3] > box[1]])
             for image, boxes in read_vcr_boxes(folder)]  # fmt: skip
    source = {"from": f"{folder.name}/, its metadata"}
    lines = [json.dumps({"image": image, "boxes": boxes} | source) for image, boxes in image_boxes if boxes]
    write_bytes_atomically(out, ("\n".join(lines) + "\n").encode())
    return BoxCounts(len(lines), sum(len(boxes) for _, boxes in image_boxes))
