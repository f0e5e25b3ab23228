"""VQA v2: a question about a picture, answered with one of some 3,000 answers (ViLBERT, section 3.3).

A head of two layers on the product of both pooled streams, trained with binary cross-entropy against soft scores;
batches of 256, 4e-5, 20 epochs. As in the original's code the vocabulary is built on train and val together where both
are given. Answers come with the official accuracy, and with a file for the server where nobody knows them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.data.loader import Workers
from comodal.errors import DataError
from comodal.hardware import DeviceName, Precision, resolve_compute
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
    MIN_QUESTIONS,
    VQA_HEAD,
    VQAQuestion,
    build_answer_vocabulary,
    compute_soft_scores,
    read_answer_vocabulary,
    read_model_vocabulary,
    read_vqa_questions,
    write_vqa_results,
)
from comodal.tasks.vision_language.question_answering.vqa_metric import compute_vqa_accuracy, normalize_answer
from comodal.tasks.vision_language.text_image_examples import Ablation, TaskExample, TokenizedText, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    FineTuneConfig,
    ViLBERTStart,
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    compute_soft_answer_loss,
    load_fine_tuned_model,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.run import Run

VQA_MAX_TOKENS = 23  # the later original's; the first has 16, and cuts [SEP] off
# ViLBERT, table 1 (test-dev); no official number for val
VQA_PAPER_ACCURACY = {("test-dev2015", 107_394): 0.7055}
REASON_NO_HUMAN_ANSWER = "no answer of people is in the vocabulary"


def recipe(
    model: Path,
    questions: Sequence[Path],
    annotations: Sequence[Path],
    regions: Path,
    validation_questions: Path | None = None,
    validation_annotations: Path | None = None,
    answers: Path | None = None,
    least_questions: int = MIN_QUESTIONS,
    start: ViLBERTStart = "pretrained",
    blank: Ablation = "nothing",
    epochs: float = 20.0,
    batch_size: int = 256,
    learning_rate: float = 4e-5,
    max_words: int = VQA_MAX_TOKENS,
    max_regions: int = 100,
    workers: Workers = "auto",
    seed: int = 0,
) -> Run:
    """Fine-tunes a ViLBERT to answer questions about pictures.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        questions: Official v2_OpenEnded_mscoco_*_questions.json, one or more.
        annotations: Official v2_mscoco_*_annotations.json, one for each.
        regions: The region store of the images.
        validation_questions: Those of val2014, if they are not for training.
        validation_annotations: Their annotations.
        answers: A vocabulary that is there already: JSON, a text with an answer a line, or the original's pickle.
        least_questions: Without it: an answer is in the vocabulary if it is the most common one of so many questions.
        start: From the pretrained weights, or the same network from chance: the control.
        blank: Leave out the text or the picture: the control that shows what the other says alone.
        epochs: How often every question is seen.
        batch_size: Questions in a step, over all processes.
        learning_rate: Of what was pretrained; the new head learns at 1e-4.
        max_words: Word pieces of a question.
        max_regions: Regions of an image.
        workers: Processes that read data; auto: two for a CPU, more for a GPU.
        seed: Of the head and the order.

    Examples:
        comodal train vqa --model RUN --questions q.json --annotations a.json --regions coco/ --out runs/vqa
    """
    setup = FineTuneConfig(model, regions, start, blank, epochs, batch_size, learning_rate, max_regions, workers, seed)
    if len(questions) != len(annotations):
        raise ValueError(f"{len(questions)} files of questions need as many of annotations, not {len(annotations)}")
    if (validation_questions is None) != (validation_annotations is None):
        raise ValueError("validation_questions and validation_annotations are given together, or neither")
    parts = load_fine_tuning_data(setup)
    asked = [read_vqa_questions(*files) for files in zip(questions, annotations, strict=True)]
    held_out = read_vqa_questions(validation_questions, validation_annotations) if validation_questions else []
    every = [question for some in asked for question in some]
    vocabulary = (
        read_answer_vocabulary(answers) if answers else build_answer_vocabulary([*every, *held_out], least_questions)
    )
    if not vocabulary:
        raise DataError(
            f"{questions[0]}: no answer is the most common one of {least_questions} questions; lower --least-questions"
        )
    rows = ImageRows(parts.store, "coco")

    def source(some: Sequence[VQAQuestion], file: Path) -> ScoredQuestions:
        found, left_out = build_scored_questions(some, rows, parts.words, max_words, vocabulary)
        rows.check(file, len(found))
        unknown = sum(not scores for scores in found.scores)
        said = f"; {unknown:,} of them without a known answer" if unknown else ""
        print_line(
            f"{len(found):,} questions{said}, {len(vocabulary):,} answers{format_exclusions(left_out)}", stderr=True
        )
        if unknown == len(found):
            raise DataError(f"{file}: none of its answers is in the vocabulary of {len(vocabulary):,}")
        return found

    files = [*questions, *annotations, *(path for path in (validation_questions, answers) if path)]
    return build_vilbert_run(
        parts,
        setup,
        Head(VQA_HEAD, "answers", len(vocabulary)),
        compute_soft_answer_loss,
        source(every, questions[0]),
        source(held_out, validation_questions) if validation_questions else None,
        compute_fine_tuning_fingerprint(setup, parts.store, files),
        {ANSWERS_FILE: (json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n").encode()},
    )


@dataclass(frozen=True)
class ScoredQuestions:
    """Questions with the scores of answers, written out when they are asked for: 3,129 numbers each would fill memory.

    Args:
        questions: Examples without targets.
        scores: Of each, by the number of the answer.
        answers: How many answers there are.
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
    """Key, image and text of questions: those whose image is in the store, and what was left out, by reason."""
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
    """The questions whose image is there, and what was left out, by reason.

    A question none of whose answers is in the vocabulary is kept, and all of its scores are 0, as in the original.
    """
    numbers = {answer: number for number, answer in enumerate(vocabulary)}
    scores = {question.number: compute_soft_scores(question.answers, numbers) for question in questions}
    every = ((str(one.number), one.image, one.text) for one in questions)
    examples, left_out = build_question_examples(every, rows, words, max_words)
    return ScoredQuestions(examples, [scores[int(example.key)] for example in examples], len(vocabulary)), left_out


def evaluate_vqa(
    model: Path,
    questions: Path,
    regions: Path,
    annotations: Path | None = None,
    blank: Ablation = "nothing",
    max_words: int = VQA_MAX_TOKENS,
    max_regions: int = 100,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
) -> dict[str, float]:
    """Answers questions about pictures, and scores the answers as the official code does.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vqa`.
        questions: An official file of questions: val2014, test2015, test-dev2015.
        regions: The region store of the images.
        annotations: The official annotations; without them there is a submission and no score.
        blank: Leave out the text or the picture.
        max_words: Word pieces of a question.
        max_regions: Regions of an image.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.
        out: Folder for results.json, submission.json and the results card; nothing is written without it.

    Returns:
        vqa.accuracy over all questions with its interval (images resampled), vqa.accuracy.answered over those whose
        image is there; vqa.answer_type.TYPE and vqa.majority, which always gives the most common answer.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: There is no such model.

    Examples:
        comodal evaluate vqa --model runs/vqa --questions q.json --annotations a.json --regions coco/ --out results/vqa
        comodal evaluate vqa --model runs/vqa --questions test2015_questions.json --regions coco/ --out submission/
    """
    asked = load_fine_tuned_model(model, regions, blank, max_regions, resolve_compute(device, precision), VQA_HEAD)
    vocabulary, told = read_model_vocabulary(model), read_vqa_questions(questions, annotations)
    rows = ImageRows(asked.store, "coco")
    plain = ((str(question.number), question.image, question.text) for question in told)
    examples, _ = build_question_examples(plain, rows, asked.words, max_words)
    rows.check(questions, len(examples))
    given = {
        int(one.example.key): vocabulary[int(one.scores.argmax())] for one in score_examples(asked, VQA_HEAD, examples)
    }
    for question in told:
        given.setdefault(question.number, "")  # the server wants an answer to every question
    if out is not None:
        write_vqa_results(out / "submission.json", given)
    files, counts = {"questions": questions}, count_items(len(told), len(examples))
    print_line(f"{questions.name}: {len(told):,} questions{format_missing_count(counts)}")
    if annotations is None:
        print_line("There are no annotations: submission.json is for the server, and there is no score.")
        numbers = {"vqa.items": float(len(told))}
    else:
        numbers = score_vqa_answers(told, given, {int(example.key) for example in examples})
        files["annotations"] = annotations
        counts |= count_unreachable_questions([one.answers for one in told], vocabulary)
    settings = {"blank": blank, INTERVAL_NAME: describe_interval([one.image for one in told], "images", graded=True)}
    report_results(
        numbers, build_vqa_card(numbers, model, files, str(asked.store.about["made_from"]), settings, counts), out
    )
    return numbers


def count_unreachable_questions(said: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> dict[str, int]:
    """How many questions have no answer that the model could give; they count all the same."""
    known = {normalize_answer(answer) for answer in vocabulary}
    count = sum(known.isdisjoint(map(normalize_answer, answers)) for answers in said)
    return {f"{REASON_NO_HUMAN_ANSWER} (scored all the same)": count} if count else {}


def score_vqa_answers(
    questions: Sequence[VQAQuestion], given: Mapping[int, str], answered: Collection[int] | None = None
) -> dict[str, float]:
    """The official accuracy over all questions and by type of answer; a question without an answer scores nothing.

    Args:
        questions: With the answers of people.
        given: An answer to each.
        answered: The numbers of those whose image is there; all of `given` by default.
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
    """The results card; the paper's number stands on it where file and count are the official ones."""
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
