"""The loop: any objective, any batches.

An objective is a module that turns a batch into a dict with "loss"; the other entries are only reported.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comodal import distributed
from comodal.data.batch import Batch
from comodal.hardware import Compute


class NotFiniteError(FloatingPointError):
    """A loss or a gradient that is not a finite number; `keys` are those of the step's samples on this process."""

    def __init__(self, step: int, loss: float, norm: float, keys: tuple[str, ...]) -> None:
        super().__init__(f"at step {step} the loss is {loss} and the norm of its gradient {norm}")
        self.step = step
        self.keys = keys


def fit(
    objective: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    steps: range,
    compute: Compute,
    parts: int = 1,
    clip_norm: float = float("inf"),
) -> Iterator[dict[str, float]]:
    """Trains, and yields the metrics of each step when its weights are updated.

    Args:
        objective: What to minimise.
        batches: `parts` of them are one step; their gradients are averaged.
        optimizer: Over the parameters of the objective.
        learning_rate: Of each step; a group of parameters takes its `share_of_rate` of it, if it has one.
        steps: The numbers of the steps to do.
        compute: Where and how to compute.
        parts: Batches in a step.
        clip_norm: Gradients with a larger norm are scaled down to it.

    Raises:
        NotFiniteError: The loss or the norm of its gradient is infinite or not a number.
    """
    for step in steps:
        objective.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) * group.get("share_of_rate", 1.0)
        losses: list[dict[str, Tensor]] = []
        keys: tuple[str, ...] = ()
        for part, batch in enumerate(islice(batches, parts), start=1):
            with synchronised(objective, part == parts), compute.autocast():
                metrics = objective(batch.to(compute.device))
            (metrics["loss"] / parts).backward()
            losses.append({name: value.detach().float() for name, value in metrics.items()})
            keys += batch.keys
        means = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        means["gradient_norm"] = nn.utils.clip_grad_norm_(objective.parameters(), clip_norm)
        values = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise NotFiniteError(step, values["loss"], values["gradient_norm"], keys)
        optimizer.step()
        optimizer.zero_grad()
        yield values


def synchronised(objective: nn.Module, now: bool) -> AbstractContextManager:
    """Lets the processes average their gradients in the last part of a step alone."""
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) and not now else nullcontext()


@torch.no_grad()
def validate(objective: nn.Module, batches: Iterable[Batch], compute: Compute) -> dict[str, float]:
    """The mean of each metric over the samples of the batches of all processes.

    Raises:
        FloatingPointError: The loss is not finite, so that no other metric means anything.
    """
    objective.eval()
    totals: dict[str, float] = {}
    for batch in batches:
        with compute.autocast():
            metrics = objective(batch.to(compute.device)) | {"samples": torch.tensor(1.0)}
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value.item() * len(batch.keys)
    totals = distributed.all_reduce_sum(totals, compute.device)
    samples = totals.pop("samples")
    if not math.isfinite(totals["loss"]):
        raise FloatingPointError(f"the validation loss is {totals['loss']}; a lower --learning-rate may help")
    return {name: total / samples for name, total in totals.items()}
