"""Distributed training with torchrun: process group, ranks and reductions.

Every function also works in a single process, so that callers need not distinguish the two cases.
"""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from comodal.hardware import find_device

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # long enough for a validation or a checkpoint on one process


def init_distributed(device: str) -> torch.device:
    """Joins the process group of torchrun, if there is one, and returns this process's device.

    Args:
        device: "cpu", "cuda", "mps", or "auto": a GPU if there is one.
    """
    chosen = find_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else chosen
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return chosen


def shut_down_distributed() -> None:
    """Leaves the process group of `init_distributed`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process has rank 0, which writes files and messages."""
    return get_process_rank() == 0


def wait_for_processes() -> None:
    """Waits until every process has reached this barrier."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Sums values by name over all processes."""
    if not dist.is_initialized():
        return values
    total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(sorted(values), total.tolist(), strict=True))


def all_reduce_mean(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Averages values by name over all processes."""
    return {name: value / count_processes() for name, value in all_reduce_sum(values, device).items()}


def all_reduce_max(value: float, device: torch.device) -> float:
    """Returns the maximum of a value over all processes."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def all_gather_items(values: tuple[T, ...]) -> tuple[T, ...]:
    """Gathers the picklable values of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return values
    parts: list[tuple[T, ...]] = [()] * count_processes()
    dist.all_gather_object(parts, values)
    return tuple(value for part in parts for value in part)


class GatherRows(torch.autograd.Function):
    """The rows of all processes, in the order of their ranks. The gradient is that of the sum of all losses."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(count_processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.narrow(0, get_process_rank() * ctx.num_rows, ctx.num_rows)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Gathers the rows of all processes in the order of their ranks, with gradients; every process has as many rows.

    The gradient is summed over the losses of all processes. Where every process computes the same loss of the gathered
    rows, the mean over processes, which `DistributedDataParallel` takes, is the gradient of that loss.
    """
    if count_processes() == 1:
        return rows
    gathered: Tensor = GatherRows.apply(rows.contiguous())
    return gathered
