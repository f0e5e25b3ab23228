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
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    BaselineOptions,
    build_baseline_entries,
    score_baselines,
)
from comodal.tasks.baselines.text_and_region_classifiers import BaselineItem
from comodal.tasks.evaluation.missing_images import (
    build_interval_settings,
    build_score_entries,
    check_no_missing_images,
    compute_accuracy_metrics,
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
from comodal.tasks.vision_language.answer_files import (
    ANSWERS_FILE,
    encode_answers,
    read_answer_vocabulary,
    read_model_vocabulary,
)
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering.vqa import ScoredQuestions, build_question_examples
from comodal.tasks.vision_language.question_answering.vqa_files import AnsweringConfig
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
        is_counted: Whether the official score includes it.
    """

    key: str
    image: str
    text: str
    answer: str | None
    kinds: tuple[str, ...]
    is_counted: bool = True


@dataclass(frozen=True)
class QuestionTask:
    """The definition of a single-answer task.

    Args:
        name: Name on the command line.
        title: Display name.
        head: The model's head.
        read_questions: Reads the questions of an official file, and counts excluded ones by reason.
        format_prediction: The submission entry of a question (its key) and its predicted answer.
        refuses_missing: Whether the official evaluation refuses missing predictions.
    """

    name: str
    title: str
    head: str
    read_questions: Callable[[Path], tuple[list[SingleAnswerQuestion], Counter[str]]]
    format_prediction: Callable[[str, str], dict[str, str | int]]
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
    questions_by_path = {path: task.read_questions(path) for path in (questions, validation) if path}
    vocabulary = choose_vocabulary(questions, questions_by_path[questions][0], answering)
    rows = ImageRows(parts.store, "visual_genome")

    def read_examples(path: Path) -> ScoredQuestions:
        all_questions, excluded = questions_by_path[path]
        scored_questions = select_trainable_questions(
            all_questions, rows, parts.tokenizer, answering.max_tokens, vocabulary, excluded
        )
        rows.check(path, len(scored_questions))
        print_line(
            f"{path.name}: {len(scored_questions):,} questions, {len(vocabulary):,} "
            f"answers{format_exclusions(excluded)}",
            stderr=True,
        )
        if not any(scored_questions.scores):
            raise DataError(f"{path}: none of its answers is in the vocabulary of {len(vocabulary):,}")
        return scored_questions

    return build_vilbert_run(
        parts,
        fine_tune,
        Head(task.head, "answers", len(vocabulary)),
        compute_soft_answer_loss,
        read_examples(questions),
        read_examples(validation) if validation else None,
        compute_fine_tuning_fingerprint(
            fine_tune, parts.store, [*questions_by_path, *([answering.answers] if answering.answers else [])]
        ),
        {ANSWERS_FILE: encode_answers(vocabulary)},
    )


def choose_vocabulary(path: Path, questions: Sequence[SingleAnswerQuestion], answering: AnsweringConfig) -> list[str]:
    """The given vocabulary, or the answers of enough questions.

    Raises:
        DataError: No question has an answer, or no answer is frequent enough.
    """
    answer_counts = Counter(question.answer for question in questions if question.answer is not None)
    if not answer_counts:
        raise DataError(f"{path}: no question has an answer to train on; is it a test file?")
    frequent_answers = [answer for answer, count in answer_counts.items() if count >= answering.min_answer_count]
    vocabulary = read_answer_vocabulary(answering.answers) if answering.answers else frequent_answers
    if not vocabulary:
        raise DataError(
            f"{path}: no answer is that of {answering.min_answer_count} questions; lower --min-answer-count"
        )
    return vocabulary


def select_trainable_questions(
    questions: Sequence[SingleAnswerQuestion], rows: ImageRows, tokenizer: WordPieceTokenizer, max_tokens: int,
    vocabulary: Sequence[str],
    excluded: Counter[str],
) -> ScoredQuestions:  # fmt: skip
    """The questions with an answer whose image is in the store; counts the others.

    A question whose answer is not in the vocabulary is kept with scores of 0, as in the original.
    """
    index_by_answer = {answer: index for index, answer in enumerate(vocabulary)}
    scores = {
        question.key: {index_by_answer[question.answer]: 1.0} if question.answer in index_by_answer else {}
        for question in questions
        if question.answer
    }
    if len(scores) < len(questions):
        excluded[REASON_UNANSWERED] += len(questions) - len(scores)
    examples, missing = build_question_examples(
        ((question_.key, question_.image, question_.text) for question_ in questions if question_.key in scores),
        rows,
        tokenizer,
        max_tokens,
    )
    excluded.update(missing)
    return ScoredQuestions(examples, [scores[example.key] for example in examples], len(vocabulary))


def evaluate_questions(
    task: QuestionTask,
    model: Path,
    questions: Path,
    regions: Path,
    max_tokens: int,
    evaluation: EvaluationOptions,
    baselines: BaselineOptions,
) -> dict[str, float]:
    """Reports the accuracy where answers are known, and writes predictions; a missing prediction counts as incorrect.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    loaded = evaluation.load_model(model, regions, task.head)
    vocabulary = read_model_vocabulary(model, loaded.get_head(task.head))
    all_questions, excluded = task.read_questions(questions)
    predictions = answer_questions(loaded, task, questions, all_questions, max_tokens, vocabulary)
    submitted = {
        item.key: predictions.get(item.key, "") for item in all_questions
    }  # a server requires an answer to every question
    if evaluation.out is not None:
        submission = (
            json.dumps([task.format_prediction(key, answer) for key, answer in submitted.items()], ensure_ascii=False)
            + "\n"
        )
        write_bytes_atomically(evaluation.out / "submission.json", submission.encode())
    counted_questions = [item for item in all_questions if item.is_counted and item.answer is not None]
    valid_answers, scored = set(vocabulary), counted_questions or all_questions
    counts = {**count_items(len(scored), sum(item.key in predictions for item in scored)), **excluded}
    print_line(
        f"{task.title}, {questions.name}: {len(all_questions):,} questions"
        f"{format_exclusions(excluded)}{format_missing_count(counts)}"
    )
    if counted_questions:
        metrics = score_single_answers(task, counted_questions, submitted, predictions)
        baseline_metrics, fitted = score_baselines(
            task.name, baselines, lambda path: list_answer_items(task.read_questions(path)[0]),
            list_answer_items(counted_questions), loaded.store,
            lambda store: ImageRows(store, "visual_genome").find,
        )  # fmt: skip
        metrics |= baseline_metrics
        num_unknown = sum(item.answer not in valid_answers for item in counted_questions)
        if len(counted_questions) < len(all_questions):
            counts["not in the official score"] = len(all_questions) - len(counted_questions)
        if num_unknown:
            counts[f"{REASON_NOT_IN_VOCABULARY} (counted as incorrect)"] = num_unknown
    else:
        print_line("The questions have no answers, so there is no score; submission.json is for the server.")
        metrics, fitted = {f"{task.name}.items": float(len(all_questions))}, "not fitted: there is no score"
    region_source = str(loaded.store.about["provenance"])
    settings = {
        "ablate": evaluation.ablate,
        BASELINE_SETTING: fitted,
        **build_interval_settings(metrics, [item.image for item in scored], "images"),
    }
    report_results(
        metrics, build_questions_card(task, metrics, model, questions, region_source, settings, counts), evaluation.out
    )
    return metrics


def list_answer_items(questions: Sequence[SingleAnswerQuestion]) -> list[BaselineItem]:
    """The questions as items of the baselines; questions about one image are a group."""
    return [BaselineItem(question.text, (question.image,), question.answer, question.image) for question in questions]


def answer_questions(
    asked: LoadedTaskModel, task: QuestionTask, questions: Path, every: Sequence[SingleAnswerQuestion], max_tokens: int,
    vocabulary: Sequence[str],
) -> dict[str, str]:  # fmt: skip
    """The predicted answer to each question whose image is in the store, by the question's key.

    Raises:
        DataError: An image is missing, and the official evaluation refuses that.
    """
    rows = ImageRows(asked.store, "visual_genome")
    texts = ((one.key, one.image, one.text) for one in every)
    examples, _ = build_question_examples(texts, rows, asked.tokenizer, max_tokens)
    rows.check(questions, len(examples))
    if task.refuses_missing:
        check_no_missing_images(questions, task.title, list(rows.missing), len(every))
    answered = score_examples(asked, task.head, examples)
    return {one.example.key: vocabulary[int(one.scores.argmax())] for one in answered}


def score_single_answers(
    task: QuestionTask,
    questions: Sequence[SingleAnswerQuestion],
    predictions: Mapping[str, str],
    keys_with_image: Collection[str] | None = None,
) -> dict[str, float]:
    """Accuracy with its interval, accuracy of the most common answer, and accuracy by question type.

    Args:
        task: The task.
        questions: The questions to score, with their answers.
        predictions: The prediction for each; a question without one counts as incorrect.
        keys_with_image: The keys of those whose image is in the store; all of `predictions` by default.
    """
    is_correct = np.array([predictions.get(question.key) == question.answer for question in questions])
    has_prediction = np.array(
        [question.key in (predictions if keys_with_image is None else keys_with_image) for question in questions]
    )
    majority_count = Counter(question.answer for question in questions).most_common(1)[0][1]
    groups: dict[str, list[bool]] = defaultdict(list)
    for question, correct in zip(questions, is_correct.tolist(), strict=True):
        for kind in question.kinds:
            groups[kind].append(correct)
    metrics = compute_accuracy_metrics(
        "accuracy", is_correct, has_prediction, [question.image for question in questions]
    )
    metrics |= {"majority": majority_count / len(questions)}
    metrics |= {kind: float(np.mean(values)) for kind, values in sorted(groups.items())}
    return {f"{task.name}.{name}": value for name, value in metrics.items()}


def build_questions_card(
    task: QuestionTask, metrics: Mapping[str, float], model: Path, questions: Path, regions: str,
    settings: Mapping[str, str], counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card."""
    metrics_by_name = {name.removeprefix(f"{task.name}."): value for name, value in metrics.items()}
    scores: dict[str, ScoreEntry] = {}
    if "accuracy" in metrics_by_name:
        scores = build_score_entries("accuracy", "accuracy", metrics_by_name, counts)
        scores |= build_baseline_entries(task.name, metrics)
        scores |= {
            name: ScoreEntry(value)
            for name, value in metrics_by_name.items()
            if not name.startswith(("accuracy", "baseline."))
        }
    files, all_settings = {"questions": questions}, {**settings, **read_training_settings(model)}
    return ResultsCard(
        task.name, task.title, questions.stem, scores, str(model), counts, files, regions, {}, all_settings
    )
