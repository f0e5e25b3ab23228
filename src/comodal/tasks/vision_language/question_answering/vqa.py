"""VQA v2: visual question answering over a vocabulary of some 3,000 answers (ViLBERT, section 3.3).

A two-layer head on the product of both pooled streams is trained with binary cross-entropy against soft scores; batches
of 256, learning rate 4e-5, 20 epochs. As in the original's code, the vocabulary is built on both train and val
where both are given. The evaluation computes the official accuracy, or writes a submission where answers are unknown.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comodal.console import print_line
from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    DEFAULT_BASELINES,
    BaselineOptions,
    build_baseline_entries,
    score_baselines,
)
from comodal.tasks.baselines.text_and_region_classifiers import BaselineItem
from comodal.tasks.evaluation.missing_images import (
    REASON_MISSING_IMAGE,
    build_interval_settings,
    build_score_entries,
    compute_accuracy_metrics,
    count_items,
    format_missing_count,
    is_paper_protocol,
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
    VQA_HEAD,
    encode_answers,
    read_answer_vocabulary,
    read_model_vocabulary,
)
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering.vqa_files import (
    AnsweringConfig,
    VQAQuestion,
    build_answer_vocabulary,
    compute_soft_scores,
    read_vqa_questions,
    write_vqa_results,
)
from comodal.tasks.vision_language.question_answering.vqa_metric import compute_vqa_accuracy, normalize_answer
from comodal.tasks.vision_language.text_image_examples import TaskExample, TokenizedText, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    DEFAULT_EVALUATION,
    EvaluationOptions,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    compute_soft_answer_loss,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.recipe_run import Run

VQA_MAX_TOKENS = 23  # as in the original's later code; its first code has 16, and truncates [SEP]
# ViLBERT, table 1 (test-dev); no official number for val
VQA_PAPER_ACCURACY = {("test-dev2015", 107_394): 0.7055}
REASON_NO_HUMAN_ANSWER = "no human answer is in the vocabulary"
VQA_ANSWERING = AnsweringConfig(max_tokens=VQA_MAX_TOKENS)
VQA_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=256, learning_rate=4e-5)


@flatten_parameters
def recipe(
    model: Path,
    questions: Sequence[Path],
    annotations: Sequence[Path],
    regions: Path,
    validation_questions: Path | None = None,
    validation_annotations: Path | None = None,
    answering: AnsweringConfig = VQA_ANSWERING,
    fine_tune: ViLBERTFineTuneConfig = VQA_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to answer questions about images.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        questions: Official v2_OpenEnded_mscoco_*_questions.json, one or more.
        annotations: Official v2_mscoco_*_annotations.json, one for each.
        regions: The region store of the images.
        validation_questions: The questions of val2014, if they are not used for training.
        validation_annotations: Their annotations.
        answering: The vocabulary of answers, and the length of questions.
        min_answer_count: Without `answers`: an answer enters the vocabulary if it is the most common one of at least
            this many questions.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train vqa --model RUN --questions q.json --annotations a.json --regions coco/ --out runs/vqa
    """
    if len(questions) != len(annotations):
        raise ValueError(f"{len(questions)} files of questions, but {len(annotations)} of annotations; pass one each")
    if (validation_questions is None) != (validation_annotations is None):
        raise ValueError("pass both validation_questions and validation_annotations, or neither")
    parts = load_fine_tuning_data(model, regions, fine_tune)
    train_questions, train_excluded = read_question_files(questions, annotations)
    held_out_questions, held_out_excluded = read_question_files(
        [validation_questions] if validation_questions else [],
        [validation_annotations] if validation_annotations else [],
    )
    vocabulary = choose_answer_vocabulary(questions[0], [*train_questions, *held_out_questions], answering)
    rows = ImageRows(parts.store, "coco")

    def read_examples(part: Sequence[VQAQuestion], excluded_before: Counter[str], file: Path) -> ScoredQuestions:
        scored_questions, excluded = build_scored_questions(
            part, rows, parts.tokenizer, answering.max_tokens, vocabulary
        )
        rows.check(file, len(scored_questions))
        unknown = sum(not scores for scores in scored_questions.scores)
        unknown_text = f"; {unknown:,} of them without an answer in the vocabulary" if unknown else ""
        print_line(
            f"{len(scored_questions):,} questions{unknown_text}, {len(vocabulary):,} "
            f"answers{format_exclusions(excluded_before + excluded)}",
            stderr=True,
        )
        if unknown == len(scored_questions):
            raise DataError(f"{file}: none of its answers is in the vocabulary of {len(vocabulary):,}")
        return scored_questions

    files = [*questions, *annotations, *(path for path in (validation_questions, answering.answers) if path)]
    return build_vilbert_run(
        parts,
        fine_tune,
        Head(VQA_HEAD, "answers", len(vocabulary)),
        compute_soft_answer_loss,
        read_examples(train_questions, train_excluded, questions[0]),
        read_examples(held_out_questions, held_out_excluded, validation_questions) if validation_questions else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, files),
        {ANSWERS_FILE: encode_answers(vocabulary)},
    )


def read_question_files(
    questions: Sequence[Path], annotations: Sequence[Path]
) -> tuple[list[VQAQuestion], Counter[str]]:
    """The questions of several files, and how many entries of one file of a pair the other lacks."""
    all_questions, excluded = list[VQAQuestion](), Counter[str]()
    for files in zip(questions, annotations, strict=True):
        part, part_excluded = read_vqa_questions(*files)
        all_questions += part
        excluded += part_excluded
    return all_questions, excluded


def choose_answer_vocabulary(path: Path, every: Sequence[VQAQuestion], answering: AnsweringConfig) -> list[str]:
    """The given vocabulary, or the common answers of the questions.

    Raises:
        DataError: There is no such answer.
    """
    if answering.answers:
        return read_answer_vocabulary(answering.answers)
    vocabulary = build_answer_vocabulary(every, answering.min_answer_count)
    if not vocabulary:
        raise DataError(
            f"{path}: no answer is the most common one of {answering.min_answer_count} questions; lower "
            "--min-answer-count"
        )
    return vocabulary


@dataclass(frozen=True)
class ScoredQuestions:
    """Questions with soft scores of answers, expanded on access: 3,129 scores per question would exceed the memory.

    Args:
        questions: Examples without targets.
        scores: Scores of each question, by answer index.
        num_answers: Number of answers in the vocabulary.
    """

    questions: Sequence[TaskExample]
    scores: Sequence[Mapping[int, float]]
    num_answers: int

    def __len__(self) -> int:
        return len(self.questions)

    def length(self, index: int) -> int:
        return len(self.questions[index].texts[0].token_ids)

    def example(self, epoch: int, index: int) -> TaskExample:  # noqa: ARG002
        target = np.zeros(self.num_answers, np.float32)
        for answer_index, score in self.scores[index].items():
            target[answer_index] = score
        return self.questions[index]._replace(target=target)


def build_question_examples(
    questions: Iterable[tuple[str, str, str]], rows: ImageRows, tokenizer: WordPieceTokenizer, max_tokens: int
) -> tuple[list[TaskExample], Counter[str]]:
    """Examples (key, image, text) of questions whose image is in the store, and excluded ones by reason."""
    examples, excluded = [], Counter[str]()
    texts: dict[str, TokenizedText] = {}
    for key, image, text in questions:
        row = rows.find(image)
        if row is None:
            excluded[REASON_MISSING_IMAGE] += 1
            continue
        if text not in texts:
            texts[text] = tokenize_text(tokenizer, text, max_tokens)
        examples.append(TaskExample(key, (texts[text],), (row,), None))
    return examples, excluded


def build_scored_questions(
    questions: Sequence[VQAQuestion],
    rows: ImageRows,
    tokenizer: WordPieceTokenizer,
    max_tokens: int,
    vocabulary: Sequence[str],
) -> tuple[ScoredQuestions, Counter[str]]:
    """The questions whose image is in the store, with soft scores, and excluded ones by reason.

    A question none of whose answers is in the vocabulary is kept with scores of 0, as in the original.
    """
    index_by_answer = {answer: index for index, answer in enumerate(vocabulary)}
    scores = {question.question_id: compute_soft_scores(question.answers, index_by_answer) for question in questions}
    keyed_questions = ((str(item.question_id), item.image, item.text) for item in questions)
    examples, excluded = build_question_examples(keyed_questions, rows, tokenizer, max_tokens)
    return ScoredQuestions(examples, [scores[int(example.key)] for example in examples], len(vocabulary)), excluded


@flatten_parameters
def evaluate_vqa(
    model: Path,
    questions: Path,
    regions: Path,
    annotations: Path | None = None,
    max_tokens: int = VQA_MAX_TOKENS,
    train_annotations: Path | None = None,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Answers questions about images, and computes the official VQA accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vqa`.
        questions: An official file of questions: val2014, test2015, test-dev2015.
        regions: The region store of the images.
        annotations: The official annotations; without them there is a submission and no score.
        max_tokens: Maximum number of tokens of a question.
        train_annotations: The official annotations of `train_data`.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        out: Folder for results.json, submission.json and the results card; nothing is written without it.

    Returns:
        vqa.accuracy over all questions with its interval (images resampled), vqa.accuracy.predicted over those whose
        image is there; vqa.answer_type.TYPE and vqa.majority (the most common answer).

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate vqa --model runs/vqa --questions q.json --annotations a.json --regions coco/ --out results/vqa
        comodal evaluate vqa --model runs/vqa --questions test2015_questions.json --regions coco/ --out submission/
    """
    if (baselines.train_data is None) != (train_annotations is None):
        raise DataError(
            f"{baselines.train_data or train_annotations}: --train-data and --train-annotations go together"
        )
    loaded = evaluation.load_model(model, regions, VQA_HEAD)
    vocabulary = read_model_vocabulary(model, loaded.get_head(VQA_HEAD))
    question_list, excluded = read_vqa_questions(questions, annotations)
    rows = ImageRows(loaded.store, "coco")
    keyed_questions = ((str(question.question_id), question.image, question.text) for question in question_list)
    examples, _ = build_question_examples(keyed_questions, rows, loaded.tokenizer, max_tokens)
    rows.check(questions, len(examples))
    predictions = {
        int(item.example.key): vocabulary[int(item.scores.argmax())]
        for item in score_examples(loaded, VQA_HEAD, examples)
    }
    for question in question_list:
        predictions.setdefault(question.question_id, "")  # the server requires an answer to every question
    if evaluation.out is not None:
        write_vqa_results(evaluation.out / "submission.json", predictions)
    files, counts = {"questions": questions}, {**count_items(len(question_list), len(examples)), **excluded}
    print_line(
        f"{questions.name}: {len(question_list):,} questions{format_exclusions(excluded)}{format_missing_count(counts)}"
    )
    if annotations is None:
        print_line("Without annotations there is no score; submission.json is for the server.")
        metrics, intervals, fitted = {"vqa.items": float(len(question_list))}, {}, "not fitted: there is no score"
    else:
        accuracies = compute_vqa_accuracies(question_list, predictions)
        metrics = score_vqa_answers(question_list, accuracies, {int(example.key) for example in examples})
        is_graded = not np.isin(accuracies, (0.0, 1.0)).all()
        intervals = build_interval_settings(metrics, [item.image for item in question_list], "images", is_graded)
        baseline_metrics, fitted = score_baselines(
            "vqa",
            baselines,
            lambda path: list_vqa_items(read_vqa_questions(path, train_annotations)[0]),
            list_vqa_items(question_list),
            loaded.store,
            lambda store: ImageRows(store, "coco").find,
            lambda labels: compute_vqa_accuracies(
                question_list,
                {item.question_id: label or "" for item, label in zip(question_list, labels, strict=True)},
            ),
        )
        metrics |= baseline_metrics
        files["annotations"] = annotations
        counts |= count_unreachable_questions([item.answers for item in question_list], vocabulary)
    settings = {"ablate": evaluation.ablate, BASELINE_SETTING: fitted, **intervals}
    report_results(
        metrics,
        build_vqa_card(metrics, model, files, str(loaded.store.about["provenance"]), settings, counts),
        evaluation.out,
    )
    return metrics


def list_vqa_items(questions: Sequence[VQAQuestion]) -> list[BaselineItem]:
    """The questions as items of the baselines, labeled with their most common answer."""
    return [BaselineItem(item.text, (item.image,), item.most_common or None, item.image) for item in questions]


def count_unreachable_questions(human_answers: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> dict[str, int]:
    """The number of questions without an answer in the vocabulary; they are scored too."""
    valid_answers = {normalize_answer(answer) for answer in vocabulary}
    count = sum(valid_answers.isdisjoint(map(normalize_answer, answers)) for answers in human_answers)
    return {f"{REASON_NO_HUMAN_ANSWER} (still scored)": count} if count else {}


def compute_vqa_accuracies(
    questions: Sequence[VQAQuestion], predictions: Mapping[int, str]
) -> Float[np.ndarray, " questions"]:
    """The official accuracy of the predicted answer to each question."""
    return np.array(
        [compute_vqa_accuracy(predictions[question.question_id], question.answers) for question in questions]
    )


def score_vqa_answers(
    questions: Sequence[VQAQuestion], accuracies: Float[np.ndarray, " questions"], ids_with_image: Collection[int]
) -> dict[str, float]:
    """The official accuracy over all questions and by answer type; a question without a prediction scores 0.

    Args:
        questions: Questions with human answers.
        accuracies: The accuracy of each predicted answer.
        ids_with_image: The ids of questions whose image is in the store.
    """
    has_prediction = np.array([question.question_id in ids_with_image for question in questions])
    majority_answer = Counter(question.most_common for question in questions).most_common(1)[0][0]
    majority = np.mean([compute_vqa_accuracy(majority_answer, question.answers) for question in questions])
    metrics = compute_accuracy_metrics(
        "vqa.accuracy", accuracies, has_prediction, [question.image for question in questions]
    )
    metrics["vqa.majority"] = float(majority)
    for kind in ("answer_type", "question_type"):
        groups: dict[str, list[float]] = defaultdict(list)
        for question, value in zip(questions, accuracies.tolist(), strict=True):
            groups[getattr(question, kind)].append(value)
        metrics |= {f"vqa.{kind}.{name}": float(np.mean(values)) for name, values in sorted(groups.items())}
    return metrics


def build_vqa_card(
    metrics: Mapping[str, float], model: Path, files: Mapping[str, Path], regions: str, settings: Mapping[str, str],
    counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where file and number of questions are the official ones."""
    name, training = files["questions"].name, read_training_settings(model)
    paper = next(
        (v for (part, items), v in VQA_PAPER_ACCURACY.items() if part in name and items == counts["items"]), None
    )
    scores: dict[str, ScoreEntry] = {}
    if "vqa.accuracy" in metrics:
        paper = paper if is_paper_protocol(counts, settings["ablate"], training) else None
        scores = build_score_entries("accuracy", "vqa.accuracy", metrics, counts, paper)
        scores |= build_baseline_entries("vqa", metrics)
        scores["majority"] = ScoreEntry(metrics["vqa.majority"])
    kinds = {key.removeprefix("vqa.answer_type."): value for key, value in metrics.items() if ".answer_type." in key}
    scores |= {kind: ScoreEntry(value) for kind, value in kinds.items()}
    split = files["questions"].stem
    return ResultsCard("vqa", "VQA v2", split, scores, str(model), counts, files, regions, {}, {**settings, **training})
