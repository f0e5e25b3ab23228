"""Visual7W's pointing questions: "Which ...?", answered by one of four boxes (Zhu et al., CVPR 2016; 12-in-1).

Images are Visual Genome's. Batches of 256, learning rate 2e-5, 20 epochs, at most 20 tokens, as TASK4 of
facebookresearch/vilbert-multi-task (vilbert_tasks.yml).
"""

from pathlib import Path
from typing import Literal

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.vision_language.grounding.candidate_choice import (
    CandidateTask,
    build_candidate_examples,
    compute_candidate_loss,
    evaluate_candidates,
)
from comodal.tasks.vision_language.grounding.candidate_files import CandidateItem, read_visual7w_questions
from comodal.tasks.vision_language.grounding.refcoco import GroundingEvaluation, GroundingFineTuneConfig
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD
from comodal.tasks.vision_language.text_image_examples import FixedExamples
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    load_fine_tuning_data,
)
from comodal.training.recipe_run import Run

VISUAL7W_MAX_TOKENS, VISUAL7W_MAX_REGIONS = 20, 199
VISUAL7W_FINE_TUNING = GroundingFineTuneConfig(batch_size=256, learning_rate=2e-5, max_regions=VISUAL7W_MAX_REGIONS)
VISUAL7W_EVALUATION = GroundingEvaluation(max_regions=VISUAL7W_MAX_REGIONS)
Visual7WSplit = Literal["train", "val", "test"]


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    regions: Path,
    max_tokens: int = VISUAL7W_MAX_TOKENS,
    fine_tune: GroundingFineTuneConfig = VISUAL7W_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to answer questions by one of four boxes of the image.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official dataset_v7w_pointing.json; its split val is used for validation.
        regions: The region store of the images, with a region at each candidate box (`comodal prepare boxes`).
        max_tokens: Maximum number of tokens of a question.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train visual7w --model RUN --data dataset_v7w_pointing.json --regions visual7w/ --out runs/visual7w
    """
    parts = load_fine_tuning_data(model, regions, fine_tune)
    questions = read_visual7w_questions(data)
    sources = {
        split: FixedExamples(
            build_candidate_examples(
                items, data, parts.store, VISUAL7W_TASK.id_format, parts.tokenizer, max_tokens, fine_tune.max_regions
            ).examples
        )
        for split in ("train", "val")
        if (items := select_split(questions, split))
    }
    if "train" not in sources:
        raise DataError(f"{data}: no question of the split 'train'")
    fingerprint = compute_fine_tuning_fingerprint(fine_tune, parts.store, [data])
    return build_vilbert_run(
        parts, fine_tune, GROUNDING_HEAD, compute_candidate_loss, sources["train"], sources.get("val"), fingerprint, {}
    )


def select_split(questions: list[CandidateItem], split: str) -> list[CandidateItem]:
    """The questions of a split."""
    return [item for item in questions if item.split == split]


VISUAL7W_TASK = CandidateTask(
    name="visual7w",
    title="Visual7W, pointing",
    id_format="visual_genome",
    read_training=lambda path: select_split(read_visual7w_questions(path), "train"),
)


@flatten_parameters
def evaluate_visual7w(
    model: Path,
    data: Path,
    regions: Path,
    split: Visual7WSplit = "test",
    max_tokens: int = VISUAL7W_MAX_TOKENS,
    evaluation: GroundingEvaluation = VISUAL7W_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Answers questions by one of four boxes of the image, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train visual7w` or `train joint`.
        data: The official dataset_v7w_pointing.json.
        regions: The region store of the images, with a region at each candidate box.
        split: Split of the questions.
        max_tokens: Maximum number of tokens of a question.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        train_data: The official file, mostly that of --data, whose training split the baselines are fitted on.
        out: Folder for results.json, predictions.json and the results card; nothing is written without it.

    Returns:
        visual7w.accuracy with its interval over all questions, .accuracy.predicted over those whose boxes are there,
        and visual7w.chance_level (a random candidate).

    Raises:
        DataError: The file is missing or damaged, has no such split, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate visual7w --model runs/visual7w --data dataset_v7w_pointing.json --regions visual7w/ --out v7w/
    """
    loaded = evaluation.load_model(model, regions, GROUNDING_HEAD.name)
    questions = select_split(read_visual7w_questions(data), split)
    if not questions:
        raise DataError(f"{data}: no question of the split {split!r}")
    return evaluate_candidates(VISUAL7W_TASK, model, loaded, data, split, questions, max_tokens, evaluation, baselines)
