"""A network of a model as it is exported: what goes in, which axes may vary, and inputs to try it with."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Sizes = dict[str, int]
ModelType = TypeVar("ModelType", bound=nn.Module)


class ExportableNetwork(NamedTuple):
    """One network of a model.

    Args:
        name: Of its file.
        module: What is exported: tensors in, tensors out.
        reference: What it must equal: the model's own function.
        axes: For each input the names of its axes that may vary, "" for the others; "N*NAME" for multiples of N.
        outputs: Names of what it gives.
        sample: Inputs of some sizes, as they come in earnest.
        trials: Sizes to try; it is traced with the first.
        limits: The smallest and largest value of an axis, where there are such.
    """

    name: str
    module: nn.Module
    reference: Callable[..., Any]
    axes: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    sample: Callable[[torch.Generator, Sizes], tuple[Tensor, ...]]
    trials: tuple[Sizes, ...]
    limits: Mapping[str, tuple[int, int | None]]


def copy_without_parts(model: ModelType, *parts: str) -> ModelType:
    """A copy that lacks what a network has no use for, since a program keeps all weights."""
    less = copy.deepcopy(model)
    for part in parts:
        delattr(less, part)
    return less
