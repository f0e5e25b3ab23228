"""Ranks of the correct candidates in a retrieval, and metrics of them: recall@1, 5 and 10, median rank.

Ranks count from 0: the number of incorrect candidates ahead of the best correct one. Ties count as ahead, so a network
that gives every pair the same score has a recall of 0. (The original sorts by numpy's quicksort, which leaves the order
of ties undefined.) The median is the original's: floor(median + 1) of ranks from 0 (facebookresearch/
vilbert-multi-task, eval_retrieval.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Num

from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.missing_images import compute_accuracy_metrics
from comodal.tasks.retrieval.gallery import Gallery

RECALL_CUTOFFS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


class RetrievalRanks(NamedTuple):
    """The rank of each caption's image among the images, and of each image's best caption among the captions."""

    text_to_image: Int64[np.ndarray, "captions"]
    image_to_text: Int64[np.ndarray, "images"]


class CorrectCandidates(NamedTuple):
    """The correct candidates of each query, and how many captions each candidate stands for.

    A text that several captions share is a query for each of them; each has its own set of correct images.
    """

    correct: list[list[Int64[np.ndarray, "_"]]]
    weights: Int64[np.ndarray, "candidates"]


def list_text_answers(gallery: Gallery) -> CorrectCandidates:
    """For each text the image of each of its captions, in the order of `sort_captions_by_text`."""
    ends = np.cumsum(gallery.captions_of)[:-1]
    images = np.split(gallery.image_of[sort_captions_by_text(gallery)], ends)
    return CorrectCandidates([list(rows[:, None]) for rows in images], np.ones(len(gallery.counts), np.int64))


def list_image_answers(gallery: Gallery) -> CorrectCandidates:
    """For each image its texts; a text has the number of its captions as weight."""
    return CorrectCandidates([[texts] for texts in gallery.texts_of], gallery.captions_of.astype(np.int64))


def sort_captions_by_text(gallery: Gallery) -> Int64[np.ndarray, "captions"]:
    """The captions in the order of their texts."""
    return np.argsort(gallery.text_of, kind="stable")


def rank_best_answer(
    scores: Float[np.ndarray, "candidates"],
    correct: Int64[np.ndarray, "_"],
    weights: Int64[np.ndarray, "candidates"],
) -> int:
    """The number of incorrect candidates ahead of the best correct one, ties included.

    Raises:
        DataError: A score is not finite.
    """
    check_finite_scores(scores, "retrieval")
    is_ahead = scores >= scores[correct].max()
    is_ahead[correct] = False
    return int(weights[is_ahead].sum())


def rank_answer_sets(
    scores: Float[np.ndarray, "queries candidates"], answers: CorrectCandidates
) -> Int64[np.ndarray, "_"]:
    """The rank of every set of correct candidates, query by query."""
    ranked = [
        rank_best_answer(row, correct, answers.weights)
        for row, sets in zip(scores, answers.correct, strict=True)
        for correct in sets
    ]
    return np.array(ranked, np.int64)


def reorder_by_caption(ranks: Int64[np.ndarray, "captions"], gallery: Gallery) -> Int64[np.ndarray, "captions"]:
    """Reorders ranks from the order of the texts to the order of the captions."""
    ordered = np.empty_like(ranks)
    ordered[sort_captions_by_text(gallery)] = ranks
    return ordered


def rank_score_matrix(scores: Float[np.ndarray, "texts images"], gallery: Gallery) -> RetrievalRanks:
    """The ranks of both directions from the scores of all pairs."""
    return RetrievalRanks(
        reorder_by_caption(rank_answer_sets(scores, list_text_answers(gallery)), gallery),
        rank_answer_sets(np.ascontiguousarray(scores.T), list_image_answers(gallery)),
    )


def summarize_ranks(
    ranks: Num[np.ndarray, "queries"],
    groups: Sequence[str] | None = None,
    missing: Sequence[str] = (),
    worst_rank: int = 0,
) -> dict[str, float]:
    """Recall@1, 5 and 10 with 95 % intervals, median and mean rank, counted from 1.

    Args:
        ranks: Ranks of the queries whose image is in the store.
        groups: Group of each query (the image of its caption); None where queries are independent.
        missing: Groups of further queries, whose image is not in the store: they count as not retrieved.
        worst_rank: Number of candidates, which is the rank of those queries.
    """
    has_prediction = np.arange(len(ranks) + len(missing)) < len(ranks)
    all_groups = [*(map(str, range(len(ranks))) if groups is None else groups), *missing]
    metrics: dict[str, float] = {}
    for cut in RECALL_CUTOFFS:
        metrics |= compute_accuracy_metrics(
            f"r{cut}", np.pad(ranks < cut, (0, len(missing))), has_prediction, all_groups
        )
    padded_ranks = np.pad(ranks, (0, len(missing)), constant_values=worst_rank)
    return metrics | {"median": float(np.floor(np.median(padded_ranks) + 1)), "mean": float(np.mean(padded_ranks) + 1)}


def compute_random_recall(gallery: Gallery) -> dict[str, float]:
    """The recall of a random order; an image has several correct captions."""
    captions, images = len(gallery.text_of), len(gallery.counts)
    num_correct = [int(gallery.captions_of[texts].sum()) for texts in gallery.texts_of]
    metrics: dict[str, float] = {}
    for cut in RECALL_CUTOFFS:
        metrics[f"text_to_image.r{cut}"] = compute_hit_probability(images, 1, cut)
        metrics[f"image_to_text.r{cut}"] = float(
            np.mean([compute_hit_probability(captions, count, cut) for count in num_correct])
        )
    return metrics


def compute_hit_probability(num_candidates: int, num_correct: int, num_drawn: int) -> float:
    """The probability that a sample without replacement contains at least one correct candidate."""
    incorrect_counts: Sequence[int] = range(
        num_candidates - num_correct, num_candidates - num_correct - min(num_drawn, num_candidates), -1
    )
    return 1.0 - float(
        np.prod([max(remaining, 0) / (num_candidates - index) for index, remaining in enumerate(incorrect_counts)])
    )
