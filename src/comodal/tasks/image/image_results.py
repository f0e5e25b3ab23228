"""The results of image probes: top-1 and top-5 accuracy, per-class scores, and the results card.

The card has the paper's numbers (L3-Net, section 4.3: ImageNet, top-1) where images and protocol are the paper's.
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
from comodal.tasks.evaluation.unreadable_files import REASON_UNREADABLE
from comodal.tasks.image.image_features import SystemName
from comodal.tasks.image.image_probe import ImageProbeResult
from comodal.tasks.image.imagenet_files import LabeledImages

IMAGENET_PAPER_ACCURACY = {"trained": 0.323, "untrained": 0.129}
PAPER_PROTOCOL = {"layer": "conv4_2", "pooling": "max", "grid": 4, "crops": "middle", "classifier": "logistic"}


@dataclass(frozen=True)
class ImageResults:
    """The predictions of every system, with the settings; of the `asked` test images, some cannot be read."""

    data: Path
    model: str
    pictures: LabeledImages
    tests: Sequence[LabeledFile]
    asked: int
    found: Mapping[SystemName, ImageProbeResult]
    settings: Mapping[str, str | int | float | bool | None]
    seed: int

    @property
    def categories(self) -> list[str]:
        """The names of the class folders, in the order of their indices."""
        return sorted({item.category for item in self.pictures.items})

    @property
    def title(self) -> str:
        """The display name of the data."""
        return "ImageNet" if self.pictures.imagenet else self.data.resolve().name

    def comparison(self) -> Comparison:
        """The top-1 predictions in the form that other tasks use."""
        categories = self.categories
        number = {category: place for place, category in enumerate(categories)}
        return Comparison(
            "vision",
            f"{self.title}, {self.settings['classifier']}",
            tuple(item.name for item in self.tests),
            tuple(self.called(category) for category in categories),
            np.array([number[item.category] for item in self.tests]),
            np.zeros(len(self.tests), dtype=np.int64),
            {name: found.best[:, 0] for name, found in self.found.items()},
            {name: {0: found.strength} for name, found in self.found.items()},
        )

    def called(self, category: str) -> str:
        """The display name of a class, if it is known."""
        name = self.pictures.names.get(category)
        return f"{category} {name}" if name else category

    def among_the_first(self, system: SystemName, truth: Int[np.ndarray, " tests"]) -> Bool[np.ndarray, " tests"]:
        """Whether the correct class is among the top predictions."""
        return (self.found[system].best == truth[:, None]).any(1)

    def numbers(self) -> dict[str, float]:
        """Flat keys: `vision.SYSTEM`, its interval, and its `.top5` where there are more than five classes."""
        comparison = self.comparison()
        flat = comparison.numbers()
        for name, found in self.found.items():
            kept = found.best.shape[1]
            if kept < len(comparison.classes):
                right = self.among_the_first(name, comparison.truth)
                low, high = compute_bootstrap_interval(right, np.random.default_rng(0))
                key = f"vision.{name}.top{kept}"
                flat |= {key: float(right.mean()), f"{key}.low": low, f"{key}.high": high}
        return flat

    def tell(self, numbers: Mapping[str, float], out: Path | None) -> None:
        """Prints the table; with `out`, writes results.json, answers.csv, classes.csv, confusion.png and the card."""
        comparison = self.comparison()
        comparison.print_table()
        for name in self.found:
            if f"vision.{name}.top5" in numbers:
                print_line(f"{name}: among the first five {numbers[f'vision.{name}.top5']:.4f}")
        if out is not None:
            comparison.write(out, dict(numbers))
            write_card(self.card(numbers), out)

    def card(self, numbers: Mapping[str, float]) -> ResultsCard:
        """The results card."""
        papers = self.pictures.official and all(self.settings[name] == value for name, value in PAPER_PROTOCOL.items())
        scores = {}
        for name in self.found:
            for suffix, label in (("", "top-1"), (".top5", "top-5")):
                key = f"vision.{name}{suffix}"
                if key in numbers:
                    paper = IMAGENET_PAPER_ACCURACY.get(name) if papers and not suffix else None
                    said = label if name == "trained" else f"{label} {name}"
                    scores[said] = ScoreEntry(numbers[key], numbers[f"{key}.low"], numbers[f"{key}.high"], paper)
        scores["largest class"] = ScoreEntry(numbers["vision.chance"])
        strengths = {f"C {name}": found.strength for name, found in self.found.items()}
        solvers = {f"solver {name}": found.solver for name, found in self.found.items()}
        return ResultsCard(
            task="images",
            title=self.title,
            split=self.pictures.split,
            scores=scores,
            model=self.model,
            counts=count_items(self.asked, len(self.tests), f"{REASON_UNREADABLE}, to test")
            | {"fitted": len(self.pictures.items) - len(self.tests)}
            | dict(self.pictures.left_out),
            files=self.pictures.files,
            seeds={"untrained weights, views, order": self.seed},
            settings={
                **self.settings,
                INTERVAL_NAME: self.comparison().interval(),
                **strengths,
                **solvers,
                "pictures": hash_labeled_files(self.pictures.items),
            },
        )
