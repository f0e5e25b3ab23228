"""What a fine-tuned network answered: accuracy, the first five, each class by itself, the results card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from comodal.tasks.evaluation.class_folders import LabeledFile, hash_labeled_files
from comodal.tasks.evaluation.metrics import check_finite_scores, compute_bootstrap_interval
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME, count_items
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, read_training_settings, write_card
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.tasks.evaluation.unreadable_files import REASON_UNREADABLE

TOP_K_ACCURACY = 5
CardSetting = str | int | float | bool | None


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
    settings: Mapping[str, CardSetting]
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def comparison(self) -> Comparison:
        """The answers beside the truth, as probes are compared."""
        check_finite_scores(self.scores, "probabilities of the classes")
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
        if len(self.classes) > TOP_K_ACCURACY:
            best = np.argsort(-self.scores, axis=1, kind="stable")[:, :TOP_K_ACCURACY]
            right = (best == comparison.truth[:, None]).any(1)
            groups = self.groups or comparison.items
            low, high = compute_bootstrap_interval(right, np.random.default_rng(0), groups=groups)
            key = f"{self.modality}.fine_tuned.top{TOP_K_ACCURACY}"
            numbers |= {key: float(right.mean()), f"{key}.low": low, f"{key}.high": high}
        comparison.print_table()
        if out is not None:
            comparison.write(out, numbers)
            write_card(self.card(numbers), out)
        return numbers

    def card(self, numbers: Mapping[str, float]) -> ResultsCard:
        """The results card, with the settings of the training."""
        keys = {
            f"{self.modality}.fine_tuned": "top-1",
            f"{self.modality}.fine_tuned.top{TOP_K_ACCURACY}": f"top-{TOP_K_ACCURACY}",
        }
        every = len(self.items) + self.left_out.get(REASON_UNREADABLE, 0)
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
            counts={**count_items(every, len(self.items), REASON_UNREADABLE), **self.left_out},
            files=self.files,
            settings={
                **self.settings,
                INTERVAL_NAME: self.comparison().interval(),
                **read_training_settings(self.model),
                "items": hash_labeled_files(self.items),
            },
        )
