"""Calibration of the batch norms of an untrained network on unlabeled inputs.

A new batch norm has a running mean of 0 and a variance of 1, whatever its inputs are. Without calibration an untrained
baseline is weaker than its random weights alone make it: its channels are not centered, so that many ReLUs are always
or never active.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CALIBRATION_BATCH_SIZE = 32


@torch.no_grad()
def calibrate_batch_norms(module: nn.Module, forward: Callable[..., object], *inputs: Tensor) -> None:
    """Sets the running mean and variance of the batch norms of a module; no weight changes.

    Each norm gets the mean of the batches' means and variances, and normalizes by its batch in the meantime (as
    `torch.optim.swa_utils.update_bn` does). The module is in evaluation mode afterwards.

    Args:
        module: Module whose batch norms are set.
        forward: Runs the norms: the module, or a method of the model that contains it.
        inputs: Arguments of `forward`, batch first. Each batch should be a random sample of the data.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the unweighted mean over the batches
        norm.train()
    batches = max(1, len(inputs[0]) // CALIBRATION_BATCH_SIZE)
    for start in range(batches):
        forward(*(tensor[start::batches] for tensor in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
