"""The sections that every report of a run has: its main metrics, and its settings."""

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
from comodal.errors import RecipeError
from comodal.text_files import read_yaml


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
