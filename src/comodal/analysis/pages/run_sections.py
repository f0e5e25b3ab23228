"""What all reports of a run share: their inputs, the main metrics, and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comodal.analysis.inspect_path import describe_run, flatten_settings
from comodal.analysis.pages.page_parts import (
    PageColumn,
    PageDetails,
    PageFact,
    PageFacts,
    PageRow,
    PageSection,
    PageTable,
)
from comodal.errors import DataError, RecipeError
from comodal.text_files import read_yaml


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made from besides the run.

    Args:
        data: training or other data: shards, for predictions on pairs and activations of units; or a region store.
        results: folders that `evaluate ... --out` wrote, with or without results cards.
        captions: of a ViLBERT's region store, for its attention between tokens and regions.
        images: the folder of the images of the region store or of the task's run, for examples.
        ground_truth: `worlds.jsonl` of synthetic data, with the boxes of the objects that sound; localization is scored
            by it.
        pairs: number of held-out pairs with predictions.
        seed: of the pairs, and of the untrained network that serves as the baseline.
        max_clips: maximum number of clips that units and positions are studied on.
    """

    data: Path | None = None
    results: Sequence[Path] = ()
    captions: Path | None = None
    images: Path | None = None
    ground_truth: Path | None = None
    pairs: int = 64
    seed: int = 1
    max_clips: int = 400


def build_run_header(run: Path, title: str, sentence: str, metric: str, meaning: str) -> PageSection:
    """The main metrics of a run.

    Args:
        run: The run's folder.
        title: What was trained.
        sentence: How it was trained, and on which data.
        metric: The validation metric to show first.
        meaning: Its description.
    """
    found = describe_run(run)
    facts = []
    if "validation" in found:
        facts.append(PageFact(f"{found['validation'][metric]:.3f}", meaning))
    if "train" in found:
        facts.append(PageFact(f"{found['train']['step']:,}", "training steps"))
        facts.append(PageFact(f"{found['train'].get('samples_per_second', 0.0):,.0f}", "samples per second at the end"))
        facts.append(PageFact(f"{found['train'].get('seconds', 0.0) / 60:.1f}", "minutes of training"))
    if "model" in found:
        facts.append(PageFact(f"{found['model']['parameters']:,}", "parameters"))
    return PageSection(title, sentence, [PageFacts(facts)])


def build_run_settings(run: Path) -> PageSection:
    """The resolved settings, collapsed."""
    path = run / "config.yaml"
    values = read_yaml(path, RecipeError) if path.is_file() else {}
    rows = [PageRow((name, value)) for name, value in flatten_settings(values, "")]
    table = PageTable(f"Settings of {run.name}", [PageColumn("setting"), PageColumn("value")], rows)
    return PageSection("Settings", "", [PageDetails(f"The settings of {run.name}", [table])])


def refuse_inputs(run: Path, kind: str, paths: dict[str, Path | None]) -> None:
    """Raises a DataError if a report about this kind of model is given a file that it does not read."""
    given = [flag for flag, path in paths.items() if path is not None]
    if given:
        raise DataError(f"{run} is {kind}: its report does not use {', '.join(given)}")
