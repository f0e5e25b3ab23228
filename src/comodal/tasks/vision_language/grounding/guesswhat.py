"""GuessWhat?!: which object of an image is a dialog of yes-no questions about? (de Vries et al., CVPR 2017; 12-in-1.)

The task of the guesser: the dialog is given. Images are COCO's. Batches of 64, learning rate 2e-5, 20 epochs, at most
256 tokens, as TASK17 of facebookresearch/vilbert-multi-task (vilbert_tasks.yml).
"""

from pathlib import Path

from comodal.flat_parameters import flatten_parameters
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.vision_language.grounding.candidate_choice import (
    CandidateTask,
    build_candidate_examples,
    compute_candidate_loss,
    evaluate_candidates,
)
from comodal.tasks.vision_language.grounding.candidate_files import read_guesswhat_games
from comodal.tasks.vision_language.grounding.refcoco import GroundingEvaluation, GroundingFineTuneConfig
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD
from comodal.tasks.vision_language.text_image_examples import FixedExamples
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    load_fine_tuning_data,
)
from comodal.training.recipe_run import Run

GUESSWHAT_MAX_TOKENS, GUESSWHAT_MAX_REGIONS = 256, 305
GUESSWHAT_FINE_TUNING = GroundingFineTuneConfig(batch_size=64, learning_rate=2e-5, max_regions=GUESSWHAT_MAX_REGIONS)
GUESSWHAT_EVALUATION = GroundingEvaluation(max_regions=GUESSWHAT_MAX_REGIONS)
GUESSWHAT_TASK = CandidateTask(
    name="guesswhat", title="GuessWhat?!, guesser", id_format="coco", read_training=read_guesswhat_games
)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    max_tokens: int = GUESSWHAT_MAX_TOKENS,
    fine_tune: GroundingFineTuneConfig = GUESSWHAT_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to find the object of an image that a dialog is about.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official guesswhat.train.jsonl, unpacked.
        regions: The region store of the images, with a region at each object (`comodal prepare boxes`).
        validation: The official guesswhat.valid.jsonl.
        max_tokens: Maximum number of tokens of a dialog.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train guesswhat --model RUN --data guesswhat.train.jsonl --regions guesswhat/ --out runs/guesswhat
    """
    parts = load_fine_tuning_data(model, regions, fine_tune)
    files = [data, *([validation] if validation else [])]
    sources = [
        FixedExamples(
            build_candidate_examples(
                read_guesswhat_games(file), file, parts.store, GUESSWHAT_TASK.id_format, parts.tokenizer, max_tokens,
                fine_tune.max_regions,
            ).examples
        )
        for file in files
    ]  # fmt: skip
    fingerprint = compute_fine_tuning_fingerprint(fine_tune, parts.store, files)
    return build_vilbert_run(
        parts, fine_tune, GROUNDING_HEAD, compute_candidate_loss, sources[0], sources[1] if validation else None,
        fingerprint, {},
    )  # fmt: skip


@flatten_parameters
def evaluate_guesswhat(
    model: Path,
    data: Path,
    regions: Path,
    max_tokens: int = GUESSWHAT_MAX_TOKENS,
    evaluation: GroundingEvaluation = GUESSWHAT_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Finds the object of an image that each dialog is about, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train guesswhat` or `train joint`.
        data: The official guesswhat.valid.jsonl or guesswhat.test.jsonl, unpacked.
        regions: The region store of the images, with a region at each object.
        max_tokens: Maximum number of tokens of a dialog.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        train_data: The official guesswhat.train.jsonl, for the baselines on the results card.
        out: Folder for results.json, predictions.json and the results card; nothing is written without it.

    Returns:
        guesswhat.accuracy with its interval over all games, .accuracy.predicted over those whose boxes are there, and
        guesswhat.chance_level (a random object).

    Raises:
        DataError: The file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate guesswhat --model runs/guesswhat --data guesswhat.test.jsonl --regions guesswhat/ --out gw/
    """
    loaded = evaluation.load_model(model, regions, GROUNDING_HEAD.name)
    games = read_guesswhat_games(data)
    return evaluate_candidates(GUESSWHAT_TASK, model, loaded, data, data.stem, games, max_tokens, evaluation, baselines)
