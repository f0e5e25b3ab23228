"""The options of training: gradient accumulation, compilation, memory layout, logging, validation and checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from comodal.errors import MAX_THREADS, check_number
from comodal.hardware import Compute, choose_training_layout, count_cores, is_thread_count_free, resolve_threads
from comodal.training.recipe_run import Run


@dataclass(frozen=True)
class TrainingOptions:
    """How a recipe is trained.

    Args:
        accumulate: Gradient accumulation: split each process's part of a batch into so many.
        compile: Use torch.compile; auto uses it on CUDA only, since it is slower on a CPU.
        memory_layout: Memory format of convolution weights; auto takes the fastest, and a resumed run keeps its own.
        log_every: Steps between two lines of the log, which hold means; a GPU is only synchronized then.
        validate_every: Steps between two validations; by default the variant's, 500 or, for small ones, 250.
        checkpoint_minutes: Minutes between two checkpoints; a last one is always written at the end.
        threads: Compute threads; by default one for each idle core, or fewer if timed steps are faster so. Their number
            may change the last bits; a resumed run keeps its own.
    """

    accumulate: int = 1
    compile: Literal["auto", "on", "off"] = "auto"
    memory_layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    log_every: int = 10
    validate_every: int | None = None
    checkpoint_minutes: float = 10.0
    threads: int | None = None

    def check(self) -> None:
        """Raises ValueError if a number is out of range."""
        check_number("checkpoint_minutes", self.checkpoint_minutes, 0, math.inf)
        check_number("threads", 1 if self.threads is None else self.threads, 1, MAX_THREADS)
        for name in ("accumulate", "log_every", "validate_every"):
            count = getattr(self, name)
            check_number(name, 1 if count is None else count, 1, math.inf)

    def list_settings(self) -> dict[str, Any]:
        """The options that a run folder records."""
        return dict(vars(self))


def choose_first_threads(threads: int | None, started: Mapping[str, Any]) -> tuple[int, bool]:
    """The number of compute threads to start with, and whether timed steps may choose fewer.

    Args:
        threads: Their number if it is given.
        started: The config of a resumed run, whose number is kept where there are as many cores.
    """
    recorded = started.get("threads")
    if is_thread_count_free(threads) and isinstance(recorded, int) and recorded > 0:
        return min(recorded, count_cores()), False
    return resolve_threads(threads), is_thread_count_free(threads)


def resolve_options(
    options: TrainingOptions, run: Run, compute: Compute, started: Mapping[str, Any]
) -> TrainingOptions:
    """The options with the run's interval of validation and the memory layout of its start or of this machine."""
    layout = options.memory_layout
    if layout == "auto":
        default = choose_training_layout(compute, run.objective)
        layout = started.get("memory_layout", "channels_last") if started else default
    validate_every = run.validate_every if options.validate_every is None else options.validate_every
    return replace(options, memory_layout=layout, validate_every=validate_every)
