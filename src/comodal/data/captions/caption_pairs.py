"""Pairs of captions and images, and their order (ViLBERT, section 3.2: alignment; grouping by length is our addition).

An epoch contains every caption once, with its image or, in half of the pairs, as a negative: the caption or the image
is replaced. All of it is a function of (seed, epoch, batch size), so resuming is exact for any number of workers.

Captions of similar length are batched together, which reduces padding. The captions of an epoch are shuffled and split
into pools of many batches. Each pool is sorted by length and split into batches, and the batches are shuffled. The
loader numbers samples without end. So unless the epoch is a multiple of the batch, one batch spans two epochs; it gets
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
        share: The fraction of mismatched pairs.
        replaced: The caption, as in the original's code, the image, or either of them as in the paper.
        other_image: Never replace by another caption of the same image, or by the caption itself. The original does,
            and labels the pair mismatched.
    """

    share: float = 0.5
    replaced: Literal["caption", "image", "either"] = "either"
    other_image: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share ({self.share}) must be from 0 to 1")


class EpochPairs(NamedTuple):
    """The pairs of an epoch in order: caption indices, rows of images in the store, and whether they are mismatched."""

    captions: Int32[np.ndarray, "pairs"]
    rows: Int32[np.ndarray, "pairs"]
    mismatched: Bool[np.ndarray, "pairs"]


class CaptionPairs:
    """The pair of (epoch, index) for one seed and batch size.

    Args:
        rows: The row of each caption's image in the store.
        lengths: Number of tokens of each caption.
        regions: Number of regions of each row of the store: captions of one length are grouped by it.
        seed: Of the order and of the negatives.
        batch_size: Samples of one step, over all processes.
        mismatches: How negatives are sampled.

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
        mismatches: NegativeSampling,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be positive")
        if not len(rows):
            raise DataError("there is no caption to make pairs of")
        self.rows, self.lengths, self.regions = rows, lengths, regions
        self.seed, self.batch_size, self.mismatches = seed, batch_size, mismatches
        self.by_row = np.argsort(rows, kind="stable")
        in_order = rows[self.by_row]
        self.ends = np.searchsorted(in_order, rows, side="right")  # of the captions of the same image, in by_row
        self.same = self.ends - np.searchsorted(in_order, rows, side="left")
        if mismatches.share and mismatches.other_image and self.same[0] == len(rows):
            raise DataError(
                f"{len(rows)} captions of one image cannot be mismatched: captions of two images are needed"
            )
        self.kept: dict[int, EpochPairs] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, epoch: int) -> EpochPairs:
        """All pairs of an epoch in their order; the last epochs asked for are kept."""
        if epoch not in self.kept:
            while len(self.kept) >= MAX_CACHED_EPOCHS:
                del self.kept[next(iter(self.kept))]
            self.kept[epoch] = self._make(epoch)
        return self.kept[epoch]

    def _make(self, epoch: int) -> EpochPairs:
        rng = np.random.default_rng((self.seed, epoch, 0, PAIR_ORDER_SEED))
        captions, rows, mismatched = self._paired(rng)
        head = min(-epoch * len(self) % self.batch_size, len(self))  # missing in the previous epoch's last batch
        order = order_by_length(self.lengths[captions], self.regions[rows], head, self.batch_size, rng)
        return EpochPairs(captions[order].astype(np.int32), rows[order].astype(np.int32), mismatched[order])

    def _paired(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every caption the caption and the image of its pair, and whether they are mismatched."""
        count, replaced = len(self), self.mismatches.replaced
        mine = np.arange(count)
        mismatched = rng.random(count) < self.mismatches.share
        others = self._others(rng)
        of_images = rng.random(count) < {"caption": 0.0, "image": 1.0, "either": 0.5}[replaced]
        captions = np.where(mismatched & ~of_images, others, mine)
        rows = np.where(mismatched & of_images, self.rows[others], self.rows)
        return captions, rows, mismatched

    def _others(self, rng: np.random.Generator) -> np.ndarray:
        """For every caption one of another image, uniformly: an offset from the end of its own image's captions."""
        if not self.mismatches.other_image:
            return rng.integers(len(self), size=len(self))
        if self.same[0] == len(self):
            return np.arange(len(self))  # one image alone, and no mismatches
        return self.by_row[(self.ends + rng.integers(len(self) - self.same)) % len(self)]


def order_by_length(
    lengths: np.ndarray, regions: np.ndarray, head: int, batch_size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "pairs"]:
    """An order of `head` samples, whole batches of samples of similar length, and less than a batch."""
    tail = (len(lengths) - head) % batch_size
    order = rng.permutation(len(lengths))
    pool = POOL_BATCHES * batch_size

    def ordered(places: np.ndarray) -> np.ndarray:
        return places[np.lexsort((regions[places], lengths[places]))]

    first = ordered(order[:pool])
    edges, order = first[: head + tail], np.concatenate([first[head + tail :], order[pool:]])
    batches = [ordered(order[start : start + pool]).reshape(-1, batch_size) for start in range(0, len(order), pool)]
    middle = rng.permutation(np.concatenate([*batches, np.empty((0, batch_size), np.int64)]))
    return np.concatenate([edges[:head], middle.ravel(), edges[head:]])
