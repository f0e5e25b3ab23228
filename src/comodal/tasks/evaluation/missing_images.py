"""Items whose image is missing from the region store, with one rule for all tasks.

Such an item has no prediction and counts as incorrect, as VQA's server counts a question without an answer. Where the
official evaluation rejects incomplete predictions (NLVR2's and GQA's scripts), comodal refuses the evaluation.
Results and cards have both denominators: all items ("items"), and those whose image is in the store ("predicted").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from comodal.errors import DataError
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval, describe_intervals
from comodal.tasks.evaluation.results_card import ScoreEntry

REASON_MISSING_IMAGE = "image is not in the store"
INTERVAL_NAME = "95 % interval"  # key of a card's settings: how the interval is computed


def check_no_missing_images(file: Path, title: str, missing: Sequence[str], items: int) -> None:
    """Refuses an evaluation that the official script would refuse.

    Raises:
        DataError: An image is missing.
    """
    if missing:
        raise DataError(
            f"{file}: the images of {len(missing):,} of {items:,} items are not in the store, the first is "
            f"{missing[0]!r}; {title}'s official evaluation needs every prediction: add regions of these images"
        )


def format_missing_count(counts: Mapping[str, int]) -> str:
    """The number of items that count as incorrect because their image is missing, as the end of a line."""
    missing = counts["items"] - counts["predicted"]
    return f"; {missing:,} counted as incorrect: {REASON_MISSING_IMAGE}" if missing else ""


def count_items(
    num_items: int, num_predicted: int, reason: str = f"{REASON_MISSING_IMAGE} (incorrect)"
) -> dict[str, int]:
    """Counts of items, of predictions, and of missing items by reason, for a card.

    An item whose own file cannot be read is not scored (`tasks/evaluation/unreadable_files.py`).
    """
    return {
        "items": num_items,
        "predicted": num_predicted,
        **({reason: num_items - num_predicted} if num_predicted < num_items else {}),
    }


def compute_accuracy_metrics(
    key: str,
    correct: Bool[np.ndarray, " items"] | Float[np.ndarray, " items"],
    has_prediction: Bool[np.ndarray, " items"],
    groups: Sequence[str],
) -> dict[str, float]:
    """The mean over all items with its interval by group, and the mean over items with a prediction (`.predicted`)."""
    low, high = compute_bootstrap_interval(correct, np.random.default_rng(0), groups=groups)
    predicted_accuracy = float(correct[has_prediction].mean())
    return {key: float(correct.mean()), f"{key}.low": low, f"{key}.high": high, f"{key}.predicted": predicted_accuracy}


def build_interval_settings(
    metrics: Mapping[str, float], groups: Sequence[str], group_name: str, is_graded: bool = False
) -> dict[str, str]:
    """The entry of a card's settings that says how the intervals in `metrics` were computed; empty without any."""
    text = describe_intervals(metrics, groups, group_name, is_graded)
    return {} if text is None else {INTERVAL_NAME: text}


def build_score_entries(
    label: str, key: str, metrics: Mapping[str, float], counts: Mapping[str, int], paper: float | None = None
) -> dict[str, ScoreEntry]:
    """The entries of a card for one key of `compute_accuracy_metrics`; `.predicted` only where items are missing."""
    scores = {label: ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"], paper)}
    if counts["predicted"] < counts["items"]:
        scores[f"{label}, of the predicted items"] = ScoreEntry(metrics[f"{key}.predicted"])
    return scores


def is_paper_protocol(counts: Mapping[str, int], ablate: str, training: Mapping[str, object]) -> bool:
    """Whether a score can be compared with the paper's: no item is missing, and no modality is ablated."""
    ablated = {ablate, training.get("training ablate", "none")} - {"none"}
    return counts["predicted"] == counts["items"] and not ablated
