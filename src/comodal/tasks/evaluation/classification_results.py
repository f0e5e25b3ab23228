"""What a fine-tuned network answered: accuracy, the first five, each class by itself, the results card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comodal.tasks.evaluation.class_folders import LabeledFile, fingerprint
from comodal.tasks.evaluation.metrics import bootstrap_interval, check_finite
from comodal.tasks.evaluation.missing_images import INTERVAL, denominators
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, training_of, write_card
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.tasks.evaluation.unreadable_files import UNREADABLE

TOP = 5
Setting = str | int | float | bool | None


@dataclass(frozen=True)
class ClassProbabilities:
    """The probabilities of the classes, and what they are about.

    Args:
        task: As on the command line.
        modality: Before the keys of the numbers: vision or sound.
        title: What people call the data.
        split: Which part was tested.
        model: The folder that was measured.
        items: What was tested.
        classes: Their names, in the order of the columns.
        scores: A row for each item.
        settings: Whatever makes two evaluations differ.
        files: That the labels were read from.
        left_out: How many were not taken, by reason.
        groups: The recording of each item; without it items are independent.
    """

    task: str
    modality: str
    title: str
    split: str
    model: Path
    items: Sequence[LabeledFile]
    classes: Sequence[str]
    scores: Float[np.ndarray, "items classes"]
    settings: Mapping[str, Setting]
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def comparison(self) -> Comparison:
        """The answers beside the truth, as probes are compared."""
        check_finite(self.scores, "probabilities of the classes")
        number = {name: place for place, name in enumerate(self.classes)}
        truth = np.array([number[item.category] for item in self.items])
        names, folds = tuple(item.name for item in self.items), np.zeros(len(truth), dtype=np.int64)
        answers, title = {"fine_tuned": self.scores.argmax(1)}, f"{self.title}, fine-tuned"
        classes, settings = tuple(self.classes), {"fine_tuned": dict[int, float]()}
        return Comparison(self.modality, title, names, classes, truth, folds, answers, settings, self.groups)

    def tell(self, out: Path | None) -> dict[str, float]:
        """Prints the table; with `out`, writes results.json, answers.csv, confusion.png and the card."""
        comparison = self.comparison()
        numbers = comparison.numbers()
        if len(self.classes) > TOP:
            best = np.argsort(-self.scores, axis=1, kind="stable")[:, :TOP]
            right = (best == comparison.truth[:, None]).any(1)
            groups = self.groups or comparison.items
            low, high = bootstrap_interval(right, np.random.default_rng(0), groups=groups)
            key = f"{self.modality}.fine_tuned.top{TOP}"
            numbers |= {key: float(right.mean()), f"{key}.low": low, f"{key}.high": high}
        comparison.print_table()
        if out is not None:
            comparison.write(out, numbers)
            write_card(self.card(numbers), out)
        return numbers

    def card(self, numbers: Mapping[str, float]) -> ResultsCard:
        """The results card, with the settings of the training."""
        keys = {f"{self.modality}.fine_tuned": "top-1", f"{self.modality}.fine_tuned.top{TOP}": f"top-{TOP}"}
        every = len(self.items) + self.left_out.get(UNREADABLE, 0)
        scores = {
            label: ScoreEntry(numbers[key], numbers[f"{key}.low"], numbers[f"{key}.high"])
            for key, label in keys.items()
            if key in numbers
        }
        return ResultsCard(
            task=self.task,
            title=f"{self.title}, fine-tuned",
            split=self.split,
            scores=scores | {"largest class": ScoreEntry(numbers[f"{self.modality}.chance"])},
            model=str(self.model),
            counts={**denominators(every, len(self.items), UNREADABLE), **self.left_out},
            files=self.files,
            settings={
                **self.settings,
                INTERVAL: self.comparison().interval(),
                **training_of(self.model),
                "items": fingerprint(self.items),
            },
        )
