"""Selection of the best weights of a run by a validation metric, for recipes that use one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from comodal.models.checkpoint import MODEL_CONFIG_FILE, read_model_about, save_model


class BestWeights:
    """Keeps the weights with the best validation metric in their own folder; the first of equal ones.

    Args:
        folder: Folder of the weights.
        metric: Metric to compare, where higher is better; nothing is kept if it is empty.

    Attributes:
        found: Step of the best weights, and their metric.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.found: dict[str, Any] = {}
        if metric and (folder / MODEL_CONFIG_FILE).is_file():
            chosen = read_model_about(folder).get("chosen")
            self.found = chosen if isinstance(chosen, dict) else {}

    def offer(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the weights if they are better than the best so far."""
        if self.metric and metrics[self.metric] > self.found.get(self.metric, -math.inf):
            self.found = {"step": step, self.metric: metrics[self.metric]}
            save_model(model, self.folder, {"chosen": self.found})

    def told(self) -> str:
        """Describes the best weights for messages."""
        if not self.found:
            return ""
        return f", of step {self.found['step']:,}, {self.metric} {self.found[self.metric]:.3f} on held-out examples"
