"""The best weights of a run, where its recipe chooses by held-out examples."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from comodal.models.checkpoint import MODEL_CONFIG_FILE, read_model_about, save_model


class BestWeights:
    """The weights that did best on held-out examples, in a folder of their own; of equals the first.

    Args:
        folder: Where they lie.
        metric: What is compared, the higher the better; nothing is kept where it is empty.

    Attributes:
        found: The step that they are of, and what they reached.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.found: dict[str, Any] = {}
        if metric and (folder / MODEL_CONFIG_FILE).is_file():
            chosen = read_model_about(folder).get("chosen")
            self.found = chosen if isinstance(chosen, dict) else {}

    def offer(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the weights if they are better than those before."""
        if self.metric and metrics[self.metric] > self.found.get(self.metric, -math.inf):
            self.found = {"step": step, self.metric: metrics[self.metric]}
            save_model(model, self.folder, {"chosen": self.found})

    def told(self) -> str:
        """For people."""
        if not self.found:
            return ""
        return f", of step {self.found['step']:,}, {self.metric} {self.found[self.metric]:.3f} on held-out examples"
