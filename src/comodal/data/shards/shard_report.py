"""The content of a folder of shards, and the refused files: as a table, and as a dictionary."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comodal.console import Table, print_line
from comodal.data.shards.dataset_record import format_dataset_record, get_dataset_record
from comodal.data.shards.shard_reader import ShardReader
from comodal.data.sources.split_names import SPLITS
from comodal.errors import DataError
from comodal.text_files import read_json_lines, read_json_object


@dataclass(frozen=True)
class ShardSummary:
    """What a folder of shards holds, as about.json records it.

    Args:
        path: The folder.
        accepted: Number of samples by split.
        seconds: Their duration by split.
        refused: Number of refused items by reason; report.jsonl lists them.
        noted: Number of samples that were taken despite a problem, such as a truncated file.
        options: The options that the shards depend on.
        fingerprint: Of the items of all shards.
        dataset: The official list that the samples come from, and how many of its clips are here; empty without one.
    """

    path: Path
    accepted: Mapping[str, int]
    seconds: Mapping[str, float]
    refused: Mapping[str, int]
    noted: int
    options: Mapping[str, Any]
    fingerprint: str
    dataset: Mapping[str, Any]


def read_shard_summary(out: Path) -> ShardSummary:
    """The summary of a finished folder of shards.

    Raises:
        DataError: about.json is damaged.
    """
    path = out / "about.json"
    about = read_json_object(path)
    try:
        return ShardSummary(
            out,
            about["accepted"],
            {split: float(seconds) for split, seconds in about["seconds"].items()},
            about["refused"],
            about["noted"],
            about["options"],
            about["plan"],
            get_dataset_record(about),
        )
    except KeyError as error:
        raise DataError(f"{path} has no {error}: remove {out} and prepare it again") from error


def print_shard_report(summary: ShardSummary) -> None:
    """The tables at the end of `comodal prepare`."""
    table = Table("split", "accepted", "hours", right=[1, 2])
    for split in SPLITS:
        table.add_row(split, f"{summary.accepted[split]:,}", f"{summary.seconds[split] / 3600:.2f}")
    table.show()
    if summary.refused:
        reasons = Table("refused: reason", "files", right=[1])
        for reason, count in sorted(summary.refused.items(), key=lambda pair: -pair[1]):
            reasons.add_row(reason, f"{count:,}")
        reasons.show()
    for split in SPLITS if summary.dataset else ():
        print_line(format_dataset_record(summary.dataset, split))
    if summary.noted:
        report = summary.path / "report.jsonl"
        print_line(f"{summary.noted:,} were taken despite a problem, such as a truncated file: {report}")


def describe_shards(folder: Path) -> dict[str, Any]:
    """The content of a folder of shards: OUT of `comodal prepare`, or one split of it.

    Raises:
        DataError: There are no shards, or they are damaged.
    """
    out = folder if (folder / "about.json").is_file() else folder.parent
    splits = [split for split in SPLITS if (folder / split).is_dir()] or [folder.name]
    about = out / "about.json"
    description: dict[str, Any] = read_json_object(about) if about.is_file() else {}
    if description and not description["finished"]:
        return description | {"splits": {}}
    root = folder if splits != [folder.name] else folder.parent
    holding = [split for split in splits if any((root / split).glob("[!.]*.index"))]
    if not holding:
        raise DataError(f"{folder} holds no shards")
    lines = _read_accepted_lines(out)
    return description | {"splits": {split: _describe_split(root / split, lines.get(split, [])) for split in holding}}


def _read_accepted_lines(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of the report by split."""
    report = out / "report.jsonl"
    lines: dict[str, list[dict[str, Any]]] = {}
    for _, line in read_json_lines(report) if report.is_file() else ():
        if line["status"] == "accepted":
            lines.setdefault(line["split"], []).append(line)
    return lines


def _describe_split(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    shards = ShardReader(folder)
    return {
        "clips": len(shards),
        "shards": len(shards.indexes),
        "bytes": sum(index.tar_bytes for index in shards.indexes),
        "hours": round(sum(line["seconds"] for line in lines) / 3600, 4),
        "frames": sum(line["frames"] for line in lines),
        "sizes": dict(Counter(line["size"] for line in lines).most_common(5)),
        "labels": dict(Counter(line["label"] for line in lines if "label" in line).most_common()),
        "fingerprint": shards.fingerprint,
    }
