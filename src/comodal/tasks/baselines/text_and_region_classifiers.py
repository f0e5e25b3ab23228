"""Baselines of tasks with classes or answers: most frequent label, bag of words, and bag of words with region features.

All are fitted on the training split. The linear models are scikit-learn's multinomial logistic regressions (L2, C of 1)
on binary word counts; region features are mean-pooled for each image, reduced by PCA and standardized. Time and memory
are bounded: a random part of the training items, the most frequent words and labels.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_matrix, hstack
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from comodal.data.regions.region_store import RegionStore
from comodal.tasks.baselines.baseline_names import BASELINE_LABELS, MOST_FREQUENT, WORDS, WORDS_AND_REGIONS

MAX_ITEMS, MAX_WORDS, MAX_LABELS, MAX_COMPONENTS, MAX_ITERATIONS = 20_000, 5_000, 300, 64, 50
BLOCK_ITEMS = 4096
WORD_PATTERN = r"\b\w+\b"


class BaselineItem(NamedTuple):
    """A text about images. Items of one group are correlated; the label is None if unknown."""

    text: str
    images: tuple[str, ...]
    label: str | None
    group: str


class BaselinePredictions(NamedTuple):
    """The predictions of each baseline for the evaluated items (None where an image is missing), and a description.

    Args:
        labels: Predicted labels by baseline.
        about: What the baselines were fitted on, and why one is missing.
    """

    labels: dict[str, list[str | None]]
    about: str


FindRow = Callable[[str], int | None]  # the row of an image in a store
PoolRegions = Callable[[Sequence[str]], Float32[np.ndarray, " features"] | None]


def average_regions(
    store: RegionStore, find_row: FindRow, images: Sequence[str]
) -> Float32[np.ndarray, " features"] | None:
    """The mean region feature of each image, concatenated; None if an image is missing or has no region."""
    found = [find_row(image) for image in images]
    features = [store.read_regions(row).features for row in found if row is not None]
    if len(features) < len(images) or not all(len(feature) for feature in features):
        return None
    return np.concatenate([feature.astype(np.float32).mean(0) for feature in features])


def fit_and_predict(
    training: Sequence[BaselineItem],
    evaluated: Sequence[BaselineItem],
    pool_training: PoolRegions,
    pool_evaluated: PoolRegions,
    seed: int = 0,
) -> BaselinePredictions:
    """Fits the baselines on training items and predicts the labels of evaluated ones.

    A training item of a group that is evaluated is left out.

    Args:
        training: Items of the training split; those without a label are left out.
        evaluated: Items to predict; their labels are not read.
        pool_training: The pooled features of a training item's images, or None.
        pool_evaluated: The pooled features of an evaluated item's images, or None.
        seed: Seed of the choice of training items, and of PCA.
    """
    evaluated_groups = {item.group for item in evaluated}
    usable = [item for item in training if item.label is not None and item.group not in evaluated_groups]
    left_out = len(training) - len(usable)
    parts = [f"{left_out:,} left out: no label, or of an evaluated group"] if left_out else []
    if not usable:
        return BaselinePredictions({}, "not fitted: no training item has a label and a group that is not evaluated")
    counts = Counter(str(item.label) for item in usable)
    most_frequent = min(counts, key=lambda label: (-counts[label], label))
    labels: dict[str, list[str | None]] = {MOST_FREQUENT: [most_frequent] * len(evaluated)}
    kept_labels = set(sorted(counts, key=lambda label: (-counts[label], label))[:MAX_LABELS])
    candidates = [item for item in usable if item.label in kept_labels]
    if len(candidates) > MAX_ITEMS:
        chosen = np.random.default_rng(seed).choice(len(candidates), MAX_ITEMS, replace=False)
        candidates = [candidates[index] for index in np.sort(chosen).tolist()]
    fitted_on = f"linear models on {len(candidates):,} of {len(usable):,} training items, {len(kept_labels):,} labels"
    parts.insert(0, fitted_on + (f" of {len(counts):,}" if len(kept_labels) < len(counts) else ""))
    vectorizer = CountVectorizer(binary=True, max_features=MAX_WORDS, token_pattern=WORD_PATTERN)
    if not any(vectorizer.build_analyzer()(item.text) for item in candidates):
        return BaselinePredictions(labels, "; ".join([*parts, "no linear model: the training texts have no words"]))
    words = vectorizer.fit_transform([item.text for item in candidates])
    targets = np.array([str(item.label) for item in candidates])
    predict = fit_labels(words, targets)
    labels[WORDS] = [
        label for block in split_blocks(evaluated)
        for label in predict(vectorizer.transform([item.text for item in block]))
    ]  # fmt: skip
    pooled = [pool_training(item.images) for item in candidates]
    present = [index for index, features in enumerate(pooled) if features is not None]
    if len(present) < len(candidates):
        parts.append(f"{len(candidates) - len(present):,} of these without region features")
    if not present:
        parts.append(f"no {BASELINE_LABELS[WORDS_AND_REGIONS].removeprefix('baseline: ')}: no training image is stored")
        return BaselinePredictions(labels, "; ".join(parts))
    matrix = np.stack([features for features in pooled if features is not None])
    reduction = PCA(min(MAX_COMPONENTS, *matrix.shape), random_state=seed).fit(matrix)
    scaler = StandardScaler().fit(reduction.transform(matrix))

    def join(word_rows: csr_matrix, features: Float32[np.ndarray, "items features"]) -> csr_matrix:
        return hstack([word_rows, csr_matrix(scaler.transform(reduction.transform(features)))]).tocsr()

    predict = fit_labels(join(words[present], matrix), targets[present])
    labels[WORDS_AND_REGIONS] = []
    for block in split_blocks(evaluated):
        block_features = [pool_evaluated(item.images) for item in block]
        available = [index for index, features in enumerate(block_features) if features is not None]
        predicted: list[str | None] = [None] * len(block)
        if available:
            features = np.stack([one for one in block_features if one is not None])
            rows = join(vectorizer.transform([block[index].text for index in available]), features)
            for index, label in zip(available, predict(rows), strict=True):
                predicted[index] = label
        labels[WORDS_AND_REGIONS] += predicted
    return BaselinePredictions(labels, "; ".join(parts))


def fit_labels(inputs: csr_matrix, targets: np.ndarray) -> Callable[[csr_matrix], list[str]]:
    """A logistic regression's prediction; the only label where there is one."""
    if len(np.unique(targets)) == 1:
        return lambda rows: [str(targets[0])] * rows.shape[0]
    model = LogisticRegression(max_iter=MAX_ITERATIONS).fit(inputs, targets)
    return lambda rows: [str(label) for label in model.predict(rows)]


def split_blocks(items: Sequence[BaselineItem]) -> Iterator[Sequence[BaselineItem]]:
    """The items in blocks of bounded memory."""
    return (items[start : start + BLOCK_ITEMS] for start in range(0, len(items), BLOCK_ITEMS))
