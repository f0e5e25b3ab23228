"""Sound source localization: which positions of the image L3-Net's prediction is based on.

The network max-pools each tower's map to one vector. Its prediction is a function of the vectors of image and audio.
Two exact methods map it back to the image. Neither has trained parameters:

- `predict_by_position`: each position of conv4_2 holds a vector of the same units as the pooled map. The fusion
  network scores this vector with the audio, as if it were the whole image. AVE-Net (section 5.1) localizes sound by
  such scores. L3-Net was not trained for it, but its units are computed alike at all positions.
- `decompose_margin`: attributes the prediction itself. The margin is the logit of match minus that of mismatch. With
  the active units of the fusion network fixed, it is a sum over the units of image and audio (gradient times value).
  The contribution of a unit is assigned to the position of its maximum.

On the synthetic data `predict_by_position` is more accurate (docs/guides/analysis.md). `comodal match` and the report
draw it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from comodal.analysis.heatmaps import resize_maps
from comodal.hardware import get_module_device
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.l3net.l3net import L3Net


class LocalizationResult(NamedTuple):
    """The margin (logit of match less that of mismatch), for the whole image and for each position."""

    margin: Float[Tensor, " batch"]
    position_margins: Float[Tensor, "batch rows columns"]

    @property
    def probability(self) -> Float[Tensor, " batch"]:
        """Probability that image and audio correspond."""
        return self.margin.sigmoid()


class Contributions(NamedTuple):
    """Contributions to the margin of match over mismatch; `positions`, `audio` and `rest` add up to it."""

    margin: Float[Tensor, " batch"]
    positions: Float[Tensor, "batch rows columns"]
    audio: Float[Tensor, " batch"]
    rest: Float[Tensor, " batch"]


class AudioVisualMaps(NamedTuple):
    """conv4_2 of an image, and the pooled features of image and audio."""

    image_map: Float[Tensor, "batch units rows columns"]
    image_features: Float[Tensor, "batch units"]
    audio_features: Float[Tensor, "batch units"]


@torch.inference_mode()
def predict_by_position(
    model: L3Net | AVENet, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
) -> LocalizationResult:
    """The margin of the whole image, and of each of its positions alone."""
    if isinstance(model, AVENet):
        device = get_module_device(model)
        logits = model(image.to(device), audio.to(device)).logits
        position_margins = model.localize(image.to(device), audio.to(device))
        return LocalizationResult((logits[:, 1] - logits[:, 0]).float().cpu(), position_margins.float().cpu())
    maps = encode_both_towers(model, image, audio)
    image_margin = compute_match_margin(model, maps.image_features, maps.audio_features)
    position_margins = model.score_positions(maps.image_map.permute(0, 2, 3, 1), maps.audio_features)
    return LocalizationResult(image_margin.float().cpu(), position_margins.float().cpu())


@torch.inference_mode()
def decompose_margin(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
) -> Contributions:
    """The margin as a sum of contributions: of each position of the image, of the audio, and of the biases."""
    maps = encode_both_towers(model, image, audio)
    features = torch.cat([maps.image_features, maps.audio_features], 1)
    direction = model.fc2.weight[1] - model.fc2.weight[0]
    on = model.fc1(features) > 0
    parts = ((on * direction) @ model.fc1.weight) * features
    units = maps.image_features.shape[1]
    positions = torch.zeros_like(maps.image_map[:, 0]).flatten(1)
    positions.scatter_add_(1, maps.image_map.flatten(2).argmax(2), parts[:, :units])
    rest = (on * direction) @ model.fc1.bias + model.fc2.bias[1] - model.fc2.bias[0]
    margin = compute_match_margin(model, maps.image_features, maps.audio_features)
    contributions = (margin, positions.view_as(maps.image_map[:, 0]), parts[:, units:].sum(1), rest)
    return Contributions(*(part.float().cpu() for part in contributions))


def encode_both_towers(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
) -> AudioVisualMaps:
    """The outputs of both towers, computed on the model's device. Maps are float32 in any precision."""
    device = get_module_device(model)
    image_map = model.image_tower(model.normalize_image(image.to(device))).float()
    audio_features = model.audio_tower(model.spectrogram(model.check_audio(audio.to(device)))).amax((2, 3)).float()
    return AudioVisualMaps(image_map, image_map.amax((2, 3)), audio_features)


def compute_match_margin(
    model: L3Net, image_features: Float[Tensor, "pairs units"], audio_features: Float[Tensor, "pairs units"]
) -> Float[Tensor, " pairs"]:
    """Logit of match less logit of mismatch for pairs of pooled features; its sigmoid is the probability of a match."""
    logits = model.fc2(F.relu(model.fc1(torch.cat([image_features, audio_features], 1))))
    return logits[:, 1] - logits[:, 0]


def find_map_peak(position_map: Float[Tensor, "rows columns"], size: tuple[int, int]) -> tuple[float, float]:
    """x and y, in pixels of the image, of the maximum of a map that is resized to the image."""
    large = resize_maps(position_map[None].float(), size)[0]
    row, column = divmod(int(large.argmax()), size[1])
    return column + 0.5, row + 0.5
