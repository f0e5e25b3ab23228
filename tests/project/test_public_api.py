"""The Python API as a user meets it: names, types, loading by path and by name, tasks and recipes of other packages."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import comodal
from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.extractors import load_extractor
from comodal.regions.region_extractor import ExtractorSource
from comodal.regions.region_network import load_extractor_for_model
from comodal.registry import RECIPES, REGION_EXTRACTORS, TASKS, import_object
from comodal.training.run_config import get_recipe_name
from tests.support.hub_server import comodal_at, served

PLUGIN = """
def evaluate_birds(data: Path, model: Path, out: Path | None = None, count: int = 3) -> dict[str, float]:
    '''Count the files of a folder.

    Args:
        data: Folder of files.
        model: A model.
        out: Output folder.
        count: A number.

    Examples:
        comodal evaluate birds --data birds/ --model runs/l3net
    '''
    assert isinstance(data, Path)
    return {"birds.files": float(len(list(data.iterdir())) * count)}
"""


@pytest.fixture
def model() -> L3Net:
    torch.manual_seed(0)
    return L3Net(make_small_l3net_config(width=4, image_size=32)).eval()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a task and a region extractor, as pip leaves it in site-packages."""
    site = tmp_path / "site"
    info = site / "comodal_birds-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "birds_task.py").write_text("from pathlib import Path\n" + PLUGIN)
    page = (Path(__file__).parents[2] / "docs" / "development" / "adding_an_extractor.md").read_text()
    (site / "color_regions.py").write_text(page.split("```python\n")[1].split("```")[0])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: comodal-birds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[comodal.tasks]\nbirds = birds_task:evaluate_birds\nesc50 = birds_task:evaluate_birds\n"
        "[comodal.region_extractors]\ncolor_grid = color_regions:load_color_grid\n"
        "efficientnet_lite0 = color_regions:load_color_grid\n"
    )
    monkeypatch.syspath_prepend(site)
    for registry in (TASKS, REGION_EXTRACTORS):
        monkeypatch.setattr(registry, "is_complete", False)
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    return site


def test_about_twenty_names_are_public():
    assert len(comodal.PUBLIC_NAMES) <= 25
    text = subprocess.run(
        [sys.executable, "-c", "import comodal; help(comodal)"], capture_output=True, text=True, check=True
    ).stdout
    assert "comodal.load(" in text and len(text.splitlines()) < 120


@pytest.mark.slow
def test_a_type_checker_sees_every_public_name_with_its_type(tmp_path: Path):
    lines = [f"reveal_type(comodal.{name})" for name in comodal.PUBLIC_NAMES]
    (tmp_path / "user.py").write_text("import comodal\n" + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-incremental", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    revealed = [line for line in done.stdout.splitlines() if "Revealed type is" in line]
    assert len(revealed) == len(lines), done.stdout
    assert not [line for line in revealed if '"Any"' in line or "builtins.object" in line]


def test_a_model_is_saved_and_loaded_by_its_class(model: L3Net, tmp_path: Path):
    model.save_pretrained(str(tmp_path / "model"))
    loaded = L3Net.from_pretrained(str(tmp_path / "model"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="model"):
        ViLBERT.from_pretrained(tmp_path / "model")


def test_a_model_is_loaded_by_its_name_on_the_hub(model: L3Net, tmp_path: Path):
    """Over a server that speaks the hub's protocol, from Python and from the command line."""
    model.save_pretrained(tmp_path / "model")
    code = f"""
        import torch, comodal
        there = comodal.L3Net.from_pretrained("me/small")
        here = comodal.L3Net.from_pretrained({str(tmp_path / "model")!r})
        assert all(torch.equal(a, b) for a, b in zip(there.state_dict().values(), here.state_dict().values()))
        assert isinstance(comodal.load("me/small"), comodal.AudioVisualPipeline)
    """
    with served() as (address, files):
        files |= {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        export = ("export", "me/small", "--to", "torch", "--out", tmp_path / "exported")
        ((status, said),) = comodal_at(address, tmp_path / "cache", export)
    assert status == 0 and (tmp_path / "exported").is_dir(), said
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/l3nte: no model found"):
        comodal.load("runs/l3nte")


def test_paths_may_be_text(model: L3Net, tmp_path: Path):
    """In the functions that have the options of a command, and in the parameters of a recipe."""
    (tmp_path / "shards" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="shards"):
        comodal.train("l3net", {"data": str(tmp_path / "shards"), "variant": "small"}, str(tmp_path / "run"))
    model.save_pretrained(tmp_path / "model")
    comodal.export(str(tmp_path / "model"), "torch", str(tmp_path / "exported"), only=["image"])
    assert list((tmp_path / "exported").iterdir())


def test_recipes_keep_their_names_in_a_run():
    for name, entry in RECIPES.items():
        assert get_recipe_name(import_object(entry.target)) == name


def test_a_recipe_or_a_task_that_does_not_exist(tmp_path: Path):
    with pytest.raises(RecipeError, match="l4net"):
        comodal.train("l4net", {}, tmp_path / "run")
    with pytest.raises(RecipeError, match="esc51"):
        comodal.evaluate("esc51", data="x")


def test_a_task_of_another_package(plugin: Path, capsys: pytest.CaptureFixture):
    result = comodal.evaluate("birds", data=str(plugin), model="x", count=2)
    assert result.metrics == {"birds.files": 2.0 * len(list(plugin.iterdir()))} and result.card_path is None
    assert TASKS["esc50"].target.startswith("comodal."), "an own name cannot be replaced"
    assert main(["evaluate", "birds", "--data", str(plugin), "--model", str(plugin)]) == 0
    assert capsys.readouterr().out.split() == ["birds.files", f"{3.0 * len(list(plugin.iterdir())):.4f}"]
    with pytest.raises(SystemExit):
        main(["evaluate", "birds", "--help"])
    assert "--count INT" in capsys.readouterr().out
    assert main(["list", "evaluate"]) == 0
    assert "from the package comodal-birds" in capsys.readouterr().out


@pytest.mark.usefixtures("plugin")
def test_a_region_extractor_of_another_package(model: L3Net, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The one of docs/development/adding_an_extractor.md: each quarter of the image has the color painted there."""
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(colors.reshape(2, 2, 3).repeat(8, 0).repeat(10, 1)).save(tmp_path / "photos" / "a.png")
    words = ["extract", str(tmp_path / "photos"), str(tmp_path / "regions"), "--detector", "color_grid", "--grid", "2"]
    assert main([*words, "--dtype", "float32", "--workers", "1"]) == 0
    store = RegionStore(tmp_path / "regions")
    assert np.array_equal(store.read_regions(0).features, colors.astype(np.float32))
    assert store.read_regions(0).boxes.tolist() == [[0, 0, 10, 8], [10, 0, 20, 8], [0, 8, 10, 16], [10, 8, 20, 16]]
    model.save_pretrained(tmp_path / "model")  # any model, for its folder
    again = load_extractor_for_model(tmp_path, dict(store.about["provenance"]))
    assert again.about["fingerprint"] == store.about["provenance"]["fingerprint"]
    assert REGION_EXTRACTORS["efficientnet_lite0"].target.startswith("comodal."), "an own name cannot be replaced"
    assert main(["list", "extractors"]) == 0
    assert "from the package comodal-birds" in capsys.readouterr().out


@pytest.mark.usefixtures("plugin")
def test_a_network_that_no_extractor_recognizes(tmp_path: Path):
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "folder").mkdir()
    for detector in ("other.pth", "folder", "missing"):
        with pytest.raises(CheckpointError, match=detector):
            load_extractor(ExtractorSource(str(tmp_path / detector)))
