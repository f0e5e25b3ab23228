"""Phrase grounding on Flickr30k Entities: which region does a phrase refer to? (Plummer et al., ICCV 2015; IJCV 2017.)

The input is the phrase alone, as for an expression of RefCOCO+, with the same head. A prediction is correct if its IoU
with the entity's box is at least 0.5. IoU counts whole pixels, as in the authors' evaluation (getIOU.m and
flickrPhraseLocalizationEval.m of BryanPlummer/pl-clc). A phrase of several types counts in each of them.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from comodal.console import print_line
from comodal.files import write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.tasks.baselines.baseline_scores import (
    BASELINE_SETTING,
    DEFAULT_BASELINES,
    BaselineOptions,
    build_baseline_entries,
)
from comodal.tasks.evaluation.missing_images import (
    REASON_MISSING_IMAGE,
    build_interval_settings,
    build_score_entries,
    count_items,
    format_missing_count,
)
from comodal.tasks.evaluation.results_card import (
    ResultsCard,
    ScoreEntry,
    format_exclusions,
    read_training_settings,
    report_results,
)
from comodal.tasks.vision_language.grounding.flickr30k_entities_files import EntityPhrases, read_entity_phrases
from comodal.tasks.vision_language.grounding.refcoco import (
    GROUNDING_EVALUATION,
    GROUNDING_FINE_TUNING,
    GROUNDING_HEAD,
    MIN_CORRECT_IOU,
    REFCOCO_MAX_TOKENS,
    GroundingData,
    GroundingEvaluation,
    GroundingFineTuneConfig,
    build_grounding_examples,
    compute_grounding_fractions,
    group_by_image,
    predict_boxes,
    score_grounding_baselines,
)
from comodal.tasks.vision_language.text_image_examples import FixedExamples
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    build_vilbert_run,
    compute_fine_tuning_fingerprint,
    compute_region_loss,
    load_fine_tuning_data,
)
from comodal.training.recipe_run import Run


@flatten_parameters
def recipe(
    model: Path,
    images: Path,
    sentences: Path,
    annotations: Path,
    regions: Path,
    validation: Path | None = None,
    max_tokens: int = REFCOCO_MAX_TOKENS,
    fine_tune: GroundingFineTuneConfig = GROUNDING_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to ground phrases of captions to regions; the default settings are RefCOCO+'s.

    Args:
        model: Run or model folder of a pretrained ViLBERT, or of one that was fine-tuned for grounding.
        images: The official train.txt: the ids of the training images.
        sentences: The official folder Sentences/.
        annotations: The official folder Annotations/.
        regions: The region store of the images; its boxes are the candidates.
        validation: The official val.txt.
        max_tokens: Maximum number of tokens of a phrase.
        fine_tune: The options of all fine-tuning recipes.

    Examples:
        comodal train phrases --model RUN --images train.txt --sentences Sentences/ --annotations Annotations/ --regions flickr30k/ --out runs/phrases
    """  # noqa: E501 (an example is one line)
    parts = load_fine_tuning_data(model, regions, fine_tune)

    def read_examples(path: Path) -> FixedExamples:
        phrases = read_entity_phrases(path, sentences, annotations)
        grounding_data = build_grounding_examples(
            phrases.expressions, path.stem, path, parts.store, parts.tokenizer, max_tokens, fine_tune.max_regions
        )
        exclusions = format_exclusions(phrases.excluded + Counter({REASON_MISSING_IMAGE: len(grounding_data.missing)}))
        print_line(f"{path.name}: {len(grounding_data.examples):,} phrases{exclusions}", stderr=True)
        return FixedExamples(grounding_data.examples)

    return build_vilbert_run(
        parts,
        fine_tune,
        GROUNDING_HEAD,
        compute_region_loss,
        read_examples(images),
        read_examples(validation) if validation else None,
        compute_fine_tuning_fingerprint(
            fine_tune, parts.store, [images, sentences, annotations, *([validation] if validation else [])]
        ),
        {},
    )


@flatten_parameters
def evaluate_phrases(
    model: Path,
    images: Path,
    sentences: Path,
    regions: Path,
    annotations: Path | None = None,
    max_tokens: int = REFCOCO_MAX_TOKENS,
    evaluation: GroundingEvaluation = GROUNDING_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Grounds each phrase of the captions to a region, and reports the accuracy.

    Args:
        model: Run or model folder of a ViLBERT that was fine-tuned by `comodal train phrases` or `train grounding`.
        images: The official val.txt or test.txt: the ids of the images.
        sentences: The official folder Sentences/.
        regions: The region store of the images; its boxes are the candidates.
        annotations: The official folder Annotations/; without it there are predictions and no scores.
        max_tokens: Maximum number of tokens of a phrase.
        evaluation: The options of all evaluations of a fine-tuned ViLBERT.
        baselines: The training split that the baselines on the card are fitted on.
        train_data: The official train.txt, for the baselines on the results card; sentences and annotations are in the
            same folders. Without it there are none.
        out: Folder for results.json, predictions.json and the results card; nothing is written without it.

    Returns:
        phrases.accuracy with its interval, phrases.oracle (any of the boxes is correct), phrases.chance_level (a
        random box) and phrases.type.TYPE; without annotations phrases.items alone.

    Raises:
        DataError: A file is missing or damaged, or no image is in the store.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate phrases --model runs/phrases --images test.txt --sentences Sentences/ --annotations Annotations/ --regions flickr30k/
        comodal evaluate phrases --model runs/phrases --images test.txt --sentences Sentences/ --regions flickr30k/ --out predictions/
    """  # noqa: E501 (an example is one line)
    loaded = evaluation.load_model(model, regions, GROUNDING_HEAD.name)
    phrases = read_entity_phrases(images, sentences, annotations)
    grounding_data = build_grounding_examples(
        phrases.expressions, images.stem, images, loaded.store, loaded.tokenizer, max_tokens, evaluation.max_regions
    )
    predictions = predict_boxes(loaded, grounding_data, phrases.expressions)
    counts = count_items(len(phrases.expressions), len(predictions)) | dict(phrases.excluded)
    groups, source = group_by_image(predictions, grounding_data), str(loaded.store.about["provenance"])
    exclusions = f"{format_exclusions(phrases.excluded)}{format_missing_count(counts)}"
    print_line(f"{images.name}: {counts['items']:,} phrases{exclusions}; boxes: {source}")
    if annotations is None:
        print_line("without --annotations there is no score; the predictions are in predictions.json")
        metrics, fitted = {"phrases.items": float(counts["items"])}, "not fitted: there is no score"
    else:
        metrics = score_phrases(
            {str(entry["sent_id"]): entry["iou"] for entry in predictions}, phrases, grounding_data, groups
        )
        baseline_metrics, fitted = score_grounding_baselines(
            "phrases",
            baselines,
            lambda path: read_entity_phrases(path, sentences, annotations).expressions,
            phrases.expressions,
            {key: overlaps >= MIN_CORRECT_IOU for key, overlaps in grounding_data.overlaps.items()},
            loaded,
        )
        metrics |= baseline_metrics
    if evaluation.out is not None:
        write_bytes_atomically(evaluation.out / "predictions.json", (json.dumps(predictions, indent=0) + "\n").encode())
    files = {"images": images, "sentences": sentences} | ({"annotations": annotations} if annotations else {})
    settings = {
        "ablate": evaluation.ablate,
        BASELINE_SETTING: fitted,
        **build_interval_settings(metrics, groups, "images"),
    }
    report_results(metrics, build_phrases_card(metrics, model, files, source, settings, counts), evaluation.out)
    return metrics


def score_phrases(
    ious: Mapping[str, float], phrases: EntityPhrases, grounding_data: GroundingData, groups: Sequence[str]
) -> dict[str, float]:
    """Accuracy of the phrases, upper bound and chance level of the boxes, and accuracy by type."""
    is_box_correct = [grounding_data.overlaps[key] >= MIN_CORRECT_IOU for key in ious]
    metrics = compute_grounding_fractions(
        "phrases", np.array([iou >= MIN_CORRECT_IOU for iou in ious.values()]), is_box_correct, groups
    )
    for kind in sorted({kind for kinds in phrases.kinds.values() for kind in kinds}):
        is_correct = [ious.get(key, 0.0) >= MIN_CORRECT_IOU for key, kinds in phrases.kinds.items() if kind in kinds]
        metrics[f"phrases.type.{kind}"] = float(np.mean(is_correct))
    return metrics


def build_phrases_card(
    metrics: Mapping[str, float], model: Path, files: Mapping[str, Path], source: str, settings: Mapping[str, str],
    counts: Mapping[str, int],
) -> ResultsCard:  # fmt: skip
    """The results card; without boxes it has no score."""
    scores: dict[str, ScoreEntry] = {}
    if "phrases.accuracy" in metrics:
        scores = build_score_entries("accuracy", "phrases.accuracy", metrics, counts)
        scores["any box is correct"] = ScoreEntry(metrics["phrases.oracle"])
        scores["random box"] = ScoreEntry(metrics["phrases.chance_level"])
        scores |= build_baseline_entries("phrases", metrics)
        scores |= {
            name.removeprefix("phrases.type."): ScoreEntry(value) for name, value in metrics.items() if ".type." in name
        }
    all_settings = {**settings, **read_training_settings(model)}
    split = files["images"].stem
    return ResultsCard(
        "phrases", "Flickr30k Entities", split, scores, str(model), counts, files, source, {}, all_settings
    )
