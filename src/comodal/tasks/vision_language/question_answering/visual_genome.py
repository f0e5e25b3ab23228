"""Visual Genome's questions, as pretraining for VQA (Krishna et al., IJCV 2017; "GenomeQA" of 12-in-1, Lu et al. 2020).

Answers are compared after VQA's normalization, and the head is VQA's. With `--answers` of a VQA model, training uses
that vocabulary, and `comodal train vqa --model` continues from the result. There is no official split: provide your own
files.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.vision_language.answer_files import VQA_HEAD
from comodal.tasks.vision_language.question_answering.single_answer import (
    QuestionTask,
    SingleAnswerQuestion,
    build_question_run,
    evaluate_questions,
)
from comodal.tasks.vision_language.question_answering.vqa_files import AnsweringConfig
from comodal.tasks.vision_language.question_answering.vqa_metric import normalize_answer
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    DEFAULT_EVALUATION,
    EvaluationOptions,
    ViLBERTFineTuneConfig,
)
from comodal.text_files import read_json
from comodal.training.recipe_run import Run

VISUAL_GENOME_MAX_TOKENS = 26
QUESTION_WORDS = ("what", "where", "when", "who", "why", "how")  # the six question types of the annotation
REASON_EMPTY_ANSWER = "answer is empty after VQA's normalization"


def read_visual_genome_questions(path: Path) -> tuple[list[SingleAnswerQuestion], Counter[str]]:
    """The questions of question_answers.json.

    Raises:
        DataError: The file cannot be read or is not Visual Genome's, or has a duplicate qa_id.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: Visual Genome's question_answers.json is a list of images with 'qas'; this is not")
    questions_by_id: dict[str, SingleAnswerQuestion] = {}
    excluded = Counter[str]()
    for index, image in enumerate(content):
        entries = image.get("qas") if isinstance(image, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}, image {index}: no list of 'qas'")
        for entry in entries:
            question = parse_visual_genome_question(path, index, entry)
            if str(image.get("id", question.image)) != question.image:
                raise DataError(
                    f"{path}, image {index}: qa_id {question.key} is about image {question.image}, and is listed with "
                    f"image {image['id']!r:.40}"
                )
            if question.key in questions_by_id:
                raise DataError(f"{path}, image {index}: qa_id {question.key} is a duplicate")
            if question.answer:
                questions_by_id[question.key] = question
            else:
                excluded[REASON_EMPTY_ANSWER] += 1
    return list(questions_by_id.values()), excluded


def parse_visual_genome_question(path: Path, index: int, entry: Any) -> SingleAnswerQuestion:
    """Parses one question."""
    kinds = {"qa_id": int, "image_id": int, "question": str, "answer": str}
    for name, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind) or isinstance(entry[name], bool):
            label = entry.get("qa_id") if isinstance(entry, dict) else entry
            raise DataError(f"{path}, image {index}: question {label!r:.40} has no {name!r}, or one of another type")
    first = entry["question"].lower().split()[:1]
    beginning = first[0] if first and first[0] in QUESTION_WORDS else "other"
    answer = normalize_answer(entry["answer"]).replace(",", "")
    return SingleAnswerQuestion(str(entry["qa_id"]), str(entry["image_id"]), entry["question"], answer, (beginning,))


def format_visual_genome_answer(key: str, answer: str) -> dict[str, str | int]:
    """An entry of the submission."""
    return {"qa_id": int(key), "answer": answer}


VISUAL_GENOME_TASK = QuestionTask(
    "visual_genome",
    "Visual Genome QA",
    VQA_HEAD,
    read_visual_genome_questions,
    format_visual_genome_answer,
    refuses_missing=False,
)

VISUAL_GENOME_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=128)
VISUAL_GENOME_ANSWERING = AnsweringConfig(max_tokens=VISUAL_GENOME_MAX_TOKENS)


@flatten_parameters
def recipe(
    model: Path,
    questions: Path,
    regions: Path,
    validation: Path | None = None,
    answering: AnsweringConfig = VISUAL_GENOME_ANSWERING,
    fine_tune: ViLBERTFineTuneConfig = VISUAL_GENOME_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to answer Visual Genome's questions.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        questions: The official question_answers.json.
        regions: The region store of the images.
        validation: A file of the same format, with other images.
        answers: VQA's vocabulary (a VQA model's answers.json, a text file, or the original's pickle), as in 12-in-1.
        answering: The vocabulary of answers, and the length of questions.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train visual_genome --model RUN --questions question_answers.json --regions vg/ --out runs/vg
    """
    return build_question_run(VISUAL_GENOME_TASK, model, questions, regions, validation, answering, fine_tune)


@flatten_parameters
def evaluate_visual_genome(
    model: Path,
    questions: Path,
    regions: Path,
    max_tokens: int = VISUAL_GENOME_MAX_TOKENS,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Answers Visual Genome's questions, and computes the accuracy after VQA's answer normalization.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train visual_genome` or `train vqa`.
        questions: A question_answers.json.
        regions: The region store of the images.
        max_tokens: Maximum number of tokens of a question.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        out: Folder for results.json, submission.json and the results card; nothing is written without it.

    Returns:
        visual_genome.accuracy with its interval, visual_genome.majority (the most common answer), and
        visual_genome.what, .where, .when, .who, .why, .how and .other by the question's first word.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate visual_genome --model runs/vg --questions held_out.json --regions vg/ --out results/vg
    """
    return evaluate_questions(VISUAL_GENOME_TASK, model, questions, regions, max_tokens, evaluation, baselines)
