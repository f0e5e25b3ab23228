"""Pairs of captions and images, and their order (ViLBERT, section 3.2: alignment; grouping by length is our addition).

An epoch contains every caption once, with its image or, in half of the pairs, as a negative: the caption or the image
is replaced. All of it is a function of (seed, epoch, batch size), so resuming is exact for any number of workers.

Captions of similar length are batched together, which reduces padding. The captions of an epoch are shuffled and split
into pools of many batches. Each pool is sorted by length and split into batches, and the batches are shuffled. The
loader counts samples without end. So unless the epoch is a multiple of the batch, one batch spans two epochs; it gets
the shortest captions of a pool in either epoch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from comodal.errors import DataError

POOL_BATCHES = 100
PAIR_ORDER_SEED = 1  # separates this random stream from that of the samples
MAX_CACHED_EPOCHS = 2  # a batch may hold the end of one epoch and the beginning of the next


@dataclass(frozen=True)
class NegativeSampling:
    """How negatives are sampled: pairs of a caption and another image.

    Attributes:
        fraction: The fraction of mismatched pairs.
        negatives: What is replaced: the caption, as in the original's code, the image, or either as in the paper.
        exclude_same_image: Never replace by a caption of the same image, or by the caption itself. The original does,
            and labels the pair mismatched.
    """

    fraction: float = 0.5
    negatives: Literal["caption", "image", "either"] = "either"
    exclude_same_image: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction ({self.fraction}) must be from 0 to 1")


class EpochPairs(NamedTuple):
    """The pairs of an epoch in order: caption indices, rows of images in the store, and whether they match."""

    captions: Int32[np.ndarray, "pairs"]
    rows: Int32[np.ndarray, "pairs"]
    is_match: Bool[np.ndarray, "pairs"]


class CaptionPairs:
    """The pair of (epoch, index) for one seed and batch size.

    Args:
        rows: The row of each caption's image in the store.
        lengths: Number of tokens of each caption.
        regions: Number of regions of each row of the store: captions of one length are grouped by it.
        seed: Of the order and of the negatives.
        batch_size: Samples of one step, over all processes.
        negative_sampling: How negatives are sampled.

    Raises:
        DataError: There are no captions, or negatives are requested and all captions are of one image.
    """

    def __init__(
        self,
        rows: Int64[np.ndarray, "captions"],
        lengths: Int32[np.ndarray, "captions"],
        regions: Int64[np.ndarray, "images"],
        seed: int,
        batch_size: int,
        negative_sampling: NegativeSampling,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be positive")
        if not len(rows):
            raise DataError("there are no captions")
        self.rows, self.lengths, self.regions = rows, lengths, regions
        self.seed, self.batch_size, self.mismatches = seed, batch_size, negative_sampling
        self.by_row = np.argsort(rows, kind="stable")
        in_order = rows[self.by_row]
        self.ends = np.searchsorted(in_order, rows, side="right")  # of the captions of the same image, in by_row
        self.num_same_image = self.ends - np.searchsorted(in_order, rows, side="left")
        if negative_sampling.fraction and negative_sampling.exclude_same_image and self.num_same_image[0] == len(rows):
            raise DataError(
                f"{len(rows)} captions of one image cannot be mismatched: negatives need captions of at least two "
                f"images"
            )
        self.cached_epochs: dict[int, EpochPairs] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def get_epoch(self, epoch: int) -> EpochPairs:
        """All pairs of an epoch in their order; the last epochs asked for are kept."""
        if epoch not in self.cached_epochs:
            while len(self.cached_epochs) >= MAX_CACHED_EPOCHS:
                del self.cached_epochs[next(iter(self.cached_epochs))]
            self.cached_epochs[epoch] = self._build_epoch(epoch)
        return self.cached_epochs[epoch]

    def _build_epoch(self, epoch: int) -> EpochPairs:
        rng = np.random.default_rng((self.seed, epoch, 0, PAIR_ORDER_SEED))
        captions, rows, is_match = self._draw_pairs(rng)
        head = min(-epoch * len(self) % self.batch_size, len(self))  # missing in the previous epoch's last batch
        order = order_by_length(self.lengths[captions], self.regions[rows], head, self.batch_size, rng)
        return EpochPairs(captions[order].astype(np.int32), rows[order].astype(np.int32), is_match[order])

    def _draw_pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every caption the caption and the image of its pair, and whether they match."""
        count, negatives = len(self), self.mismatches.negatives
        own = np.arange(count)
        is_negative = rng.random(count) < self.mismatches.fraction
        negative_captions = self._draw_negatives(rng)
        replaces_image = rng.random(count) < {"caption": 0.0, "image": 1.0, "either": 0.5}[negatives]
        captions = np.where(is_negative & ~replaces_image, negative_captions, own)
        rows = np.where(is_negative & replaces_image, self.rows[negative_captions], self.rows)
        return captions, rows, ~is_negative

    def _draw_negatives(self, rng: np.random.Generator) -> np.ndarray:
        """For every caption one of another image, uniformly: an offset from the end of its own image's captions."""
        if not self.mismatches.exclude_same_image:
            return rng.integers(len(self), size=len(self))
        if self.num_same_image[0] == len(self):
            return np.arange(len(self))  # one image alone, and no mismatches
        return self.by_row[(self.ends + rng.integers(len(self) - self.num_same_image)) % len(self)]


def order_by_length(
    lengths: np.ndarray, regions: np.ndarray, head: int, batch_size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "pairs"]:
    """An order of `head` samples, whole batches of samples of similar length, and less than a batch."""
    tail = (len(lengths) - head) % batch_size
    order = rng.permutation(len(lengths))
    pool = POOL_BATCHES * batch_size

    def sort_by_length(indices: np.ndarray) -> np.ndarray:
        return indices[np.lexsort((regions[indices], lengths[indices]))]

    first = sort_by_length(order[:pool])
    edges, order = first[: head + tail], np.concatenate([first[head + tail :], order[pool:]])
    batches = [
        sort_by_length(order[start : start + pool]).reshape(-1, batch_size) for start in range(0, len(order), pool)
    ]
    middle = rng.permutation(np.concatenate([*batches, np.empty((0, batch_size), np.int64)]))
    return np.concatenate([edges[:head], middle.ravel(), edges[head:]])
