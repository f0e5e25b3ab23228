"""The number of compute threads of a training run on a CPU, chosen by timing a few steps before the first one.

Threads wait for each other at the end of every operation, which a small network can lose more time to than a further
thread saves. The timed steps use a copy of the objective and leave the random state as it was, so that training has
the same bits as with the same number passed as `threads`. Another number may round differently: the run's config
records it, and a resumed run keeps it.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from comodal.data.batch import Batch
from comodal.hardware import Compute

MIN_STEPS = 200  # of the run; for fewer the choice is not worth its time
MAX_STEP_SECONDS = 0.5  # longer steps have large operations, for which waiting does not matter
WARMUP_SECONDS = 1.0  # in which data workers fill their queues, too
TIMED_STEPS = 5  # of each number
MIN_GAIN = 1.05  # of fewer threads


def choose_thread_count(time_step: Callable[[int], float], most: int) -> tuple[int, dict[int, float]]:
    """Halves the number of threads as long as that makes steps faster by 5 %, with both timed in turn.

    Args:
        time_step: Runs a step with a number of threads, and returns its seconds.
        most: The largest number.

    Returns:
        The number, and the median seconds of a step by number; empty if a step is too long for it to matter.
    """
    warmed_up = 0.0
    while warmed_up < WARMUP_SECONDS:
        seconds = time_step(most)
        if seconds > MAX_STEP_SECONDS:
            return most, {}
        warmed_up += seconds
    best, medians = most, dict[int, float]()
    while best > 1:
        fewer = best // 2
        time_step(fewer)
        trials = [(time_step(best), time_step(fewer)) for _ in range(TIMED_STEPS)]
        medians[best], medians[fewer] = (statistics.median(column) for column in zip(*trials, strict=True))
        if medians[fewer] * MIN_GAIN > medians[best]:
            break
        best = fewer
    return best, medians


def make_step_timer(objective: nn.Module, batch: Batch, compute: Compute) -> Callable[[int], float]:
    """A function that sets the number of threads, computes loss and gradients of a copy, and returns the seconds."""
    copied = copy.deepcopy(objective).train()

    def time_step(threads: int) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with torch.random.fork_rng([]):
            with compute.autocast():
                loss = copied(batch)["loss"]
            loss.backward()
        copied.zero_grad()
        return time.perf_counter() - started

    return time_step


def describe_thread_choice(threads: int, medians: dict[int, float]) -> str:
    """The choice as a sentence without a period."""
    timed = ", ".join(f"{count} take {1000 * seconds:.3g} ms a step" for count, seconds in medians.items())
    return f"{threads} compute thread{'s' if threads > 1 else ''}, chosen by timing: {timed}"
