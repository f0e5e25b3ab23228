"""NLVR2: is a sentence true of two images? (Suhr et al., ACL 2019; 12-in-1, Lu et al., CVPR 2020.)

The model encodes the sentence with each image in a separate pass; a two-layer head takes both pooled outputs. The files
are JSON Lines, whatever their suffix. An `identifier` ends with the index of its sentence, and the image names derive
from it: dev-850-0-1 is about dev-850-0-img0.png and dev-850-0-img1.png.
"""

from collections import Counter
from pathlib import Path

from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.models.vilbert.heads import Head
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.vision_language.sentence_classification import (
    ImageSentence,
    SentenceTask,
    build_sentence_run,
    evaluate_statements,
    read_text_fields,
)
from comodal.tasks.vision_language.vilbert_fine_tuning import EvaluationOptions, ViLBERTFineTuneConfig
from comodal.text_files import read_json_lines
from comodal.training.recipe_run import Run

NLVR2_CLASSES = ("False", "True")
NLVR2_MAX_TOKENS = 40


def read_nlvr2_sentences(path: Path) -> tuple[list[ImageSentence], Counter[str]]:
    """The sentences of train.json, dev.json or test1.json.

    Raises:
        DataError: The file cannot be read, or a line is not NLVR2's.
    """
    statements = []
    for line_number, entry in read_json_lines(path):
        identifier, sentence = read_text_fields(path, line_number, entry, "identifier", "sentence")
        pair, dash, sentence_index = identifier.rpartition("-")
        if not dash or not sentence_index.isdigit() or pair.count("-") != 2:
            raise DataError(f"{path}, line {line_number}: identifier {identifier!r} is not like train-10171-0-0")
        label = entry.get("label")
        images = (f"{pair}-img0", f"{pair}-img1")
        group = pair.rpartition("-")[0]  # images and sentences of one group
        statements.append(ImageSentence(identifier, sentence, images, None if label is None else str(label), group))
    return statements, Counter()


NLVR2_TASK = SentenceTask(
    name="nlvr2",
    title="NLVR2",
    classes=NLVR2_CLASSES,
    head=Head("pairs", "pairs", 2),
    read_sentences=read_nlvr2_sentences,
    paper_accuracy={("test1", 6967): 0.789},  # 12-in-1, one model for all tasks
    groups="image sets",
    refuses_missing=True,
)

NLVR2_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=64, learning_rate=2e-5, max_regions=36)
NLVR2_EVALUATION = EvaluationOptions(max_regions=36)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    max_tokens: int = NLVR2_MAX_TOKENS,
    fine_tune: ViLBERTFineTuneConfig = NLVR2_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to predict whether a sentence is true of two images.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official train.json.
        regions: The region store of the images.
        validation: The official dev.json.
        max_tokens: Maximum number of tokens of a sentence.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train nlvr2 --model RUN --data train.json --validation dev.json --regions nlvr2/ --out runs/nlvr2
    """
    return build_sentence_run(NLVR2_TASK, model, data, regions, validation, max_tokens, fine_tune)


@flatten_parameters
def evaluate_nlvr2(
    model: Path,
    data: Path,
    regions: Path,
    max_tokens: int = NLVR2_MAX_TOKENS,
    evaluation: EvaluationOptions = NLVR2_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Predicts whether each sentence is true of its two images, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train nlvr2`.
        data: The official dev.json or test1.json; without labels there is no score.
        regions: The region store of the images.
        max_tokens: Maximum number of tokens of a sentence.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        out: Folder for results.json, predictions.csv and the results card; nothing is written without it.

    Returns:
        nlvr2.accuracy with its interval, nlvr2.chance_level (the larger class) and the recall of each class.

    Raises:
        DataError: A file is missing or damaged, or an image is not in the store (the official script refuses that).
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate nlvr2 --model runs/nlvr2 --data dev.json --regions nlvr2/ --out results/nlvr2
    """
    return evaluate_statements(NLVR2_TASK, model, data, regions, max_tokens, evaluation, baselines)
