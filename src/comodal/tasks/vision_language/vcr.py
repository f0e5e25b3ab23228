"""VCR: choose the correct one of four answers, and the correct one of four rationales (ViLBERT, section 3.3).

Each choice is a text paired with the image: [CLS] question [SEP] answer [SEP], and for rationales
[CLS] question [SEP] correct answer [SEP] rationale [SEP]. A linear layer scores it; a softmax is taken over the four.
One network is trained on both: batches of 64, learning rate 2e-5, 20 epochs. Q -> AR counts a question as correct if
both choices are; as usual, the rationale is chosen given the correct answer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from comodal.console import print_line
from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.vilbert.heads import Head
from comodal.tasks.evaluation.metrics import check_finite_scores, describe_interval
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
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskExample, tokenize_text_pair
from comodal.tasks.vision_language.vcr_files import NUM_VCR_CHOICES, VCRExample, read_vcr_examples, write_vcr_submission
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    DEFAULT_EVALUATION,
    EvaluationOptions,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_choice_loss,
    compute_fine_tuning_fingerprint,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.recipe_run import Run

VCR_HEAD = Head("score", "linear", 1)
MAX_ANSWER_TOKENS, MAX_RATIONALE_TOKENS = 60, 80
OFFICIAL_VALIDATION_COUNT = 26_534
VCR_PAPER_ACCURACY = {"q_to_a": 0.7242, "qa_to_r": 0.7447, "q_to_ar": 0.5404}  # ViLBERT, table 1, val
VCRTrainingParts = Literal["both", "answers", "rationales"]
VCR_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=64, learning_rate=2e-5)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    learn: VCRTrainingParts = "both",
    answer_words: int = MAX_ANSWER_TOKENS,
    rationale_words: int = MAX_RATIONALE_TOKENS,
    fine_tune: ViLBERTFineTuneConfig = VCR_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to choose answers and rationales.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official train.jsonl.
        regions: The region store of the images, preferably of the boxes in VCR's metadata.
        validation: The official val.jsonl.
        learn: Train on answers and rationales with one network, as the original's --tasks 1-2, or on one of them.
        answer_words: Maximum number of tokens of a question with an answer.
        rationale_words: Maximum number of tokens of a question with an answer and a rationale.
        fine_tune: The options of all fine-tuning recipes.
        batch_size: Questions per step, over all processes; each has four texts.
        seed: Seed of the head's initialization, the order and the names of people.

    Examples:
        comodal prepare boxes vcr1images/ boxes.jsonl
        comodal train vcr --model RUN --data train.jsonl --validation val.jsonl --regions vcr/ --out runs/vcr
    """
    parts, lengths = load_fine_tuning_data(model, regions, fine_tune), (answer_words, rationale_words)
    rows = ImageRows(parts.store)

    def source(path: Path) -> FixedExamples:
        riddles, missing = split_by_image_presence(read_vcr_examples(path, fine_tune.seed), rows)
        rows.check(path, len(riddles))
        examples = build_labeled_choices(riddles, rows, parts.words, lengths, learn)
        left_out = {REASON_MISSING_IMAGE: len(missing)} if missing else {}
        print_line(f"{path.name}: {len(riddles):,} questions{format_exclusions(left_out)}", stderr=True)
        if not examples:
            raise DataError(f"{path}: no question has labels, so nothing can be learnt from it; is it a test file?")
        return FixedExamples(examples)

    files = [data, *([validation] if validation else [])]
    held_out = source(validation) if validation else None
    fingerprint = compute_fine_tuning_fingerprint(fine_tune, parts.store, files)
    return build_vilbert_run(parts, fine_tune, VCR_HEAD, compute_choice_loss, source(data), held_out, fingerprint, {})


def split_by_image_presence(
    riddles: Sequence[VCRExample], rows: ImageRows
) -> tuple[list[VCRExample], list[VCRExample]]:
    """The questions whose image is in the store, and the others."""
    found = [riddle for riddle in riddles if rows.find(riddle.image) is not None]
    return found, [riddle for riddle in riddles if rows.find(riddle.image) is None]


def build_labeled_choices(
    riddles: Sequence[VCRExample],
    rows: ImageRows,
    words: WordPieceTokenizer,
    lengths: tuple[int, int],
    learn: VCRTrainingParts,
) -> list[TaskExample]:
    """The choices with a known label, for training."""
    examples = []
    for riddle in riddles:
        if riddle.answer is not None and learn != "rationales":
            examples.append(build_answer_choices(riddle, rows, words, lengths[0]))
        if riddle.answer is not None and riddle.rationale is not None and learn != "answers":
            examples.append(build_rationale_choices(riddle, riddle.answer, rows, words, lengths[1]))
    return examples


def build_answer_choices(riddle: VCRExample, rows: ImageRows, words: WordPieceTokenizer, most: int) -> TaskExample:
    """The four answers to a question."""
    texts = tuple(tokenize_text_pair(words, [riddle.question], choice, most) for choice in riddle.answers)
    return TaskExample(f"{riddle.key} answer", texts, (find_image_row(riddle, rows),) * NUM_VCR_CHOICES, riddle.answer)


def build_rationale_choices(
    riddle: VCRExample, after: int, rows: ImageRows, words: WordPieceTokenizer, most: int
) -> TaskExample:
    """The four rationales given one of the answers; the target is known for the correct answer only."""
    before = [riddle.question, riddle.answers[after]]
    texts = tuple(tokenize_text_pair(words, before, choice, most) for choice in riddle.rationales)
    target = riddle.rationale if after == riddle.answer else None
    return TaskExample(
        f"{riddle.key} rationale {after}", texts, (find_image_row(riddle, rows),) * NUM_VCR_CHOICES, target
    )


def find_image_row(riddle: VCRExample, rows: ImageRows) -> int:
    """The row of an image that is known to be in the store."""
    row = rows.find(riddle.image)
    assert row is not None
    return row


@flatten_parameters
def evaluate_vcr(
    model: Path,
    data: Path,
    regions: Path,
    answer_words: int = MAX_ANSWER_TOKENS,
    rationale_words: int = MAX_RATIONALE_TOKENS,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
    seed: int = 0,
) -> dict[str, float]:
    """Chooses answers and rationales; writes a submission for the server where labels are unknown.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vcr`.
        data: The official val.jsonl or test.jsonl.
        regions: The region store of the images.
        answer_words: Maximum number of tokens of a question with an answer.
        rationale_words: Maximum number of tokens of a question with an answer and a rationale.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        out: Folder for results.json, submission.csv and the results card; nothing is written without it.
        seed: Seed of the names of people.

    Returns:
        vcr.q_to_a, vcr.qa_to_r and vcr.q_to_ar with their intervals; chance level is 1/4, 1/4 and 1/16.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate vcr --model runs/vcr --data val.jsonl --regions vcr/ --out results/vcr
        comodal evaluate vcr --model runs/vcr --data test.jsonl --regions vcr/ --out submission/
    """
    asked = evaluation.load_model(model, regions, VCR_HEAD.name)
    rows = ImageRows(asked.store)
    every = read_vcr_examples(data, seed)
    riddles, missing = split_by_image_presence(every, rows)
    rows.check(data, len(riddles))
    counts = count_items(len(every), len(riddles))
    print_line(f"{data.name}: {len(every):,} questions{format_missing_count(counts)}")
    is_test = is_unlabeled(data, every)
    examples = []
    for riddle in riddles:
        examples.append(build_answer_choices(riddle, rows, asked.words, answer_words))
        after = range(NUM_VCR_CHOICES) if is_test or riddle.answer is None else [riddle.answer]
        examples += [build_rationale_choices(riddle, choice, rows, asked.words, rationale_words) for choice in after]
    scores = {one.example.key: one.scores for one in score_examples(asked, VCR_HEAD.name, examples)}
    if is_test:
        if evaluation.out is not None:
            even = {riddle.key: np.zeros((1 + NUM_VCR_CHOICES, NUM_VCR_CHOICES), np.float32) for riddle in missing}
            write_vcr_submission(
                evaluation.out / "submission.csv",
                [one.key for one in every],
                stack_choice_scores(riddles, scores) | even,
            )
        print_line("The right ones are not known: submission.csv is for the server, and there is no score.")
        numbers = {"vcr.items": float(len(every))}
    else:
        numbers = score_vcr(riddles, scores, missing)
    settings = {
        "blank": evaluation.blank,
        INTERVAL_NAME: describe_interval([riddle.image for riddle in every], "pictures"),
    }
    report_results(
        numbers,
        build_vcr_card(numbers, model, data, str(asked.store.about["made_from"]), settings, counts, seed),
        evaluation.out,
    )
    return numbers


def is_unlabeled(data: Path, riddles: Sequence[VCRExample]) -> bool:
    """Whether the questions have no labels, as in the test split.

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


def stack_choice_scores(riddles: Sequence[VCRExample], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each question five rows of four scores: answers, and rationales given each answer."""
    return {
        riddle.key: np.stack(
            [scores[f"{riddle.key} answer"], *(scores[f"{riddle.key} rationale {i}"] for i in range(NUM_VCR_CHOICES))]
        )
        for riddle in riddles
    }


def score_vcr(
    riddles: Sequence[VCRExample], scores: Mapping[str, np.ndarray], missing: Sequence[VCRExample] = ()
) -> dict[str, float]:
    """Accuracy of answers, of rationales given the correct answer, and of both; missing ones count as incorrect."""
    check_finite_scores(np.concatenate(list(scores.values())), "scores of the choices")
    answers = np.array([scores[f"{r.key} answer"].argmax() == r.answer for r in riddles])
    rationales = np.array([scores[f"{r.key} rationale {r.answer}"].argmax() == r.rationale for r in riddles])
    numbers: dict[str, float] = {}
    groups, present = (
        [riddle.image for riddle in (*riddles, *missing)],
        np.arange(len(riddles) + len(missing)) < len(riddles),
    )
    for name, right in (("q_to_a", answers), ("qa_to_r", rationales), ("q_to_ar", answers & rationales)):
        numbers |= compute_accuracy_numbers(f"vcr.{name}", np.pad(right, (0, len(missing))), present, groups)
    return numbers


def build_vcr_card(
    numbers: Mapping[str, float], model: Path, data: Path, regions: str, settings: Mapping[str, str],
    counts: Mapping[str, int], seed: int,
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracies where file and number of questions are the official ones."""
    training = read_training_settings(model)
    official = "val" in data.name and counts["items"] == OFFICIAL_VALIDATION_COUNT
    official &= is_paper_protocol(counts, settings["blank"], training)
    scores: dict[str, ScoreEntry] = {}
    for name, title in (("q_to_a", "Q -> A"), ("qa_to_r", "QA -> R"), ("q_to_ar", "Q -> AR")):
        if f"vcr.{name}" in numbers:
            scores |= build_score_entries(
                title, f"vcr.{name}", numbers, counts, VCR_PAPER_ACCURACY[name] if official else None
            )
    files, every_setting = {"questions": data}, {**settings, **training}
    return ResultsCard(
        "vcr", "VCR", data.stem, scores, str(model), counts, files, regions, {"names": seed}, every_setting
    )
