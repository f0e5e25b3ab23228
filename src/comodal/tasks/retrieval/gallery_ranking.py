"""Ranks the queries of a gallery by a network: every pair by a ViLBERT, by embeddings, or in two stages.

The first stage is two projections of the network's unimodal encodings, fitted on training captions (first_stage.py), or
a trained dual encoder.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from comodal.errors import DataError
from comodal.hardware import Compute
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.vilbert.heads import Head, fuse_pooled_streams
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.progress import track_progress
from comodal.tasks.retrieval.dual_encoder_embeddings import embed_gallery, embed_gallery_by
from comodal.tasks.retrieval.first_stage import MAX_CAPTIONS, TwoStageSearch, fit_projections
from comodal.tasks.retrieval.gallery import Gallery, RetrievalData, build_gallery
from comodal.tasks.retrieval.pair_scores import PairScorer, ScoreType
from comodal.tasks.retrieval.retrieval_ranks import (
    DIRECTIONS,
    RECALL_CUTOFFS,
    CorrectCandidates,
    RetrievalRanks,
    list_image_answers,
    list_text_answers,
    rank_answer_sets,
    rank_score_matrix,
    reorder_by_caption,
)

RETRIEVAL_HEAD = Head("score", "linear", 1)  # named as in 12-in-1
MIN_SAMPLED_QUERIES = 20  # queries for which the whole gallery is scored, to measure re-ranking
RetrievalModel = ViLBERT | SingleStream | TaskModel | DualEncoder


class RetrievalSettings(NamedTuple):
    """The settings of an evaluation of one network."""

    compute: Compute
    batch_size: int | None
    max_regions: int
    rerank: int | None
    seed: int
    zero_shot: bool
    score_type: ScoreType
    first_stage: Path | None = None
    task_token: int | None = None


class RetrievalResult(NamedTuple):
    """The ranks by a network, the ranks by the first stage if there is one, and further metrics."""

    ranks: RetrievalRanks
    first_stage: RetrievalRanks | None
    metrics: dict[str, float]


def unwrap_backbone(model: RetrievalModel) -> ViLBERT | SingleStream | DualEncoder:
    """The backbone of a model; a dual encoder is its own."""
    return model.vilbert if isinstance(model, TaskModel) else model


def select_scoring_head(model: RetrievalModel, zero_shot: bool) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The scoring function of a pair: the fine-tuned head, or None for the alignment head."""
    if zero_shot or not isinstance(model, TaskModel):
        return None
    heads = model.heads
    return lambda text, vision: heads[RETRIEVAL_HEAD.name](fuse_pooled_streams(text, vision, heads.fusion))[:, 0]


def rank_queries(
    model: RetrievalModel, retrieval_data: RetrievalData, settings: RetrievalSettings, name: str
) -> RetrievalResult:
    """The ranks by one network."""
    if isinstance(model, DualEncoder):
        return rank_by_dual_encoder(model, retrieval_data.gallery, settings)
    scorer = build_pair_scorer(model, retrieval_data.gallery, settings)
    if settings.rerank is not None:
        return search_two_stages(scorer, retrieval_data, settings)
    start_seconds = time.perf_counter()
    if settings.score_type == "contrastive":
        scores = scorer.compute_contrastive_matrix()
    else:
        scores = scorer.score_all_pairs(lambda tiles: iter(track_progress(tiles, f"scoring pairs, {name}")))
    pairs_per_second = scores.size / (time.perf_counter() - start_seconds)
    return RetrievalResult(
        rank_score_matrix(scores, retrieval_data.gallery), None, {"pairs_per_second": pairs_per_second}
    )


def rank_by_dual_encoder(model: DualEncoder, gallery: Gallery, settings: RetrievalSettings) -> RetrievalResult:
    """The ranks by the cosines of the embeddings of a dual encoder."""
    start_seconds = time.perf_counter()
    embeddings = embed_gallery(model, gallery, settings.compute)
    scores = embeddings.texts @ embeddings.images.T
    pairs_per_second = scores.size / (time.perf_counter() - start_seconds)
    return RetrievalResult(rank_score_matrix(scores, gallery), None, {"pairs_per_second": pairs_per_second})


def build_pair_scorer(
    model: ViLBERT | SingleStream | TaskModel, gallery: Gallery, settings: RetrievalSettings
) -> PairScorer:
    """A pair scorer with these settings."""
    model, score_head = model.to(settings.compute.device), select_scoring_head(model, settings.zero_shot)
    backbone = model.vilbert if isinstance(model, TaskModel) else model
    about = (settings.compute, settings.batch_size, score_head, settings.task_token)
    return PairScorer(backbone, gallery, *about)


def search_two_stages(
    scorer: PairScorer, retrieval_data: RetrievalData, settings: RetrievalSettings
) -> RetrievalResult:
    """Both directions in two stages, and the recall of scoring the whole gallery on a sample of the queries."""
    assert settings.rerank is not None
    gallery, rng = scorer.gallery, np.random.default_rng(settings.seed)
    two_stages = build_two_stage_search(scorer, retrieval_data, settings, rng)
    to_texts, to_images = list_text_answers(gallery), list_image_answers(gallery)
    texts, images = np.arange(len(gallery.lengths)), np.arange(len(gallery.counts))
    by_text = two_stages.rank_images_for_texts(texts, to_texts, settings.rerank)
    by_image = two_stages.rank_texts_for_images(images, to_images, settings.rerank)
    metrics = {"rerank.top_k": float(settings.rerank)}
    for direction, ranks in zip(DIRECTIONS, (by_text, by_image), strict=True):
        metrics[f"rerank.{direction}.recall"] = float((ranks.first_stage < settings.rerank).mean())
    metrics |= measure_sampled_recall(two_stages, settings.rerank, rng)
    return RetrievalResult(
        RetrievalRanks(reorder_by_caption(by_text.reranked, gallery), by_image.reranked),
        RetrievalRanks(reorder_by_caption(by_text.first_stage, gallery), by_image.first_stage),
        metrics,
    )


def build_two_stage_search(
    scorer: PairScorer, retrieval_data: RetrievalData, settings: RetrievalSettings, rng: np.random.Generator
) -> TwoStageSearch:
    """The search whose first stage is the dual encoder of the settings, or else fitted on training captions."""
    gallery = scorer.gallery
    if settings.first_stage is not None:
        return TwoStageSearch(scorer, embed_gallery_by(settings.first_stage, gallery, settings.compute))
    sampled = rng.permutation(len(retrieval_data.train))[:MAX_CAPTIONS].tolist()
    if not sampled:
        raise DataError("the first stage of --rerank is fitted on captions of the training split, and there are none")
    train_gallery = build_gallery(
        [retrieval_data.train[i] for i in sampled],
        gallery.store,
        retrieval_data.tokenizer,
        scorer.model.config,
        settings.max_regions,
        gallery.ablate,
    )
    about = (settings.compute, settings.batch_size, None, settings.task_token)
    train_scorer = PairScorer(scorer.model, train_gallery, *about)
    return TwoStageSearch(scorer, fit_projections(train_scorer, settings.seed))


def measure_sampled_recall(two_stages: TwoStageSearch, top_k: int, rng: np.random.Generator) -> dict[str, float]:
    """Recall in two stages and with the whole gallery scored, on as many queries as double the cost, or 20."""
    gallery = two_stages.scorer.gallery
    texts, images = len(gallery.lengths), len(gallery.counts)
    direction_inputs = (
        (texts, images, list_text_answers(gallery), two_stages.rank_images_for_texts),
        (images, texts, list_image_answers(gallery), two_stages.rank_texts_for_images),
    )
    metrics: dict[str, float] = {}
    for direction, (queries, candidates, correct_candidates, find) in zip(DIRECTIONS, direction_inputs, strict=True):
        count = min(queries, max(MIN_SAMPLED_QUERIES, top_k * queries // candidates))
        query_ids = np.sort(rng.permutation(queries)[:count])
        sides = np.repeat(query_ids, candidates), np.tile(np.arange(candidates), count)
        scores = two_stages.scorer.score_pairs(*(sides if direction == DIRECTIONS[0] else sides[::-1]))
        sampled_candidates = CorrectCandidates(
            [correct_candidates.correct[query] for query in query_ids.tolist()], correct_candidates.weights
        )
        exact = rank_answer_sets(scores.reshape(count, candidates), sampled_candidates)
        reranked = find(query_ids, correct_candidates, top_k).reranked
        metrics[f"rerank.{direction}.sample"] = float(count)
        for cut in RECALL_CUTOFFS:
            metrics[f"rerank.{direction}.sample.r{cut}"] = float((reranked < cut).mean())
            metrics[f"rerank.{direction}.sample.r{cut}.exact"] = float((exact < cut).mean())
    return metrics
