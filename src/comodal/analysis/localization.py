"""Sound source localization: which positions of the image L3-Net's prediction is based on.

The network max-pools each tower's map to one vector. Its prediction is a function of the vectors of image and audio.
Two exact methods map it back to the image. Neither has trained parameters:

- `predict_by_position`: each position of conv4_2 holds a vector of the same units as the pooled map. The fusion
  network scores this vector with the audio, as if it were the whole image. AVE-Net (section 5.1) localizes sound by
  such scores. L3-Net was not trained for it, but its units are computed alike at all positions.
- `decompose_margin`: attributes the prediction itself. With the active units of the fusion network fixed, the margin
  (logit of match less that of mismatch) is a sum over the units of image and audio (gradient times value). The
  contribution of a unit is placed at the position of its maximum.

On the synthetic data `predict_by_position` is more accurate (docs/analysis.md). `comodal match` and the report draw it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from comodal.analysis.heatmaps import resize_maps
from comodal.hardware import get_module_device
from comodal.models.l3net.l3net import L3Net


class LocalizationResult(NamedTuple):
    """The margin (logit of match less that of mismatch), for the whole image and for each position."""

    margin: Float[Tensor, " batch"]
    places: Float[Tensor, "batch rows columns"]

    @property
    def together(self) -> Float[Tensor, " batch"]:
        """P(match) of image and audio."""
        return self.margin.sigmoid()


class Contributions(NamedTuple):
    """Contributions to the margin of match over mismatch; `places`, `sound` and `rest` add up to it."""

    margin: Float[Tensor, " batch"]
    places: Float[Tensor, "batch rows columns"]
    sound: Float[Tensor, " batch"]
    rest: Float[Tensor, " batch"]


class AudioVisualMaps(NamedTuple):
    """conv4_2 of an image, and the pooled features of image and audio."""

    picture: Float[Tensor, "batch units rows columns"]
    image_features: Float[Tensor, "batch units"]
    sound_features: Float[Tensor, "batch units"]


@torch.inference_mode()
def predict_by_position(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], sound: Float[Tensor, "batch samples"]
) -> LocalizationResult:
    """The margin of the whole image, and of each of its positions alone."""
    maps = encode_both_towers(model, image, sound)
    heard = maps.sound_features
    whole = compute_match_margin(model, maps.image_features, heard)
    batch, _, rows, columns = maps.picture.shape
    each = maps.picture.permute(0, 2, 3, 1).flatten(0, 2)
    places = compute_match_margin(model, each, heard.repeat_interleave(rows * columns, 0))
    return LocalizationResult(whole.float().cpu(), places.view(batch, rows, columns).float().cpu())


@torch.inference_mode()
def decompose_margin(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], sound: Float[Tensor, "batch samples"]
) -> Contributions:
    """The margin as a sum of contributions: of each position of the image, of the audio, and of the biases."""
    maps = encode_both_towers(model, image, sound)
    features = torch.cat([maps.image_features, maps.sound_features], 1)
    direction = model.fc2.weight[1] - model.fc2.weight[0]
    on = model.fc1(features) > 0
    parts = ((on * direction) @ model.fc1.weight) * features
    units = maps.image_features.shape[1]
    places = torch.zeros_like(maps.picture[:, 0]).flatten(1)
    places.scatter_add_(1, maps.picture.flatten(2).argmax(2), parts[:, :units])
    rest = (on * direction) @ model.fc1.bias + model.fc2.bias[1] - model.fc2.bias[0]
    whole = compute_match_margin(model, maps.image_features, maps.sound_features)
    parted = (whole, places.view_as(maps.picture[:, 0]), parts[:, units:].sum(1), rest)
    return Contributions(*(part.float().cpu() for part in parted))


def encode_both_towers(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], sound: Float[Tensor, "batch samples"]
) -> AudioVisualMaps:
    """The outputs of both towers, computed on the model's device. Maps are float32 in any precision."""
    device = get_module_device(model)
    picture = model.image_tower(model.normalised(image.to(device))).float()
    heard = model.sound_tower(model.spectrogram(model.checked(sound.to(device)))).amax((2, 3)).float()
    return AudioVisualMaps(picture, picture.amax((2, 3)), heard)


def compute_match_margin(
    model: L3Net, image_features: Float[Tensor, "pairs units"], sound_features: Float[Tensor, "pairs units"]
) -> Float[Tensor, " pairs"]:
    """Logit of match less logit of mismatch for pairs of pooled features; P(match) is its logistic function."""
    logits = model.fc2(F.relu(model.fc1(torch.cat([image_features, sound_features], 1))))
    return logits[:, 1] - logits[:, 0]


def find_map_peak(places: Float[Tensor, "rows columns"], size: tuple[int, int]) -> tuple[float, float]:
    """x and y, in pixels of the image, of the maximum of a map that is resized to the image."""
    large = resize_maps(places[None].float(), size)[0]
    row, column = divmod(int(large.argmax()), size[1])
    return column + 0.5, row + 0.5
