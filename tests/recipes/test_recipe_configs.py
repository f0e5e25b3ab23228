"""The shipped configs of `comodal train --config NAME`: each parses, and trains two steps on small data.

Those of joint training are trained in test_twelve_in_one.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from comodal.cli.parser import CommandParser
from comodal.cli.program import build_recipe_page, main
from comodal.models.checkpoint import save_model
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG
from comodal.recipes.recipe_configs import CONFIGS_DIR, list_recipe_configs, read_recipe_config
from comodal.text_files import read_log, read_yaml
from tests.support.small_vilbert_data import SMALL_VILBERT_DATA
from tests.support.small_world import write_world

CONFIGS = list_recipe_configs()
TWO_STEPS = ["--workers", "0", "--device", "cpu", "--precision", "fp32"]


def small_l3net(folder: Path) -> list[str]:
    write_world(folder / "shards" / "train", 8)
    write_world(folder / "shards" / "validation", 4, seed=1)
    words = ["--data", f"{folder / 'shards'}", "--steps", "2", "--batch-size", "4", "--width", "4"]
    return [*words, "--image-size", "24", "--validation-pairs", "4"]


def small_clip_classes(folder: Path) -> list[str]:
    for seed, split in enumerate(("train", "validation")):
        write_world(folder / "shards" / split, 8, seed=seed, classes=("dark", "bright"))
    words = ["--data", f"{folder / 'shards'}", "--steps", "2", "--batch-size", "4", "--width", "4"]
    return [*words, "--image-size", "24", "--validation-pairs", "4"]


def small_fusion(folder: Path) -> list[str]:
    config = replace(PAPER_L3NET_CONFIG, width=4, image_size=24)
    save_model(ClipClassifier(ClipClassifierConfig(config, 2)), folder / "classes", {})
    return [*small_l3net(folder), "--start-from", f"{folder / 'classes'}"]


def small_ave_net(folder: Path) -> list[str]:
    """Without the weights of musicnn, which no package of the tests has."""
    for seed, split in enumerate(("train", "validation")):
        write_world(folder / "shards" / split, 8, seed=seed, short_side=76)
    words = ["--data", f"{folder / 'shards'}", "--steps", "2", "--batch-size", "4", "--image-size", "64"]
    return [*words, "--validation-pairs", "4", "--audio-backbone", "spectrogram_statistics"]


# For each config, or for each recipe that has configs: small data, and the flags for two steps on it, which override
# the config.
SMALL_DATA: dict[str, Callable[[Path], list[str]]] = {
    "l3net": small_l3net,
    "ave_net": small_ave_net,
    "clip_classes": small_clip_classes,
    "l3net_supervised_pretraining": small_fusion,
} | SMALL_VILBERT_DATA


def test_every_yaml_file_is_listed_and_describes_itself():
    assert set(CONFIGS) == {path.stem for path in CONFIGS_DIR.glob("*.yaml")} and len(CONFIGS) >= 3
    for name in CONFIGS:
        text = (CONFIGS_DIR / f"{name}.yaml").read_text()
        assert text.startswith("# ") and 10 < len(read_recipe_config(Path(name)).about) < 90, name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_of_a_config_is_an_option_of_its_recipe(name: str):
    config = read_recipe_config(Path(name))
    page = build_recipe_page(config.recipe)
    values = CommandParser(page.options, page.format_full).parse(["--config", name]).values
    assert set(values) == set(config.options) == set(read_yaml(CONFIGS_DIR / f"{name}.yaml")) - {"recipe", "about"}


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].target != "joint"])
def test_a_config_trains_two_steps(name: str, tmp_path: Path):
    out = tmp_path / "run"
    words = SMALL_DATA[name if name in SMALL_DATA else read_recipe_config(Path(name)).recipe](tmp_path)
    assert main(["train", "--config", name, *words, *TWO_STEPS, "--out", str(out)]) == 0
    assert [line["step"] for line in read_log(out / "metrics.jsonl") if line["split"] == "train"] == [2]
    given = read_recipe_config(Path(name)).options
    flags = {word[2:].replace("-", "_") for word in [*words, *TWO_STEPS] if word.startswith("--")}
    written = read_yaml(out / "config.yaml")
    assert {key: written[key] for key in given if key not in flags} == {
        key: value for key, value in given.items() if key not in flags
    }


def test_a_file_of_ones_own_names_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"recipe": "l3net", "batch-size": 6}))
    assert main(["train", "--config", str(own), "--data", "d", "--out", "o", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["batch_size"] == 6


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["train", "--config", "l3net_kinetic"], 1, "l3net_kinetic"),
        (["train", "--config", "{tmp}/none.yaml"], 1, "none.yaml: recipe is None"),
        (["train", "vqa", "--config", "l3net_kinetics_sounds"], 1, "l3net_kinetics_sounds is a config of the recipe"),
        (["train", "--width", "4"], 2, "--config"),
    ],
)
def test_a_config_without_a_recipe_or_with_another(
    words: list[str], status: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "none.yaml").write_text("width: 4\n")
    assert main([word.format(tmp=tmp_path) for word in words]) == status
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
