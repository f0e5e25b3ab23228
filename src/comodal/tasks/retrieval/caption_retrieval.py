"""Caption-based image retrieval: text-to-image and image-to-text (ViLBERT, section 3.3).

Zero-shot, the alignment head of pretraining scores every pair. Fine-tuning (`comodal train retrieval`) trains a new
head to choose the matching pair among four, with a hard negative (hard_negatives.py). The paper's settings: learning
rate 2e-5, batches of 64, 20 epochs. The baselines are chance level and an untrained network of the same shape. A
caption's own image is correct; for an image, any of its captions is.
With `rerank`, the model scores only the top candidates of a first stage: linear projections (first_stage.py), fitted on
training captions (not zero-shot) whose images must not be in the gallery, or a dual encoder. The recall of the first
stage and the recall lost are reported.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from comodal.console import print_line
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.errors import CheckpointError, DataError
from comodal.flat_parameters import flatten_parameters
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS
from comodal.models.checkpoint import load_model, make_untrained_copy
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.tasks.baselines.baseline_scores import BASELINE_SETTING, DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.evaluation.results_card import write_card
from comodal.tasks.retrieval.dual_encoder_embeddings import write_image_features
from comodal.tasks.retrieval.first_stage import MAX_CAPTIONS
from comodal.tasks.retrieval.gallery import (
    DEFAULT_HELD_OUT_FRACTION,
    CaptionSplit,
    Gallery,
    IndexedCaptions,
    RetrievalData,
    load_retrieval_data,
)
from comodal.tasks.retrieval.gallery_ranking import (
    RETRIEVAL_HEAD,
    RetrievalModel,
    RetrievalSettings,
    rank_queries,
    select_scoring_head,
    unwrap_backbone,
)
from comodal.tasks.retrieval.hard_negatives import FourWayDataset
from comodal.tasks.retrieval.linear_baseline import LINEAR_MAPS_SYSTEM, rank_by_linear_maps
from comodal.tasks.retrieval.pair_scores import RankingOptions
from comodal.tasks.retrieval.retrieval_results import (
    RETRIEVAL_TASK,
    RankingMethod,
    build_retrieval_card,
    build_retrieval_table,
    collect_retrieval_metrics,
    format_reranking_cost,
    write_retrieval_results,
)
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    EvaluationOptions,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_choice_loss,
    compute_fine_tuning_fingerprint,
    load_fine_tuning_data,
)
from comodal.training.recipe_run import Run

PAPER_NUM_REGIONS = 36
RETRIEVAL_FINE_TUNING = ViLBERTFineTuneConfig(batch_size=64, learning_rate=2e-5, max_regions=36)


@flatten_parameters
def recipe(
    model: Path,
    captions: Path,
    regions: Path,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    validation_fraction: float = DEFAULT_HELD_OUT_FRACTION,
    fine_tune: ViLBERTFineTuneConfig = RETRIEVAL_FINE_TUNING,
) -> Run:
    """Fine-tunes a ViLBERT to choose the matching pair among four pairs of a caption and an image.

    Args:
        model: Run or model folder of a pretrained ViLBERT.
        captions: Karpathy's JSON, the original's jsonline, or any file that `comodal train vilbert` reads.
        regions: The region store of the images.
        max_tokens: Maximum number of tokens of a caption.
        validation_fraction: Fraction of the images held out where the captions name no split.
        fine_tune: The options of all fine-tuning recipes.
        batch_size: Captions per step, over all processes; each has four pairs.
        seed: Seed of the head's initialization, the order and the negatives.

    Examples:
        comodal train retrieval --model RUN --captions dataset_flickr30k.json --regions flickr30k/ --out runs/retrieval
    """
    parts = load_fine_tuning_data(model, regions, fine_tune)
    split_pairs = split_matched_captions(
        match_captions(read_captions(captions), parts.store.ids).pairs, parts.store.ids, validation_fraction, 0.0
    )
    if not split_pairs["train"]:
        raise DataError(f"{captions}: no caption of the training split has its image in {regions}")

    def build_dataset(pairs: IndexedCaptions) -> FourWayDataset:
        return FourWayDataset(pairs, parts.store, parts.tokenizer, max_tokens, fine_tune.seed)

    validation_dataset = build_dataset(split_pairs["validation"]) if split_pairs["validation"] else None
    fingerprint = compute_fine_tuning_fingerprint(fine_tune, parts.store, [captions])
    return build_vilbert_run(
        parts,
        fine_tune,
        RETRIEVAL_HEAD,
        compute_choice_loss,
        build_dataset(split_pairs["train"]),
        validation_dataset,
        fingerprint,
        {},
    )


ALIGNMENT_RANKING, RETRIEVAL_EVALUATION = RankingOptions(), EvaluationOptions(max_regions=PAPER_NUM_REGIONS)


@flatten_parameters
def evaluate_retrieval(
    model: Path,
    captions: Path,
    regions: Path,
    split: CaptionSplit | None = None,
    ranking: RankingOptions = ALIGNMENT_RANKING,
    evaluation: EvaluationOptions = RETRIEVAL_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
) -> dict[str, float]:
    """Retrieves images by captions and captions by images, and reports recall@1, 5 and 10 and ranks.

    Args:
        model: Run or model folder of a ViLBERT (pretrained or fine-tuned by `comodal train retrieval`), of its
            single-stream baseline or of a dual encoder, with the vocabulary.
        captions: Any file that `comodal train vilbert` reads.
        regions: The region store of the images, prepared like that of the training; for a dual encoder that was trained
            on image files, the folder of the images.
        split: The split to search; by default test, or validation where there is no test split: of the captions, or
            what the run held out if they have no splits. Without either, all.
        ranking: How pairs are scored and ranked.
        evaluation: The options of all evaluations of a ViLBERT.
        baselines: The training captions that the baseline on the card is fitted on.
        train_data: Captions for the baseline of linear maps, in any file that `comodal train vilbert` reads: those of
            the training split, or all without splits; those of images of the gallery are left out.
        ablate: Ablate one modality, for a model that was trained with this ablation.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16; bf16 changes
            ranks of pairs that hardly differ.
        out: Folder for results.json, ranks.csv and the results card; nothing is written without it.

    Returns:
        A flat dict of metrics: retrieval.text_to_image.r1 (r5, r10, median, mean; .low and .high of 95 % intervals) and
        retrieval.image_to_text, the same under retrieval.untrained and retrieval.baseline.linear_maps, and
        retrieval.chance_level.

    Raises:
        DataError: A file is missing or damaged, does not fit the model, the split has no captions, or --rerank would
            be fitted on images of the gallery.
        CheckpointError: There is no ViLBERT and no dual encoder in the folder.

    Examples:
        comodal evaluate retrieval --zero-shot --model RUN --captions captions.jsonl --regions regions/ --out results/
        comodal evaluate retrieval --zero-shot --model RUN --captions cc.tsv --regions cc/ --rerank 50
        comodal evaluate retrieval --model DUAL_ENCODER_RUN --captions captions.jsonl --regions regions/
        comodal evaluate retrieval --model DUAL_ENCODER_RUN_ON_FILES --captions captions.jsonl --regions photos/
    """
    ranking.check()
    trained = load_scoring_model(model, ranking.zero_shot)
    check_scoring_model(trained, model, ranking)
    if not (isinstance(trained, DualEncoder) and trained.image_tower is not None):
        return evaluate_on_regions(trained, model, captions, regions, split, ranking, evaluation, baselines)
    with TemporaryDirectory(prefix="comodal-features-") as folder:
        store = write_image_features(trained, regions, Path(folder) / "store", evaluation.resolve())
        return evaluate_on_regions(trained, model, captions, store, split, ranking, evaluation, baselines)


def evaluate_on_regions(
    trained: RetrievalModel,
    model: Path,
    captions: Path,
    regions: Path,
    split: CaptionSplit | None,
    ranking: RankingOptions,
    evaluation: EvaluationOptions,
    baselines: BaselineOptions,
) -> dict[str, float]:
    """The evaluation of a loaded model on a region store, as `evaluate_retrieval` describes it."""
    rerank, max_regions, out = ranking.rerank, evaluation.max_regions, evaluation.out
    start_seconds = time.perf_counter()
    retrieval_data = load_retrieval_data(
        model, unwrap_backbone(trained).config, captions, regions, split, max_regions, evaluation.ablate
    )
    gallery, split = retrieval_data.gallery, retrieval_data.split
    if rerank is not None and ranking.first_stage is None:
        check_first_stage(retrieval_data, captions, split)
    print_line(describe_gallery(gallery, split))
    settings = RetrievalSettings(
        evaluation.resolve(), ranking.batch_size, max_regions, rerank, ranking.seed, ranking.zero_shot, ranking.scores,
        ranking.first_stage, evaluation.task_token,
    )  # fmt: skip
    results = {"trained": rank_queries(trained, retrieval_data, settings, "trained")}
    untrained = make_untrained_copy(trained, ranking.seed)
    results["untrained"] = rank_queries(untrained, retrieval_data, settings, "untrained")
    systems = {name: result.ranks for name, result in results.items()}
    if (first := results["trained"].first_stage) is not None:
        systems["first_stage"] = first
    baseline = rank_by_linear_maps(baselines, gallery)
    if baseline.ranks is not None:
        systems[LINEAR_MAPS_SYSTEM] = baseline.ranks
    metrics = collect_retrieval_metrics(systems, gallery, retrieval_data.missing_images) | {
        f"{RETRIEVAL_TASK}.{k}": v for k, v in results["trained"].metrics.items()
    }
    metrics[f"{RETRIEVAL_TASK}.seconds"] = time.perf_counter() - start_seconds
    method = build_ranking_method(trained, retrieval_data, settings)
    build_retrieval_table(list(systems), metrics, method.title).show()
    if rerank is not None:
        print_line(format_reranking_cost(metrics, rerank))
    if out is not None:
        write_retrieval_results(out, metrics, systems, gallery)
        card_settings: dict[str, str | int | None] = {
            "rerank": rerank,
            "scores": ranking.scores,
            BASELINE_SETTING: baseline.about,
        }
        if ranking.first_stage is not None:
            card_settings["first_stage"] = str(ranking.first_stage)
        card_settings |= {"precision": settings.compute.precision, "max_regions": max_regions}
        about = (method, model, captions, card_settings, ranking.seed)
        write_card(build_retrieval_card(metrics, retrieval_data, split, *about), out)
    return metrics


def check_scoring_model(trained: RetrievalModel, path: Path, ranking: RankingOptions) -> None:
    """Raises a DataError or a CheckpointError if the model cannot rank as the options say."""
    if ranking.scores == "contrastive":
        check_contrastive_head(trained, path)
    if isinstance(trained, DualEncoder) and ranking.rerank is not None:
        raise DataError(f"{path}: a dual encoder ranks the whole gallery by one matrix product; leave out --rerank")
    if select_scoring_head(trained, ranking.zero_shot) is None and unwrap_backbone(trained).config.task_tokens:
        raise DataError(f"{path}: a model with task tokens (12-in-1); zero-shot retrieval is for pretrained models")


def load_scoring_model(path: Path, zero_shot: bool) -> RetrievalModel:
    """Loads a model that scores pairs of a caption and an image.

    Raises:
        CheckpointError: There is none, or it is fine-tuned for another task.
    """
    model = load_model(path)
    if not isinstance(model, RetrievalModel):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs a ViLBERT or a dual encoder")
    if isinstance(model, TaskModel) and not zero_shot and RETRIEVAL_HEAD.name not in model.heads:
        names = ", ".join(model.heads)
        raise CheckpointError(f"{path} is fine-tuned for {names}, not for retrieval; use --zero-shot for alignment")
    return model


def check_contrastive_head(model: RetrievalModel, path: Path) -> None:
    """Checks that the backbone has a contrastive head.

    Raises:
        CheckpointError: It was trained without one.
    """
    if getattr(unwrap_backbone(model), "contrastive_head", None) is None:
        raise CheckpointError(f"{path} was trained without --contrastive-weight; rank by --scores alignment")


def check_first_stage(retrieval_data: RetrievalData, captions: Path, split: CaptionSplit) -> None:
    """Checks that the first stage is not fitted on images of the gallery.

    Raises:
        DataError: Images of the training split are in the gallery.
    """
    shared = np.intersect1d(retrieval_data.gallery.rows, [row for _, row in retrieval_data.train])
    if len(shared):
        raise DataError(
            f"{captions}: --rerank fits its first stage on the captions of the training split, and {len(shared):,} of "
            f"the {len(retrieval_data.gallery.counts):,} images of --split {split} are among them; use another split, "
            "or the whole gallery without --rerank"
        )


def build_ranking_method(
    model: RetrievalModel, retrieval_data: RetrievalData, settings: RetrievalSettings
) -> RankingMethod:
    """How pairs are ranked, and whether this is the paper's setting: its network, 36 regions, fp32, no first stage."""
    num_fitted = None
    if settings.rerank is not None:
        num_fitted = 0 if settings.first_stage is not None else min(len(retrieval_data.train), MAX_CAPTIONS)
    exact = settings.compute.precision == "fp32" and settings.max_regions == PAPER_NUM_REGIONS and num_fitted is None
    if isinstance(model, DualEncoder):
        return RankingMethod("dual encoder", None, False)
    if settings.score_type == "contrastive":
        return RankingMethod("contrastive", None, False)
    if select_scoring_head(model, settings.zero_shot) is not None:
        return RankingMethod("fine-tuned", num_fitted, exact and is_paper_network(unwrap_backbone(model)))
    return RankingMethod("zero-shot", num_fitted, exact and isinstance(model, ViLBERT) and is_paper_network(model))


def is_paper_network(model: ViLBERT | SingleStream | DualEncoder) -> bool:
    """Whether a network has the sizes of the paper's base model with six co-attention layers."""
    sizes = ("text", "vision", "joint_dim", "joint_heads", "co_attention_layers", "region_feature_dim", "co_attention")
    paper = ViLBERTConfig()
    return isinstance(model, ViLBERT) and all(getattr(model.config, n) == getattr(paper, n) for n in sizes)


def describe_gallery(gallery: Gallery, split: CaptionSplit) -> str:
    """One line about the gallery."""
    captions, texts = len(gallery.text_of), len(gallery.lengths)
    shared = f", {captions - texts:,} identical to another" if texts < captions else ""
    truncated = f", {gallery.num_truncated:,} truncated" if gallery.num_truncated else ""
    return f"{split}: {captions:,} captions{shared}{truncated}; {len(gallery.counts):,} images"
