"""The sections of a report about evaluations: linear probes with their baselines, confusions, and results cards."""

from collections.abc import Sequence
from pathlib import Path

from comodal.analysis.pages.page_parts import (
    PageColumn,
    PageImage,
    PageImageRow,
    PageRow,
    PageSection,
    PageTable,
    encode_data_uri,
)
from comodal.tasks.evaluation.results_card import CARD_FILE, format_interval, format_score, read_card
from comodal.tasks.evaluation.system_comparison import CLASSIFICATION_TASKS, SYSTEM_TITLES
from comodal.text_files import read_json_object


def list_measured_folders(results: Sequence[Path]) -> list[Path]:
    """The folders of evaluations that have, or should have, results.json; the others have only a results card."""
    return [folder for folder in results if (folder / "results.json").is_file() or not (folder / CARD_FILE).is_file()]


def build_scores_part(results: list[Path]) -> PageSection:
    """The systems of each evaluation: the trained model compared with its baselines."""
    rows = [row for folder in results for row in list_score_rows(folder)]
    columns = [PageColumn("task"), PageColumn("data"), PageColumn("features"), PageColumn("measure")]
    columns += [PageColumn("score", "bar"), PageColumn("95 % interval", "number")]
    text = (
        "A classifier on frozen features of the trained network, compared with those of an untrained network and with "
        "raw features."
    )
    return PageSection("Evaluation", text, [PageTable("Accuracy of each system", columns, rows)])


def list_score_rows(folder: Path) -> list[PageRow]:
    """One row for each score of an evaluation that has an interval, named by task, data and system."""
    found = read_json_object(folder / "results.json")
    rows = []
    for name in [key.removesuffix(".low") for key in found if key.endswith(".low")]:
        parts, measure = name.split("."), "top-1 accuracy"
        if parts[-1].startswith("top"):
            measure = f"top-{parts.pop().removeprefix('top')} accuracy"
        task, system = parts[0], parts[-1]
        cells = (
            CLASSIFICATION_TASKS.get(task, task),
            describe_data(folder),
            SYSTEM_TITLES.get(system, system),
            measure,
            found[name],
            f"{found[f'{name}.low']:.3f} to {found[f'{name}.high']:.3f}",
        )
        rows.append(PageRow(cells, is_main=system in ("trained", "fine_tuned")))
    return rows


def describe_data(folder: Path) -> str:
    """The data set and split of an evaluation, or the name of its folder if there is no results card."""
    if not (folder / CARD_FILE).is_file():
        return folder.name
    card = read_card(folder / CARD_FILE)
    return f"{card['title']}, {card['split']}"


def build_confusion_parts(results: list[Path]) -> list[PageSection]:
    """The confusion matrices of the trained features, if there are any."""
    images = []
    for folder in results:
        path = folder / "confusion.png"
        if path.is_file():
            source = encode_data_uri(path.read_bytes(), "image/png")
            images.append(PageImage(f"confusion matrix of {folder.name}", source, caption=describe_data(folder)))
    text = "Rows are true classes, columns are predictions from the trained features."
    return [PageSection("Confusion matrices", text, [PageImageRow(images, is_wide=True)])] if images else []


def build_card_table(folder: Path) -> PageSection:
    """A results card as a table."""
    found = read_card(folder / CARD_FILE)
    columns = [PageColumn("score"), PageColumn("value", "number"), PageColumn("95 % interval", "number")]
    columns.append(PageColumn("paper", "number"))
    rows = [
        PageRow((name, format_score(score["value"]), format_interval(score), format_score(score["paper"])))
        for name, score in found["scores"].items()
    ]
    title = f"{found['title']}, {found['split']}"
    counts = ", ".join(f"{name} {count:,}" for name, count in found["counts"].items())
    text = f"Model: {found['model']}. Counts: {counts}." + (
        f" Regions: {found['regions']}." if found["regions"] else ""
    )
    return PageSection(title, text, [PageTable(f"Scores: {title}", columns, rows)])
