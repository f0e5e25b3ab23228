"""A network to export: its inputs, its dynamic axes, and sample inputs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Sizes = dict[str, int]
ModelType = TypeVar("ModelType", bound=nn.Module)


class ExportableNetwork(NamedTuple):
    """One network of a model.

    Args:
        name: Of its file.
        module: The module to export: tensors in, tensors out.
        reference: The model's own function, which the outputs are compared with.
        axes: For each input the names of its dynamic axes, "" for static ones; "N*NAME" for multiples of N.
        outputs: Names of the outputs.
        make_inputs: Function that makes realistic inputs of given sizes.
        trials: Sizes to test; the first is used for tracing.
        limits: The minimum and maximum of an axis, where it has any.
    """

    name: str
    module: nn.Module
    reference: Callable[..., Any]
    axes: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    make_inputs: Callable[[torch.Generator, Sizes], tuple[Tensor, ...]]
    trials: tuple[Sizes, ...]
    limits: Mapping[str, tuple[int, int | None]]


def copy_without_parts(model: ModelType, *parts: str) -> ModelType:
    """A copy without the parts that a network does not use, because a program stores all weights."""
    smaller_model = copy.deepcopy(model)
    for part in parts:
        delattr(smaller_model, part)
    return smaller_model


def make_noise_with_tone(
    generator: torch.Generator, batch: int, samples: int, sample_rate: int
) -> Float[Tensor, "batch samples"]:
    """Noise from loud to quiet, with an added tone of 440 Hz."""
    levels = torch.logspace(-1, -3, batch).unsqueeze(1)
    tone = torch.sin(2 * torch.pi * 440 / sample_rate * torch.arange(samples))
    return levels * (torch.randn(batch, samples, generator=generator) + tone)


class CorrespondenceNetwork(nn.Module):
    """From an image and audio to the outputs of an L3-Net or AVE-Net: scores (mismatch, match), and both features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
    ) -> tuple[Tensor, ...]:
        return tuple(self.model(image, audio))
