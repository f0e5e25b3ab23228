"""Parameter groups, optimizers and learning rate schedules."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from comodal.errors import check_number

MAX_EPOCHS = 100_000  # of fine-tuning


def make_parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits parameters into kernels, which have weight decay, and all others (biases, norms), which have none.

    Keras, which l3embedding trains with, applies its l2 to kernels only. Its l2 of c is c times the sum of squares,
    without the factor 1/2, so its gradient is that of a weight decay of 2c.
    """
    kernels = {
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.weight.requires_grad
    }
    non_kernels = [p for p in module.parameters() if p.requires_grad and p not in kernels]
    ordered = [p for p in module.parameters() if p in kernels]
    return [{"params": ordered, "weight_decay": weight_decay}, {"params": non_kernels, "weight_decay": 0.0}]


def make_adam(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with l2 in the gradient (not AdamW's decoupled decay), as in Keras; fused into one kernel."""
    return torch.optim.Adam(make_parameter_groups(module, weight_decay), lr=learning_rate, fused=True)


def make_adamw(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    pretrained: Collection[nn.Parameter] = (),
    pretrained_lr_scale: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW with a lower learning rate for pretrained parameters; biases and norms have no weight decay.

    The groups are made from the parameters themselves, so that wrapping the module in DDP changes nothing. (The
    original, train_concap.py, removes 12 characters of each name, which is only correct for names in a DDP wrapper.)
    The betas are the original's.
    """
    pretrained_set = set(pretrained)
    decaying = {p for p in module.parameters() if p.requires_grad and p.ndim > 1}
    groups: list[dict[str, Any]] = []
    for lr_scale, is_in_set in (
        (1.0, lambda p: p not in pretrained_set),
        (pretrained_lr_scale, lambda p: p in pretrained_set),
    ):
        for decay, has_decay in ((weight_decay, lambda p: p in decaying), (0.0, lambda p: p not in decaying)):
            parameters = [p for p in module.parameters() if p.requires_grad and is_in_set(p) and has_decay(p)]
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "lr_scale": lr_scale})
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def make_linear_schedule(learning_rate: float, steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Linear warmup and linear decay to 0: learning rate by step (BERT; ViLBERT, section 3.2).

    Step k of the warmup uses (k + 1) / warmup_steps of the learning rate, so that the first step is not 0.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must lie between 0 and steps ({steps})")

    def compute_learning_rate(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step + 1) / warmup_steps
        return learning_rate * max(0.0, (steps - step) / max(1, steps - warmup_steps))

    return compute_learning_rate


def make_cosine_schedule(
    learning_rate: float, steps: int, warmup_steps: int = 0, min_lr_ratio: float = 1.0
) -> Callable[[int], float]:
    """Linear warmup and cosine decay to a fraction of the learning rate: learning rate by step.

    The default is the paper's: constant.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must lie between 0 and steps ({steps})")
    check_number("min_lr_ratio", min_lr_ratio, 0, 1)

    def compute_learning_rate(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return learning_rate * (min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2)

    return compute_learning_rate
