"""What a recipe returns: objective, batches, optimizer, learning rate and number of steps (contract 4).

All recipes that fine-tune a network also take the same options, `FineTuneConfig`. The recipes of pretraining take a
`PretrainingSchedule`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from comodal.data.loader import Loader, Workers
from comodal.errors import check_number
from comodal.training.optimization import MAX_EPOCHS

InitialWeights = Literal["pretrained", "scratch"]


@dataclass(frozen=True)
class FineTuneConfig:
    """The options that all fine-tuning recipes share; a recipe sets the defaults of its task.

    Args:
        start_from: Start from the pretrained weights, or from random initialization (a control).
        epochs: Passes over the training examples.
        batch_size: Examples per step, over all processes.
        learning_rate: Peak learning rate of the pretrained layers.
        workers: Data loading processes; auto: two for a CPU, more for a GPU.
        seed: Seed of the random initialization, the order and random draws.
    """

    start_from: InitialWeights = "pretrained"
    epochs: float = 20.0
    batch_size: int = 256
    learning_rate: float = 4e-5
    workers: Workers = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 0, MAX_EPOCHS)


class VariantDefaults(NamedTuple):
    """The schedule of a variant of a network, for options that are None."""

    steps: int
    batch_size: int
    learning_rate: float
    validate_every: int

    def list_parameters(self) -> dict[str, Any]:
        """The values of the recipe's parameters, which config.yaml has in place of None."""
        return {"steps": self.steps, "batch_size": self.batch_size, "learning_rate": self.learning_rate}


@dataclass(frozen=True)
class PretrainingSchedule:
    """The options of training that depend on the variant of a network; None takes the variant's."""

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None

    def fill(self, defaults: VariantDefaults) -> VariantDefaults:
        """The defaults of a variant, replaced by what is given."""
        return VariantDefaults(
            defaults.steps if self.steps is None else self.steps,
            defaults.batch_size if self.batch_size is None else self.batch_size,
            defaults.learning_rate if self.learning_rate is None else self.learning_rate,
            defaults.validate_every,
        )


@dataclass(frozen=True)
class Run:
    """What a recipe returns: the objective, the data, and the training settings."""

    objective: nn.Module  # keeps the model as `.model`
    batches: Loader
    validation: Loader | None
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    steps: int
    seed: int
    fingerprint: str  # of the data
    dataset: Mapping[str, Any] = field(
        default_factory=dict
    )  # record of the shards' lists, kept in the model's config.json
    excluded: Mapping[str, int] = field(default_factory=dict)  # number of examples that are not used, by reason
    files: Mapping[str, bytes | Path] = field(default_factory=dict)  # files that inference needs besides the weights
    resolved: Mapping[str, Any] = field(default_factory=dict)  # the variant's values of parameters that were None
    validate_every: int = 500  # unless the trainer's option is set
    selection_metric: str = ""  # validation metric that selects the best weights as the model
    on_validation: Callable[[Mapping[str, float]], None] | None = None  # called with the metrics of each validation
    prepare: Callable[[torch.device], None] | None = None  # called on the model's device before the first batch
    has_unused_parameters: bool = False  # whether a step may leave trained parameters without a gradient
