"""Compares the predictions of several systems for the same items: a table, flat numbers, and a confusion matrix.

A score is always reported together with its baselines.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.console import Table
from comodal.files import write_bytes_atomically
from comodal.tasks.evaluation.metrics import (
    compute_accuracy,
    compute_bootstrap_interval,
    compute_per_class,
    count_confusions,
    describe_interval,
)

MAX_NAMED_CLASSES = 100  # with more classes, the names are not shown


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
    answers: dict[str, Int[np.ndarray, " items"]]
    strengths: dict[str, dict[int, float]]
    groups: tuple[str, ...] = ()
    grouped_by: str = "recordings"

    def interval(self) -> str:
        """A description of how the intervals are computed."""
        return describe_interval(self.groups or self.items, self.grouped_by)

    def numbers(self) -> dict[str, float]:
        """Flat keys: `task.system`, its folds, the std over the folds, and a 95 % interval over the items."""
        flat: dict[str, float] = {}
        folds = np.unique(self.folds)
        for system, answers in self.answers.items():
            key = f"{self.task}.{system}"
            by_fold = [compute_accuracy(answers[self.folds == fold], self.truth[self.folds == fold]) for fold in folds]
            flat[key] = float(np.mean(by_fold))
            if len(folds) > 1:
                flat |= {f"{key}.fold{fold}": share for fold, share in zip(folds, by_fold, strict=True)}
                flat[f"{key}.deviation"] = float(np.std(by_fold, ddof=1))
            right, groups = answers == self.truth, self.groups or self.items
            low, high = compute_bootstrap_interval(right, np.random.default_rng(0), groups=groups)
            flat |= {f"{key}.low": low, f"{key}.high": high}
            flat |= {f"{key}.strength{fold}": strength for fold, strength in self.strengths[system].items()}
        flat[f"{self.task}.chance"] = float(np.bincount(self.truth).max() / len(self.truth))
        flat[f"{self.task}.items"] = float(len(self.truth))
        flat[f"{self.task}.classes"] = float(len(self.classes))
        return flat

    def print_table(self) -> None:
        """Prints the accuracy of each system, its folds, and the recall of each class unless there are too many."""
        numbers = self.numbers()
        folds = [int(fold) for fold in np.unique(self.folds)]
        chance = numbers[f"{self.task}.chance"]
        about = f"{len(self.items)} items; always the largest class: {chance:.3f}; 95 %: {self.interval()}"
        table = Table("system", "accuracy", "95 %", title=self.title, caption=about)
        if len(folds) > 1:
            table.add_column("deviation")
            table.add_column("folds " + " ".join(map(str, folds)))
        for system in self.answers:
            key = f"{self.task}.{system}"
            cells = [system, f"{numbers[key]:.4f}", f"{numbers[f'{key}.low']:.3f}-{numbers[f'{key}.high']:.3f}"]
            if len(folds) > 1:
                shares = " ".join(f"{numbers[f'{key}.fold{fold}']:.2f}" for fold in folds)
                cells += [f"{numbers[f'{key}.deviation']:.3f}", shares]
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
        for system in self.answers:
            table.add_column(system, right=True)
            columns.append(compute_per_class(self.confusion(system)))
        for place, name in enumerate(self.classes):
            recalls = [f"{column.recall[place]:.3f}" for column in columns]
            table.add_row(name, str(columns[0].counts[place]), *recalls)
        table.show()

    def class_table(self) -> str:
        """A table of classes: number of items, and for each system recall, precision and the most frequent error."""
        text = io.StringIO()
        rows = csv.writer(text)
        columns = [f"{name} {column}" for name in self.answers for column in ("recall", "precision", "taken for")]
        rows.writerow(["class", "items", *columns])
        matrices = {name: self.confusion(name) for name in self.answers}
        shares = {name: compute_per_class(matrix) for name, matrix in matrices.items()}
        counts = np.bincount(self.truth, minlength=len(self.classes))
        for place, category in enumerate(self.classes):
            cells: list[object] = [category, int(counts[place])]
            for name, matrix in matrices.items():
                wrong = matrix[place].copy()
                wrong[place] = 0
                other = self.classes[int(wrong.argmax())] if wrong.any() else ""
                each = shares[name]
                cells += [f"{each.recall[place]:.4f}", f"{each.precision[place]:.4f}", other]
            rows.writerow(cells)
        return text.getvalue()

    def confusion(self, system: str) -> Int[np.ndarray, "classes classes"]:
        """Counts: a row for each true class, a column for each predicted class."""
        return count_confusions(self.answers[system], self.truth, len(self.classes))

    def write(self, out: Path, numbers: dict[str, float]) -> None:
        """Writes results.json (flat), answers.csv (one row per item), classes.csv and confusion.png into `out`."""
        write_bytes_atomically(out / "results.json", (json.dumps(numbers, indent=2) + "\n").encode())
        write_bytes_atomically(out / "classes.csv", self.class_table().encode())
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["item", "fold", "truth", *self.answers])
        for place, item in enumerate(self.items):
            given = [self.classes[answers[place]] for answers in self.answers.values()]
            rows.writerow([item, self.folds[place], self.classes[self.truth[place]], *given])
        write_bytes_atomically(out / "answers.csv", text.getvalue().encode())
        picture = io.BytesIO()
        self.draw_confusion(next(iter(self.answers))).savefig(picture, format="png", dpi=110)
        write_bytes_atomically(out / "confusion.png", picture.getvalue())

    def draw_confusion(self, system: str) -> Figure:
        """The confusion matrix of one system, each row normalized by its true class."""
        confusion = self.confusion(system)
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        side = 2.2 + 0.34 * min(len(self.classes), 50)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        if len(self.classes) <= MAX_NAMED_CLASSES:
            axes.set_xticks(range(len(self.classes)), self.classes, rotation=90, fontsize=8, parse_math=False)
            axes.set_yticks(range(len(self.classes)), self.classes, fontsize=8, parse_math=False)
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
        axes.set_title(f"{self.task}: {system}", fontsize=10, parse_math=False)
        for row, column in zip(*np.nonzero(confusion), strict=True) if len(self.classes) <= 20 else ():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, shrink=0.7, label="share of the true class")
        return figure
