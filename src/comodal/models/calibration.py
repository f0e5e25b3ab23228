"""Batch normalisation of a network that was never trained: its statistics from unlabeled inputs.

A fresh batch norm has a running mean of 0 and a variance of 1, whatever its inputs are. As a control such a network is
weaker than random weights alone make it: its channels are not centered, so that many ReLUs are always on or always off.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CALIBRATION_BATCH_SIZE = 32


@torch.no_grad()
def calibrate_batch_norms(module: nn.Module, forward: Callable[..., object], *inputs: Tensor) -> None:
    """Sets the running mean and variance of the batch norms of a module; no weight changes.

    Each norm gets the mean over the batches of the batches' mean and variance, and normalizes by its batch meanwhile
    (as `torch.optim.swa_utils.update_bn` does). The module is in evaluation mode afterwards.

    Args:
        module: Whose norms are set.
        forward: Runs the norms that matter: the module, or a method of the model that it is a part of.
        inputs: The arguments of `forward`, batch first. A batch has items from all over, so order does not matter much.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    batches = max(1, len(inputs[0]) // CALIBRATION_BATCH_SIZE)
    for start in range(batches):
        forward(*(each[start::batches] for each in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
