"""Parameter groups, the optimizer, and the learning rate as a function of the step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels of convolutions and linear layers, which decay, and everything else (biases, norms), which does not.

    Keras, with which l3embedding trains, puts its l2 on kernels alone, and its l2 of c is c times the sum of squares,
    without the half: the gradient is that of a weight decay of 2c.
    """
    kernels = {
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.weight.requires_grad
    }
    others = [p for p in module.parameters() if p.requires_grad and p not in kernels]
    ordered = [p for p in module.parameters() if p in kernels]
    return [{"params": ordered, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def adam(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with the decay in the gradient (not AdamW's), as Keras' l2 is; one fused kernel instead of a dozen."""
    return torch.optim.Adam(parameter_groups(module, weight_decay), lr=learning_rate, fused=True)


def schedule(
    learning_rate: float, steps: int, warm_up_steps: int = 0, final_fraction: float = 1.0
) -> Callable[[int], float]:
    """The learning rate of each step: a straight rise, then half a cosine down to a fraction of the full rate.

    The default is the paper's: constant.
    """
    if not 0 <= warm_up_steps <= steps:
        raise ValueError(f"warm_up_steps ({warm_up_steps}) must lie between 0 and steps ({steps})")

    def rate(step: int) -> float:
        if step < warm_up_steps:
            return learning_rate * (step + 1) / warm_up_steps
        progress = (step - warm_up_steps) / max(1, steps - warm_up_steps)
        return learning_rate * (final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2)

    return rate
