"""Activations of every layer of L3-Net's two towers, for images and audio."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from comodal.hardware import choose_inference_batch_size, get_module_device
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.vgg import VGG_LAYER_NAMES, VGGTower
from comodal.tasks.evaluation.metrics import check_finite_scores

ACTIVATION_BATCH_SIZE = 8
POOL4 = VGG_LAYER_NAMES[-1]  # pool4 takes the maximum of each unit of conv4_2


class TowerInput(NamedTuple):
    """One of the two towers, and the function that turns bytes or a waveform into its input."""

    tower: VGGTower
    prepare: Callable[[Tensor], Tensor]


def build_image_tower_input(model: L3Net) -> TowerInput:
    return TowerInput(model.image_tower, model.normalize_image)


def build_audio_tower_input(model: L3Net) -> TowerInput:
    return TowerInput(model.audio_tower, model.spectrogram)


@contextmanager
def record_layer_activations(tower: VGGTower, on_activation: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Passes the map of each layer, after its norm and ReLU, to a callback while the tower computes."""

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _layer, _inputs, output: on_activation(name, output)

    handles = [layer.register_forward_hook(make_hook(name)) for name, layer in tower.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def max_channel_activations(
    tower_input: TowerInput, inputs: Tensor
) -> dict[str, Float[np.ndarray, "examples channels"]]:
    """The maximum of each channel over the map of each layer, for each input."""
    maxima: dict[str, list[Tensor]] = {name: [] for name in VGG_LAYER_NAMES}
    device = get_module_device(tower_input.tower)
    with record_layer_activations(tower_input.tower, lambda name, output: maxima[name].append(output.amax((2, 3)))):
        for part in inputs.split(max(ACTIVATION_BATCH_SIZE, choose_inference_batch_size(device))):
            tower_input.tower(tower_input.prepare(part.to(device)))
    values = {name: torch.cat(parts).float().cpu().numpy() for name, parts in maxima.items()}
    for name, layer_maxima in values.items():
        check_finite_scores(layer_maxima, f"units of {name}")
    return values


def compute_layer_map(tower_input: TowerInput, layer: str) -> Callable[[Tensor], Tensor]:
    """A function from bytes or waveforms to the map of one layer, on the CPU."""

    def feature_map(inputs: Tensor) -> Tensor:
        recorded: dict[str, Tensor] = {}
        with record_layer_activations(tower_input.tower, recorded.__setitem__):
            tower_input.tower(tower_input.prepare(inputs.to(get_module_device(tower_input.tower))))
        return recorded[layer].cpu()

    return feature_map
