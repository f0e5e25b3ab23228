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

from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.tasks.vision_language.question_answering.vqa_metric import normalize_answer
from comodal.text_files import read_json

MIN_ANSWER_COUNT = 9
REASON_NO_ANNOTATION = "question without annotation"
REASON_NO_QUESTION = "annotation without question"
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9)  # by number of annotators; 1.0 for more


class VQAQuestion(NamedTuple):
    """A question about an image, and its human answers; empty if they are unknown."""

    question_id: int
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
        min_answer_count: Without `answers`: an answer enters the vocabulary if it is that of at least this many
            questions.
        max_tokens: Maximum number of tokens of a question.
    """

    answers: Path | None = None
    min_answer_count: int = MIN_ANSWER_COUNT
    max_tokens: int = 26


def read_vqa_questions(questions: Path, annotations: Path | None) -> tuple[list[VQAQuestion], Counter[str]]:
    """The questions of a file, with their annotations if given, and how many entries of one file the other lacks.

    Raises:
        DataError: A file cannot be read or is not VQA v2's, no question has an annotation, or an annotation is about
            another image than its question.
    """
    annotation_by_id = read_vqa_annotations(annotations) if annotations is not None else {}
    vqa_questions: list[VQAQuestion] = []
    excluded = Counter[str]()
    question_ids: set[int] = set()
    for index, entry in enumerate(read_vqa_entries(questions, "questions")):
        question_id = parse_vqa_integer(questions, index, entry, "question_id")
        if question_id in question_ids:
            raise DataError(f"{questions}: question_id {question_id} is a duplicate")
        question_ids.add(question_id)
        text, image = entry.get("question"), entry.get("image_id")
        if not isinstance(text, str) or not isinstance(image, int | str) or isinstance(image, bool):
            raise DataError(f"{questions}: question {question_id} has no 'question' or no 'image_id'")
        if annotations is None:
            vqa_questions.append(VQAQuestion(question_id, str(image), text, (), "", "", ""))
        elif (annotation := annotation_by_id.pop(question_id, None)) is None:
            excluded[REASON_NO_ANNOTATION] += 1
        else:
            check_same_image(annotations, questions, question_id, annotation.get("image_id", image), image)
            parsed = parse_vqa_annotation(annotations, question_id, annotation)
            vqa_questions.append(VQAQuestion(question_id, str(image), text, *parsed))
    if not question_ids:
        raise DataError(f"{questions}: no questions")
    if not vqa_questions:
        raise DataError(
            f"{annotations}: no annotation of question {min(question_ids)} of {questions}, nor of any other; are both "
            "of the same split?"
        )
    excluded[REASON_NO_QUESTION] = len(annotation_by_id)
    return vqa_questions, +excluded


def read_vqa_annotations(path: Path) -> dict[int, dict[str, Any]]:
    """The annotations of a file by question id.

    Raises:
        DataError: It cannot be read or is not VQA v2's, or has two annotations of a question.
    """
    annotation_by_id: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(read_vqa_entries(path, "annotations")):
        question_id = parse_vqa_integer(path, index, entry, "question_id")
        if question_id in annotation_by_id:
            raise DataError(f"{path}: question_id {question_id} is a duplicate")
        annotation_by_id[question_id] = entry
    return annotation_by_id


def check_same_image(annotations: Path, questions: Path, question_id: int, annotated_image: Any, image: Any) -> None:
    """Check that a question and its annotation are about the same image.

    Raises:
        DataError: They are not; otherwise one of the two would be scored on the wrong image.
    """
    if str(annotated_image) != str(image):
        raise DataError(
            f"{annotations}: question {question_id} is about image {annotated_image!r:.40}, and in {questions.name} "
            f"about image {image!r:.40}"
        )


def parse_vqa_annotation(
    path: Path, question_id: int, entry: Mapping[str, Any]
) -> tuple[tuple[str, ...], str, str, str]:
    """Human answers, the most common one (counted if the file does not have it), answer type and question type."""
    answers, common_answer = entry.get("answers"), entry.get("multiple_choice_answer")
    try:
        human_answers = tuple(answer_entry["answer"] for answer_entry in answers or ())
    except (TypeError, KeyError):
        human_answers = ()
    if not human_answers or not isinstance(common_answer, str | None):
        raise DataError(f"{path}: question {question_id} has no 'answers', or its 'multiple_choice_answer' is not text")
    if invalid := [answer for answer in human_answers if not isinstance(answer, str)]:
        raise DataError(f"{path}: question {question_id} has the answer {invalid[0]!r:.40}, which is not text")
    most_common = common_answer or Counter(human_answers).most_common(1)[0][0]
    return human_answers, most_common, str(entry.get("answer_type", "")), str(entry.get("question_type", ""))


def read_vqa_entries(path: Path, key: str) -> list[dict[str, Any]]:
    """The list under a key of an official file."""
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        keys = ", ".join(list(content)[:5]) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: an official VQA file has a list of {key!r}; this one has {keys}")
    return entries


def parse_vqa_integer(path: Path, index: int, entry: Mapping[str, Any], key: str) -> int:
    """An integer field of an entry."""
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{path}, entry {index}: {key!r} is {value!r}, not an integer")
    return value


def build_answer_vocabulary(questions: Iterable[VQAQuestion], min_answer_count: int = MIN_ANSWER_COUNT) -> list[str]:
    """The most common answers of at least `min_answer_count` questions, in order of first occurrence."""
    counts = Counter[str]()
    for question in questions:
        counts[normalize_answer(question.most_common).replace(",", "")] += 1
    return [answer for answer, count in counts.items() if count >= min_answer_count]


def compute_soft_scores(answers: Sequence[str], index_by_answer: Mapping[str, int]) -> dict[int, float]:
    """The soft score of each answer of the vocabulary that annotators gave."""
    counts = Counter(answer for answer in answers if answer in index_by_answer)
    return {
        index_by_answer[answer]: SOFT_SCORES[count] if count < len(SOFT_SCORES) else 1.0
        for answer, count in counts.items()
    }


def write_vqa_results(path: Path, answers: Mapping[int, str]) -> None:
    """Writes the server's submission file: a list of question_id and answer."""
    rows = [{"question_id": question_id, "answer": answer} for question_id, answer in sorted(answers.items())]
    write_bytes_atomically(path, (json.dumps(rows) + "\n").encode())
