"""The results card: the same evaluation writes the same bytes, files are known by their hash, cards make one table."""

import hashlib
import json
from pathlib import Path

import pytest

from comodal.errors import DataError
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, results, write_card


def card_of(folder: Path, value: float) -> ResultsCard:
    labels = folder / "labels.json"
    labels.write_bytes(b"[1, 2]")
    return ResultsCard(
        task="vqa",
        title="VQA v2",
        split="val",
        scores={"accuracy": ScoreEntry(value, value - 0.01, value + 0.01, paper=0.7055), "yes/no": ScoreEntry(0.8)},
        model="runs/first",
        counts={"items": 2, "image is not in the store": 1},
        files={"annotations": labels},
        regions="ground truth",
        seeds={"bootstrap": 0},
    )


def test_a_card_names_its_files_by_the_hash_of_their_content(tmp_path: Path):
    write_card(card_of(tmp_path, 0.5), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "card.json").read_text())
    assert written["files"]["annotations"] == {"name": "labels.json", "sha256": hashlib.sha256(b"[1, 2]").hexdigest()}
    assert written["scores"]["accuracy"] == {"value": 0.5, "low": 0.49, "high": 0.51, "paper": 0.7055}
    page = (tmp_path / "out" / "card.md").read_text()
    assert "| accuracy | 0.5000 | 0.490-0.510 | 0.7055 |" in page
    assert "image is not in the store 1" in page
    before = (tmp_path / "out" / "card.json").read_bytes()
    write_card(card_of(tmp_path, 0.5), tmp_path / "out")
    assert (tmp_path / "out" / "card.json").read_bytes() == before


def test_several_cards_make_one_table(tmp_path: Path):
    write_card(card_of(tmp_path, 0.5), tmp_path / "all" / "trained")
    write_card(card_of(tmp_path, 0.25), tmp_path / "all" / "scratch")
    numbers = results(tmp_path / "all", tmp_path / "table.md")
    assert numbers == {
        "trained.accuracy": 0.5,
        "trained.yes/no": 0.8,
        "scratch.accuracy": 0.25,
        "scratch.yes/no": 0.8,
    }
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if "accuracy" in line]
    assert rows[0].startswith("| scratch | VQA v2 | val | accuracy | 0.2500 |")


def test_a_missing_file_or_a_damaged_card_is_named(tmp_path: Path):
    card = card_of(tmp_path, 0.5)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(DataError, match=r"labels\.json: No such file"):
        write_card(card, tmp_path / "out")
    with pytest.raises(DataError, match="no results card"):
        results(tmp_path)
    (tmp_path / "card.json").write_text('{"kind": "something"}')
    with pytest.raises(DataError, match=r"card\.json: not a results card"):
        results(tmp_path)
