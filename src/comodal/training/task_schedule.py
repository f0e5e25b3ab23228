"""Which task is trained next when several tasks share a network (12-in-1, section 3.3): round-robin, stop-and-go.

A task stops when its validation score has not improved, and is then trained in every fourth round only. It goes on when
its score has fallen. Rule and thresholds are those of facebookresearch/vilbert-multi-task (`MultiTaskStopOnPlateau`,
`train_tasks.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from comodal.data.batch import Batch
from comodal.data.loader import CPU, Loader

IMPROVEMENT = 0.001  # relative, above the best score
DECLINE = 0.005  # relative, below the best score
PATIENCE = 1  # validations in a row without improvement that a task may have
COOLDOWN = 1  # validations after a stop or a start that are not counted
STOPPED_GAP = 4  # a stopped task is trained in every fourth round


@dataclass
class TaskState:
    """The progress of one task: steps, best validation score, and whether it is stopped."""

    steps: int = 0
    best: float = -math.inf
    bad_validations: int = 0
    cooldown: int = 0
    is_stopped: bool = False

    def update(self, score: float) -> None:
        """Takes a validation score, where higher is better."""
        if score > self.best * (1 + IMPROVEMENT):
            self.best, self.bad_validations = score, 0
        else:
            self.bad_validations += 1
        if self.cooldown > 0:
            self.cooldown -= 1
            self.bad_validations = 0
        if self.bad_validations > PATIENCE:
            self.is_stopped, self.cooldown, self.bad_validations = True, COOLDOWN, 0
        elif self.is_stopped and score < self.best * (1 - DECLINE):
            self.is_stopped, self.cooldown, self.bad_validations = False, COOLDOWN, 0


class TaskSchedule(nn.Module):
    """The order of the tasks. Its state is part of the state dict, so that a run resumes at the same task.

    Args:
        tasks: Names of the tasks, in the order of a round.
        is_dynamic: Whether tasks stop and go; otherwise every round has all tasks.
    """

    def __init__(self, tasks: Sequence[str], is_dynamic: bool = True) -> None:
        super().__init__()
        self.tasks, self.is_dynamic = tuple(tasks), is_dynamic
        self.states = [TaskState() for _ in tasks]
        self.round, self.position = 0, 0

    def choose_next(self) -> int:
        """The index of the task of the next step."""
        while True:
            task, state = self.position, self.states[self.position]
            is_trained = not state.is_stopped or self.round % STOPPED_GAP == 0
            self.position = (self.position + 1) % len(self.tasks)
            self.round += self.position == 0
            if is_trained:
                state.steps += 1
                return task

    def update(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a validation: `TASK_accuracy` of each task that has validation examples."""
        for name, state in zip(self.tasks, self.states, strict=True):
            if self.is_dynamic and f"{name}_accuracy" in metrics:
                state.update(metrics[f"{name}_accuracy"])

    def get_extra_state(self) -> dict[str, Any]:
        """The state, as numbers."""
        return {"round": self.round, "position": self.position, "states": [dict(vars(state)) for state in self.states]}

    def set_extra_state(self, state: Any) -> None:
        """Takes a state of `get_extra_state`."""
        self.round, self.position = state["round"], state["position"]
        self.states = [TaskState(**values) for values in state["states"]]


@dataclass(frozen=True)
class JointBatch:
    """The batch of one task."""

    task: int
    batch: Batch

    @property
    def keys(self) -> tuple[str, ...]:
        return self.batch.keys

    def to(self, device: torch.device) -> "JointBatch":
        """The same batch on a device."""
        return JointBatch(self.task, self.batch.to(device))


class JointSamples:
    """The samples of all tasks, which only have a number."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.count = sum(len(loader.samples) for loader in loaders)

    def __len__(self) -> int:
        return self.count

    def batch(self, positions: Sequence[tuple[int, int]]) -> Batch:
        """Not available: a batch is of one task."""
        raise NotImplementedError("a joint loader draws from the loaders of its tasks")


class JointLoader(Loader):
    """Batches of several tasks: without a length, one task a step as the schedule chooses; else all tasks in turn.

    Args:
        loaders: The batches of each task.
        schedule: Chooses the task of a step. It continues where it is, whatever number of samples is done. Without it,
            the loaders must end: each is read once, one after another (validation).
    """

    def __init__(self, loaders: Sequence[Loader | None], schedule: TaskSchedule | None) -> None:
        self.loaders, self.schedule = list(loaders), schedule
        present = [loader for loader in loaders if loader is not None]
        batch_size = max(loader.batch_size for loader in present)
        super().__init__(JointSamples(present), batch_size, 0)

    def iterate_batches(
        self, samples_done: int = 0, parts: int = 1, device: torch.device = CPU  # noqa: ARG002
    ) -> Iterator[Batch]:  # fmt: skip
        """The batches; `parts` in a row are of one step, and so of one task."""
        if self.schedule is None:
            for task, loader in enumerate(self.loaders):
                if loader is not None:
                    for batch in loader.iterate_batches(0, parts, device):
                        yield JointBatch(task, batch)
            return
        streams: dict[int, Iterator[Batch]] = {}
        while True:
            task = self.schedule.choose_next()
            loader = self.loaders[task]
            assert loader is not None
            if task not in streams:
                done = (self.schedule.states[task].steps - 1) * loader.batch_size
                streams[task] = loader.iterate_batches(done, parts, device)
            for _ in range(parts):
                yield JointBatch(task, next(streams[task]))
