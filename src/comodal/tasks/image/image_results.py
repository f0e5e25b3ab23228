"""The results of image probes: top-1 and top-5 accuracy, per-class scores, and the results card.

The card has the paper's scores (L3-Net, section 4.3: ImageNet, top-1) where images and protocol are the paper's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from comodal.console import print_line
from comodal.tasks.evaluation.class_folders import LabeledFile, hash_labeled_files
from comodal.tasks.evaluation.metrics import compute_bootstrap_interval
from comodal.tasks.evaluation.missing_images import INTERVAL_NAME, count_items
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, write_card
from comodal.tasks.evaluation.system_comparison import Comparison
from comodal.tasks.image.image_features import SystemName
from comodal.tasks.image.image_probe import ImageProbeResult
from comodal.tasks.image.imagenet_files import LabeledImages
from comodal.training.run_log import REASON_UNREADABLE

IMAGENET_PAPER_ACCURACY = {"trained": 0.323, "untrained": 0.129}
PAPER_PROTOCOL = {"layer": "conv4_2", "pooling": "max", "grid": 4, "crops": "center", "classifier": "logistic"}


@dataclass(frozen=True)
class ImageResults:
    """The predictions of all compared systems, with the settings; of the `num_tests` images, some may be unreadable."""

    data: Path
    model: str
    dataset: LabeledImages
    test_items: Sequence[LabeledFile]
    num_tests: int
    results: Mapping[SystemName, ImageProbeResult]
    settings: Mapping[str, str | int | float | bool | None]
    seed: int

    @property
    def categories(self) -> list[str]:
        """The names of the class folders, in the order of their indices."""
        return sorted({item.category for item in self.dataset.items})

    @property
    def title(self) -> str:
        """The display name of the data."""
        return "ImageNet" if self.dataset.is_imagenet else self.data.resolve().name

    def build_comparison(self) -> Comparison:
        """The top-1 predictions in the form that other tasks use."""
        categories = self.categories
        class_ids = {category: index for index, category in enumerate(categories)}
        return Comparison(
            "vision",
            f"{self.title}, {self.settings['classifier']}",
            tuple(item.name for item in self.test_items),
            tuple(self.format_class_name(category) for category in categories),
            np.array([class_ids[item.category] for item in self.test_items]),
            np.zeros(len(self.test_items), dtype=np.int64),
            {name: result.top_classes[:, 0] for name, result in self.results.items()},
            {name: {0: result.C} for name, result in self.results.items()},
        )

    def format_class_name(self, category: str) -> str:
        """The display name of a class, if it is known."""
        name = self.dataset.names.get(category)
        return f"{category} {name}" if name else category

    def is_in_top_k(self, system: SystemName, truth: Int[np.ndarray, " tests"]) -> Bool[np.ndarray, " tests"]:
        """Whether the correct class is among the top predictions."""
        return (self.results[system].top_classes == truth[:, None]).any(1)

    def compute_metrics(self) -> dict[str, float]:
        """Flat keys: `vision.SYSTEM`, its interval, and its `.top5` where there are more than five classes."""
        comparison = self.build_comparison()
        flat = comparison.compute_metrics()
        for name, result in self.results.items():
            top_k = result.top_classes.shape[1]
            if top_k < len(comparison.classes):
                is_correct = self.is_in_top_k(name, comparison.truth)
                low, high = compute_bootstrap_interval(is_correct, np.random.default_rng(0))
                key = f"vision.{name}.top{top_k}"
                flat |= {key: float(is_correct.mean()), f"{key}.low": low, f"{key}.high": high}
        return flat

    def report(self, metrics: Mapping[str, float], out: Path | None) -> None:
        """Prints the table; `out` receives results.json, predictions.csv, classes.csv, confusion.png and the card."""
        comparison = self.build_comparison()
        comparison.print_table()
        for name in self.results:
            if f"vision.{name}.top5" in metrics:
                print_line(f"{name}: top-5 accuracy {metrics[f'vision.{name}.top5']:.4f}")
        if out is not None:
            comparison.write_files(out, dict(metrics))
            write_card(self.build_card(metrics), out)

    def build_card(self, metrics: Mapping[str, float]) -> ResultsCard:
        """The results card."""
        is_paper_setting = self.dataset.is_official and all(
            self.settings[name] == value for name, value in PAPER_PROTOCOL.items()
        )
        scores = {}
        for name in self.results:
            for suffix, label in (("", "top-1"), (".top5", "top-5")):
                key = f"vision.{name}{suffix}"
                if key in metrics:
                    paper = IMAGENET_PAPER_ACCURACY.get(name) if is_paper_setting and not suffix else None
                    score_name = label if name == "trained" else f"{label} {name}"
                    scores[score_name] = ScoreEntry(metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"], paper)
        scores["largest class"] = ScoreEntry(metrics["vision.chance_level"])
        c_settings = {f"C {name}": result.C for name, result in self.results.items()}
        solvers = {f"solver {name}": result.solver for name, result in self.results.items()}
        return ResultsCard(
            task="images",
            title=self.title,
            split=self.dataset.split,
            scores=scores,
            model=self.model,
            counts=count_items(self.num_tests, len(self.test_items), f"{REASON_UNREADABLE}, to test")
            | {"fitted": len(self.dataset.items) - len(self.test_items)}
            | dict(self.dataset.excluded),
            files=self.dataset.files,
            seeds={"untrained weights, views, order": self.seed},
            settings={
                **self.settings,
                INTERVAL_NAME: self.build_comparison().describe_intervals(metrics),
                **c_settings,
                **solvers,
                "images": hash_labeled_files(self.dataset.items),
            },
        )
