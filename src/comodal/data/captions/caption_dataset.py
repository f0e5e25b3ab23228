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
from comodal.data.regions.region_store import Regions, RegionStore, compute_spatials
from comodal.media.tokenizer import DEFAULT_MAX_TOKENS, WordPieceTokenizer

MASKING_SEED = 2  # separates this random stream from that of the order
MAX_REGIONS = 36  # the original's features have 36 regions an image
FULL_IMAGE_SPATIALS = (0.0, 0.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class MaskingConfig:
    """How tokens and regions are masked.

    Attributes:
        token_probability: Fraction of the tokens that the model has to predict.
        region_probability: Fraction of the regions that the model has to predict.
        overlap_threshold: Also zero regions whose IoU with these is above it, without predicting them. 12-in-1 uses
            0.4; the paper and the original's code do not.
        mask_loss_on_mismatched: Also compute the masked losses for mismatched pairs (the paper; not 12-in-1). Tokens
            and regions of mismatched pairs are masked in both cases, or else a [MASK] would reveal a match.
        faithful: Random tokens and row 0 as in the original's code.
    """

    token_probability: float = MASKING_PROBABILITY
    region_probability: float = MASKING_PROBABILITY
    overlap_threshold: float | None = None
    mask_loss_on_mismatched: bool = True
    faithful: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.token_probability <= 1 and 0 <= self.region_probability <= 1):
            raise ValueError(
                f"masking probabilities are from 0 to 1, got {self.token_probability} and {self.region_probability}"
            )


class _Draws(NamedTuple):
    """Uniform draws; 1, which masks nothing, where there is no token or region."""

    tokens: Float[np.ndarray, "batch length"]
    replacements: Float[np.ndarray, "batch length"]
    regions: Float[np.ndarray, "batch regions"]


class _Regions(NamedTuple):
    """The regions of a batch as stored; row 0 of features, spatials and visual tokens is the whole image."""

    features: Float32[np.ndarray, "batch rows features"]
    spatials: Float32[np.ndarray, "batch rows 5"]
    visual_tokens: Int64[np.ndarray, "batch rows"]
    boxes: Float32[np.ndarray, "batch regions 4"]
    mask: Bool[np.ndarray, "batch regions"]


class CaptionDataset:
    """Batches of any (epoch, index). Read from the first sample on, they are a fixed validation set.

    Args:
        captions: Captions, each with the row of its image in the store.
        store: The regions of the images.
        tokenizer: The tokenizer.
        seed: Of the order, the negatives and the masking.
        batch_size: Samples of one step, over all processes: the size of the groups of captions of similar length.
        max_tokens: Maximum number of tokens of a caption with [CLS] and [SEP]; longer ones are truncated.
        max_regions: Maximum number of regions of an image; the first are kept, so a store should be sorted by score.
        masking: How tokens and regions are masked.
        negative_sampling: How negatives are sampled.

    Raises:
        DataError: There are no captions, or all are of one image.
    """

    def __init__(
        self,
        captions: Sequence[tuple[Caption, int]],
        store: RegionStore,
        tokenizer: WordPieceTokenizer,
        seed: int,
        batch_size: int,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        max_regions: int = MAX_REGIONS,
        masking: MaskingConfig = MaskingConfig(),
        negative_sampling: NegativeSampling = NegativeSampling(),  # noqa: B008
    ) -> None:
        if max_regions < 1:
            raise ValueError(f"max_regions ({max_regions}) must be positive")
        self.store, self.seed, self.max_regions, self.masking = store, seed, max_regions, masking
        self.encoded = tokenizer.encode_all((caption.caption for caption, _ in captions), max_tokens)
        self.starts = np.cumsum(self.encoded.lengths) - self.encoded.lengths
        self.keys = np.array([caption.key.encode() for caption, _ in captions])  # flat, so that workers share them
        self.counts = np.minimum(store.counts, max_regions)
        rows = np.array([row for _, row in captions], np.int64)
        self.pairs = CaptionPairs(rows, self.encoded.lengths, self.counts, seed, batch_size, negative_sampling)
        self.special_ids, self.padding_id, self.mask_id = tokenizer.special_ids, tokenizer.padding_id, tokenizer.mask_id
        self.random_tokens = np.arange(tokenizer.size) if masking.faithful else tokenizer.ordinary_ids

    def __len__(self) -> int:
        """Samples in an epoch: as many as captions."""
        return len(self.pairs)

    @property
    def num_truncated(self) -> int:
        """Number of captions that were longer than `max_tokens` and were truncated."""
        return self.encoded.num_truncated

    def batch(self, positions: Sequence[tuple[int, int]]) -> CaptionBatch:
        """The samples of these (epoch, index), in this order."""
        captions, rows, is_match = self._get_pairs(positions)
        token_ids, token_mask = self._pad_tokens(captions)
        image_regions = self._read_regions(rows)
        draws = self._draw_uniform(positions, token_mask, image_regions.mask)
        masked_tokens = self._mask_tokens(token_ids, token_mask, draws)
        masked_regions = self._mask_regions(image_regions, draws.regions)
        has_masked_loss = (is_match | self.masking.mask_loss_on_mismatched)[:, None]
        masked_token_indices = np.flatnonzero(masked_tokens.is_chosen.reshape(token_ids.shape) & has_masked_loss)
        images, regions = np.nonzero(masked_regions.is_chosen & has_masked_loss)
        features = image_regions.features[images, regions + 1]
        visual_token_targets = image_regions.visual_tokens[images, regions + 1] - len(TokenInput)
        self._zero_masked_regions(image_regions, masked_regions)
        region_mask = np.pad(image_regions.mask, ((0, 0), (1, 0)), constant_values=True)
        return CaptionBatch(
            token_ids=torch.from_numpy(masked_tokens.token_ids.reshape(token_ids.shape)),
            token_types=torch.zeros(token_ids.shape, dtype=torch.int64),
            token_mask=torch.from_numpy(token_mask),
            region_features=torch.from_numpy(image_regions.features),
            spatials=torch.from_numpy(image_regions.spatials),
            region_mask=torch.from_numpy(region_mask),
            image_rows=torch.from_numpy(rows),
            is_match=torch.from_numpy(is_match),
            masked_token_indices=torch.from_numpy(masked_token_indices),
            token_targets=torch.from_numpy(token_ids.ravel()[masked_token_indices]),
            masked_region_indices=torch.from_numpy(images * image_regions.features.shape[1] + regions + 1),
            feature_targets=torch.from_numpy(features),
            class_targets=torch.from_numpy(self._read_class_targets(rows, images, regions)),
            visual_token_targets=torch.from_numpy(
                visual_token_targets if self.store.tokens else visual_token_targets[:0]
            ),
            visual_tokens=torch.from_numpy(image_regions.visual_tokens),
            unpadded_token_indices=torch.from_numpy(np.flatnonzero(token_mask)),
            unpadded_region_indices=torch.from_numpy(np.flatnonzero(region_mask)),
            keys=tuple(
                self.describe_sample(caption, row)
                for caption, row in zip(captions.tolist(), rows.tolist(), strict=True)
            ),
        )

    def describe_sample(self, caption: int, row: int) -> str:
        """A description of a sample's caption and image, to look it up."""
        return f"image {self.store.ids[row]}, caption {self.keys[caption].decode()}"

    def _get_pairs(self, positions: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Captions, rows of images, and whether they match."""
        epoch_pairs = [(self.pairs.get_epoch(epoch), index) for epoch, index in positions]
        return (
            np.array([epoch.captions[index] for epoch, index in epoch_pairs], np.int64),
            np.array([epoch.rows[index] for epoch, index in epoch_pairs], np.int64),
            np.array([epoch.is_match[index] for epoch, index in epoch_pairs], bool),
        )

    def _pad_tokens(
        self, captions: Int64[np.ndarray, "batch"]
    ) -> tuple[Int64[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """The unmasked captions, padded to the longest, and the mask of their positions."""
        lengths = self.encoded.lengths[captions]
        columns = np.arange(lengths.max())
        token_mask = columns < lengths[:, None]
        token_ids = np.full(token_mask.shape, self.padding_id, np.int64)
        token_ids[token_mask] = self.encoded.token_ids[(self.starts[captions][:, None] + columns)[token_mask]]
        return token_ids, token_mask

    def _draw_uniform(
        self,
        positions: Sequence[tuple[int, int]],
        token_mask: Bool[np.ndarray, "batch length"],
        region_mask: Bool[np.ndarray, "batch regions"],
    ) -> _Draws:
        """The uniform draws of each sample: one for each token and region, independent of the rest of the batch."""
        draws = _Draws(np.ones(token_mask.shape), np.zeros(token_mask.shape), np.ones(region_mask.shape))
        lengths, counts = token_mask.sum(axis=1).tolist(), region_mask.sum(axis=1).tolist()
        for row, ((epoch, index), length, count) in enumerate(zip(positions, lengths, counts, strict=True)):
            uniform = np.random.default_rng((self.seed, epoch, index, MASKING_SEED)).random(2 * length + count)
            draws.tokens[row, :length] = uniform[:length]
            draws.replacements[row, :length] = uniform[length : 2 * length]
            draws.regions[row, :count] = uniform[2 * length :]
        return draws

    def _mask_tokens(
        self, token_ids: Int64[np.ndarray, "batch length"], token_mask: Bool[np.ndarray, "batch length"], draws: _Draws
    ) -> MaskedTokens:
        maskable = token_mask & ~np.isin(token_ids, self.special_ids)
        replacements = self.random_tokens[(draws.replacements * len(self.random_tokens)).astype(np.int64)]
        flat = token_ids.ravel(), maskable.ravel(), draws.tokens.ravel(), replacements.ravel()
        return mask_tokens(*flat, self.mask_id, self.masking.token_probability)

    def _read_regions(self, rows: Int64[np.ndarray, "batch"]) -> _Regions:
        """The regions of images, padded to the maximum of the batch."""
        images = [self.store.read_regions(row) for row in rows.tolist()]
        counts = self.counts[rows]
        mask = np.arange(counts.max()) < counts[:, None]
        shape = (len(images), mask.shape[1] + 1)
        features = torch.empty((*shape, self.store.dim))  # _zero_masked_regions fills row 0
        self.store.fill_features(rows.tolist(), features[:, 1:])
        boxes = np.zeros((*mask.shape, 4), np.float32)
        spatials = np.zeros((*shape, 5), np.float32)
        visual_tokens = np.full(shape, TokenInput.PADDING, np.int64)
        spatials[:, 0], visual_tokens[:, 0] = FULL_IMAGE_SPATIALS, TokenInput.IMAGE
        for row, (image, count) in enumerate(zip(images, counts.tolist(), strict=True)):
            inside = slice(1, count + 1)
            boxes[row, :count] = image.boxes[:count]
            spatials[row, inside] = compute_spatials(image.boxes[:count], image.width, image.height)
            visual_tokens[row, inside] = TokenInput.IMAGE
            if image.visual_tokens is not None:
                visual_tokens[row, inside] = image.visual_tokens[:count].astype(np.int64) + len(TokenInput)
        return _Regions(features.numpy(), spatials, visual_tokens, boxes, mask)

    def _mask_regions(self, image_regions: _Regions, draws: Float[np.ndarray, "batch regions"]) -> MaskedRegions:
        is_chosen, is_zeroed = (
            part.reshape(draws.shape) for part in mask_regions(draws.ravel(), self.masking.region_probability)
        )
        if self.masking.overlap_threshold is not None:
            is_zeroed |= (
                _find_overlapping_regions(image_regions, is_chosen, self.masking.overlap_threshold) & ~is_chosen
            )
        return MaskedRegions(is_chosen, is_zeroed)

    def _zero_masked_regions(self, image_regions: _Regions, masked_regions: MaskedRegions) -> None:
        """Zero the masked regions and fill row 0, in place."""
        image_regions.features[:, 1:][masked_regions.is_zeroed] = 0
        image_regions.visual_tokens[:, 1:][masked_regions.is_zeroed] = TokenInput.MASK
        if self.masking.faithful:
            counts = self.max_regions - _find_overlapping_regions(
                image_regions, masked_regions.is_chosen, MASKING_IOU_THRESHOLD
            ).sum(axis=1)
        else:
            counts = image_regions.mask.sum(axis=1)
        image_regions.features[:, 1:].sum(axis=1, out=image_regions.features[:, 0])
        image_regions.features[:, 0] /= np.maximum(counts, 1)[:, None].astype(np.float32)

    def _read_class_targets(
        self,
        rows: Int64[np.ndarray, "batch"],
        images: Int64[np.ndarray, "masked"],
        regions: Int64[np.ndarray, "masked"],
    ) -> Float32[np.ndarray, "masked classes"]:
        """The class probabilities of the masked regions only: reading those of all regions is too slow."""
        if self.store.probabilities is None:
            return np.empty((len(images), 0), np.float32)
        return self.store.probabilities[self.store.firsts[rows[images]] + regions].astype(np.float32)


def _find_overlapping_regions(
    image_regions: _Regions, is_chosen: Bool[np.ndarray, "batch regions"], threshold: float
) -> Bool[np.ndarray, "batch regions"]:
    """The regions of each image that overlap a chosen one of it."""
    overlaps = np.zeros_like(is_chosen)
    for row, count in enumerate(image_regions.mask.sum(axis=1).tolist()):
        overlaps[row, :count] = find_overlapping_boxes(
            image_regions.boxes[row, :count], is_chosen[row, :count], threshold
        )
    return overlaps


def prepend_full_image(
    regions: Regions, max_regions: int
) -> tuple[Float32[np.ndarray, "rows features"], Float32[np.ndarray, "rows 5"]]:
    """Features and spatials of the first regions of one image, unmasked, after row 0 for the whole image."""
    count = min(len(regions.boxes), max_regions)
    features = np.zeros((count + 1, regions.features.shape[1]), np.float32)
    features[1:] = regions.features[:count]
    features[0] = features[1:].sum(0) / max(count, 1)
    full_image = np.array([FULL_IMAGE_SPATIALS], np.float32)
    return features, np.concatenate(
        [full_image, compute_spatials(regions.boxes[:count], regions.width, regions.height)]
    )
