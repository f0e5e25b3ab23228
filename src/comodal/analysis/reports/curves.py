"""Curves of a run: loss and accuracy by step, training and validation."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SPLIT_COLORS = {"train": "#9db4cc", "validation": "#c2410c"}
SMOOTHED_COLOR = "#3b6ea5"


def draw_curves(lines: list[dict], chance_level: float | None = 0.5) -> Figure:
    """Loss and accuracy of a run's log (`metrics.jsonl`).

    Args:
        lines: one for each entry: step, split, loss, accuracy.
        chance_level: chance level of the accuracy; it is drawn dotted, with its loss. None if it is not a single value.
    """
    figure = Figure(figsize=(10.0, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    levels = (None, None) if chance_level is None else (-float(np.log(chance_level)), chance_level)
    for axes, name, level in zip((loss, accuracy), ("loss", "accuracy"), levels, strict=True):
        for split in SPLIT_COLORS:
            draw_split_curve(axes, lines, split, name)
        if level is not None:
            axes.axhline(level, color="#999999", linestyle=":", linewidth=1.0, label="chance level")
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    accuracy.set_ylim(None, 1.01)
    return figure


def draw_task_accuracies(lines: list[dict], tasks: dict[str, str]) -> Figure:
    """Accuracy of several tasks (`NAME_accuracy` of the log), side by side.

    Args:
        lines: one for each entry.
        tasks: the title of each name.
    """
    figure = Figure(figsize=(10.0, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        for split in SPLIT_COLORS:
            draw_split_curve(axes, lines, split, f"{name}_accuracy")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1.01)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_split_curve(axes: Axes, lines: list[dict], split: str, name: str) -> None:
    """Draws one curve; training metrics are smoothed by a running mean."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
    if not points:
        return
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if split == "validation":
        axes.plot(steps, values, color=SPLIT_COLORS[split], marker="o", markersize=3, linewidth=1.6, label=split)
        return
    axes.plot(steps, values, color=SPLIT_COLORS[split], linewidth=0.7, alpha=0.7)
    span = max(1, len(values) // 40)
    mean = np.convolve(np.pad(values, (span // 2, span - 1 - span // 2), mode="edge"), np.ones(span) / span, "valid")
    axes.plot(steps, mean, color=SMOOTHED_COLOR, linewidth=1.6, label=split)
