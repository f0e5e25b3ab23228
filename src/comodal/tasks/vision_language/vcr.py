"""VCR: which of four answers is right, and which of four rationales says why (ViLBERT, section 3.3).

Each choice is a text of its own beside the picture: [CLS] question [SEP] answer [SEP], and for the rationale
[CLS] question [SEP] right answer [SEP] rationale [SEP]; a linear layer scores it and a softmax chooses among the four.
Both are learnt by one network; batches of 64, 2e-5, 20 epochs. Q -> AR counts a question where both are right, the
rationale being chosen after the right answer, as everywhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from comodal.console import say
from comodal.data.loader import Workers
from comodal.errors import DataError
from comodal.hardware import DeviceName, Precision, resolve
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.evaluation.metrics import check_finite, describe_interval
from comodal.tasks.evaluation.missing_images import (
    INTERVAL,
    NOT_THERE,
    accuracy_of,
    denominators,
    is_papers_run,
    not_answered,
    scores_of,
)
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, reasons, tell, training_of
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.text_image_examples import Blank, FixedExamples, TaskExample, joined
from comodal.tasks.vision_language.vcr_files import CHOICES, VCRExample, read_riddles, write_submission
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    FineTuneConfig,
    Start,
    answer,
    fingerprint_of,
    new_run,
    one_of_the_texts,
    read_asked,
    read_parts,
)
from comodal.training.run import Run

HEAD = Head("score", "linear", 1)
ANSWER_WORDS, RATIONALE_WORDS = 60, 80
OFFICIAL_VALIDATION = 26_534
PAPER = {"q_to_a": 0.7242, "qa_to_r": 0.7447, "q_to_ar": 0.5404}  # ViLBERT, table 1, val
Parts = Literal["both", "answers", "rationales"]


def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    learn: Parts = "both",
    start: Start = "pretrained",
    blank: Blank = "nothing",
    epochs: float = 20.0,
    batch_size: int = 64,
    learning_rate: float = 2e-5,
    answer_words: int = ANSWER_WORDS,
    rationale_words: int = RATIONALE_WORDS,
    max_regions: int = 100,
    workers: Workers = "auto",
    seed: int = 0,
) -> Run:
    """Fine-tunes a ViLBERT to choose answers and rationales.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official train.jsonl.
        regions: The region store of the pictures, best of the boxes that their metadata holds.
        validation: The official val.jsonl.
        learn: Answers and rationales with one network, as the original's --tasks 1-2, or one of them.
        start: From the pretrained weights, or the same network from chance: the control.
        blank: Leave out the text or the picture: the control that shows what the other says alone.
        epochs: How often every question is seen.
        batch_size: Questions in a step, over all processes; each has four texts.
        learning_rate: Of what was pretrained; the new head learns at 1e-4.
        answer_words: Word pieces of a question with an answer.
        rationale_words: Word pieces with a rationale.
        max_regions: Regions of a picture.
        workers: Processes that read data; auto: two for a CPU, more for a GPU.
        seed: Of the head, the order and people's names.

    Examples:
        comodal prepare boxes vcr1images/ boxes.jsonl
        comodal train vcr --model RUN --data train.jsonl --validation val.jsonl --regions vcr/ --out runs/vcr
    """
    setup = FineTuneConfig(model, regions, start, blank, epochs, batch_size, learning_rate, max_regions, workers, seed)
    parts, lengths = read_parts(setup), (answer_words, rationale_words)
    rows = ImageRows(parts.store)

    def source(path: Path) -> FixedExamples:
        riddles, missing = known(read_riddles(path, seed), rows)
        rows.check(path, len(riddles))
        examples = labelled(riddles, rows, parts.words, lengths, learn)
        left_out = {NOT_THERE: len(missing)} if missing else {}
        say(f"{path.name}: {len(riddles):,} questions{reasons(left_out)}", stderr=True)
        if not examples:
            raise DataError(f"{path}: no question has labels, so nothing can be learnt from it; is it a test file?")
        return FixedExamples(examples)

    files = [data, *([validation] if validation else [])]
    held_out = source(validation) if validation else None
    fingerprint = fingerprint_of(setup, parts.store, files)
    return new_run(parts, setup, HEAD, one_of_the_texts, source(data), held_out, fingerprint, {})


def known(riddles: Sequence[VCRExample], rows: ImageRows) -> tuple[list[VCRExample], list[VCRExample]]:
    """The questions whose picture is in the store, and those whose picture is not."""
    found = [riddle for riddle in riddles if rows.find(riddle.image) is not None]
    return found, [riddle for riddle in riddles if rows.find(riddle.image) is None]


def labelled(
    riddles: Sequence[VCRExample], rows: ImageRows, words: WordPieceTokenizer, lengths: tuple[int, int], learn: Parts
) -> list[TaskExample]:
    """The choices that can be learnt: those whose label is known."""
    examples = []
    for riddle in riddles:
        if riddle.answer is not None and learn != "rationales":
            examples.append(of_answers(riddle, rows, words, lengths[0]))
        if riddle.answer is not None and riddle.rationale is not None and learn != "answers":
            examples.append(of_rationales(riddle, riddle.answer, rows, words, lengths[1]))
    return examples


def of_answers(riddle: VCRExample, rows: ImageRows, words: WordPieceTokenizer, most: int) -> TaskExample:
    """Four answers to a question."""
    texts = tuple(joined(words, [riddle.question], choice, most) for choice in riddle.answers)
    return TaskExample(f"{riddle.key} answer", texts, (row_of(riddle, rows),) * CHOICES, riddle.answer)


def of_rationales(riddle: VCRExample, after: int, rows: ImageRows, words: WordPieceTokenizer, most: int) -> TaskExample:
    """Four rationales after one of the answers; which is right is known after the right one alone."""
    before = [riddle.question, riddle.answers[after]]
    texts = tuple(joined(words, before, choice, most) for choice in riddle.rationales)
    target = riddle.rationale if after == riddle.answer else None
    return TaskExample(f"{riddle.key} rationale {after}", texts, (row_of(riddle, rows),) * CHOICES, target)


def row_of(riddle: VCRExample, rows: ImageRows) -> int:
    """The row of a picture that is known to be in the store."""
    row = rows.find(riddle.image)
    assert row is not None
    return row


def evaluate_vcr(
    model: Path,
    data: Path,
    regions: Path,
    blank: Blank = "nothing",
    answer_words: int = ANSWER_WORDS,
    rationale_words: int = RATIONALE_WORDS,
    max_regions: int = 100,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Chooses answers and rationales; where nobody knows the right ones, for the server.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vcr`.
        data: The official val.jsonl or test.jsonl.
        regions: The region store of the pictures.
        blank: Leave out the text or the picture.
        answer_words: Word pieces of a question with an answer.
        rationale_words: Word pieces with a rationale.
        max_regions: Regions of a picture.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.
        out: Folder for results.json, submission.csv and the results card; nothing is written without it.
        seed: Of people's names.

    Returns:
        vcr.q_to_a, vcr.qa_to_r and vcr.q_to_ar with their intervals; chance is 1/4, 1/4 and 1/16.

    Raises:
        DataError: A file is missing or damaged, or no picture is in the store.
        CheckpointError: There is no such model.

    Examples:
        comodal evaluate vcr --model runs/vcr --data val.jsonl --regions vcr/ --out results/vcr
        comodal evaluate vcr --model runs/vcr --data test.jsonl --regions vcr/ --out submission/
    """
    asked = read_asked(model, regions, blank, max_regions, resolve(device, precision), HEAD.name)
    rows = ImageRows(asked.store)
    every = read_riddles(data, seed)
    riddles, missing = known(every, rows)
    rows.check(data, len(riddles))
    counts = denominators(len(every), len(riddles))
    say(f"{data.name}: {len(every):,} questions{not_answered(counts)}")
    is_test = without_labels(data, every)
    examples = []
    for riddle in riddles:
        examples.append(of_answers(riddle, rows, asked.words, answer_words))
        after = range(CHOICES) if is_test or riddle.answer is None else [riddle.answer]
        examples += [of_rationales(riddle, choice, rows, asked.words, rationale_words) for choice in after]
    scores = {one.example.key: one.scores for one in answer(asked, HEAD.name, examples)}
    if is_test:
        if out is not None:
            even = {riddle.key: np.zeros((1 + CHOICES, CHOICES), np.float32) for riddle in missing}
            write_submission(out / "submission.csv", [one.key for one in every], stacked(riddles, scores) | even)
        say("The right ones are not known: submission.csv is for the server, and there is no score.")
        numbers = {"vcr.items": float(len(every))}
    else:
        numbers = score(riddles, scores, missing)
    settings = {"blank": blank, INTERVAL: describe_interval([riddle.image for riddle in every], "pictures")}
    tell(numbers, card_of(numbers, model, data, str(asked.store.about["made_from"]), settings, counts, seed), out)
    return numbers


def without_labels(data: Path, riddles: Sequence[VCRExample]) -> bool:
    """Whether these are for the server.

    Raises:
        DataError: Some have labels and others none.
    """
    unknown = [riddle.key for riddle in riddles if riddle.answer is None or riddle.rationale is None]
    if 0 < len(unknown) < len(riddles):
        raise DataError(
            f"{data}: {len(unknown):,} of {len(riddles):,} questions lack a label, the first is {unknown[0]}; all or "
            "none must have both"
        )
    return bool(unknown)


def stacked(riddles: Sequence[VCRExample], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each question five rows of four: answers, and rationales after each answer."""
    return {
        riddle.key: np.stack(
            [scores[f"{riddle.key} answer"], *(scores[f"{riddle.key} rationale {i}"] for i in range(CHOICES))]
        )
        for riddle in riddles
    }


def score(
    riddles: Sequence[VCRExample], scores: Mapping[str, np.ndarray], missing: Sequence[VCRExample] = ()
) -> dict[str, float]:
    """The share of right answers, of right rationales after the right answer, and of both; missing ones are wrong."""
    check_finite(np.concatenate(list(scores.values())), "scores of the choices")
    answers = np.array([scores[f"{r.key} answer"].argmax() == r.answer for r in riddles])
    rationales = np.array([scores[f"{r.key} rationale {r.answer}"].argmax() == r.rationale for r in riddles])
    numbers: dict[str, float] = {}
    groups, present = (
        [riddle.image for riddle in (*riddles, *missing)],
        np.arange(len(riddles) + len(missing)) < len(riddles),
    )
    for name, right in (("q_to_a", answers), ("qa_to_r", rationales), ("q_to_ar", answers & rationales)):
        numbers |= accuracy_of(f"vcr.{name}", np.pad(right, (0, len(missing))), present, groups)
    return numbers


def card_of(
    numbers: Mapping[str, float], model: Path, data: Path, regions: str, settings: Mapping[str, str],
    counts: Mapping[str, int], seed: int,
) -> ResultsCard:  # fmt: skip
    """The results card; the paper's numbers stand on it where file and count are the official ones."""
    training = training_of(model)
    official = "val" in data.name and counts["items"] == OFFICIAL_VALIDATION
    official &= is_papers_run(counts, settings["blank"], training)
    scores: dict[str, ScoreEntry] = {}
    for name, title in (("q_to_a", "Q -> A"), ("qa_to_r", "QA -> R"), ("q_to_ar", "Q -> AR")):
        if f"vcr.{name}" in numbers:
            scores |= scores_of(title, f"vcr.{name}", numbers, counts, PAPER[name] if official else None)
    files, every_setting = {"questions": data}, {**settings, **training}
    return ResultsCard(
        "vcr", "VCR", data.stem, scores, str(model), counts, files, regions, {"names": seed}, every_setting
    )
