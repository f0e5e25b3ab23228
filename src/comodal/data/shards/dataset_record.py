"""Which data set shards were made from: the official lists with their hash, and how many of the listed clips are there.

`comodal prepare videos` writes the record into about.json. Runs keep that of their training data in the model's
config.json, and results cards show both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comodal.data.sources.split_names import SPLITS
from comodal.text_files import read_json_object

ABOUT_FILE = "about.json"
HASH_DIGITS = 12  # of a list's SHA-256, in a line of text


def read_dataset_record(shards: Path) -> dict[str, Any]:
    """The record of shards: name, lists, and the numbers of listed and of available clips by split; empty without one.

    Args:
        shards: Folder written by `comodal prepare`.
    """
    about = shards / ABOUT_FILE
    return get_dataset_record(read_json_object(about)) if about.is_file() else {}


def get_dataset_record(about: Mapping[str, Any]) -> dict[str, Any]:
    """The record in the content of an about.json, with the clips that are available."""
    record, accepted = about.get("dataset"), about.get("accepted", {})
    if not isinstance(record, dict):
        return {}
    return record | {"available": {split: int(accepted.get(split, 0)) for split in SPLITS}}


def format_dataset_record(record: Mapping[str, Any], split: str) -> str:
    """A record in one line: how many of the official clips of a split are available, and the hashes of the lists."""
    available, listed = record["available"][split], record["listed"][split]
    hashes = ", ".join(f"{one['name']} {one['sha256'][:HASH_DIGITS]}" for one in record["lists"])
    return f"{record['name']}, {split}: {available:,} of {listed:,} official clips available; SHA-256: {hashes}"
