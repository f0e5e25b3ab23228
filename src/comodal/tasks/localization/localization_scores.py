"""The scores of position maps: cIoU of each system for each image, and the area that is highlighted for no source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from comodal.tasks.localization.localization_metrics import (
    build_center_map,
    build_truth_map,
    compute_consensus_iou,
    compute_image_areas,
    compute_universal_threshold,
    resize_position_maps,
    select_upper_half,
)
from comodal.tasks.localization.position_maps import AUDIO_KINDS, NEGATIVE_AUDIO
from comodal.tasks.localization.sounding_boxes import SoundingImage

SCORE_BLOCK = 64  # maps of 224 x 224 in memory at a time
RANDOM_MAP_STREAM = 3  # separates its random state from those of noise and off-screen audio


class NegativeScores(NamedTuple):
    """The scores of a network with one threshold for all images: cIoU with the own audio, and pIA by negative audio."""

    threshold: float
    ciou: Float[np.ndarray, " images"]
    areas: dict[str, Float[np.ndarray, " images"]]


@dataclass(frozen=True)
class LocalizationScores:
    """The scores of all images.

    Args:
        ciou: cIoU of each image by system: trained, its control offscreen, untrained, center and random.
        negatives: The scores with one threshold for all images, of trained and untrained.
    """

    ciou: Mapping[str, Float[np.ndarray, " images"]]
    negatives: Mapping[str, NegativeScores]


def score_maps(
    maps: Mapping[str, Float[Tensor, "audios images rows columns"]],
    images: Sequence[SoundingImage],
    is_consensus: bool,
    threshold: float | None,
    seed: int,
) -> LocalizationScores:
    """Scores the maps of the trained and the untrained network, and of the baselines.

    Args:
        maps: Maps by network, with the kinds of audio of `AUDIO_KINDS`.
        images: The annotated images.
        is_consensus: Whether boxes of several annotators are combined.
        threshold: Margin above which a position counts as a source; None: the third quartile of the maxima of the maps
            with negative audio, for each network.
        seed: Of the random maps.
    """
    thresholds = {
        name: compute_universal_threshold(stack[1:].amax((2, 3)).flatten().numpy()) if threshold is None else threshold
        for name, stack in maps.items()
    }
    center = build_center_map()[None]
    rng = np.random.default_rng((seed, RANDOM_MAP_STREAM))
    ciou: dict[str, list[np.ndarray]] = {}
    at_threshold: dict[str, list[np.ndarray]] = {name: [] for name in maps}
    areas: dict[str, dict[str, list[np.ndarray]]] = {name: {kind: [] for kind in NEGATIVE_AUDIO} for name in maps}
    for start in range(0, len(images), SCORE_BLOCK):
        rows = slice(start, start + SCORE_BLOCK)
        truth = np.stack([build_truth_map(image.boxes, is_consensus) for image in images[rows]])
        resized = {
            name: {kind: resize_position_maps(stack[index, rows]) for index, kind in enumerate(AUDIO_KINDS)}
            for name, stack in maps.items()
        }
        random_maps = torch.from_numpy(rng.random(maps["trained"][0, rows].shape))
        upper_halves = {
            "trained": select_upper_half(resized["trained"]["own"]),
            "offscreen": select_upper_half(resized["trained"]["offscreen"]),
            "untrained": select_upper_half(resized["untrained"]["own"]),
            "center": select_upper_half(np.repeat(center, len(truth), 0)),
            "random": select_upper_half(resize_position_maps(random_maps)),
        }
        for system, predicted in upper_halves.items():
            ciou.setdefault(system, []).append(compute_consensus_iou(predicted, truth))
        for name, by_kind in resized.items():
            at_threshold[name].append(compute_consensus_iou(by_kind["own"] > thresholds[name], truth))
            for kind in NEGATIVE_AUDIO:
                areas[name][kind].append(compute_image_areas(by_kind[kind], thresholds[name]))
    return LocalizationScores(
        {system: np.concatenate(parts) for system, parts in ciou.items()},
        {
            name: NegativeScores(
                thresholds[name],
                np.concatenate(at_threshold[name]),
                {kind: np.concatenate(parts) for kind, parts in areas[name].items()},
            )
            for name in maps
        },
    )
