"""Where in the picture the sound is: what L3-Net's verdict rests on, place by place.

The network pools each tower's map to one vector by the largest value of each unit, so its verdict is a function of the
picture's vector and the sound's. Two ways lead back to the picture, both exact, neither learnt:

- `verdicts_by_place`: every place of conv4_2 holds a vector of the same units. The fusion network judges it with the
  sound, as if it were the whole picture. (AVE-Net, section 5.1, locates sound by scoring all
  places against it; L3-Net was not trained so, but its units do not know where they fired.)
- `contributions`: the verdict itself, handed back. With the hidden units of the fusion network on or off as they are,
  the margin of "together" over "apart" is a sum over the units of picture and sound (gradient times value); a unit's
  part lies where it was largest.

On the playground the first one points better (docs/analysis.md), so it is what `comodal match` and the report draw.
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
    """How far "together" lies above "apart" (logits), for the whole picture and for each of its places."""

    margin: Float[Tensor, " batch"]
    places: Float[Tensor, "batch rows columns"]

    @property
    def together(self) -> Float[Tensor, " batch"]:
        """P(together) of picture and sound."""
        return self.margin.sigmoid()


class Contributions(NamedTuple):
    """Parts of the margin of "together" over "apart"; places, sound and rest add up to it."""

    margin: Float[Tensor, " batch"]
    places: Float[Tensor, "batch rows columns"]
    sound: Float[Tensor, " batch"]
    rest: Float[Tensor, " batch"]


class AudioVisualMaps(NamedTuple):
    """conv4_2 of a picture, and what pool4 takes of it and of the sound."""

    picture: Float[Tensor, "batch units rows columns"]
    image_features: Float[Tensor, "batch units"]
    sound_features: Float[Tensor, "batch units"]


@torch.inference_mode()
def predict_by_position(
    model: L3Net, image: UInt8[Tensor, "batch 3 height width"], sound: Float[Tensor, "batch samples"]
) -> LocalizationResult:
    """The verdict on the whole picture, and on each of its places as if there were no other."""
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
    """The margin as a sum: of each place of the picture, of the sound, and of the biases."""
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
    """Both towers of the verdict, computed where the model is; maps are float32 whatever the precision inside."""
    device = get_module_device(model)
    picture = model.image_tower(model.normalised(image.to(device))).float()
    heard = model.sound_tower(model.spectrogram(model.checked(sound.to(device)))).amax((2, 3)).float()
    return AudioVisualMaps(picture, picture.amax((2, 3)), heard)


def compute_match_margin(
    model: L3Net, image_features: Float[Tensor, "pairs units"], sound_features: Float[Tensor, "pairs units"]
) -> Float[Tensor, " pairs"]:
    """How far "together" lies above "apart" for pairs of pooled features; P(together) is its logistic function."""
    logits = model.fc2(F.relu(model.fc1(torch.cat([image_features, sound_features], 1))))
    return logits[:, 1] - logits[:, 0]


def find_map_peak(places: Float[Tensor, "rows columns"], size: tuple[int, int]) -> tuple[float, float]:
    """x and y, in pixels of the picture, of the highest point of a map brought to its height and width."""
    large = resize_maps(places[None].float(), size)[0]
    row, column = divmod(int(large.argmax()), size[1])
    return column + 0.5, row + 0.5
