"""The first stage of two-stage retrieval: two linear projections into one space; a search is one matrix product.

The projections take the mean and the maximum over the tokens of each unimodal encoding. They are trained on captions
of the training split with a contrastive loss in both directions, as in CLIP. The whole model then scores the top
candidates of the first stage. A trained dual encoder can take the place of the projections.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import DataError
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import CorrectCandidates, rank_best_answer

PROJECTION_DIM, NUM_STEPS, PROJECTION_BATCH_SIZE = 128, 400, 512
PROJECTION_LEARNING_RATE, PROJECTION_WEIGHT_DECAY, PROJECTION_DROPOUT = 2e-3, 0.1, 0.2
MAX_CAPTIONS = 10_000  # a random sample of the training split
SEARCH_BLOCK_ROWS = 256  # queries per block


class EncodingProjection(nn.Module):
    """Z-score of the training set, one linear layer, and L2 normalization."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Float[Tensor, "items features"]) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", features.std(0).clamp(min=1e-6))
        self.linear = nn.Linear(features.shape[1], PROJECTION_DIM, bias=False)

    def forward(self, features: Float[Tensor, "items features"]) -> Float[Tensor, "items dim"]:
        x = F.dropout((features - self.mean) / self.scale, PROJECTION_DROPOUT, self.training)
        return F.normalize(self.linear(x), dim=1)


class EncodingProjections(NamedTuple):
    """The projections of text and image into one space."""

    text: EncodingProjection
    image: EncodingProjection


def fit_projections(scorer: PairScorer, seed: int) -> EncodingProjections:
    """Fits the projections on the captions of a scorer's gallery.

    Raises:
        DataError: The gallery has fewer than two images.
    """
    gallery = scorer.gallery
    if len(gallery.counts) < 2:
        raise DataError("the first stage is fitted on captions of the training split, and needs at least two images")
    texts = scorer.compute_summaries("texts", np.arange(len(gallery.lengths)))
    images = scorer.compute_summaries("images", np.arange(len(gallery.counts)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return optimize_projections(texts, images, gallery.texts_of, np.random.default_rng(seed))


def optimize_projections(
    texts: Float[Tensor, "texts text_features"],
    images: Float[Tensor, "images image_features"],
    texts_of: list[Int64[np.ndarray, "_"]],
    rng: np.random.Generator,
) -> EncodingProjections:
    """Optimizes by AdamW on batches of different images, each paired with one of its captions."""
    maps = EncodingProjections(EncodingProjection(texts), EncodingProjection(images))
    temperature = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    parameters = [*maps.text.parameters(), *maps.image.parameters()]
    groups = [
        {"params": parameters, "weight_decay": PROJECTION_WEIGHT_DECAY},
        {"params": [temperature], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PROJECTION_LEARNING_RATE)
    all_texts, counts = np.concatenate(texts_of), np.array([len(texts) for texts in texts_of])
    offsets = np.cumsum(counts) - counts
    for step in range(NUM_STEPS):
        optimizer.param_groups[0]["lr"] = PROJECTION_LEARNING_RATE * (1 - step / NUM_STEPS)
        rows = rng.permutation(len(images))[:PROJECTION_BATCH_SIZE]
        caption_rows = torch.from_numpy(
            all_texts[offsets[rows] + (rng.random(len(rows)) * counts[rows]).astype(np.int64)]
        )
        logits = maps.text(texts[caption_rows]) @ maps.image(images[torch.from_numpy(rows)]).T * temperature.exp()
        targets = torch.arange(len(rows))
        loss = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return EncodingProjections(maps.text.eval(), maps.image.eval())


class GalleryEmbeddings(NamedTuple):
    """Embeddings of the texts and images of a gallery in one space."""

    texts: Float32[np.ndarray, "texts dim"]
    images: Float32[np.ndarray, "images dim"]


class TwoStageRanks(NamedTuple):
    """The rank of each set of correct candidates, in the first stage and after re-ranking by the model."""

    first_stage: Int64[np.ndarray, "sets"]
    reranked: Int64[np.ndarray, "sets"]


class TwoStageSearch:
    """A two-stage search of a gallery.

    Args:
        scorer: The pair scorer of the gallery.
        first_stage: The result of `fit_projections`, or embeddings of the gallery by another network.
    """

    @torch.inference_mode()
    def __init__(self, scorer: PairScorer, first_stage: EncodingProjections | GalleryEmbeddings) -> None:
        self.scorer = scorer
        self.texts, self.images = (
            first_stage if isinstance(first_stage, GalleryEmbeddings) else self._project_gallery(first_stage)
        )

    def _project_gallery(self, maps: EncodingProjections) -> GalleryEmbeddings:
        """The projections of the unimodal encodings of the gallery."""
        scorer, gallery = self.scorer, self.scorer.gallery
        return GalleryEmbeddings(
            maps.text(scorer.compute_summaries("texts", np.arange(len(gallery.lengths)))).numpy(),
            maps.image(scorer.compute_summaries("images", np.arange(len(gallery.counts)))).numpy(),
        )

    def rank_images_for_texts(
        self, texts: Int64[np.ndarray, "some"], correct: CorrectCandidates, top_k: int
    ) -> TwoStageRanks:
        """Ranks images for some texts."""
        return self._search(self.texts, self.images, texts, correct, top_k, is_swapped=False)

    def rank_texts_for_images(
        self, images: Int64[np.ndarray, "some"], correct: CorrectCandidates, top_k: int
    ) -> TwoStageRanks:
        """Ranks texts for some images."""
        return self._search(self.images, self.texts, images, correct, top_k, is_swapped=True)

    def _search(
        self,
        query_vectors: Float32[np.ndarray, "queries dim"],
        candidate_vectors: Float32[np.ndarray, "candidates dim"],
        queries: Int64[np.ndarray, "some"],
        correct: CorrectCandidates,
        top_k: int,
        is_swapped: bool,
    ) -> TwoStageRanks:
        """The first stage over blocks of queries; the model then scores the top candidates of each query."""
        first: list[int] = []
        reranked: list[int] = []
        for start in range(0, len(queries), SEARCH_BLOCK_ROWS):
            block = queries[start : start + SEARCH_BLOCK_ROWS]
            similarities = query_vectors[block] @ candidate_vectors.T
            best = np.argsort(-similarities, axis=1, kind="stable")[:, :top_k]
            sides = np.repeat(block, best.shape[1]), best.ravel()
            scores = self.scorer.score_pairs(*(sides[::-1] if is_swapped else sides)).reshape(best.shape)
            for query, row, candidates, model_scores in zip(block.tolist(), similarities, best, scores, strict=True):
                for correct_set in correct.correct[query]:
                    rank = rank_best_answer(row, correct_set, correct.weights)
                    correct_rows = np.flatnonzero(np.isin(candidates, correct_set))
                    reranked_rank = (
                        rank_best_answer(model_scores, correct_rows, correct.weights[candidates])
                        if len(correct_rows)
                        else rank
                    )
                    first.append(rank)
                    reranked.append(reranked_rank)
        return TwoStageRanks(np.array(first, np.int64), np.array(reranked, np.int64))
