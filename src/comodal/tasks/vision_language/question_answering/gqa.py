"""GQA: compositional questions about images, each with one correct answer (Hudson & Manning, CVPR 2019; 12-in-1).

Scores are those of the official script on the balanced set: accuracy, accuracy of binary and of open questions, and
accuracy by structural and semantic type. Consistency, validity, plausibility and grounding require further official
files; the official script computes them from the submission.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.vision_language.answer_files import GQA_HEAD
from comodal.tasks.vision_language.question_answering.single_answer import (
    QuestionTask,
    SingleAnswerQuestion,
    build_question_run,
    evaluate_questions,
)
from comodal.tasks.vision_language.question_answering.vqa_files import AnsweringConfig
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    DEFAULT_EVALUATION,
    EvaluationOptions,
    ViLBERTFineTuneConfig,
)
from comodal.text_files import read_json
from comodal.training.recipe_run import Run

GQA_MAX_TOKENS = 26
OPEN_QUESTION_TYPE = "query"  # the structural type of open questions; all others are binary


def read_gqa_questions(path: Path) -> tuple[list[SingleAnswerQuestion], Counter[str]]:
    """The questions of a file, or of the files of train_all_questions/.

    Raises:
        DataError: A file cannot be read or is not GQA's, or a question is in two files.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .json of questions in this folder")
    questions_by_id: dict[str, SingleAnswerQuestion] = {}
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict) or not content:
            raise DataError(f"{file}: GQA's files map question ids to questions; this file has none")
        for key, entry in content.items():
            if key in questions_by_id:
                raise DataError(f"{file}: question {key} is in another file of {path} too")
            questions_by_id[key] = parse_gqa_question(file, key, entry)
    return list(questions_by_id.values()), Counter()


def parse_gqa_question(file: Path, key: str, entry: Any) -> SingleAnswerQuestion:
    """Parses one question; without `isBalanced` it counts as balanced."""
    if not isinstance(entry, dict):
        raise DataError(f"{file}: question {key} is {entry!r:.40}, not an object with 'question' and 'imageId'")
    text, image, answer = entry.get("question"), entry.get("imageId"), entry.get("answer")
    if not isinstance(text, str) or not isinstance(image, str) or not isinstance(answer, str | None):
        raise DataError(f"{file}: question {key} has no 'question' or no 'imageId', or its 'answer' is not text")
    if not isinstance(entry.get("isBalanced", True), bool):
        raise DataError(f"{file}: 'isBalanced' of question {key} is {entry['isBalanced']!r:.40}, not true or false")
    types_entry = entry.get("types")
    types: dict[str, Any] = types_entry if isinstance(types_entry, dict) else {}
    kinds = [f"{part}.{types[part]}" for part in ("structural", "semantic") if types.get(part)]
    if types.get("structural"):
        kinds.append("open" if types["structural"] == OPEN_QUESTION_TYPE else "binary")
    return SingleAnswerQuestion(key, image, text, answer, tuple(kinds), entry.get("isBalanced", True))


def format_gqa_prediction(key: str, answer: str) -> dict[str, str | int]:
    """An entry of the submission, for the server and the official script."""
    return {"questionId": key, "prediction": answer}


GQA_TASK = QuestionTask("gqa", "GQA", GQA_HEAD, read_gqa_questions, format_gqa_prediction, refuses_missing=True)

GQA_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=128)
GQA_ANSWERING = AnsweringConfig(min_answer_count=1, max_tokens=GQA_MAX_TOKENS)


@flatten_parameters
def recipe(
    model: Path,
    questions: Path,
    regions: Path,
    validation: Path | None = None,
    answering: AnsweringConfig = GQA_ANSWERING,
    fine_tune: ViLBERTFineTuneConfig = GQA_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to answer GQA's questions.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        questions: The official train_balanced_questions.json, or the folder train_all_questions/.
        regions: The region store of the images.
        validation: The official val_balanced_questions.json.
        answers: An existing answer vocabulary (12-in-1's has 1,533): JSON, a text file, or the original's pickle.
        answering: The vocabulary of answers, and the length of questions.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train gqa --model RUN --questions train_balanced_questions.json --regions gqa/ --out runs/gqa
    """
    return build_question_run(GQA_TASK, model, questions, regions, validation, answering, fine_tune)


@flatten_parameters
def evaluate_gqa(
    model: Path,
    questions: Path,
    regions: Path,
    max_tokens: int = GQA_MAX_TOKENS,
    evaluation: EvaluationOptions = DEFAULT_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Answers GQA's questions, and computes the accuracy as the official script does.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train gqa`.
        questions: Official questions: testdev_balanced, val_balanced, or the test questions, which have no answers.
        regions: The region store of the images.
        max_tokens: Maximum number of tokens of a question.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        out: Folder for results.json, submission.json and the results card; nothing is written without it.

    Returns:
        gqa.accuracy with its interval, gqa.majority (the most common answer), gqa.binary, gqa.open, and
        gqa.structural.TYPE and gqa.semantic.TYPE.

    Raises:
        DataError: A file is missing or damaged, or an image is not in the store (the official script refuses that).
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate gqa --model runs/gqa --questions testdev_balanced_questions.json --regions gqa/ --out gqa/
    """
    return evaluate_questions(GQA_TASK, model, questions, regions, max_tokens, evaluation, baselines)
