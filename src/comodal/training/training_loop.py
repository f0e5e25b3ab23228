"""The training loop, for any objective and any batches.

An objective is a module that turns a batch into a dict with "loss"; the other entries are metrics.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comodal import distributed
from comodal.data.batch import Batch, Tensors
from comodal.hardware import Compute


class NotFiniteError(FloatingPointError):
    """A loss or a gradient is not finite; `keys` are the keys of the step's samples on this process."""

    def __init__(self, step: int, loss: float, norm: float, keys: tuple[str, ...]) -> None:
        super().__init__(f"at step {step} the loss is {loss} and the norm of its gradient {norm}")
        self.step = step
        self.keys = keys


class PendingMetrics:
    """Metrics of steps that are still on the device, and the keys of those steps' samples."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Tensor], tuple[str, ...]]] = []

    def add(self, step: int, metrics: dict[str, Tensor], keys: tuple[str, ...]) -> None:
        self.steps.append((step, metrics, keys))

    def read(self) -> list[dict[str, float]]:
        """Copies the metrics of all these steps at once, which is the only synchronization with the device.

        Raises:
            NotFiniteError: Raised for the first step whose loss or gradient is not finite.
        """
        steps, self.steps = self.steps, []
        rows = torch.stack([torch.stack(list(metrics.values())) for _, metrics, _ in steps]).cpu().tolist()
        read = [dict(zip(metrics, row, strict=True)) for (_, metrics, _), row in zip(steps, rows, strict=True)]
        for (step, _, keys), values in zip(steps, read, strict=True):
            if not math.isfinite(values["loss"] + values["gradient_norm"]):
                raise NotFiniteError(step, values["loss"], values["gradient_norm"], keys)
        return read


def is_always_read(_step: int) -> bool:
    return True


def train_steps(
    objective: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    steps: range,
    compute: Compute,
    parts: int = 1,
    reads_metrics: Callable[[int], bool] = is_always_read,
) -> Iterator[list[dict[str, float]]]:
    """Trains, and yields the metrics of the steps since the last yield.

    On a CPU it yields after each step, and a step whose loss is not finite changes no weight. On other devices it
    yields after the steps that `reads_metrics` selects. The host never waits for the device, and a loss that is
    not finite is only detected at the next yield.

    Args:
        objective: The objective to minimize.
        batches: `parts` of them make one step; their gradients are averaged.
        optimizer: Optimizer of the objective's parameters.
        learning_rate: Learning rate by step; a parameter group with an `lr_scale` scales it by that.
        steps: Indices of the steps to run.
        compute: Device and precision.
        parts: Batches in a step (gradient accumulation).
        reads_metrics: Whether metrics are read after a step; the last step should be selected.

    Raises:
        NotFiniteError: The loss or the norm of its gradient is infinite or not a number.
    """
    pending, on_device = PendingMetrics(), copy_to_device(batches, compute.device)
    for step in steps:
        objective.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) * group.get("lr_scale", 1.0)
        losses: list[dict[str, Tensor]] = []
        keys: tuple[str, ...] = ()
        for part, batch in enumerate(islice(on_device, parts), start=1):
            with defer_gradient_sync(objective, part == parts), compute.autocast():
                metrics = objective(batch)
            (metrics["loss"] / parts).backward()
            losses.append({name: value.detach().float() for name, value in metrics.items()})
            keys += batch.keys
        means = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        means["gradient_norm"] = compute_gradient_norm(objective)
        pending.add(step, means, keys)
        read = pending.read() if compute.device.type == "cpu" else []
        optimizer.step()
        optimizer.zero_grad()
        if compute.device.type != "cpu" and reads_metrics(step + 1):
            read = pending.read()
        if read:
            yield read


def compute_gradient_norm(objective: nn.Module) -> Float[Tensor, ""]:
    """The norm of the gradient of all parameters."""
    return nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None])


def copy_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies batches to a device. On a GPU the copy overlaps the computation of the previous step."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None
    for batch in batches:
        if stream is None or not isinstance(batch, Tensors):
            yield batch.to(device)
            continue
        with torch.cuda.stream(stream):
            moved = batch.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        moved.record_stream(computing)
        yield moved


def defer_gradient_sync(objective: nn.Module, now: bool) -> AbstractContextManager:
    """Averages gradients over processes only in the last part of a step."""
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) and not now else nullcontext()


@torch.no_grad()
def validate_objective(objective: nn.Module, batches: Iterable[Batch], compute: Compute) -> dict[str, float]:
    """Returns the mean of each metric over the samples of the batches of all processes that have it.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    objective.eval()
    batch_metrics: list[tuple[int, dict[str, Tensor]]] = []
    for batch in copy_to_device(iter(batches), compute.device):
        with compute.autocast():
            batch_metrics.append((len(batch.keys), {name: value.float() for name, value in objective(batch).items()}))
    totals: dict[str, float] = {}
    rows = [torch.stack(list(metrics.values())) for _, metrics in batch_metrics]
    for (count, metrics), row in zip(batch_metrics, torch.stack(rows).cpu().tolist() if rows else [], strict=True):
        for name, value in zip(metrics, row, strict=True):
            totals[name] = totals.get(name, 0.0) + value * count
            totals[f"{name} samples"] = totals.get(f"{name} samples", 0.0) + count
    totals = distributed.all_reduce_sum(totals, compute.device)
    means = {name: total / totals[f"{name} samples"] for name, total in totals.items() if f"{name} samples" in totals}
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(f"the validation loss is {means['loss']}; a lower --learning-rate may help")
    return means
