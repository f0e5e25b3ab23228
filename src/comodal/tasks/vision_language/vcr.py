"""VCR: choose the correct one of four answers, and the correct one of four rationales (ViLBERT, section 3.3).

Each choice is a text paired with the image: [CLS] question [SEP] answer [SEP], and for rationales
[CLS] question [SEP] correct answer [SEP] rationale [SEP]. A linear layer scores it; a softmax is taken over the four.
One network is trained on both: batches of 64, learning rate 2e-5, 20 epochs. A model with task tokens (12-in-1) has one
for answers (5) and one for rationales (6). Q -> AR counts a question as correct if
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
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    NOT_FITTED,
    build_baseline_entries,
    compute_baseline_metrics,
)
from comodal.tasks.baselines.text_choice import ChoiceItem, ChoiceScores, fit_and_score
from comodal.tasks.evaluation.metrics import check_finite_scores
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
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.task_tokens import VCR_ANSWER_TOKEN, VCR_RATIONALE_TOKEN
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskExample, tokenize_text_pair
from comodal.tasks.vision_language.vcr_files import (
    NUM_VCR_CHOICES,
    PERSON_NAMES,
    VCRExample,
    read_vcr_examples,
    write_vcr_submission,
)
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
    train_on: VCRTrainingParts = "both",
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    max_rationale_tokens: int = MAX_RATIONALE_TOKENS,
    fine_tune: ViLBERTFineTuneConfig = VCR_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to choose answers and rationales.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official train.jsonl.
        regions: The region store of the images, preferably of the boxes in VCR's metadata.
        validation: The official val.jsonl.
        train_on: Train on answers and rationales with one network, as the original's --tasks 1-2, or on one of them.
        max_answer_tokens: Maximum number of tokens of a question with an answer.
        max_rationale_tokens: Maximum number of tokens of a question with an answer and a rationale.
        fine_tune: The options of all fine-tuning recipes.
        batch_size: Questions per step, over all processes; each has four texts.
        seed: Seed of the head's initialization, the order and the names of people.

    Examples:
        comodal prepare boxes vcr1images/ boxes.jsonl
        comodal train vcr --model RUN --data train.jsonl --validation val.jsonl --regions vcr/ --out runs/vcr
    """
    parts, lengths = load_fine_tuning_data(model, regions, fine_tune), (max_answer_tokens, max_rationale_tokens)
    rows = ImageRows(parts.store)

    def read_examples(path: Path) -> FixedExamples:
        vcr_examples, missing = split_by_image_presence(read_vcr_examples(path, fine_tune.seed), rows)
        rows.check(path, len(vcr_examples))
        examples = build_labeled_choices(vcr_examples, rows, parts.tokenizer, lengths, train_on)
        excluded = {REASON_MISSING_IMAGE: len(missing)} if missing else {}
        print_line(f"{path.name}: {len(vcr_examples):,} questions{format_exclusions(excluded)}", stderr=True)
        if not examples:
            raise DataError(f"{path}: no question has labels to train on; is it a test file?")
        return FixedExamples(examples)

    files = [data, *([validation] if validation else [])]
    validation_examples = read_examples(validation) if validation else None
    fingerprint = compute_fine_tuning_fingerprint(fine_tune, parts.store, files)
    return build_vilbert_run(
        parts, fine_tune, VCR_HEAD, compute_choice_loss, read_examples(data), validation_examples, fingerprint, {}
    )


def split_by_image_presence(
    vcr_examples: Sequence[VCRExample], rows: ImageRows
) -> tuple[list[VCRExample], list[VCRExample]]:
    """The questions whose image is in the store, and the others."""
    present = [vcr_example for vcr_example in vcr_examples if rows.find(vcr_example.image) is not None]
    return present, [vcr_example for vcr_example in vcr_examples if rows.find(vcr_example.image) is None]


def build_labeled_choices(
    vcr_examples: Sequence[VCRExample],
    rows: ImageRows,
    tokenizer: WordPieceTokenizer,
    lengths: tuple[int, int],
    train_on: VCRTrainingParts,
) -> list[TaskExample]:
    """The choices with a known label, for training."""
    examples = []
    for vcr_example in vcr_examples:
        if vcr_example.answer is not None and train_on != "rationales":
            examples.append(build_answer_choices(vcr_example, rows, tokenizer, lengths[0]))
        if vcr_example.answer is not None and vcr_example.rationale is not None and train_on != "answers":
            examples.append(build_rationale_choices(vcr_example, vcr_example.answer, rows, tokenizer, lengths[1]))
    return examples


def build_answer_choices(
    vcr_example: VCRExample, rows: ImageRows, tokenizer: WordPieceTokenizer, max_tokens: int
) -> TaskExample:
    """The four answers to a question."""
    texts = tuple(
        tokenize_text_pair(tokenizer, [vcr_example.question], choice, max_tokens) for choice in vcr_example.answers
    )
    return TaskExample(
        f"{vcr_example.key} answer", texts, (find_image_row(vcr_example, rows),) * NUM_VCR_CHOICES, vcr_example.answer,
        VCR_ANSWER_TOKEN,
    )  # fmt: skip


def build_rationale_choices(
    vcr_example: VCRExample, answer_index: int, rows: ImageRows, tokenizer: WordPieceTokenizer, max_tokens: int
) -> TaskExample:
    """The four rationales given one of the answers; the target is known for the correct answer only."""
    context = [vcr_example.question, vcr_example.answers[answer_index]]
    texts = tuple(tokenize_text_pair(tokenizer, context, choice, max_tokens) for choice in vcr_example.rationales)
    target = vcr_example.rationale if answer_index == vcr_example.answer else None
    return TaskExample(
        f"{vcr_example.key} rationale {answer_index}",
        texts,
        (find_image_row(vcr_example, rows),) * NUM_VCR_CHOICES,
        target,
        VCR_RATIONALE_TOKEN,
    )


def find_image_row(vcr_example: VCRExample, rows: ImageRows) -> int:
    """The row of an image that is known to be in the store."""
    row = rows.find(vcr_example.image)
    assert row is not None
    return row


@flatten_parameters
def evaluate_vcr(
    model: Path,
    data: Path,
    regions: Path,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    max_rationale_tokens: int = MAX_RATIONALE_TOKENS,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
    seed: int = 0,
    train_data: Path | None = None,
) -> dict[str, float]:
    """Chooses answers and rationales; writes a submission for the server where labels are unknown.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train vcr`.
        data: The official val.jsonl or test.jsonl.
        regions: The region store of the images.
        max_answer_tokens: Maximum number of tokens of a question with an answer.
        max_rationale_tokens: Maximum number of tokens of a question with an answer and a rationale.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        out: Folder for results.json, submission.csv and the results card; nothing is written without it.
        seed: Seed of the names of people.
        train_data: The official train.jsonl, for the baselines on the results card; without it there are none.

    Returns:
        vcr.q_to_a, vcr.qa_to_r and vcr.q_to_ar with their intervals; chance level is 1/4, 1/4 and 1/16.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate vcr --model runs/vcr --data val.jsonl --regions vcr/ --out results/vcr
        comodal evaluate vcr --model runs/vcr --data test.jsonl --regions vcr/ --out submission/
    """
    loaded = evaluation.load_model(model, regions, VCR_HEAD.name)
    rows = ImageRows(loaded.store)
    all_examples = read_vcr_examples(data, seed)
    vcr_examples, missing = split_by_image_presence(all_examples, rows)
    rows.check(data, len(vcr_examples))
    counts = count_items(len(all_examples), len(vcr_examples))
    print_line(f"{data.name}: {len(all_examples):,} questions{format_missing_count(counts)}")
    is_test = is_unlabeled(data, all_examples)
    examples = []
    for vcr_example in vcr_examples:
        examples.append(build_answer_choices(vcr_example, rows, loaded.tokenizer, max_answer_tokens))
        answer_indices = range(NUM_VCR_CHOICES) if is_test or vcr_example.answer is None else [vcr_example.answer]
        examples += [
            build_rationale_choices(vcr_example, choice, rows, loaded.tokenizer, max_rationale_tokens)
            for choice in answer_indices
        ]
    scores = {item.example.key: item.scores for item in score_examples(loaded, VCR_HEAD.name, examples)}
    if is_test:
        if evaluation.out is not None:
            zero_scores = {
                vcr_example.key: np.zeros((1 + NUM_VCR_CHOICES, NUM_VCR_CHOICES), np.float32) for vcr_example in missing
            }
            write_vcr_submission(
                evaluation.out / "submission.csv",
                [item.key for item in all_examples],
                stack_choice_scores(vcr_examples, scores) | zero_scores,
            )
        print_line("The questions have no labels, so there is no score; submission.csv is for the server.")
        metrics, fitted = {"vcr.items": float(len(all_examples))}, "not fitted: there is no score"
    else:
        metrics = score_vcr(vcr_examples, scores, missing)
        baseline_metrics, fitted = score_vcr_baselines(train_data, all_examples, seed)
        metrics |= baseline_metrics
    settings = {
        "ablate": evaluation.ablate,
        BASELINE_SETTING: fitted,
        **build_interval_settings(metrics, [vcr_example.image for vcr_example in all_examples], "images"),
    }
    report_results(
        metrics,
        build_vcr_card(metrics, model, data, str(loaded.store.about["provenance"]), settings, counts, seed),
        evaluation.out,
    )
    return metrics


def is_unlabeled(data: Path, vcr_examples: Sequence[VCRExample]) -> bool:
    """Whether the questions have no labels, as in the test split.

    Raises:
        DataError: Some have labels and others none.
    """
    unknown = [
        vcr_example.key for vcr_example in vcr_examples if vcr_example.answer is None or vcr_example.rationale is None
    ]
    if 0 < len(unknown) < len(vcr_examples):
        raise DataError(
            f"{data}: {len(unknown):,} of {len(vcr_examples):,} questions lack a label, the first is {unknown[0]}; "
            f"all or "
            "none must have both"
        )
    return bool(unknown)


def stack_choice_scores(vcr_examples: Sequence[VCRExample], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each question five rows of four scores: answers, and rationales given each answer."""
    return {
        vcr_example.key: np.stack(
            [
                scores[f"{vcr_example.key} answer"],
                *(scores[f"{vcr_example.key} rationale {i}"] for i in range(NUM_VCR_CHOICES)),
            ]
        )
        for vcr_example in vcr_examples
    }


def score_vcr(
    vcr_examples: Sequence[VCRExample], scores: Mapping[str, np.ndarray], missing: Sequence[VCRExample] = ()
) -> dict[str, float]:
    """Accuracy of answers, of rationales given the correct answer, and of both; missing ones count as incorrect."""
    check_finite_scores(np.concatenate(list(scores.values())), "scores of the choices")
    answers = np.array([scores[f"{r.key} answer"].argmax() == r.answer for r in vcr_examples])
    rationales = np.array([scores[f"{r.key} rationale {r.answer}"].argmax() == r.rationale for r in vcr_examples])
    metrics: dict[str, float] = {}
    groups, has_prediction = (
        [vcr_example.image for vcr_example in (*vcr_examples, *missing)],
        np.arange(len(vcr_examples) + len(missing)) < len(vcr_examples),
    )
    for name, is_correct in (("q_to_a", answers), ("qa_to_r", rationales), ("q_to_ar", answers & rationales)):
        metrics |= compute_accuracy_metrics(
            f"vcr.{name}", np.pad(is_correct, (0, len(missing))), has_prediction, groups
        )
    return metrics


def score_vcr_baselines(
    train_data: Path | None, evaluated: Sequence[VCRExample], seed: int
) -> tuple[dict[str, float], str]:
    """The accuracy of the baselines on answers, rationales and both, and a description of them for the card."""
    if train_data is None:
        return {}, NOT_FITTED
    training = read_vcr_examples(train_data, seed)
    answers, rationales = (
        fit_and_score(list_items(training), list_items(evaluated), PERSON_NAMES)
        for list_items in (list_vcr_answer_items, list_vcr_rationale_items)
    )
    return join_vcr_baselines(answers, rationales, [one.image for one in evaluated]), (
        f"{train_data.name}: answers {answers.about}; rationales {rationales.about}"
    )


def join_vcr_baselines(answers: ChoiceScores, rationales: ChoiceScores, groups: Sequence[str]) -> dict[str, float]:
    """The accuracy of each baseline; both choices are correct with the product of their probabilities."""
    both = {name: answers.values[name] * rationales.values[name] for name in answers.values.keys() & rationales.values}
    parts = {"q_to_a": answers.values, "qa_to_r": rationales.values, "q_to_ar": dict(sorted(both.items()))}
    metrics: dict[str, float] = {}
    for name, values in parts.items():
        metrics |= compute_baseline_metrics(f"vcr.{name}", values, groups)
    return metrics


def list_vcr_answer_items(vcr_examples: Sequence[VCRExample]) -> list[ChoiceItem]:
    """The questions with a known answer, as items of the baselines."""
    return [ChoiceItem(one.question, one.answers, one.answer, one.image) for one in vcr_examples
            if one.answer is not None]  # fmt: skip


def list_vcr_rationale_items(vcr_examples: Sequence[VCRExample]) -> list[ChoiceItem]:
    """The questions with their correct answer and a known rationale, as items of the baselines."""
    return [
        ChoiceItem(f"{one.question} {one.answers[one.answer]}", one.rationales, one.rationale, one.image)
        for one in vcr_examples
        if one.answer is not None and one.rationale is not None
    ]


def build_vcr_card(
    metrics: Mapping[str, float], model: Path, data: Path, regions: str, settings: Mapping[str, str],
    counts: Mapping[str, int], seed: int,
) -> ResultsCard:  # fmt: skip
    """The results card; it has the paper's accuracies where file and number of questions are the official ones."""
    training = read_training_settings(model)
    is_official = "val" in data.name and counts["items"] == OFFICIAL_VALIDATION_COUNT
    is_official &= is_paper_protocol(counts, settings["ablate"], training)
    scores: dict[str, ScoreEntry] = {}
    for name, title in (("q_to_a", "Q -> A"), ("qa_to_r", "QA -> R"), ("q_to_ar", "Q -> AR")):
        if f"vcr.{name}" in metrics:
            scores |= build_score_entries(
                title, f"vcr.{name}", metrics, counts, VCR_PAPER_ACCURACY[name] if is_official else None
            )
            baselines = build_baseline_entries(f"vcr.{name}", metrics)
            scores |= {f"{title}, {label}": entry for label, entry in baselines.items()}
    files, all_settings = {"questions": data}, {**settings, **training}
    return ResultsCard(
        "vcr", "VCR", data.stem, scores, str(model), counts, files, regions, {"names": seed}, all_settings
    )
