"""SNLI-VE: visual entailment. Does an image entail a sentence, contradict it, or neither? (Xie et al. 2019; 12-in-1.)

The official files are JSON Lines about Flickr30k's images: `Flickr30K_ID`, `sentence2`, `gold_label`, `pairID`.
"""

from collections import Counter
from pathlib import Path

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

SNLI_VE_CLASSES = ("contradiction", "neutral", "entailment")
NO_GOLD_LABEL = "-"  # the gold label if no three of five annotators agree
SNLI_VE_MAX_TOKENS = 56


def read_snli_ve_sentences(path: Path) -> tuple[list[ImageSentence], Counter[str]]:
    """The sentences of snli_ve_train.jsonl, snli_ve_dev.jsonl or snli_ve_test.jsonl.

    Raises:
        DataError: The file cannot be read, or a line is not SNLI-VE's.
    """
    statements, excluded = [], Counter[str]()
    for line_number, entry in read_json_lines(path):
        image, key, sentence = read_text_fields(path, line_number, entry, "Flickr30K_ID", "pairID", "sentence2")
        label = entry.get("gold_label")
        if label == NO_GOLD_LABEL:
            excluded["annotators do not agree"] += 1
            continue
        statements.append(ImageSentence(key, sentence, (image,), None if label is None else str(label), image))
    return statements, excluded


SNLI_VE_TASK = SentenceTask(
    name="entailment",
    title="SNLI-VE",
    classes=SNLI_VE_CLASSES,
    head=Head("entailment", "linear", len(SNLI_VE_CLASSES)),
    read_sentences=read_snli_ve_sentences,
    paper_accuracy={},
    groups="images",
    refuses_missing=False,
)

SNLI_VE_FINE_TUNING = ViLBERTFineTuneConfig(learning_rate=2e-5, max_regions=36)
SNLI_VE_EVALUATION = EvaluationOptions(max_regions=36)


@flatten_parameters
def recipe(
    model: Path,
    data: Path,
    regions: Path,
    validation: Path | None = None,
    max_tokens: int = SNLI_VE_MAX_TOKENS,
    fine_tune: ViLBERTFineTuneConfig = SNLI_VE_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT for visual entailment: does an image entail a sentence?

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        data: The official snli_ve_train.jsonl.
        regions: The region store of the images.
        validation: The official snli_ve_dev.jsonl.
        max_tokens: Maximum number of tokens of a sentence.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train entailment --model RUN --data snli_ve_train.jsonl --regions flickr30k/ --out runs/entailment
    """
    return build_sentence_run(SNLI_VE_TASK, model, data, regions, validation, max_tokens, fine_tune)


@flatten_parameters
def evaluate_entailment(
    model: Path,
    data: Path,
    regions: Path,
    max_tokens: int = SNLI_VE_MAX_TOKENS,
    evaluation: EvaluationOptions = SNLI_VE_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Predicts whether an image entails, contradicts or is neutral to each sentence, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train entailment`.
        data: The official snli_ve_dev.jsonl or snli_ve_test.jsonl; without labels there is no score.
        regions: The region store of the images.
        max_tokens: Maximum number of tokens of a sentence.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        out: Folder for results.json, predictions.csv and the results card; nothing is written without it.

    Returns:
        entailment.accuracy with its interval over all sentences, .accuracy.predicted over those whose image is there,
        entailment.chance_level (the largest class) and the recall of each class.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate entailment --model runs/entailment --data snli_ve_test.jsonl --regions flickr30k/ --out ve/
    """
    return evaluate_statements(SNLI_VE_TASK, model, data, regions, max_tokens, evaluation, baselines)
