"""Ranking by class: clips that share a label with the query are relevant, its own clip among them.

Precision@10 is the fraction of relevant clips among the first 10. nDCG@30 weighs positions by 1 / log2(position + 1)
and divides by the best order's sum ("Objects that Sound", section 3.3).

Departs from the paper: it derives graded relevance from distances in AudioSet's ontology; here relevance is 0 or 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

PRECISION_CUTOFF, NDCG_CUTOFF = 10, 30
CLASS_METRICS = (f"class_precision{PRECISION_CUTOFF}", f"ndcg{NDCG_CUTOFF}")


class ClassRanking(NamedTuple):
    """The value of each query, and its expectation in a random order."""

    precision: Float[np.ndarray, " queries"]
    ndcg: Float[np.ndarray, " queries"]
    random_precision: Float[np.ndarray, " queries"]
    random_ndcg: Float[np.ndarray, " queries"]


def find_shared_labels(labels: Sequence[tuple[str, ...]]) -> Bool[np.ndarray, "clips clips"]:
    """Whether two clips share a label."""
    names = sorted({label for one in labels for label in one})
    columns = {name: column for column, name in enumerate(names)}
    has_label = np.zeros((len(labels), len(names)), np.float32)
    for row, one in enumerate(labels):
        has_label[row, [columns[label] for label in one]] = 1.0
    return has_label @ has_label.T > 0


def rank_by_class(
    scores: Float[np.ndarray, "queries candidates"],
    relevant: Bool[np.ndarray, "queries candidates"],
    is_candidate: Bool[np.ndarray, "queries candidates"],
) -> ClassRanking:
    """The metrics of each query; among equal scores the relevant clips come last.

    Args:
        scores: The score of each query with each clip.
        relevant: Which clips are relevant; at least one candidate of each query is.
        is_candidate: The clips that are ranked: the own one, and those of other source videos.
    """
    columns: list[tuple[float, float, float, float]] = []
    for row, is_relevant, mask in zip(scores, relevant, is_candidate, strict=True):
        gains = is_relevant[mask]
        order = np.lexsort((gains, -row[mask]))
        num_candidates, num_relevant = len(gains), int(gains.sum())
        discounts = 1 / np.log2(np.arange(2, min(NDCG_CUTOFF, num_candidates) + 2))
        best = discounts[:num_relevant].sum()
        top = gains[order[:NDCG_CUTOFF]]
        columns.append(
            (
                float(top[:PRECISION_CUTOFF].mean()),
                float((top * discounts).sum() / best),
                num_relevant / num_candidates,
                float(num_relevant / num_candidates * discounts.sum() / best),
            )
        )
    return ClassRanking(*np.array(columns).T)
