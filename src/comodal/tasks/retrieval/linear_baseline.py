"""The baseline of retrieval: linear maps of a caption's bag of words and of an image's mean region feature.

They are the projections of the first stage (first_stage.py), fitted with its settings on training captions, with binary
word counts and mean region features in place of a model's encodings.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from sklearn.feature_extraction.text import CountVectorizer

from comodal.console import print_line
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_store import RegionStore
from comodal.tasks.baselines.baseline_names import LINEAR_MAPS
from comodal.tasks.baselines.baseline_scores import NOT_FITTED, BaselineOptions, open_training_store
from comodal.tasks.baselines.text_and_region_classifiers import MAX_WORDS, WORD_PATTERN
from comodal.tasks.retrieval.first_stage import MAX_CAPTIONS, optimize_projections
from comodal.tasks.retrieval.gallery import Gallery, IndexedCaptions
from comodal.tasks.retrieval.retrieval_ranks import RetrievalRanks, rank_score_matrix

LINEAR_MAPS_SYSTEM = f"baseline.{LINEAR_MAPS}"


class BaselineRanks(NamedTuple):
    """The ranks of the baseline (None where it is not fitted), and what it was fitted on or why it was not."""

    ranks: RetrievalRanks | None
    about: str


def rank_by_linear_maps(options: BaselineOptions, gallery: Gallery, seed: int = 0) -> BaselineRanks:
    """Fits the linear maps on the training captions and ranks the gallery by them.

    The captions are those of the training split; of a file without splits, all. Captions of images of the gallery are
    left out.

    Args:
        options: The training captions, in any file that `comodal train vilbert` reads, and their region store.
        gallery: The captions and images to rank.
        seed: Seed of the choice of captions and of the fit.

    Raises:
        DataError: The captions or the region store cannot be read.
    """
    if options.train_data is None:
        return BaselineRanks(None, NOT_FITTED)
    start = time.perf_counter()
    store = open_training_store(options, gallery.store)
    matched = match_captions(read_captions(options.train_data), store.ids).pairs
    evaluated = {gallery.store.ids[row] for row in gallery.rows.tolist()}
    pairs = [
        (caption, row)
        for caption, row in split_matched_captions(matched, store.ids, 0.0, 0.0)["train"]
        if store.ids[row] not in evaluated and store.counts[row]
    ]
    rng = np.random.default_rng(seed)
    if len(pairs) > MAX_CAPTIONS:
        pairs = [pairs[index] for index in np.sort(rng.choice(len(pairs), MAX_CAPTIONS, replace=False)).tolist()]
    num_images = len({row for _, row in pairs})
    if num_images < 2:
        reason = f"{num_images} training images with captions and regions are not in the gallery, it needs two"
        return BaselineRanks(None, f"not fitted: {options.train_data.name}: {reason}")
    vectorizer = CountVectorizer(binary=True, max_features=MAX_WORDS, token_pattern=WORD_PATTERN, dtype=np.float32)
    if not any(vectorizer.build_analyzer()(caption.caption) for caption, _ in pairs):
        return BaselineRanks(None, f"not fitted: {options.train_data.name}: the training captions have no words")
    scores = score_gallery(pairs, store, gallery, vectorizer, rng, seed)
    about = f"linear maps fitted on {len(pairs):,} captions of {num_images:,} training images"
    print_line(f"Baseline: {about}; {time.perf_counter() - start:.1f} s", stderr=True)
    return BaselineRanks(rank_score_matrix(scores, gallery), f"{options.train_data.name}: {about}")


def score_gallery(
    pairs: IndexedCaptions,
    store: RegionStore,
    gallery: Gallery,
    vectorizer: CountVectorizer,
    rng: np.random.Generator,
    seed: int,
) -> Float32[np.ndarray, "texts images"]:
    """Fits the maps on pairs and scores all pairs of a gallery; an image without regions has a score of 0."""
    words = torch.from_numpy(vectorizer.fit_transform([caption.caption for caption, _ in pairs]).toarray())
    rows, image_of = np.unique([row for _, row in pairs], return_inverse=True)
    images = torch.from_numpy(np.stack([pool_mean(store, row) for row in rows.tolist()]))
    texts_of = [np.flatnonzero(image_of == image) for image in range(len(rows))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = optimize_projections(words, images, texts_of, rng)
    first = np.unique(gallery.text_of, return_index=True)[1]
    texts = vectorizer.transform([gallery.pairs[index][0].caption for index in first.tolist()]).toarray()
    has_regions = gallery.store.counts[gallery.rows] > 0
    features = np.stack([pool_mean(gallery.store, row) for row in gallery.rows.tolist()])
    with torch.inference_mode():
        scores = (maps.text(torch.from_numpy(texts)) @ maps.image(torch.from_numpy(features)).T).numpy()
    return np.where(has_regions, scores, np.float32(0.0))


def pool_mean(store: RegionStore, row: int) -> Float32[np.ndarray, " features"]:
    """The mean region feature of an image; 0 without regions."""
    features = store.read_regions(row).features.astype(np.float32)
    return features.sum(0) / np.float32(max(len(features), 1))
