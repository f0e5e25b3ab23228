"""Checks that a model fits into memory before it is built and before it is trained.

Without them a model that is too large ends in an exception of the allocator, or the system kills the process.
"""

from collections.abc import Callable

import torch
from torch import nn

from comodal import hardware
from comodal.errors import RecipeError
from comodal.models.checkpoint import NothingDrawn

WEIGHT_BYTES = 4  # fp32
TRAINED_WEIGHT_BYTES = 16  # a weight, its gradient, and Adam's two moments


def check_model_fits(build: Callable[[], nn.Module]) -> None:
    """Checks that the weights of a model fit into the memory of this machine; nothing is allocated for the check.

    Args:
        build: Builds the model; it is called on the meta device.

    Raises:
        RecipeError: They do not.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), NothingDrawn():
        parameters = sum(parameter.numel() for parameter in build().parameters())
    compare_with_memory(parameters, WEIGHT_BYTES * parameters, torch.device("cpu"))


def check_training_fits(module: nn.Module, device: torch.device) -> None:
    """Checks that weights, gradients and the state of the optimizer fit into the memory of the device.

    Raises:
        RecipeError: They do not.
    """
    sizes = [(p.numel(), TRAINED_WEIGHT_BYTES if p.requires_grad else WEIGHT_BYTES) for p in module.parameters()]
    compare_with_memory(sum(count for count, _ in sizes), sum(count * each for count, each in sizes), device)


def compare_with_memory(parameters: int, required_bytes: int, device: torch.device) -> None:
    """Raises a RecipeError if a model with so many parameters needs more bytes than the device has."""
    available = hardware.read_memory_bytes(device)
    if required_bytes > available:
        raise RecipeError(
            f"a model of {parameters:,} parameters needs {required_bytes / 1e9:,.1f} GB and {device.type} has "
            f"{available / 1e9:,.1f} GB of memory: choose a smaller model"
        )
