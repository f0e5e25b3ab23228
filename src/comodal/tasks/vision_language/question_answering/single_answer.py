"""Question answering with one correct answer: the parts that GQA and Visual Genome share, trained as VQA (12-in-1)."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comodal.console import print_line
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.evaluation.metrics import describe_interval
from comodal.tasks.evaluation.missing_images import (
    INTERVAL_NAME,
    build_score_entries,
    check_no_missing_images,
    compute_accuracy_numbers,
    count_items,
    format_missing_count,
)
from comodal.tasks.evaluation.results_card import (
    ResultsCard,
    ScoreEntry,
    format_exclusions,
    read_training_settings,
    report_results,
)
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering.vqa import ScoredQuestions, build_question_examples
from comodal.tasks.vision_language.question_answering.vqa_files import (
    ANSWERS_FILE,
    AnsweringConfig,
    read_answer_vocabulary,
    read_model_vocabulary,
)
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    EvaluationOptions,
    LoadedTaskModel,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    compute_soft_answer_loss,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.recipe_run import Run

REASON_NOT_IN_VOCABULARY = "answer is not in the vocabulary"
REASON_UNANSWERED = "question has no answer"


class SingleAnswerQuestion(NamedTuple):
    """A question about an image.

    Args:
        key: Question id.
        image: Image id.
        text: The question.
        answer: The correct answer; None if unknown.
        kinds: The question types that it counts in, besides all questions.
        counts: Whether the official score includes it.
    """

    key: str
    image: str
    text: str
    answer: str | None
    kinds: tuple[str, ...]
    counts: bool = True


@dataclass(frozen=True)
class QuestionTask:
    """The definition of a single-answer task.

    Args:
        name: Name on the command line.
        title: Display name.
        head: The model's head.
        read: Reads the questions of an official file, and counts excluded ones by reason.
        record: The submission entry of a question (its key) and its predicted answer.
        refuses_missing: Whether the official evaluation refuses missing predictions.
    """

    name: str
    title: str
    head: str
    read: Callable[[Path], tuple[list[SingleAnswerQuestion], Counter[str]]]
    record: Callable[[str, str], dict[str, str | int]]
    refuses_missing: bool


def build_question_run(
    task: QuestionTask,
    model: Path,
    questions: Path,
    regions: Path,
    validation: Path | None,
    answering: AnsweringConfig,
    fine_tune: ViLBERTFineTuneConfig,
) -> Run:
    """The training run of a single-answer task.

    Raises:
        DataError: A file cannot be read, or there is nothing to train on.
    """
    parts = load_fine_tuning_data(model, regions, fine_tune)
    told = {path: task.read(path) for path in (questions, validation) if path}
    given = Counter(one.answer for one in told[questions][0] if one.answer is not None)
    if not given:
        raise DataError(f"{questions}: no question has an answer, so nothing can be learnt from it; is it a test file?")
    common = [said for said, count in given.items() if count >= answering.least_questions]
    vocabulary = read_answer_vocabulary(answering.answers) if answering.answers else common
    if not vocabulary:
        raise DataError(
            f"{questions}: no answer is that of {answering.least_questions} questions; lower --least-questions"
        )
    rows = ImageRows(parts.store, "plain")

    def source(path: Path) -> ScoredQuestions:
        every, left_out = told[path]
        found = select_trainable_questions(every, rows, parts.words, answering.max_words, vocabulary, left_out)
        rows.check(path, len(found))
        print_line(
            f"{path.name}: {len(found):,} questions, {len(vocabulary):,} answers{format_exclusions(left_out)}",
            stderr=True,
        )
        if not any(found.scores):
            raise DataError(f"{path}: none of its answers is in the vocabulary of {len(vocabulary):,}")
        return found

    return build_vilbert_run(
        parts,
        fine_tune,
        Head(task.head, "answers", len(vocabulary)),
        compute_soft_answer_loss,
        source(questions),
        source(validation) if validation else None,
        compute_fine_tuning_fingerprint(
            fine_tune, parts.store, [*told, *([answering.answers] if answering.answers else [])]
        ),
        {ANSWERS_FILE: (json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n").encode()},
    )


def select_trainable_questions(
    every: Sequence[SingleAnswerQuestion], rows: ImageRows, words: WordPieceTokenizer, max_words: int,
    vocabulary: Sequence[str],
    left_out: Counter[str],
) -> ScoredQuestions:  # fmt: skip
    """The questions with an answer whose image is in the store; counts the others.

    A question whose answer is not in the vocabulary is kept with scores of 0, as in the original.
    """
    numbers = {said: number for number, said in enumerate(vocabulary)}
    scores = {one.key: {numbers[one.answer]: 1.0} if one.answer in numbers else {} for one in every if one.answer}
    if len(scores) < len(every):
        left_out[REASON_UNANSWERED] += len(every) - len(scores)
    examples, missing = build_question_examples(
        ((e.key, e.image, e.text) for e in every if e.key in scores), rows, words, max_words
    )
    left_out.update(missing)
    return ScoredQuestions(examples, [scores[example.key] for example in examples], len(vocabulary))


def evaluate_questions(
    task: QuestionTask, model: Path, questions: Path, regions: Path, max_words: int, evaluation: EvaluationOptions
) -> dict[str, float]:
    """Reports the accuracy where answers are known, and writes predictions; a missing prediction counts as incorrect.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    asked = evaluation.load_model(model, regions, task.head)
    vocabulary, (every, left_out) = read_model_vocabulary(model), task.read(questions)
    found = answer_questions(asked, task, questions, every, max_words, vocabulary)
    given = {one.key: found.get(one.key, "") for one in every}  # a server requires an answer to every question
    if evaluation.out is not None:
        listed = json.dumps([task.record(key, said) for key, said in given.items()], ensure_ascii=False) + "\n"
        write_bytes_atomically(evaluation.out / "submission.json", listed.encode())
    counted = [one for one in every if one.counts and one.answer is not None]
    known, scored = set(vocabulary), counted or every
    counts = {**count_items(len(scored), sum(one.key in found for one in scored)), **left_out}
    print_line(
        f"{task.title}, {questions.name}: {len(every):,} questions"
        f"{format_exclusions(left_out)}{format_missing_count(counts)}"
    )
    if counted:
        numbers = score_single_answers(task, counted, given, found)
        unknown = sum(one.answer not in known for one in counted)
        if len(counted) < len(every):
            counts["not in the official score"] = len(every) - len(counted)
        if unknown:
            counts[f"{REASON_NOT_IN_VOCABULARY} (scored as wrong)"] = unknown
    else:
        print_line("There are no answers: submission.json is for the server, and there is no score.")
        numbers = {f"{task.name}.items": float(len(every))}
    where = str(asked.store.about["made_from"])
    settings = {"blank": evaluation.blank, INTERVAL_NAME: describe_interval([one.image for one in scored], "images")}
    report_results(
        numbers, build_questions_card(task, numbers, model, questions, where, settings, counts), evaluation.out
    )
    return numbers


def answer_questions(
    asked: LoadedTaskModel, task: QuestionTask, questions: Path, every: Sequence[SingleAnswerQuestion], max_words: int,
    vocabulary: Sequence[str],
) -> dict[str, str]:  # fmt: skip
    """The predicted answer to each question whose image is in the store, by the question's key.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    rows = ImageRows(asked.store, "plain")
    texts = ((one.key, one.image, one.text) for one in every)
    examples, _ = build_question_examples(texts, rows, asked.words, max_words)
    rows.check(questions, len(examples))
    if task.refuses_missing:
        check_no_missing_images(questions, task.title, list(rows.missing), len(every))
    answered = score_examples(asked, task.head, examples)
    return {one.example.key: vocabulary[int(one.scores.argmax())] for one in answered}


def score_single_answers(
    task: QuestionTask,
    counted: Sequence[SingleAnswerQuestion],
    given: Mapping[str, str],
    answered: Collection[str] | None = None,
) -> dict[str, float]:
    """Accuracy with its interval, accuracy of the most common answer, and accuracy by question type.

    Args:
        task: The task.
        counted: The questions to score, with their answers.
        given: The prediction for each; a question without one counts as incorrect.
        answered: The keys of those whose image is in the store; all of `given` by default.
    """
    right = np.array([given.get(one.key) == one.answer for one in counted])
    present = np.array([one.key in (given if answered is None else answered) for one in counted])
    common = Counter(one.answer for one in counted).most_common(1)[0][1]
    groups: dict[str, list[bool]] = defaultdict(list)
    for one, correct in zip(counted, right.tolist(), strict=True):
        for kind in one.kinds:
            groups[kind].append(correct)
    numbers = compute_accuracy_numbers("accuracy", right, present, [one.image for one in counted])
    numbers |= {"majority": common / len(counted)}
    numbers |= {kind: float(np.mean(values)) for kind, values in sorted(groups.items())}
    return {f"{task.name}.{name}": value for name, value in numbers.items()}


def build_questions_card(
    task: QuestionTask, numbers: Mapping[str, float], model: Path, questions: Path, regions: str,
    settings: Mapping[str, str], counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card."""
    plain = {name.removeprefix(f"{task.name}."): value for name, value in numbers.items()}
    scores: dict[str, ScoreEntry] = {}
    if "accuracy" in plain:
        scores = build_score_entries("accuracy", "accuracy", plain, counts)
        scores |= {name: ScoreEntry(value) for name, value in plain.items() if not name.startswith("accuracy")}
    files, every_setting = {"questions": questions}, {**settings, **read_training_settings(model)}
    return ResultsCard(
        task.name, task.title, questions.stem, scores, str(model), counts, files, regions, {}, every_setting
    )
