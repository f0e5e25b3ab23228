"""`comodal.evaluate`: runs an evaluation by the name of its task."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comodal.errors import RecipeError
from comodal.flat_parameters import convert_text_to_path
from comodal.registry import TASKS, import_object
from comodal.tasks.evaluation.results_card import CARD_FILE, ScoreEntry, read_card


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    Args:
        task: Name of the task.
        metrics: All numbers by name, such as `esc50.accuracy`; fractions are from 0 to 1.
        card_path: The results card; None without an output folder.
    """

    task: str
    metrics: Mapping[str, float]
    card_path: Path | None

    @property
    def scores(self) -> dict[str, ScoreEntry]:
        """The scores of the results card, with 95 % intervals and the paper's values.

        Raises:
            ValueError: There is no card.
        """
        if self.card_path is None:
            raise ValueError(f"evaluate({self.task!r}, ...) wrote no results card; most tasks write one into `out`")
        return {name: ScoreEntry(**score) for name, score in read_card(self.card_path)["scores"].items()}


def evaluate(task: str, **options: Any) -> EvaluationResult:
    """Evaluates a model on a task, as `comodal evaluate TASK`.

    Args:
        task: Name of the task, such as esc50 or vqa; `comodal list evaluate` lists them.
        options: The options of the command, with underscores: `data`, `model`, `out`, ... Paths may be text.

    Raises:
        RecipeError: There is no such task.
        TypeError: The task has no such option, or a required one is missing.
        ComodalError: The data or the model cannot be read.

    Examples:
        comodal.evaluate("esc50", data="ESC-50", model="runs/l3net", out="results/esc50").scores
    """
    if task not in TASKS:
        raise RecipeError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    function = import_object(TASKS[task].target)
    parameters = inspect.signature(function, eval_str=True).parameters
    options = {
        name: convert_text_to_path(parameters[name].annotation, value) if name in parameters else value
        for name, value in options.items()
    }
    metrics = function(**options)
    out = options.get("out")
    card = Path(out) / CARD_FILE if out is not None else None
    return EvaluationResult(task, metrics, card if card is not None and card.is_file() else None)
