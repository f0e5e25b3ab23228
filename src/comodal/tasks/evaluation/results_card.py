"""The results card: the scores of an evaluation with its files, settings and seeds, compared with the papers' scores.

An evaluation writes OUT/card.json (machine-readable) and OUT/card.md. `comodal results DIR` collects all cards below a
folder in one table. A card holds no date, so that the same evaluation writes the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from comodal.console import Table, print_line
from comodal.data.shards.dataset_record import format_dataset_record
from comodal.environment import summarize_environment
from comodal.errors import DataError
from comodal.files import encode_for_hash, write_bytes_atomically
from comodal.models.checkpoint import MODEL_CONFIG_FILE, read_model_about
from comodal.text_files import read_json

CARD_FILE, CARD_PAGE_FILE = "card.json", "card.md"
CARD_LIBRARIES = ("comodal", "torch", "numpy", "scikit-learn")
HASH_CHUNK_BYTES = 1 << 20
TRAINING_SETTINGS = (
    "start_from",
    "ablate",
    "epochs",
    "batch_size",
    "learning_rate",
    "head_learning_rate",
    "dropout",
    "seed",
    "layout",
    "fold",
)


@dataclass(frozen=True)
class ScoreEntry:
    """One score.

    Args:
        value: The score; fractions are from 0 to 1.
        low: Lower end of its 95 % interval; the card's settings describe how it is computed.
        high: Upper end.
        paper: The paper's score under the same protocol; only where the split is the official one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class ResultsCard:
    """The results of one evaluation.

    Args:
        task: Name on the command line.
        title: Display name.
        split: The evaluated split.
        scores: Scores by name; the first is the main one.
        model: The evaluated model folder.
        counts: Number of scored items ("items"), and of excluded ones, by reason.
        files: The files that were read, by role; the card has hashes of their contents.
        regions: The source of boxes and features; None for tasks without regions.
        seeds: Seeds by purpose.
        settings: All other settings that affect the scores.
    """

    task: str
    title: str
    split: str
    scores: Mapping[str, ScoreEntry]
    model: str
    counts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    regions: str | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


def read_training_settings(model: Path) -> dict[str, str | int | float | bool | None]:
    """The training settings of a model, its seed included, from its config.json."""
    parameters = read_model_about(model).get("parameters")
    parameters_by_name = parameters if isinstance(parameters, dict) else {}
    return {f"training {name}": parameters_by_name[name] for name in TRAINING_SETTINGS if name in parameters_by_name}


def read_training_record(model: Path) -> Mapping[str, Any]:
    """The record of the lists that a model was trained on; empty for other data, and for files of other libraries."""
    if not any((folder / MODEL_CONFIG_FILE).is_file() for folder in (model, model / "model")):
        return {}
    record = read_model_about(model).get("dataset")
    return record if isinstance(record, dict) else {}


def write_card(card: ResultsCard, out: Path) -> None:
    """Writes card.json and card.md into a folder.

    Raises:
        DataError: A file that the card names cannot be read.
    """
    card_values = serialize_card(card)
    write_bytes_atomically(out / CARD_FILE, (json.dumps(card_values, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes_atomically(out / CARD_PAGE_FILE, render_card_markdown(card_values).encode())


def report_results(metrics: Mapping[str, float], card: ResultsCard, out: Path | None) -> None:
    """Prints the scores of an evaluation; with `out`, writes results.json and the card."""
    for name, value in metrics.items():
        print_line(f"{name:<36} {value:.4f}")
    if out is not None:
        write_bytes_atomically(out / "results.json", (json.dumps(dict(metrics), indent=2) + "\n").encode())
        write_card(card, out)


def format_exclusions(excluded: Mapping[str, int]) -> str:
    """The numbers of excluded items, as the end of a line."""
    return "".join(f"; {count:,} excluded: {reason}" for reason, count in excluded.items())


def serialize_card(card: ResultsCard) -> dict[str, Any]:
    """A card as JSON values, with the hashes of its files and the versions of the libraries."""
    card_values = asdict(card) | {"kind": "card"}
    card_values["files"] = {
        label: {"name": path.name, "sha256": hash_card_file(path)} for label, path in card.files.items()
    }
    if record := read_training_record(Path(card.model)):
        card_values["settings"]["training data"] = format_dataset_record(record, "train")
    card_values["versions"] = {library: version(library) for library in CARD_LIBRARIES}
    card_values["hardware"] = summarize_environment()
    return card_values


def hash_card_file(path: Path) -> str:
    """SHA-256 of a file, or of the names and sizes of the files of a folder."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for inside in sorted(file for file in path.rglob("*") if file.is_file()):
                digest.update(encode_for_hash(f"{inside.relative_to(path).as_posix()} {inside.stat().st_size}\n"))
            return digest.hexdigest()
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return digest.hexdigest()


def render_card_markdown(card_values: Mapping[str, Any]) -> str:
    """A card as Markdown."""
    lines = [f"# {card_values['title']}, {card_values['split']}", ""]
    if card_values["scores"]:
        lines += ["| score | value | 95 % | paper |", "|---|---|---|---|"]
    else:
        lines.append("No score: the labels are not known.")
    for name, score in card_values["scores"].items():
        lines.append(
            f"| {name} | {format_score(score['value'])} | {format_interval(score)} | {format_score(score['paper'])} |"
        )
    lines += ["", f"Model: `{card_values['model']}`"]
    if card_values["regions"] is not None:
        lines.append(f"Regions: {card_values['regions']}")
    for heading in ("counts", "seeds", "settings", "versions"):
        if card_values[heading]:
            listed = ", ".join(f"{name} {value}" for name, value in card_values[heading].items())
            lines.append(f"{heading.capitalize()}: {listed}")
    if card_values["files"]:
        lines += ["", "| file | name | SHA-256 |", "|---|---|---|"]
        lines += [f"| {label} | {file['name']} | `{file['sha256']}` |" for label, file in card_values["files"].items()]
    return "\n\n".join("\n".join(part) for part in join_paragraphs(lines)) + "\n"


def join_paragraphs(lines: Iterable[str]) -> list[list[str]]:
    """Keeps the lines of a table adjacent; every other line becomes a paragraph."""
    paragraphs: list[list[str]] = []
    for line in lines:
        if line.startswith("|") and paragraphs and paragraphs[-1][-1].startswith("|"):
            paragraphs[-1].append(line)
        elif line:
            paragraphs.append([line])
    return paragraphs


def format_score(value: float | None) -> str:
    """Four digits, or an empty text for None."""
    return "" if value is None else f"{value:.4f}"


def format_interval(score: Mapping[str, Any]) -> str:
    """Both ends of the interval, if they are known."""
    return "" if score["low"] is None else f"{score['low']:.3f}-{score['high']:.3f}"


def read_card(path: Path) -> dict[str, Any]:
    """Reads a card.json.

    Raises:
        DataError: The file is damaged, is not a card, or is of another version.
    """
    card_values = read_json(path)
    if not isinstance(card_values, dict) or card_values.get("kind") != "card":
        raise DataError(f"{path}: not a results card")
    text_fields = dict.fromkeys(("task", "title", "split", "model"), str)
    mapping_fields = dict.fromkeys(("scores", "counts", "files", "seeds", "settings", "versions"), dict)
    for name, kind in (text_fields | mapping_fields | {"regions": str | None}).items():
        if name not in card_values or not isinstance(card_values[name], kind):
            raise DataError(f"{path}: a results card of another version: {name!r} is {card_values.get(name)!r:.40}")
    for name, score in card_values["scores"].items():
        if not is_score_entry(score):
            raise DataError(f"{path}: a results card of another version: the score {name!r} is {score!r:.80}")
    return card_values


def is_score_entry(score: Any) -> bool:
    """Whether a value of a card is a serialized `ScoreEntry`."""
    names = [part.name for part in fields(ScoreEntry)]
    return (
        isinstance(score, dict)
        and all(name in score and isinstance(score[name], int | float | None) for name in names)
        and score["value"] is not None
        and (score["low"] is None) == (score["high"] is None)
    )


def results(folder: Path, out: Path | None = None) -> dict[str, float]:
    """Collects the results cards below a folder in one table, with the papers' scores.

    Args:
        folder: The folder that holds the --out folders of evaluations.
        out: Markdown file for the table; nothing is written without it.

    Returns:
        Every score as FOLDER.score, with the card's folder relative to `folder`.

    Raises:
        DataError: There is no card, or one is damaged.

    Examples:
        comodal results results/
        comodal results results/ --out table.md
    """
    paths = sorted(folder.rglob(CARD_FILE))
    if not paths:
        raise DataError(
            f"{folder}: no results card ({CARD_FILE}) in it or below; evaluations write one into their --out folder"
        )
    rows, metrics = [], {}
    for path in paths:
        card, folder_name = read_card(path), path.parent.relative_to(folder).as_posix()
        for name, score in card["scores"].items():
            value = format_score(score["value"])
            rows.append((folder_name, card["title"], card["split"], name, value, format_interval(score),
                         format_score(score["paper"]), str(card["counts"].get("items", ""))))  # fmt: skip
            metrics[f"{folder_name}.{name}"] = float(score["value"])
    headings = ("card", "task", "split", "score", "value", "95 %", "paper", "items")
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    table.show()
    if out is not None:
        lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        write_bytes_atomically(out, ("\n".join(lines) + "\n").encode())
    return metrics
