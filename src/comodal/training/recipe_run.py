"""What a recipe returns: objective, batches, optimizer, learning rate and number of steps (contract 4)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from comodal.data.loader import Loader


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
    files: Mapping[str, bytes | Path] = field(default_factory=dict)  # files that inference needs besides the weights
    resolved: Mapping[str, Any] = field(default_factory=dict)  # the variant's values of parameters that were None
    validate_every: int = 500  # unless the trainer's option is set
    chosen_by: str = ""  # validation metric that selects the best weights as the model
