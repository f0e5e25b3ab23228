"""VQA v2: visual question answering over a vocabulary of some 3,000 answers (ViLBERT, section 3.3).

A two-layer head on the product of both pooled streams is trained with binary cross-entropy against soft scores; batches
of 256, learning rate 4e-5, 20 epochs. As in the original's code, the vocabulary is built on train and val together
where both are given. The evaluation computes the official accuracy, or writes a submission where answers are unknown.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.evaluation.metrics import describe_interval
from comodal.tasks.evaluation.missing_images import (
    INTERVAL_NAME,
    REASON_MISSING_IMAGE,
    build_score_entries,
    compute_accuracy_numbers,
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
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering.vqa_files import (
    ANSWERS_FILE,
    VQA_HEAD,
    AnsweringConfig,
    VQAQuestion,
    build_answer_vocabulary,
    compute_soft_scores,
    read_answer_vocabulary,
    read_model_vocabulary,
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
REASON_NO_HUMAN_ANSWER = "no answer of people is in the vocabulary"
VQA_ANSWERING = AnsweringConfig(max_words=VQA_MAX_TOKENS)
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
        least_questions: Without `answers`: an answer enters the vocabulary if it is the most common one of at least
            this many questions.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train vqa --model RUN --questions q.json --annotations a.json --regions coco/ --out runs/vqa
    """
    if len(questions) != len(annotations):
        raise ValueError(f"{len(questions)} files of questions need as many of annotations, not {len(annotations)}")
    if (validation_questions is None) != (validation_annotations is None):
        raise ValueError("validation_questions and validation_annotations are given together, or neither")
    parts = load_fine_tuning_data(model, regions, fine_tune)
    asked = [read_vqa_questions(*files) for files in zip(questions, annotations, strict=True)]
    held_out = read_vqa_questions(validation_questions, validation_annotations) if validation_questions else []
    every = [question for some in asked for question in some]
    vocabulary = choose_answer_vocabulary(questions[0], [*every, *held_out], answering)
    rows = ImageRows(parts.store, "coco")

    def source(some: Sequence[VQAQuestion], file: Path) -> ScoredQuestions:
        found, left_out = build_scored_questions(some, rows, parts.words, answering.max_words, vocabulary)
        rows.check(file, len(found))
        unknown = sum(not scores for scores in found.scores)
        said = f"; {unknown:,} of them without a known answer" if unknown else ""
        print_line(
            f"{len(found):,} questions{said}, {len(vocabulary):,} answers{format_exclusions(left_out)}", stderr=True
        )
        if unknown == len(found):
            raise DataError(f"{file}: none of its answers is in the vocabulary of {len(vocabulary):,}")
        return found

    files = [*questions, *annotations, *(path for path in (validation_questions, answering.answers) if path)]
    return build_vilbert_run(
        parts,
        fine_tune,
        Head(VQA_HEAD, "answers", len(vocabulary)),
        compute_soft_answer_loss,
        source(every, questions[0]),
        source(held_out, validation_questions) if validation_questions else None,
        compute_fine_tuning_fingerprint(fine_tune, parts.store, files),
        {ANSWERS_FILE: (json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n").encode()},
    )


def choose_answer_vocabulary(path: Path, every: Sequence[VQAQuestion], answering: AnsweringConfig) -> list[str]:
    """The given vocabulary, or the common answers of the questions.

    Raises:
        DataError: There is no such answer.
    """
    if answering.answers:
        return read_answer_vocabulary(answering.answers)
    vocabulary = build_answer_vocabulary(every, answering.least_questions)
    if not vocabulary:
        raise DataError(
            f"{path}: no answer is the most common one of {answering.least_questions} questions; lower "
            "--least-questions"
        )
    return vocabulary


@dataclass(frozen=True)
class ScoredQuestions:
    """Questions with soft scores of answers, expanded on access: 3,129 scores per question would exceed the memory.

    Args:
        questions: Examples without targets.
        scores: Scores of each question, by answer index.
        answers: Number of answers in the vocabulary.
    """

    questions: Sequence[TaskExample]
    scores: Sequence[Mapping[int, float]]
    answers: int

    def __len__(self) -> int:
        return len(self.questions)

    def length(self, index: int) -> int:
        return len(self.questions[index].texts[0].words)

    def example(self, epoch: int, index: int) -> TaskExample:  # noqa: ARG002
        target = np.zeros(self.answers, np.float32)
        for number, share in self.scores[index].items():
            target[number] = share
        return self.questions[index]._replace(target=target)


def build_question_examples(
    questions: Iterable[tuple[str, str, str]], rows: ImageRows, words: WordPieceTokenizer, max_words: int
) -> tuple[list[TaskExample], Counter[str]]:
    """Examples (key, image, text) of questions whose image is in the store, and excluded ones by reason."""
    examples, left_out = [], Counter[str]()
    texts: dict[str, TokenizedText] = {}
    for key, image, text in questions:
        row = rows.find(image)
        if row is None:
            left_out[REASON_MISSING_IMAGE] += 1
            continue
        if text not in texts:
            texts[text] = tokenize_text(words, text, max_words)
        examples.append(TaskExample(key, (texts[text],), (row,), None))
    return examples, left_out


def build_scored_questions(
    questions: Sequence[VQAQuestion],
    rows: ImageRows,
    words: WordPieceTokenizer,
    max_words: int,
    vocabulary: Sequence[str],
) -> tuple[ScoredQuestions, Counter[str]]:
    """The questions whose image is in the store, with soft scores, and excluded ones by reason.

    A question none of whose answers is in the vocabulary is kept with scores of 0, as in the original.
    """
    numbers = {answer: number for number, answer in enumerate(vocabulary)}
    scores = {question.number: compute_soft_scores(question.answers, numbers) for question in questions}
    every = ((str(one.number), one.image, one.text) for one in questions)
    examples, left_out = build_question_examples(every, rows, words, max_words)
    return ScoredQuestions(examples, [scores[int(example.key)] for example in examples], len(vocabulary)), left_out


@flatten_parameters
def evaluate_vqa(
    model: Path,
    questions: Path,
    regions: Path,
    annotations: Path | None = None,
    max_words: int = VQA_MAX_TOKENS,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
) -> dict[str, float]:
    """Answers questions about images, and computes the official VQA accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vqa`.
        questions: An official file of questions: val2014, test2015, test-dev2015.
        regions: The region store of the images.
        annotations: The official annotations; without them there is a submission and no score.
        max_words: Maximum number of tokens of a question.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        out: Folder for results.json, submission.json and the results card; nothing is written without it.

    Returns:
        vqa.accuracy over all questions with its interval (images resampled), vqa.accuracy.answered over those whose
        image is there; vqa.answer_type.TYPE and vqa.majority (the most common answer).

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate vqa --model runs/vqa --questions q.json --annotations a.json --regions coco/ --out results/vqa
        comodal evaluate vqa --model runs/vqa --questions test2015_questions.json --regions coco/ --out submission/
    """
    asked = evaluation.load_model(model, regions, VQA_HEAD)
    vocabulary, told = read_model_vocabulary(model), read_vqa_questions(questions, annotations)
    rows = ImageRows(asked.store, "coco")
    plain = ((str(question.number), question.image, question.text) for question in told)
    examples, _ = build_question_examples(plain, rows, asked.words, max_words)
    rows.check(questions, len(examples))
    given = {
        int(one.example.key): vocabulary[int(one.scores.argmax())] for one in score_examples(asked, VQA_HEAD, examples)
    }
    for question in told:
        given.setdefault(question.number, "")  # the server requires an answer to every question
    if evaluation.out is not None:
        write_vqa_results(evaluation.out / "submission.json", given)
    files, counts = {"questions": questions}, count_items(len(told), len(examples))
    print_line(f"{questions.name}: {len(told):,} questions{format_missing_count(counts)}")
    if annotations is None:
        print_line("There are no annotations: submission.json is for the server, and there is no score.")
        numbers = {"vqa.items": float(len(told))}
    else:
        numbers = score_vqa_answers(told, given, {int(example.key) for example in examples})
        files["annotations"] = annotations
        counts |= count_unreachable_questions([one.answers for one in told], vocabulary)
    settings = {
        "blank": evaluation.blank,
        INTERVAL_NAME: describe_interval([one.image for one in told], "images", graded=True),
    }
    report_results(
        numbers,
        build_vqa_card(numbers, model, files, str(asked.store.about["made_from"]), settings, counts),
        evaluation.out,
    )
    return numbers


def count_unreachable_questions(said: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> dict[str, int]:
    """The number of questions without an answer in the vocabulary; they count all the same."""
    known = {normalize_answer(answer) for answer in vocabulary}
    count = sum(known.isdisjoint(map(normalize_answer, answers)) for answers in said)
    return {f"{REASON_NO_HUMAN_ANSWER} (scored all the same)": count} if count else {}


def score_vqa_answers(
    questions: Sequence[VQAQuestion], given: Mapping[int, str], answered: Collection[int] | None = None
) -> dict[str, float]:
    """The official accuracy over all questions and by answer type; a question without a prediction scores 0.

    Args:
        questions: Questions with human answers.
        given: The predicted answers.
        answered: The ids of questions whose image is in the store; all of `given` by default.
    """
    each = np.array([compute_vqa_accuracy(given[question.number], question.answers) for question in questions])
    present = np.array([question.number in (given if answered is None else answered) for question in questions])
    common = Counter(question.most_common for question in questions).most_common(1)[0][0]
    majority = np.mean([compute_vqa_accuracy(common, question.answers) for question in questions])
    numbers = compute_accuracy_numbers("vqa.accuracy", each, present, [question.image for question in questions])
    numbers["vqa.majority"] = float(majority)
    for kind in ("answer_type", "question_type"):
        groups: dict[str, list[float]] = defaultdict(list)
        for question, value in zip(questions, each.tolist(), strict=True):
            groups[getattr(question, kind)].append(value)
        numbers |= {f"vqa.{kind}.{name}": float(np.mean(values)) for name, values in sorted(groups.items())}
    return numbers


def build_vqa_card(
    numbers: Mapping[str, float], model: Path, files: Mapping[str, Path], regions: str, settings: Mapping[str, str],
    counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracy where file and number of questions are the official ones."""
    name, training = files["questions"].name, read_training_settings(model)
    paper = next(
        (v for (part, items), v in VQA_PAPER_ACCURACY.items() if part in name and items == counts["items"]), None
    )
    scores: dict[str, ScoreEntry] = {}
    if "vqa.accuracy" in numbers:
        paper = paper if is_paper_protocol(counts, settings["blank"], training) else None
        scores = build_score_entries("accuracy", "vqa.accuracy", numbers, counts, paper)
        scores["majority"] = ScoreEntry(numbers["vqa.majority"])
    kinds = {key.removeprefix("vqa.answer_type."): value for key, value in numbers.items() if ".answer_type." in key}
    scores |= {kind: ScoreEntry(value) for kind, value in kinds.items()}
    split = files["questions"].stem
    return ResultsCard("vqa", "VQA v2", split, scores, str(model), counts, files, regions, {}, {**settings, **training})
