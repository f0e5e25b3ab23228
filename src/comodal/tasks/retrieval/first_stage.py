"""The first stage of two-stage retrieval: two linear projections into one space; a search is one matrix product.

The projections take the mean and the maximum over the tokens of each unimodal encoding. They are trained on captions
of the training split with a contrastive loss in both directions, as in CLIP. The whole model then scores the top
candidates of the first stage.
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
        raise DataError("the first stage is fitted on captions of the training split, and there are not two images")
    texts = scorer.summaries("texts", np.arange(len(gallery.lengths)))
    images = scorer.summaries("images", np.arange(len(gallery.counts)))
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
    every, counts = np.concatenate(texts_of), np.array([len(texts) for texts in texts_of])
    firsts = np.cumsum(counts) - counts
    for step in range(NUM_STEPS):
        optimizer.param_groups[0]["lr"] = PROJECTION_LEARNING_RATE * (1 - step / NUM_STEPS)
        chosen = rng.permutation(len(images))[:PROJECTION_BATCH_SIZE]
        spoken = torch.from_numpy(every[firsts[chosen] + (rng.random(len(chosen)) * counts[chosen]).astype(np.int64)])
        similar = maps.text(texts[spoken]) @ maps.image(images[torch.from_numpy(chosen)]).T * temperature.exp()
        truth = torch.arange(len(chosen))
        loss = F.cross_entropy(similar, truth) + F.cross_entropy(similar.T, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return EncodingProjections(maps.text.eval(), maps.image.eval())


class TwoStageRanks(NamedTuple):
    """The rank of each set of correct candidates, in the first stage and after re-ranking by the model."""

    first: Int64[np.ndarray, "sets"]
    reranked: Int64[np.ndarray, "sets"]


class TwoStageSearch:
    """A two-stage search of a gallery.

    Args:
        scorer: The pair scorer of the gallery.
        maps: The result of `fit_projections`.
    """

    @torch.inference_mode()
    def __init__(self, scorer: PairScorer, maps: EncodingProjections) -> None:
        self.scorer = scorer
        gallery = scorer.gallery
        self.texts = maps.text(scorer.summaries("texts", np.arange(len(gallery.lengths)))).numpy()
        self.images = maps.image(scorer.summaries("images", np.arange(len(gallery.counts)))).numpy()

    def of_texts(self, texts: Int64[np.ndarray, "some"], answers: CorrectCandidates, keep: int) -> TwoStageRanks:
        """Ranks images for some texts."""
        return self._search(self.texts, self.images, texts, answers, keep, swapped=False)

    def of_images(self, images: Int64[np.ndarray, "some"], answers: CorrectCandidates, keep: int) -> TwoStageRanks:
        """Ranks texts for some images."""
        return self._search(self.images, self.texts, images, answers, keep, swapped=True)

    def _search(
        self,
        asking: Float32[np.ndarray, "queries dim"],
        asked: Float32[np.ndarray, "candidates dim"],
        queries: Int64[np.ndarray, "some"],
        answers: CorrectCandidates,
        keep: int,
        swapped: bool,
    ) -> TwoStageRanks:
        """The first stage over blocks of queries; the model then scores the top candidates of each query."""
        first: list[int] = []
        reranked: list[int] = []
        for start in range(0, len(queries), SEARCH_BLOCK_ROWS):
            block = queries[start : start + SEARCH_BLOCK_ROWS]
            near = asking[block] @ asked.T
            best = np.argsort(-near, axis=1, kind="stable")[:, :keep]
            sides = np.repeat(block, best.shape[1]), best.ravel()
            scores = self.scorer.pairs(*(sides[::-1] if swapped else sides)).reshape(best.shape)
            for query, row, candidates, exact in zip(block.tolist(), near, best, scores, strict=True):
                for right in answers.right[query]:
                    place = rank_best_answer(row, right, answers.weights)
                    kept = np.flatnonzero(np.isin(candidates, right))
                    again = rank_best_answer(exact, kept, answers.weights[candidates]) if len(kept) else place
                    first.append(place)
                    reranked.append(again)
        return TwoStageRanks(np.array(first, np.int64), np.array(reranked, np.int64))
