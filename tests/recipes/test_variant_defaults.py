"""What a variant is trained with where nothing is said: numbers of its own, written down, and kept by a resumed run."""

import re
from pathlib import Path

import pytest
import yaml

from comodal import hardware
from comodal.errors import DataError, RecipeError
from comodal.recipes import avc_pretraining, vilbert_pretraining
from comodal.training.run import train
from tests.support.small_captions import write_captions
from tests.support.small_world import write_world

SMALL = {"variant": "small", "width": 4, "image_size": 16, "workers": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "train", 12)
    write_world(folder / "validation", 6, seed=1)
    return folder


def test_the_papers_network_is_trained_as_in_the_paper(shards: Path):
    """Section 3.2: a learning rate of 1e-4, constant; 60 million pairs in batches of 256."""
    run = avc_pretraining.recipe(shards, width=4, image_size=16, workers=0)
    assert run.learning_rate(0) == run.learning_rate(100_000) == 1e-4
    assert run.batches.batch_size == 256
    assert abs(run.steps * run.batches.batch_size - 60_000_000) < 256


def test_other_networks_of_full_size_are_trained_as_in_l3embedding(shards: Path):
    """jobs/retrain_feb2019: 300 epochs of 4,096 batches of 64 pairs, 78.6 million, at 1e-5."""
    run = avc_pretraining.recipe(shards, variant="openl3_mel256", width=4, image_size=16, workers=0, validation_pairs=0)
    assert (run.batches.batch_size, run.steps, run.learning_rate(5)) == (64, 1_228_800, 1e-5)


def test_a_small_network_is_done_in_minutes_not_months(shards: Path):
    run = avc_pretraining.recipe(shards, **SMALL)
    assert run.steps <= 5_000 and run.validate_every <= run.steps / 10
    assert avc_pretraining.recipe(shards, **SMALL, steps=7, batch_size=8).steps == 7


def test_a_small_vilbert_takes_batches_that_a_laptop_holds(tmp_path: Path):
    regions, captions = write_captions(tmp_path)
    run = vilbert_pretraining.recipe(regions, captions, variant="small", workers=0)
    assert run.batches.batch_size <= 64 and run.steps <= 5_000
    assert dict(run.resolved) == {"steps": run.steps, "batch_size": run.batches.batch_size, "learning_rate": 1e-3}


def test_what_was_taken_is_written_and_resumed(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    settings = {**SMALL, "data": shards, "validation_pairs": 0}
    assert train(avc_pretraining.recipe, {**settings, "steps": 1}, tmp_path / "run", device="cpu") == 0
    said = capsys.readouterr().err
    where = f"cpu, {hardware.resolve_compute().precision}, 1 thread, channels last"
    assert all(part in said for part in ("L3Net", f" parameters, on {where}", "batch size 64"))
    assert re.search(r": about [\d,]+ (s|min), estimated from [\d.]+ [MG]FLOP a step\n", said), said
    assert said.index("estimated from") < said.index("step 1 of 1")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["batch_size"] == 64 and written["learning_rate"] == 1e-3 and written["validate_every"] == 250
    assert train(avc_pretraining.recipe, {**settings, "steps": 2}, tmp_path / "run", resume=True, device="cpu") == 0
    with pytest.raises(RecipeError, match="batch_size 32 instead of 64"):
        train(
            avc_pretraining.recipe,
            {**settings, "steps": 3, "batch_size": 32},
            tmp_path / "run",
            resume=True,
            device="cpu",
        )


def test_a_folder_with_one_video_for_validation_says_how_to_train(tmp_path: Path):
    write_world(tmp_path / "train", 4)
    write_world(tmp_path / "validation", 1)
    with pytest.raises(DataError, match=r"validation: 1 clip of one source.*; --validation-pairs 0 trains without"):
        avc_pretraining.recipe(tmp_path, variant="small")
