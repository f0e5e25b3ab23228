"""`comodal train ave_net`: what is trained, from which weights, how it resumes, and how it is evaluated and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.cli.program import main
from comodal.errors import CheckpointError
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.checkpoint import load_model, save_model
from comodal.models.efficientnet_lite0 import build_efficientnet_lite0
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.objectives.joint_embedding import ContrastiveEmbedding
from comodal.recipes.ave_net_pretraining import recipe
from comodal.tasks.correspondence.avc_evaluation import evaluate_avc
from comodal.tasks.evaluation.results_card import read_card
from comodal.text_files import read_log
from comodal.training.run import train
from tests.support.musicnn_weights import make_musicnn_weights, write_bundle
from tests.support.small_world import write_world

SMALL = {"variant": "small", "width": 4, "image_size": 24, "batch_size": 8, "workers": 0, "validation_pairs": 8}
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed, split in enumerate(("train", "validation", "test")):
        write_world(folder / split, 12, seed=seed)
    return folder


def test_the_default_is_the_papers(shards: Path):
    """Batches of 2,048 over 16 GPUs, pairs half of which are matched, and the distance of 128-d embeddings."""
    run = recipe(shards, width=2, image_size=16, workers=0, validation_pairs=0)
    assert run.batches.batch_size == 2048 and type(run.objective) is AudioVisualCorrespondence
    assert run.objective.model.config.embedding_dim == 128
    assert run.batches.samples.batch([(0, i) for i in range(8)]).is_match.sum() == 4


def test_the_temperature_is_trained_and_only_matched_pairs_are_drawn(shards: Path):
    run = recipe(shards, objective="contrastive", **SMALL)
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert isinstance(run.objective, ContrastiveEmbedding) and id(run.objective.log_inverse_temperature) in trained
    assert run.batches.samples.batch([(0, i) for i in range(8)]).is_match.all()


@pytest.mark.parametrize("options", [{"objective": "contrastive"}, {"comparison": "localization"}], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(shards: Path, tmp_path: Path, options: dict):
    parameters = {**SMALL, **options, "data": shards}
    train(recipe, {**parameters, "steps": 3}, tmp_path / "whole", **CPU)
    train(recipe, {**parameters, "steps": 1}, tmp_path / "parts", **CPU)
    train(recipe, {**parameters, "steps": 3}, tmp_path / "parts", resume=True, **CPU)
    whole, parts = (load_model(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    losses = [line["loss"] for line in read_log(tmp_path / "parts" / "metrics.jsonl")]
    assert np.isfinite(losses).all()


def test_frozen_towers_have_the_weights_that_they_started_from(shards: Path, tmp_path: Path):
    torch.manual_seed(3)
    l3net = L3Net(make_small_l3net_config(4, 24))
    save_model(l3net, tmp_path / "l3net", {})
    parameters = {**SMALL, "data": shards, "steps": 2, "start_from": tmp_path / "l3net", "frozen_towers": "both"}
    train(recipe, {**parameters, "objective": "contrastive"}, tmp_path / "run", **CPU)
    trained = AVENet.from_pretrained(tmp_path / "run")
    for name in ("image_tower", "audio_tower"):
        expected = l3net.get_submodule(name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in trained.get_submodule(name).state_dict().items())


def test_lite0_starts_from_its_imagenet_weights(shards: Path):
    run = recipe(shards, **SMALL | {"image_size": 32}, image_backbone="efficientnet_lite0", frozen_towers="image")
    expected = build_efficientnet_lite0().state_dict()
    weights = run.objective.model.image_tower.state_dict()
    assert len(weights) > 200 and all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert (
        recipe(shards, **{k: v for k, v in SMALL.items() if k != "image_size"}).objective.model.config.image_size == 64
    )


def test_musicnn_starts_from_the_weights_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tower is found in an installed package, and takes audio at 16 kHz."""
    weights = make_musicnn_weights()
    write_bundle(tmp_path / "musicnn" / "MSD_vgg", weights)
    (tmp_path / "musicnn" / "__init__.py").write_text("raise ImportError('it needs TensorFlow')")
    monkeypatch.syspath_prepend(tmp_path)
    write_world(tmp_path / "shards" / "train", 12, rate=16_000)
    options = {"audio_backbone": "musicnn_vgg", "frozen_towers": "audio", "objective": "contrastive"}
    parameters = {**SMALL, **options, "data": tmp_path / "shards", "steps": 1, "validation_pairs": 0}
    train(recipe, parameters, tmp_path / "run", **CPU)
    tower = AVENet.from_pretrained(tmp_path / "run").audio_tower
    assert np.array_equal(tower.convolutions[2].weight[7, 5].detach(), weights["3CNN/kernel"][:, :, 5, 7])
    assert np.array_equal(tower.norms[3].running_var, weights["batch_normalization_4/moving_variance"])


def test_weights_that_do_not_fit_are_refused(shards: Path, tmp_path: Path):
    save_model(L3Net(make_small_l3net_config(8, 24)), tmp_path / "wide", {})
    with pytest.raises(CheckpointError, match="wide"):
        recipe(shards, **SMALL, start_from=tmp_path / "wide")
    with pytest.raises(ValueError, match="start-from"):
        recipe(shards, **SMALL, frozen_towers="audio")
    train(recipe, {**SMALL, "data": shards, "steps": 1}, tmp_path / "run", **CPU)
    with pytest.raises(CheckpointError, match="comparison distance, not localization"):
        recipe(shards, **SMALL, start_from=tmp_path / "run", comparison="localization")


@pytest.mark.parametrize("comparison", ["distance", "localization"])
def test_evaluation_ranks_by_the_margin(shards: Path, tmp_path: Path, comparison: str):
    """The pairwise accuracy is 1 minus the mean rank (from 0) over the number of other candidates: all have 10."""
    train(recipe, {**SMALL, "data": shards, "steps": 2, "comparison": comparison}, tmp_path / "run", **CPU)
    flat = evaluate_avc(tmp_path / "run", shards, examples_per_clip=2, workers=0, out=tmp_path / "out", **CPU)
    for direction in ("image_to_audio", "audio_to_image"):
        mean = flat[f"avc.{direction}.mean"] - 1
        assert flat[f"avc.{direction}.pairwise"] == pytest.approx(1 - mean / 10)
        assert flat[f"avc.{direction}.pairwise.low"] <= flat[f"avc.{direction}.pairwise"]
    assert "image to audio pairwise accuracy" in read_card(tmp_path / "out" / "card.json")["scores"]


def test_the_commands_know_it(capsys: pytest.CaptureFixture):
    main(["list", "recipes"])
    assert "ave_net" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["train", "ave_net", "--help"])
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--image-backbone", "--frozen-towers", "--comparison", "--objective"))


@pytest.mark.slow
def test_it_learns_which_tone_belongs_to_which_brightness(tmp_path: Path):
    """Brighter images have higher tones. Chance level of a ranking: 0.5."""
    for seed, (split, clips) in enumerate((("train", 80), ("test", 40))):
        write_world(tmp_path / split, clips, seed=seed)
    parameters = {**SMALL, "width": 8, "validation_pairs": 0, "batch_size": 32, "learning_rate": 2e-3}
    parameters |= {"brightness_jitter": 0.02, "saturation_jitter": 0.1, "objective": "contrastive"}
    train(recipe, {**parameters, "data": tmp_path, "steps": 150}, tmp_path / "run", **CPU)
    flat = evaluate_avc(tmp_path / "run", tmp_path, workers=0, **CPU)
    assert flat["avc.image_to_audio.pairwise"] > 0.85 and flat["avc.accuracy"] > 0.75
