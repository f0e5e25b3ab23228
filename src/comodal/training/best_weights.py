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
        selection: Step of the best weights, and their metric.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.selection: dict[str, Any] = {}
        if metric and (folder / MODEL_CONFIG_FILE).is_file():
            chosen = read_model_about(folder).get("best_checkpoint")
            self.selection = chosen if isinstance(chosen, dict) else {}

    def save_if_better(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the weights if they are better than the best so far."""
        if self.metric and metrics[self.metric] > self.selection.get(self.metric, -math.inf):
            self.selection = {"step": step, self.metric: metrics[self.metric]}
            save_model(model, self.folder, {"best_checkpoint": self.selection})

    def format_note(self) -> str:
        """Describes the best weights for messages."""
        if not self.selection:
            return ""
        return (
            f", of step {self.selection['step']:,}, {self.metric} {self.selection[self.metric]:.3f} on held-out "
            f"examples"
        )
