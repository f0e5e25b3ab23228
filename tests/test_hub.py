"""Shared models: what goes along and what does not, and there and back over a server that speaks the hub's protocol."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from comodal.cli.parser import CommandParser
from comodal.cli.program import build_command_page
from comodal.errors import CheckpointError, DataError
from comodal.hub import share_model
from comodal.models.checkpoint import load_model, save_model
from tests.support.hub_server import comodal_at, served
from tests.support.small_systems import PRETRAINED_MODELS
from tests.support.small_tasks import QUESTION, write_pretrained


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    with served() as found:
        yield found


def run_of(folder: Path) -> Path:
    run = write_pretrained(folder / "run", [QUESTION])
    (run / "model" / "regions.json").write_text('{"dim": 8, "provenance": {}}')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step.pt").write_bytes(b"optimizer")
    card = {
        "kind": "card", "task": "vqa", "title": "VQA v2", "split": "val2014", "model": "run", "regions": None,
        "scores": {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "paper": None}}, "counts": {"items": 8},
        "files": {}, "seeds": {}, "settings": {}, "versions": {},
    }  # fmt: skip
    (folder / "results").mkdir()
    (folder / "results" / "card.json").write_text(json.dumps(card))
    (folder / "results" / "submission").mkdir()
    (folder / "results" / "submission" / "card.json").write_text(json.dumps(card | {"scores": {}}))  # nothing to tell
    return run


def test_what_is_needed_goes_along_with_a_card_and_nothing_else(tmp_path: Path):
    found = share_model(run_of(tmp_path), tmp_path / "shared", tmp_path / "results")
    names = {path.relative_to(tmp_path / "shared").as_posix() for path in (tmp_path / "shared").rglob("*.*")}
    kept = {"config.json", "model.safetensors", "tokenizer.json", "regions.json", "README.md", "results/00/card.json"}
    assert names == kept and (found.files, found.cards) == (6, 1)
    text = (tmp_path / "shared" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "comodal" and front["license"] == "mit"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.75}]
    assert "| accuracy | 0.7500 | 0.700-0.800 |" in text and "`ViLBERT`" in text


@pytest.mark.parametrize("system", PRETRAINED_MODELS)
def test_a_moved_model_gives_the_same(system: str, tmp_path: Path):
    run = run_of(tmp_path)
    save_model(PRETRAINED_MODELS[system](), run / "model", {})
    share_model(run, tmp_path / "shared")
    first, second = load_model(run).state_dict(), load_model(tmp_path / "shared").state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    text = (tmp_path / "shared" / "README.md").read_text()
    authors = {
        "L3Net": "*Look, Listen",
        "AVENet": "*Objects that Sound",
        "ViLBERT": "*ViLBERT",
        "DualEncoder": "Radford",
    }
    assert f"A `{system}` trained with comodal, after " in text and authors[system] in text
    words = shlex.split(text.split("OWNER/NAME MODEL\ncomodal ")[1].splitlines()[0])
    length = 2 if words[0] in ("evaluate", "embed") else 1
    page = build_command_page(" ".join(words[:length]))
    parser = CommandParser(page.options, page.format_full)
    assert parser.list_missing(parser.parse(words[length:]).values) == []


def test_what_cannot_be_shared_is_told(tmp_path: Path):
    run = run_of(tmp_path)
    with pytest.raises(DataError, match="already exists"):
        share_model(run, run)
    with pytest.raises(DataError, match="no results card"):
        share_model(run, tmp_path / "shared", run)
    with pytest.raises(CheckpointError, match="no model found"):
        share_model(tmp_path, tmp_path / "shared")
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        share_model(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_there_and_back_over_the_hub(tmp_path: Path, hub: tuple[str, dict[str, bytes]]):
    address, files = hub
    run = run_of(tmp_path)

    nobody, pushed, pulled = comodal_at(
        address,
        tmp_path / "home",
        ("pull", "me/small", tmp_path / "nobody"),
        ("push", run, "me/small", "--results", tmp_path / "results"),
        ("pull", "me/small", tmp_path / "got"),
    )
    assert nobody[0] == 1 and "not downloaded from the hub" in nobody[1]
    assert pushed[0] == 0, pushed[1]
    assert "model.safetensors" in files and not any("step.pt" in name for name in files)
    assert pulled[0] == 0, pulled[1]
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert load_model(tmp_path / "got").config == load_model(run).config
