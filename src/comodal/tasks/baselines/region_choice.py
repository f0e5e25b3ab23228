"""Baselines of tasks that choose a region by a text: box geometry alone, and bag of words times region features.

Both are fitted on the training split; the target is whether a region's IoU with the object is at least 0.5.

box geometry                       scikit-learn's logistic regression (L2, C of 1) on left, top, right, bottom and area
                                   as fractions of the image; it does not see the text
bag of words times region features ridge regression on the products of (1, words) and (region features, geometry);
                                   words by truncated SVD and region features by PCA, both in 32 dimensions

Inputs and targets of the ridge regression are centered within each text, as only differences between the regions of one
image matter. Its normal equations are summed item by item, and the features of one image at a time are in memory (those
of 20,000 images with 101 regions are 16.5 GB).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.regions.box_iou import compute_inclusive_iou
from comodal.data.regions.region_store import RegionStore
from comodal.tasks.baselines.baseline_names import BASELINE_LABELS, BOX_GEOMETRY, WORDS_TIMES_REGIONS
from comodal.tasks.baselines.text_and_region_classifiers import MAX_ITEMS, MAX_WORDS, WORD_PATTERN, FindRow

NUM_COMPONENTS, MAX_REDUCTION_ROWS = 32, 20_000
RIDGE_PENALTY = 1.0
MIN_TARGET_IOU = 0.5


class RegionItem(NamedTuple):
    """A text that refers to an object of an image; the box (left, top, right, bottom in pixels) is None if unknown."""

    text: str
    image: str
    box: tuple[float, float, float, float] | None


class Candidates(NamedTuple):
    """The regions of an image; row 0 is the whole image, with the mean feature, as in the model."""

    features: Float32[np.ndarray, "rows features"]
    spatials: Float32[np.ndarray, "rows 5"]
    boxes: Float32[np.ndarray, "rows 4"]


class RegionChoices(NamedTuple):
    """The chosen row of each item by baseline (None where the image is missing), and what they were fitted on."""

    rows: dict[str, list[int | None]]
    about: str


ReadCandidates = Callable[[str], Candidates | None]


def read_candidates(store: RegionStore, find_row: FindRow, max_regions: int, image: str) -> Candidates | None:
    """The whole image and its first regions; None if the image is not in the store."""
    row = find_row(image)
    if row is None:
        return None
    regions = store.read_regions(row)
    full_image = np.array([[0, 0, regions.width, regions.height]], np.float32)
    return Candidates(
        *prepend_full_image(regions, max_regions), np.concatenate([full_image, regions.boxes[:max_regions]])
    )


def find_targets(candidates: Candidates, item: RegionItem) -> Bool[np.ndarray, " rows"]:
    """Whether each region of an image is the object of a text whose box is known."""
    return compute_inclusive_iou(candidates.boxes, np.array([item.box]))[:, 0] >= MIN_TARGET_IOU


def fit_and_choose(
    training: Sequence[RegionItem],
    evaluated: Sequence[RegionItem],
    read_training: ReadCandidates,
    read_evaluated: ReadCandidates,
    seed: int = 0,
) -> RegionChoices:
    """Fits the baselines on training items and chooses a region for each evaluated one.

    Left out are training items of an image that is evaluated, of a missing image, and those without a correct region.

    Args:
        training: Items of the training split.
        evaluated: Items to choose a region for; their boxes are not read.
        read_training: The regions of a training item's image.
        read_evaluated: The regions of an evaluated item's image.
        seed: Seed of the choice of training items, and of the reductions.
    """
    evaluated_images = {item.image for item in evaluated}
    usable = [item for item in training if item.box is not None and item.image not in evaluated_images]
    rng = np.random.default_rng(seed)
    if len(usable) > MAX_ITEMS:
        usable = [usable[index] for index in np.sort(rng.choice(len(usable), MAX_ITEMS, replace=False)).tolist()]
    fitted = []
    for item in usable:
        candidates = read_training(item.image)
        if candidates is not None and find_targets(candidates, item).any():
            fitted.append(item)
    if not fitted:
        return RegionChoices({}, "not fitted: no training text has a correct region in an image that is not evaluated")

    def read(item: RegionItem) -> Candidates:
        candidates = read_training(item.image)
        assert candidates is not None
        return candidates

    parts = [f"fitted on {len(fitted):,} of {len(training):,} training texts"]
    score_geometry = fit_geometry(fitted, read)
    rows = {BOX_GEOMETRY: choose_rows(evaluated, read_evaluated, lambda _, one: score_geometry(one))}
    vectorizer = CountVectorizer(binary=True, max_features=MAX_WORDS, token_pattern=WORD_PATTERN)
    if any(vectorizer.build_analyzer()(item.text) for item in fitted):
        score_products = fit_products(fitted, read, vectorizer, rng, seed)
        rows[WORDS_TIMES_REGIONS] = choose_rows(evaluated, read_evaluated, score_products)
    else:
        label = BASELINE_LABELS[WORDS_TIMES_REGIONS].removeprefix("baseline: ")
        parts.append(f"no {label}: the training texts have no words")
    return RegionChoices(rows, "; ".join(parts))


def choose_rows(
    items: Sequence[RegionItem],
    read: ReadCandidates,
    score: Callable[[str, Candidates], Float[np.ndarray, " rows"]],
) -> list[int | None]:
    """The row of the highest score for each item; None where the image is missing."""
    rows: list[int | None] = []
    for item in items:
        candidates = read(item.image)
        rows.append(None if candidates is None else int(score(item.text, candidates).argmax()))
    return rows


def fit_geometry(
    items: Sequence[RegionItem], read: Callable[[RegionItem], Candidates]
) -> Callable[[Candidates], Float[np.ndarray, " rows"]]:
    """Scores of regions by position and size alone."""
    described = [(one.spatials, find_targets(one, item)) for item in items for one in [read(item)]]
    inputs, targets = (np.concatenate(parts) for parts in zip(*described, strict=True))
    if targets.all():
        return lambda one: np.zeros(len(one.spatials))
    scaler = StandardScaler().fit(inputs)
    model = LogisticRegression().fit(scaler.transform(inputs), targets)
    return lambda one: model.decision_function(scaler.transform(one.spatials))


def fit_products(
    items: Sequence[RegionItem],
    read: Callable[[RegionItem], Candidates],
    vectorizer: CountVectorizer,
    rng: np.random.Generator,
    seed: int,
) -> Callable[[str, Candidates], Float[np.ndarray, " rows"]]:
    """Scores of regions by the products of words with region features and geometry."""
    counts = vectorizer.fit_transform([item.text for item in items])
    word_reduction = TruncatedSVD(min(NUM_COMPONENTS, counts.shape[1]), random_state=seed).fit(counts)
    sample = np.concatenate([
        one.features[[int(rng.integers(len(one.features)))]] for one in map(read, items[:MAX_REDUCTION_ROWS])
    ])  # fmt: skip
    region_reduction = PCA(min(NUM_COMPONENTS, *sample.shape), random_state=seed).fit(sample)
    word_scale = compute_scale(word_reduction.transform(counts))
    region_scale = compute_scale(region_reduction.transform(sample))
    geometry_scaler = StandardScaler().fit(np.concatenate([read(item).spatials for item in items]))

    def multiply(text: str, candidates: Candidates) -> Float[np.ndarray, "rows products"]:
        words = np.append(1.0, word_reduction.transform(vectorizer.transform([text]))[0] / word_scale)
        features = region_reduction.transform(candidates.features) / region_scale
        regions = np.column_stack([features, geometry_scaler.transform(candidates.spatials)])
        return (words[None, :, None] * regions[:, None, :]).reshape(len(regions), -1)

    read_items = ((item, read(item)) for item in items)
    weights = fit_ridge((multiply(item.text, one), find_targets(one, item)) for item, one in read_items)
    return lambda text, candidates: multiply(text, candidates) @ weights


def compute_scale(values: Float[np.ndarray, "items components"]) -> float:
    """The root mean square of all values, or 1 where all are 0."""
    return float(np.sqrt(np.square(values).mean())) or 1.0


def fit_ridge(
    blocks: Iterable[tuple[Float[np.ndarray, "_ inputs"], Bool[np.ndarray, "_"]]], penalty: float = RIDGE_PENALTY
) -> Float[np.ndarray, " inputs"]:
    """The weights of a ridge regression whose inputs and targets are centered within each block."""
    gram: np.ndarray | float = 0.0
    moment: np.ndarray | float = 0.0
    for inputs, targets in blocks:
        centered = inputs - inputs.mean(0)
        gram = gram + centered.T @ centered
        moment = moment + centered.T @ (targets - targets.mean())
    return np.linalg.solve(gram + penalty * np.eye(len(np.atleast_1d(moment))), moment)
