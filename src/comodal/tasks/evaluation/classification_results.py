"""The predictions of a fine-tuned classifier: accuracy, top-5 accuracy, per-class scores, and the results card."""

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
from comodal.training.run_log import REASON_UNREADABLE

TOP_K_ACCURACY = 5
CardSetting = str | int | float | bool | None


@dataclass(frozen=True)
class ClassProbabilities:
    """Class probabilities of the test items, with what the results files need.

    Args:
        task: Name on the command line.
        modality: Prefix of the result keys: vision or audio.
        title: Display name of the data.
        split: Name of the test part.
        model: The evaluated model folder.
        items: The test items.
        classes: Class names, in the order of the columns.
        scores: One row of probabilities per item.
        settings: Settings of the evaluation.
        files: The files that the labels were read from.
        excluded: Number of excluded items, by reason.
        groups: The recording of each item; without it, items are independent.
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
    excluded: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    def build_comparison(self) -> Comparison:
        """The predictions and the labels as a `Comparison`."""
        check_finite_scores(self.scores, "probabilities of the classes")
        class_ids = {name: index for index, name in enumerate(self.classes)}
        truth = np.array([class_ids[item.category] for item in self.items])
        names, folds = tuple(item.name for item in self.items), np.zeros(len(truth), dtype=np.int64)
        predictions, title = {"fine_tuned": self.scores.argmax(1)}, f"{self.title}, fine-tuned"
        classes, settings = tuple(self.classes), {"fine_tuned": dict[int, float]()}
        return Comparison(self.modality, title, names, classes, truth, folds, predictions, settings, self.groups)

    def report(self, out: Path | None) -> dict[str, float]:
        """Prints the table; with `out`, writes results.json, predictions.csv, classes.csv, confusion.png and a card."""
        comparison = self.build_comparison()
        metrics = comparison.compute_metrics()
        if len(self.classes) > TOP_K_ACCURACY:
            top_classes = np.argsort(-self.scores, axis=1, kind="stable")[:, :TOP_K_ACCURACY]
            is_correct = (top_classes == comparison.truth[:, None]).any(1)
            groups = self.groups or comparison.items
            low, high = compute_bootstrap_interval(is_correct, np.random.default_rng(0), groups=groups)
            key = f"{self.modality}.fine_tuned.top{TOP_K_ACCURACY}"
            metrics |= {key: float(is_correct.mean()), f"{key}.low": low, f"{key}.high": high}
        comparison.print_table()
        if out is not None:
            comparison.write_files(out, metrics)
            write_card(self.build_card(metrics), out)
        return metrics

    def build_card(self, metrics: Mapping[str, float]) -> ResultsCard:
        """The results card, with the training settings."""
        keys = {
            f"{self.modality}.fine_tuned": "top-1",
            f"{self.modality}.fine_tuned.top{TOP_K_ACCURACY}": f"top-{TOP_K_ACCURACY}",
        }
        num_items = len(self.items) + self.excluded.get(REASON_UNREADABLE, 0)
        scores = {
            label: ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"])
            for key, label in keys.items()
            if key in metrics
        }
        return ResultsCard(
            task=self.task,
            title=f"{self.title}, fine-tuned",
            split=self.split,
            scores=scores | {"largest class": ScoreEntry(metrics[f"{self.modality}.chance_level"])},
            model=str(self.model),
            counts={**count_items(num_items, len(self.items), REASON_UNREADABLE), **self.excluded},
            files=self.files,
            settings={
                **self.settings,
                INTERVAL_NAME: self.build_comparison().describe_intervals(metrics),
                **read_training_settings(self.model),
                "items": hash_labeled_files(self.items),
            },
        )
