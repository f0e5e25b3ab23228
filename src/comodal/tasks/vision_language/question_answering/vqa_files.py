"""The files of VQA v2 (Goyal et al., CVPR 2017): questions, annotations, answer vocabularies and results.

The vocabulary is that of the bottom-up-attention code, which ViLBERT uses: every answer that is the most common one of
nine questions or more, after the normalization of the official metric. On train2014 and val2014 it has 3,129 answers.
The soft score of an answer is 0.3, 0.6 or 0.9 if one, two or three annotators give it, and 1 beyond. As in that code,
human answers are counted without normalization.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from comodal.data.regions.safe_unpickler import load_pickle
from comodal.errors import CheckpointError, DataError
from comodal.files import write_bytes_atomically
from comodal.models.checkpoint import find_model_folder
from comodal.tasks.vision_language.question_answering.vqa_metric import normalize_answer
from comodal.text_files import read_json, read_lines

VQA_HEAD, GQA_HEAD = "vqa", "gqa"  # of models
ANSWERS_FILE = "answers.json"  # in the model folder
MIN_QUESTIONS = 9
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9)  # by number of annotators; 1.0 for more


class VQAQuestion(NamedTuple):
    """A question about an image, and its human answers; empty if they are unknown."""

    number: int
    image: str
    text: str
    answers: tuple[str, ...]
    most_common: str
    answer_type: str
    question_type: str


@dataclass(frozen=True)
class AnsweringConfig:
    """The vocabulary of answers, and the length of questions.

    Args:
        answers: An existing answer vocabulary: JSON, a text file with one answer per line, or the original's pickle.
        least_questions: Without `answers`: an answer enters the vocabulary if it is that of at least this many
            questions.
        max_words: Maximum number of tokens of a question.
    """

    answers: Path | None = None
    least_questions: int = MIN_QUESTIONS
    max_words: int = 26


def read_vqa_questions(questions: Path, annotations: Path | None) -> list[VQAQuestion]:
    """The questions of a file, with their annotations if given.

    Raises:
        DataError: A file cannot be read or is not VQA v2's, or a question has no annotation.
    """
    asked = read_vqa_entries(questions, "questions")
    known: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(read_vqa_entries(annotations, "annotations") if annotations else []):
        number = parse_vqa_integer(annotations, place, entry, "question_id")
        if number in known:
            raise DataError(f"{annotations}: question_id {number} is there twice")
        known[number] = entry
    found: list[VQAQuestion] = []
    seen: set[int] = set()
    for place, entry in enumerate(asked):
        number = parse_vqa_integer(questions, place, entry, "question_id")
        if number in seen:
            raise DataError(f"{questions}: question_id {number} is there twice")
        seen.add(number)
        text, image = entry.get("question"), entry.get("image_id")
        if not isinstance(text, str) or not isinstance(image, int | str):
            raise DataError(f"{questions}: question {number} has no 'question' or no 'image_id'")
        if annotations is not None and number not in known:
            raise DataError(
                f"{annotations}: no annotation of question {number} of {questions}; do both belong together?"
            )
        people = parse_vqa_annotation(annotations, number, known[number]) if annotations else ((), "", "", "")
        found.append(VQAQuestion(number, str(image), text, *people))
    if not found:
        raise DataError(f"{questions}: it has no question")
    return found


def parse_vqa_annotation(
    path: Path | None, number: int, entry: Mapping[str, Any]
) -> tuple[tuple[str, ...], str, str, str]:
    """Human answers, the most common one (counted if the file does not have it), answer type and question type."""
    answers, common = entry.get("answers"), entry.get("multiple_choice_answer")
    try:
        people = tuple(str(one["answer"]) for one in answers or ())
    except (TypeError, KeyError):
        people = ()
    if not people or not isinstance(common, str | None):
        raise DataError(f"{path}: question {number} has no 'answers', or its 'multiple_choice_answer' is no text")
    most_common = common or Counter(people).most_common(1)[0][0]
    return people, most_common, str(entry.get("answer_type", "")), str(entry.get("question_type", ""))


def read_vqa_entries(path: Path | None, key: str) -> list[dict[str, Any]]:
    """The list under a key of an official file."""
    assert path is not None
    content = read_json(path)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        there = ", ".join(list(content)[:5]) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: an official VQA file has a list of {key!r}; this one has {there}")
    return found


def parse_vqa_integer(path: Path | None, place: int, entry: Mapping[str, Any], key: str) -> int:
    """An integer field of an entry."""
    value = entry.get(key)
    if not isinstance(value, int):
        raise DataError(f"{path}, entry {place}: {key!r} is {value!r}, not a number")
    return value


def build_answer_vocabulary(questions: Iterable[VQAQuestion], least: int = MIN_QUESTIONS) -> list[str]:
    """The most common answers of at least `least` questions, in order of first occurrence."""
    counts = Counter[str]()
    for question in questions:
        counts[normalize_answer(question.most_common).replace(",", "")] += 1
    return [answer for answer, count in counts.items() if count >= least]


def read_answer_vocabulary(path: Path) -> list[str]:
    """Reads an answer vocabulary: a list of answers or {answer: index}, as JSON or as the original's pickle, or a
    text file (.txt) with one answer per line.

    Raises:
        DataError: It cannot be read, has another format, or its indices are not 0, 1, 2, ...
    """
    if path.suffix == ".txt":
        content: Any = [line.strip() for line in read_lines(path) if line.strip()]
    else:
        content = read_plain_pickle(path) if path.suffix in (".pkl", ".p") else read_json(path)
    if isinstance(content, dict):
        numbered = all(isinstance(number, int) for number in content.values())
        if not numbered or sorted(content.values()) != list(range(len(content))):
            raise DataError(f"{path}: the {len(content)} answers are not numbered from 0")
        content = sorted(content, key=lambda answer: content[answer])
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) for answer in content):
        raise DataError(f"{path}: neither a list of answers nor answers with numbers")
    if len(set(content)) < len(content):
        twice = next(answer for answer, times in Counter(content).items() if times > 1)
        raise DataError(f"{path}: the answer {twice!r} is there twice")
    return content


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values without running any code in it."""
    try:
        return load_pickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def compute_soft_scores(answers: Sequence[str], numbers: Mapping[str, int]) -> dict[int, float]:
    """The soft score of each answer of the vocabulary that annotators gave."""
    counts = Counter(answer for answer in answers if answer in numbers)
    return {
        numbers[answer]: SOFT_SCORES[count] if count < len(SOFT_SCORES) else 1.0 for answer, count in counts.items()
    }


def write_vqa_results(path: Path, answers: Mapping[int, str]) -> None:
    """Writes the server's submission file: a list of question_id and answer."""
    listed = [{"question_id": number, "answer": answer} for number, answer in sorted(answers.items())]
    write_bytes_atomically(path, (json.dumps(listed) + "\n").encode())


def read_vqa_results(path: Path, questions: Sequence[VQAQuestion]) -> dict[int, str]:
    """Reads predicted answers from a results file: one for every question.

    Raises:
        DataError: It cannot be read or has another format, or a question has no answer or two.
    """
    listed = read_json(path)
    found: dict[int, str] = {}
    for place, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(entry, dict) or not isinstance(entry.get("answer"), str):
            raise DataError(f"{path}, entry {place}: not like {{'question_id': 1, 'answer': 'yes'}}")
        number = parse_vqa_integer(path, place, entry, "question_id")
        if number in found:
            raise DataError(f"{path}: question {number} is answered twice")
        found[number] = entry["answer"]
    missing = [question.number for question in questions if question.number not in found]
    if missing:
        raise DataError(f"{path}: {len(missing):,} questions have no answer, the first is {missing[0]}")
    return found


def read_model_vocabulary(model: Path) -> list[str]:
    """The answer vocabulary of a fine-tuned model, from the file in its folder."""
    path = find_model_folder(model) / ANSWERS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it says what the answers of the model mean")
    return read_answer_vocabulary(path)
