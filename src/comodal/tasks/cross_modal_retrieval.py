"""`comodal evaluate retrieval`: images and captions of a region store, or images and audio of shards."""

from dataclasses import replace
from pathlib import Path

from comodal.flat_parameters import flatten_parameters
from comodal.hardware import ComputeOptions
from comodal.tasks.baselines.baseline_scores import DEFAULT_BASELINES, BaselineOptions
from comodal.tasks.correspondence.clip_retrieval import ClipRetrieval, evaluate_clip_retrieval
from comodal.tasks.retrieval.caption_retrieval import ALIGNMENT_RANKING, RETRIEVAL_EVALUATION, evaluate_retrieval
from comodal.tasks.retrieval.gallery import CaptionSplit
from comodal.tasks.retrieval.pair_scores import RankingOptions
from comodal.tasks.vision_language.vilbert_fine_tuning import EvaluationOptions

ALL_CLIPS = ClipRetrieval()


@flatten_parameters
def evaluate_cross_modal_retrieval(
    model: Path,
    captions: Path | None = None,
    regions: Path | None = None,
    data: Path | None = None,
    split: CaptionSplit | None = None,
    ranking: RankingOptions = ALIGNMENT_RANKING,
    evaluation: EvaluationOptions = RETRIEVAL_EVALUATION,
    baselines: BaselineOptions = DEFAULT_BASELINES,
    clip_retrieval: ClipRetrieval = ALL_CLIPS,
) -> dict[str, float]:
    """Retrieves images by captions or audio, and the other way round: recall@1, 5 and 10 and ranks.

    With --captions and --regions, a ViLBERT or a dual encoder retrieves images by captions and captions by images. With
    --data, an AVE-Net retrieves the audio of clips by images and images by audio.

    Args:
        model: Run or model folder. For captions a ViLBERT (pretrained or fine-tuned by `comodal train retrieval`), its
            single-stream baseline or a dual encoder, with the vocabulary; for --data an AVE-Net, an L3-Net or a model
            of `comodal train clip_classes`.
        captions: Any file that `comodal train vilbert` reads.
        regions: The region store of the images, prepared like that of the training.
        data: Folder written by `comodal prepare`: images and audio instead of captions.
        split: The split to search; by default test, or validation where there is no test split: of the captions, or
            what the run held out if they have no splits. Without either, all. Shards have no split all.
        ranking: How pairs are scored and ranked.
        evaluation: The options of all evaluations of a ViLBERT.
        baselines: The training captions that the baseline on the card is fitted on.
        clip_retrieval: The options of --data.
        train_data: Captions for the baseline of linear maps, in any file that `comodal train vilbert` reads: those of
            the training split, or all without splits; those of images of the gallery are left out.
        ablate: Ablate one modality, for a model that was trained with this ablation.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16; bf16 changes
            ranks of pairs that hardly differ.
        out: Folder for results.json, ranks.csv (of captions) and the results card; nothing is written without it.

    Returns:
        A flat dict of metrics: retrieval.text_to_image.r1 (r5, r10, median, mean; .low and .high of 95 % intervals) and
        retrieval.image_to_text, the same under retrieval.untrained and retrieval.baseline.linear_maps, and
        retrieval.chance_level. With --data retrieval.image_to_audio and retrieval.audio_to_image, also with the
        pairwise accuracy and, where clips have labels, class_precision10 and ndcg30; the same under retrieval.untrained
        and retrieval.linear_map, and of smaller galleries under retrieval.gallery.N.

    Raises:
        DataError: A file is missing or damaged, does not fit the model, the split is too small, or --rerank would
            be fitted on images of the gallery.
        CheckpointError: The folder holds no such model.

    Examples:
        comodal evaluate retrieval --zero-shot --model RUN --captions captions.jsonl --regions regions/ --out results/
        comodal evaluate retrieval --zero-shot --model RUN --captions cc.tsv --regions cc/ --rerank 50
        comodal evaluate retrieval --model DUAL_ENCODER_RUN --captions captions.jsonl --regions regions/
        comodal evaluate retrieval --model AVE_NET_RUN --data shards/ --linear-map L3NET_RUN --out results/
    """
    if data is None:
        if captions is None or regions is None:
            raise ValueError("give --captions and --regions (images and captions), or --data (images and audio)")
        if clip_retrieval != ALL_CLIPS:
            raise ValueError("--galleries, --linear-map, --clips and --workers are for images and audio: add --data")
        return evaluate_retrieval(
            model, captions, regions, split, ranking=ranking, evaluation=evaluation, baselines=baselines
        )
    if captions is not None or regions is not None:
        raise ValueError("--data is for images and audio: leave out --captions and --regions")
    compute, seed = ComputeOptions(evaluation.device, evaluation.precision), ranking.seed
    used = replace(RETRIEVAL_EVALUATION, device=compute.device, precision=compute.precision, out=evaluation.out)
    if ranking != replace(ALIGNMENT_RANKING, seed=seed) or evaluation != used or baselines != DEFAULT_BASELINES:
        raise ValueError(
            "--data takes --split, --galleries, --linear-map, --clips, --workers, --seed, --device, --precision and "
            "--out; other options are for captions"
        )
    return evaluate_clip_retrieval(model, data, split, clip_retrieval, compute, seed, evaluation.out)
