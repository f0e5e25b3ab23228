"""Decisions on pairs, and cross-modal ranking, from the features of examples.

The margin of a pair is its match score minus its mismatch score. A pair is taken as matched if its margin is above a
threshold: 0 for an L3-Net. The scores of a pair of classifiers have no natural threshold; theirs is chosen on other
data.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import nn

from comodal.errors import DataError
from comodal.tasks.correspondence.clip_features import CorrespondenceModel, ExampleFeatures

PAIR_BLOCK, IMAGE_BLOCK = 4096, 64  # pairs, and images of a ranking, that are scored at a time
MAX_SHUFFLES = 1000


class ExamplePairs(NamedTuple):
    """Pairs of the image of one example and the audio of the same or another; half of them are matched."""

    image: Int64[np.ndarray, " pairs"]
    audio: Int64[np.ndarray, " pairs"]
    is_match: Bool[np.ndarray, " pairs"]


def draw_example_pairs(groups: Int64[np.ndarray, " examples"], seed: int) -> ExamplePairs:
    """Every example as a matched pair, and every image with the audio of a random example of another source video.

    Each image and each audio is in one matched and in one mismatched pair. So a model that looks at the image alone, or
    at the audio alone, has an accuracy of exactly 0.5.

    Raises:
        DataError: One source video has more than half of the examples.
    """
    examples = np.arange(len(groups))
    if 2 * np.bincount(groups).max() > len(groups):
        raise DataError("one source video has more than half of the clips: too few mismatched pairs can be made")
    rng = np.random.default_rng(seed)
    partners = rng.permutation(len(groups))
    for _ in range(MAX_SHUFFLES):
        conflicts = np.flatnonzero(groups == groups[partners])
        if not len(conflicts):
            break
        for one, other in zip(conflicts, rng.integers(len(groups), size=len(conflicts)), strict=True):
            partners[one], partners[other] = partners[other], partners[one]
    else:
        raise DataError("no mismatched pairs could be drawn: a few source videos have nearly all clips")
    is_match = np.repeat([True, False], len(groups))
    return ExamplePairs(np.tile(examples, 2), np.concatenate([examples, partners]), is_match)


@torch.inference_mode()
def compute_pair_margins(
    model: nn.Module, features: ExampleFeatures, pairs: ExamplePairs
) -> Float[np.ndarray, " pairs"]:
    """The margin of each pair; only the fusion of the features is computed."""
    assert isinstance(model, CorrespondenceModel)
    margins = []
    for start in range(0, len(pairs.image), PAIR_BLOCK):
        rows = slice(start, start + PAIR_BLOCK)
        scores = model.fuse_pairs(features.image[pairs.image[rows]], features.audio[pairs.audio[rows]])
        margins.append((scores[:, 1] - scores[:, 0]).float().cpu().numpy())
    return np.concatenate(margins)


@torch.inference_mode()
def compute_margin_matrix(model: nn.Module, features: ExampleFeatures, count: int) -> Float[np.ndarray, "images clips"]:
    """The margins of the first `count` images with the first `count` seconds of audio."""
    assert isinstance(model, CorrespondenceModel)
    rows = []
    for image in features.image[:count].split(IMAGE_BLOCK):
        scores = model.fuse_all_pairs(image, features.audio[:count])
        rows.append((scores[..., 1] - scores[..., 0]).float().cpu().numpy())
    return np.concatenate(rows)


def choose_threshold(margins: Float[np.ndarray, " pairs"], is_match: Bool[np.ndarray, " pairs"]) -> float:
    """The threshold of the highest accuracy: midway between two margins, the lowest one among equals."""
    order = np.argsort(margins, kind="stable")
    values, matches = margins[order].astype(np.float64), is_match[order]
    cuts = np.flatnonzero(np.diff(values) > 0)  # between value k and value k + 1
    if not len(cuts):
        return float(values[0])
    num_correct = np.cumsum(~matches)[cuts] + matches.sum() - np.cumsum(matches)[cuts]
    best = cuts[int(np.argmax(num_correct))]
    return float((values[best] + values[best + 1]) / 2)


class CrossModalRanks(NamedTuple):
    """The rank of the own audio of each image, and of the own image of each audio, counted from 0."""

    image_to_audio: Int64[np.ndarray, " clips"]
    audio_to_image: Int64[np.ndarray, " clips"]
    candidates: Int64[np.ndarray, " clips"]  # of each query: the correct one, and those of other source videos

    def compute_pairwise_accuracy(self, direction: str) -> Float[np.ndarray, " clips"]:
        """For each query, the fraction of the other candidates that rank behind the correct one (chance level: 0.5)."""
        return 1 - getattr(self, direction) / np.maximum(self.candidates - 1, 1)


def rank_examples(margins: Float[np.ndarray, "clips clips"], groups: Int64[np.ndarray, " clips"]) -> CrossModalRanks:
    """Ranks the correct candidate of each query among those of other source videos; ties count as ahead of it."""
    is_other = groups[:, None] != groups
    correct = margins.diagonal()
    image_to_audio = ((margins >= correct[:, None]) & is_other).sum(1)
    audio_to_image = ((margins >= correct) & is_other).sum(0)
    return CrossModalRanks(image_to_audio, audio_to_image, is_other.sum(1) + 1)
