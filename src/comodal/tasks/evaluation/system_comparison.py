"""Compares the predictions of several systems for the same items: a table, flat metrics, and a confusion matrix.

A score is always reported with its baselines.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.console import Table, escape_plot_text
from comodal.files import write_bytes_atomically
from comodal.tasks.evaluation.metrics import (
    compute_accuracy,
    compute_bootstrap_interval,
    compute_per_class,
    count_confusions,
    describe_intervals,
)

MAX_NAMED_CLASSES = 100  # with more classes, the names are not shown
CLASSIFICATION_TASKS = {"vision": "image classification", "audio": "audio classification"}  # by `Comparison.task`
SYSTEM_TITLES = {
    "trained": "trained network",
    "untrained": "untrained network",
    "fine_tuned": "fine-tuned network",
    "pixels": "raw pixels",
    "spectrogram": "raw spectrogram",
    "log_mel": "log-mel statistics",
}


@dataclass(frozen=True)
class Comparison:
    """The predictions of each system for each item; the probe that predicted item i was not fitted on fold `folds[i]`.

    `groups` has the group of each item (its recording), and `grouped_by` names the groups; without it, items are
    independent.
    """

    task: str
    title: str
    items: tuple[str, ...]
    classes: tuple[str, ...]
    truth: Int[np.ndarray, " items"]
    folds: Int[np.ndarray, " items"]
    predictions: dict[str, Int[np.ndarray, " items"]]
    c_values: dict[str, dict[int, float]]
    groups: tuple[str, ...] = ()
    grouped_by: str = "recordings"

    def describe_intervals(self, metrics: Mapping[str, float]) -> str | None:
        """A description of how the intervals in `metrics` were computed, if there are any."""
        return describe_intervals(metrics, self.groups or self.items, self.grouped_by)

    def compute_metrics(self) -> dict[str, float]:
        """Flat keys: `task.system`, its folds, the std over the folds, and a 95 % interval over the items."""
        flat: dict[str, float] = {}
        folds = np.unique(self.folds)
        for system, predicted in self.predictions.items():
            key = f"{self.task}.{system}"
            by_fold = [
                compute_accuracy(predicted[self.folds == fold], self.truth[self.folds == fold]) for fold in folds
            ]
            flat[key] = float(np.mean(by_fold))
            if len(folds) > 1:
                flat |= {f"{key}.fold{fold}": accuracy for fold, accuracy in zip(folds, by_fold, strict=True)}
                flat[f"{key}.std"] = float(np.std(by_fold, ddof=1))
            is_correct, groups = predicted == self.truth, self.groups or self.items
            low, high = compute_bootstrap_interval(is_correct, np.random.default_rng(0), groups=groups)
            flat |= {f"{key}.low": low, f"{key}.high": high}
            flat |= {f"{key}.C{fold}": C for fold, C in self.c_values[system].items()}
        flat[f"{self.task}.chance_level"] = float(np.bincount(self.truth).max() / len(self.truth))
        flat[f"{self.task}.items"] = float(len(self.truth))
        flat[f"{self.task}.classes"] = float(len(self.classes))
        return flat

    def print_table(self) -> None:
        """Prints the accuracy of each system, its folds, and the recall of each class unless there are too many."""
        metrics = self.compute_metrics()
        folds = [int(fold) for fold in np.unique(self.folds)]
        chance_level = metrics[f"{self.task}.chance_level"]
        about = (
            f"{len(self.items)} items; largest class (chance level): {chance_level:.3f}; 95 %: "
            f"{self.describe_intervals(metrics)}"
        )
        table = Table("system", "accuracy", "95 %", title=self.title, caption=about)
        if len(folds) > 1:
            table.add_column("std")
            table.add_column("folds " + " ".join(map(str, folds)))
        for system in self.predictions:
            key = f"{self.task}.{system}"
            cells = [system, f"{metrics[key]:.4f}", f"{metrics[f'{key}.low']:.3f}-{metrics[f'{key}.high']:.3f}"]
            if len(folds) > 1:
                fold_accuracies = " ".join(f"{metrics[f'{key}.fold{fold}']:.2f}" for fold in folds)
                cells += [f"{metrics[f'{key}.std']:.3f}", fold_accuracies]
            table.add_row(*cells)
        table.show()
        if len(self.classes) <= MAX_NAMED_CLASSES:
            self.print_classes()

    def print_classes(self) -> None:
        """Prints the recall of each class for each system."""
        table = Table(title="recall of each class")
        table.add_column("class")
        table.add_column("items", right=True)
        columns = []
        for system in self.predictions:
            table.add_column(system, right=True)
            columns.append(compute_per_class(self.compute_confusion(system)))
        for index, name in enumerate(self.classes):
            recalls = [f"{column.recall[index]:.3f}" for column in columns]
            table.add_row(name, str(columns[0].counts[index]), *recalls)
        table.show()

    def format_class_table(self) -> str:
        """A table of classes: number of items, and for each system recall, precision and the most frequent error."""
        text = io.StringIO()
        rows = csv.writer(text)
        columns = [
            f"{name} {column}" for name in self.predictions for column in ("recall", "precision", "confused with")
        ]
        rows.writerow(["class", "items", *columns])
        matrices = {name: self.compute_confusion(name) for name in self.predictions}
        per_class = {name: compute_per_class(matrix) for name, matrix in matrices.items()}
        counts = np.bincount(self.truth, minlength=len(self.classes))
        for index, category in enumerate(self.classes):
            cells: list[object] = [category, int(counts[index])]
            for name, matrix in matrices.items():
                errors = matrix[index].copy()
                errors[index] = 0
                confused_class = self.classes[int(errors.argmax())] if errors.any() else ""
                class_scores = per_class[name]
                cells += [f"{class_scores.recall[index]:.4f}", f"{class_scores.precision[index]:.4f}", confused_class]
            rows.writerow(cells)
        return text.getvalue()

    def compute_confusion(self, system: str) -> Int[np.ndarray, "classes classes"]:
        """Counts: a row for each true class, a column for each predicted class."""
        return count_confusions(self.predictions[system], self.truth, len(self.classes))

    def write_files(self, out: Path, metrics: dict[str, float]) -> None:
        """Writes results.json (flat), predictions.csv (one row per item), classes.csv and confusion.png into `out`."""
        write_bytes_atomically(out / "results.json", (json.dumps(metrics, indent=2) + "\n").encode())
        write_bytes_atomically(out / "classes.csv", self.format_class_table().encode("utf-8", "backslashreplace"))
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["item", "fold", "truth", *self.predictions])
        for index, item in enumerate(self.items):
            predicted = [self.classes[classes[index]] for classes in self.predictions.values()]
            rows.writerow([item, self.folds[index], self.classes[self.truth[index]], *predicted])
        write_bytes_atomically(out / "predictions.csv", text.getvalue().encode("utf-8", "backslashreplace"))
        png = io.BytesIO()
        self.draw_confusion(next(iter(self.predictions))).savefig(png, format="png", dpi=110)
        write_bytes_atomically(out / "confusion.png", png.getvalue())

    def draw_confusion(self, system: str) -> Figure:
        """The confusion matrix of one system, each row normalized by its true class."""
        confusion = self.compute_confusion(system)
        fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        side = 2.2 + 0.34 * min(len(self.classes), 50)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.imshow(fractions, cmap="Blues", vmin=0.0, vmax=1.0)
        if len(self.classes) <= MAX_NAMED_CLASSES:
            labels = [*map(escape_plot_text, self.classes)]
            axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
            axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_title(
            f"{CLASSIFICATION_TASKS.get(self.task, self.task)}: {SYSTEM_TITLES.get(system, system)}", fontsize=10
        )
        for row, column in zip(*np.nonzero(confusion), strict=True) if len(self.classes) <= 20 else ():
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=color)
        figure.colorbar(image, shrink=0.7, label="fraction of the true class")
        return figure
