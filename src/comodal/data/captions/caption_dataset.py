"""Captions with the regions of an image, with masked tokens and regions (ViLBERT, sections 3.1 and 3.2).

Every sample is a function of (seed, epoch, index): its caption and image (caption_pairs.py), and what is masked. A
batch is padded to its longest caption and its largest number of regions.

Row 0 of the regions is the whole image: the sum of the visible features over the number of regions, as in the
paper's code (vilbert_beta). `faithful` follows the original's later code (vilbert-multi-task) where it differs from the
paper: a random token may be any id of the vocabulary, and row 0 is divided by `max_regions` minus the regions that
overlap a chosen one, padding included. (`NegativeSampling` sets whether a negative caption may be of the same image.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64

from comodal.data.batch import CaptionBatch, TokenInput
from comodal.data.captions.caption_files import Caption
from comodal.data.captions.caption_pairs import CaptionPairs, NegativeSampling
from comodal.data.captions.masking import (
    MASKING_IOU_THRESHOLD,
    MASKING_PROBABILITY,
    MaskedRegions,
    MaskedTokens,
    find_overlapping_boxes,
    mask_regions,
    mask_tokens,
)
from comodal.data.regions.region_store import Regions, RegionStore, compute_locations
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS, WordPieceTokenizer

MASKING_SEED = 2  # separates this random stream from that of the order
MAX_REGIONS = 36  # the original's features have 36 regions an image
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class MaskingConfig:
    """How much is masked.

    Attributes:
        words: Fraction of the tokens that the model has to predict.
        regions: Fraction of the regions that the model has to predict.
        overlap: Also zero the regions whose IoU with one of these is above this, without predicting them. 12-in-1 uses
            0.4; the paper and the original's code do not.
        tell_mismatched: Also compute the masked losses for mismatched pairs, as in the paper. 12-in-1 does not. Tokens
            and regions of mismatched pairs are masked in both cases, or else a [MASK] would reveal a match.
        faithful: Random tokens and row 0 as in the original's code.
    """

    words: float = MASKING_PROBABILITY
    regions: float = MASKING_PROBABILITY
    overlap: float | None = None
    tell_mismatched: bool = True
    faithful: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.words <= 1 and 0 <= self.regions <= 1):
            raise ValueError(f"shares are from 0 to 1, got {self.words} and {self.regions}")


class _Draws(NamedTuple):
    """Uniform draws; 1, which chooses nothing, where there is no token or region."""

    words: Float[np.ndarray, "batch words"]
    replacements: Float[np.ndarray, "batch words"]
    regions: Float[np.ndarray, "batch regions"]


class _Regions(NamedTuple):
    """The regions of a batch as they are in the store; row 0 of features, locations and tokens is the whole image."""

    features: Float32[np.ndarray, "batch rows features"]
    locations: Float32[np.ndarray, "batch rows 5"]
    tokens: Int64[np.ndarray, "batch rows"]
    boxes: Float32[np.ndarray, "batch regions 4"]
    attended: Bool[np.ndarray, "batch regions"]


class CaptionDataset:
    """Batches of any (epoch, index). Read from the first sample on, they are a fixed validation set.

    Args:
        captions: Captions, each with the row of its image in the store.
        store: The regions of the images.
        words: The tokenizer.
        seed: Of the order, the negatives and the masking.
        batch_size: Samples of one step, over all processes: the size of the groups of captions of similar length.
        max_words: Maximum number of tokens of a caption with [CLS] and [SEP]; longer ones are truncated.
        max_regions: Maximum number of regions of an image; the first are kept, so a store should be sorted by score.
        hiding: What is masked.
        mismatches: How negatives are sampled.

    Raises:
        DataError: There are no captions, or all are of one image.
    """

    def __init__(
        self,
        captions: Sequence[tuple[Caption, int]],
        store: RegionStore,
        words: WordPieceTokenizer,
        seed: int,
        batch_size: int,
        max_words: int = DEFAULT_MAX_TOKENS,
        max_regions: int = MAX_REGIONS,
        hiding: MaskingConfig = MaskingConfig(),
        mismatches: NegativeSampling = NegativeSampling(),  # noqa: B008
    ) -> None:
        if max_regions < 1:
            raise ValueError(f"max_regions ({max_regions}) must be positive")
        self.store, self.seed, self.max_regions, self.hiding = store, seed, max_regions, hiding
        self.encoded = words.encode_all((caption.caption for caption, _ in captions), max_words)
        self.starts = np.cumsum(self.encoded.lengths) - self.encoded.lengths
        self.keys = np.array([caption.key.encode() for caption, _ in captions])  # flat, so that workers share them
        self.counts = np.minimum(store.counts, max_regions)
        rows = np.array([row for _, row in captions], np.int64)
        self.pairs = CaptionPairs(rows, self.encoded.lengths, self.counts, seed, batch_size, mismatches)
        self.special, self.padding, self.mask = words.special, words.padding, words.mask
        self.random_words = np.arange(words.size) if hiding.faithful else words.ordinary

    def __len__(self) -> int:
        """Samples in an epoch: as many as captions."""
        return len(self.pairs)

    @property
    def truncated(self) -> int:
        """Number of captions that were longer than `max_words` and were truncated."""
        return self.encoded.truncated

    def batch(self, places: Sequence[tuple[int, int]]) -> CaptionBatch:
        """The samples of these (epoch, index), in this order."""
        captions, rows, mismatched = self._pairs(places)
        words, attended = self._words(captions)
        seen = self._regions(rows)
        draws = self._draws(places, attended, seen.attended)
        hidden_words = self._hide_words(words, attended, draws)
        hidden_regions = self._hide_regions(seen, draws.regions)
        told = (~mismatched | self.hiding.tell_mismatched)[:, None]
        masked_words = np.flatnonzero(hidden_words.chosen.reshape(words.shape) & told)
        images, regions = np.nonzero(hidden_regions.chosen & told)
        features = seen.features[images, regions + 1]
        tokens = seen.tokens[images, regions + 1] - len(TokenInput)
        self._finish(seen, hidden_regions)
        regions_attended = np.pad(seen.attended, ((0, 0), (1, 0)), constant_values=True)
        return CaptionBatch(
            words=torch.from_numpy(hidden_words.words.reshape(words.shape)),
            segments=torch.zeros(words.shape, dtype=torch.int64),
            words_attended=torch.from_numpy(attended),
            regions=torch.from_numpy(seen.features),
            locations=torch.from_numpy(seen.locations),
            regions_attended=torch.from_numpy(regions_attended),
            images=torch.from_numpy(rows),
            mismatched=torch.from_numpy(mismatched),
            masked_words=torch.from_numpy(masked_words),
            word_targets=torch.from_numpy(words.ravel()[masked_words]),
            masked_regions=torch.from_numpy(images * seen.features.shape[1] + regions + 1),
            region_features=torch.from_numpy(features),
            region_classes=torch.from_numpy(self._classes(rows, images, regions)),
            region_tokens=torch.from_numpy(tokens if self.store.tokens else tokens[:0]),
            tokens=torch.from_numpy(seen.tokens),
            attended_words=torch.from_numpy(np.flatnonzero(attended)),
            attended_regions=torch.from_numpy(np.flatnonzero(regions_attended)),
            keys=tuple(self.key(caption, row) for caption, row in zip(captions.tolist(), rows.tolist(), strict=True)),
        )

    def key(self, caption: int, row: int) -> str:
        """A description of a sample's caption and image, to look it up."""
        return f"image {self.store.ids[row]}, caption {self.keys[caption].decode()}"

    def _pairs(self, places: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Captions, rows of images, and whether they are mismatched."""
        every = [(self.pairs.epoch(epoch), index) for epoch, index in places]
        return (
            np.array([epoch.captions[index] for epoch, index in every], np.int64),
            np.array([epoch.rows[index] for epoch, index in every], np.int64),
            np.array([epoch.mismatched[index] for epoch, index in every], bool),
        )

    def _words(
        self, captions: Int64[np.ndarray, "batch"]
    ) -> tuple[Int64[np.ndarray, "batch words"], Bool[np.ndarray, "batch words"]]:
        """The unmasked captions, padded to the longest, and the mask of their positions."""
        lengths = self.encoded.lengths[captions]
        columns = np.arange(lengths.max())
        attended = columns < lengths[:, None]
        words = np.full(attended.shape, self.padding, np.int64)
        words[attended] = self.encoded.words[(self.starts[captions][:, None] + columns)[attended]]
        return words, attended

    def _draws(
        self,
        places: Sequence[tuple[int, int]],
        words: Bool[np.ndarray, "batch words"],
        regions: Bool[np.ndarray, "batch regions"],
    ) -> _Draws:
        """The uniform draws of each sample: one for each token and region, independent of the rest of the batch."""
        draws = _Draws(np.ones(words.shape), np.zeros(words.shape), np.ones(regions.shape))
        lengths, counts = words.sum(axis=1).tolist(), regions.sum(axis=1).tolist()
        for row, ((epoch, index), length, count) in enumerate(zip(places, lengths, counts, strict=True)):
            chance = np.random.default_rng((self.seed, epoch, index, MASKING_SEED)).random(2 * length + count)
            draws.words[row, :length] = chance[:length]
            draws.replacements[row, :length] = chance[length : 2 * length]
            draws.regions[row, :count] = chance[2 * length :]
        return draws

    def _hide_words(
        self, words: Int64[np.ndarray, "batch words"], attended: Bool[np.ndarray, "batch words"], draws: _Draws
    ) -> MaskedTokens:
        maskable = attended & ~np.isin(words, self.special)
        replacements = self.random_words[(draws.replacements * len(self.random_words)).astype(np.int64)]
        flat = words.ravel(), maskable.ravel(), draws.words.ravel(), replacements.ravel()
        return mask_tokens(*flat, self.mask, self.hiding.words)

    def _regions(self, rows: Int64[np.ndarray, "batch"]) -> _Regions:
        """The regions of images, padded to the maximum of the batch."""
        images = [self.store.regions(row) for row in rows.tolist()]
        counts = self.counts[rows]
        attended = np.arange(counts.max()) < counts[:, None]
        shape = (len(images), attended.shape[1] + 1)
        features = torch.empty((*shape, self.store.dim))  # _finish fills row 0
        self.store.fill(rows.tolist(), features[:, 1:])
        boxes = np.zeros((*attended.shape, 4), np.float32)
        fractions = np.zeros((*shape, 5), np.float32)
        tokens = np.full(shape, TokenInput.PADDING, np.int64)
        fractions[:, 0], tokens[:, 0] = WHOLE_IMAGE, TokenInput.IMAGE
        for row, (image, count) in enumerate(zip(images, counts.tolist(), strict=True)):
            inside = slice(1, count + 1)
            boxes[row, :count] = image.boxes[:count]
            fractions[row, inside] = compute_locations(image.boxes[:count], image.width, image.height)
            tokens[row, inside] = TokenInput.IMAGE
            if image.tokens is not None:
                tokens[row, inside] = image.tokens[:count].astype(np.int64) + len(TokenInput)
        return _Regions(features.numpy(), fractions, tokens, boxes, attended)

    def _hide_regions(self, seen: _Regions, draws: Float[np.ndarray, "batch regions"]) -> MaskedRegions:
        chosen, hidden = (part.reshape(draws.shape) for part in mask_regions(draws.ravel(), self.hiding.regions))
        if self.hiding.overlap is not None:
            hidden |= _find_overlapping_regions(seen, chosen, self.hiding.overlap) & ~chosen
        return MaskedRegions(chosen, hidden)

    def _finish(self, seen: _Regions, hidden: MaskedRegions) -> None:
        """Zero the masked regions and fill row 0, in place."""
        seen.features[:, 1:][hidden.hidden] = 0
        seen.tokens[:, 1:][hidden.hidden] = TokenInput.HIDDEN
        if self.hiding.faithful:
            counts = self.max_regions - _find_overlapping_regions(seen, hidden.chosen, MASKING_IOU_THRESHOLD).sum(
                axis=1
            )
        else:
            counts = seen.attended.sum(axis=1)
        seen.features[:, 1:].sum(axis=1, out=seen.features[:, 0])
        seen.features[:, 0] /= np.maximum(counts, 1)[:, None].astype(np.float32)

    def _classes(
        self,
        rows: Int64[np.ndarray, "batch"],
        images: Int64[np.ndarray, "hidden"],
        regions: Int64[np.ndarray, "hidden"],
    ) -> Float32[np.ndarray, "hidden classes"]:
        """The class probabilities of the masked regions only: reading those of all regions is too slow."""
        if self.store.probabilities is None:
            return np.empty((len(images), 0), np.float32)
        return self.store.probabilities[self.store.firsts[rows[images]] + regions].astype(np.float32)


def _find_overlapping_regions(
    seen: _Regions, chosen: Bool[np.ndarray, "batch regions"], threshold: float
) -> Bool[np.ndarray, "batch regions"]:
    """The regions of each image that overlap a chosen one of it."""
    found = np.zeros_like(chosen)
    for row, count in enumerate(seen.attended.sum(axis=1).tolist()):
        found[row, :count] = find_overlapping_boxes(seen.boxes[row, :count], chosen[row, :count], threshold)
    return found


def prepend_whole_image(
    inside: Regions, most: int
) -> tuple[Float32[np.ndarray, "rows features"], Float32[np.ndarray, "rows 5"]]:
    """Features and locations of the first regions of one image, unmasked, after row 0 for the whole image."""
    count = min(len(inside.boxes), most)
    features = np.zeros((count + 1, inside.features.shape[1]), np.float32)
    features[1:] = inside.features[:count]
    features[0] = features[1:].sum(0) / max(count, 1)
    whole_image = np.array([WHOLE_IMAGE], np.float32)
    return features, np.concatenate([whole_image, compute_locations(inside.boxes[:count], inside.width, inside.height)])
