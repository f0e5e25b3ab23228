"""`comodal train dual_encoder` learns, resumes to the bit, and leaves a folder that is evaluated and used."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import comodal
from comodal.cli.program import main
from comodal.data.captions.caption_files import read_captions
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.hub import format_model_card
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.recipes import dual_encoder_training, vilbert_pretraining
from comodal.recipes.dual_encoder_training import recipe
from comodal.regions.extract import extract_regions
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.training.interruption import InterruptHandler
from comodal.training.run import train
from comodal.training.run_log import read_log
from tests.support.small_bert import write_small_bert
from tests.support.small_captions import write_captions

OPTIONS: dict[str, Any] = {"precision": "fp32", "device": "cpu", "log_every": 1, "threads": 1}
World = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Regions, captions and a BERT with their words."""
    folder = tmp_path_factory.mktemp("world")
    regions, captions = write_captions(folder, 120)
    vocabulary = WordPieceTokenizer.from_texts(caption.caption for caption in read_captions(captions).captions)
    return regions, captions, write_small_bert(folder / "bert", vocabulary.vocabulary)


def settings(world: World, **changes: Any) -> dict[str, Any]:
    regions, captions, bert = world
    chosen = {"data": regions, "captions": captions, "bert": bert, "workers": 0, "validation_pairs": 0}
    return chosen | {"batch_size": 40, "steps": 6, "embedding_dim": 16, "head_dropout": 0.0} | changes


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(recipe, settings(world, steps=150, learning_rate=1e-2), out, **OPTIONS) == 0
    return out


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "metrics.jsonl") if line["split"] == "train"]


def test_it_finds_held_out_images_by_their_captions(world: World, run: Path, tmp_path: Path):
    """Twenty images of 15 pairs of things: images of the same two things cannot be told apart."""
    regions, captions, _ = world
    found = evaluate_retrieval(run, captions, regions, precision="fp32", out=tmp_path / "out")
    assert found["retrieval.text_to_image.r5"] > 0.9 > found["retrieval.untrained.text_to_image.r5"]
    assert found["retrieval.image_to_text.r5"] > 0.9
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["title"] == "Retrieval, dual encoder" and card["counts"]["items"] == 20
    assert all(score["paper"] is None for score in card["scores"].values())
    blind = evaluate_retrieval(run, captions, regions, precision="fp32", ablate="image")
    assert blind["retrieval.text_to_image.r1"] == 0, "ties count as ahead"


def test_a_resumed_run_is_the_run_that_was_never_stopped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With dropout, whose random state is part of a checkpoint, and a learned temperature."""
    chosen = settings(world, head_dropout=0.5)
    assert train(recipe, chosen, tmp_path / "whole", **OPTIONS) == 0
    signals = iter([0, 0, signal.SIGTERM])
    monkeypatch.setattr(InterruptHandler, "get_agreed_signal", lambda *_: next(signals))
    assert train(recipe, chosen, tmp_path / "run", **OPTIONS) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert len(losses(tmp_path / "run")) == 3
    assert train(recipe, chosen, tmp_path / "run", resume=True, **OPTIONS) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    whole = DualEncoder.from_pretrained(tmp_path / "whole").state_dict()
    for name, tensor in DualEncoder.from_pretrained(tmp_path / "run").state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_features_of_a_frozen_bert_are_those_that_it_computes_in_training(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Computed once without padding, or in every step with padding."""
    precomputed, computed = recipe(**settings(world)), recipe(**settings(world))
    precomputed.prepare(torch.device("cpu"))
    monkeypatch.setattr(dual_encoder_training, "MAX_PRECOMPUTED", 0)
    computed.prepare(torch.device("cpu"))
    first, second = (next(chosen.batches.iterate_batches()) for chosen in (precomputed, computed))
    assert first.text_features.shape == (40, 32) and second.text_features.shape == (40, 0)
    assert torch.equal(first.token_ids, second.token_ids)
    model = computed.objective.model.eval()
    with torch.no_grad():
        assert_close(model.compute_text_features(second.token_ids, second.token_mask), first.text_features)
        for name, value in precomputed.objective.eval()(first).items():
            assert_close(value, computed.objective(second)[name], rtol=1e-5, atol=1e-5)


def test_only_the_heads_of_a_frozen_bert_are_trained(world: World, tmp_path: Path):
    initial = recipe(**settings(world)).objective.model.state_dict()
    for text_encoder, is_frozen in (("frozen", True), ("trained", False)):
        train(recipe, settings(world, text_encoder=text_encoder), tmp_path / text_encoder, **OPTIONS)
        trained = DualEncoder.from_pretrained(tmp_path / text_encoder).state_dict()
        name = "text_layers.1.attention.query.weight"
        assert torch.equal(initial[name], trained[name]) == is_frozen
        assert not torch.equal(initial["text_head.linear.weight"], trained["text_head.linear.weight"])


def test_the_temperature_is_fixed_on_request(world: World, tmp_path: Path):
    train(recipe, settings(world, temperature="fixed", initial_temperature=0.5), tmp_path / "run", **OPTIONS)
    values = [line["temperature"] for line in read_log(tmp_path / "run" / "metrics.jsonl")]
    assert values == pytest.approx([0.5] * 6)


def test_it_starts_from_a_dual_encoder_of_the_same_sizes(world: World, run: Path):
    started = recipe(**settings(world, start_from=run)).objective.model.state_dict()
    for name, tensor in DualEncoder.from_pretrained(run).state_dict().items():
        assert torch.equal(started[name], tensor), name
    with pytest.raises(CheckpointError, match=r"run holds no dual encoder of this configuration"):
        recipe(**settings(world, start_from=run, embedding_dim=8))


def test_mistakes_are_named(world: World, run: Path, tmp_path: Path):
    regions, captions, _ = world
    with pytest.raises(RecipeError, match=r"--max-tokens 41: this BERT has positions for 40"):
        recipe(**settings(world, max_tokens=41))
    with pytest.raises(DataError, match=r"run: a dual encoder .* leave out --rerank"):
        evaluate_retrieval(run, captions, regions, rerank=5)
    with pytest.raises(ValueError, match="add --rerank"):
        evaluate_retrieval(run, captions, regions, first_stage=run)
    with pytest.raises(CheckpointError, match=r"missing: no model found"):
        evaluate_retrieval(tmp_path / "missing", captions, regions)


@pytest.fixture(scope="module")
def vilbert(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ViLBERT with a vocabulary of its own."""
    regions, captions, _ = world
    chosen = {"data": regions, "captions": captions, "variant": "small", "steps": 1, "batch_size": 8, "workers": 0}
    out = tmp_path_factory.mktemp("vilbert") / "run"
    train(vilbert_pretraining.recipe, chosen | {"validation_pairs": 0}, out, **OPTIONS)
    return out


@pytest.mark.slow
def test_it_is_the_first_stage_of_vilbert(world: World, run: Path, vilbert: Path, tmp_path: Path):
    """The first stage's ranks are the dual encoder's own, and re-ranking by 1 changes nothing."""
    regions, captions, _ = world
    alone = evaluate_retrieval(run, captions, regions, precision="fp32")
    found = evaluate_retrieval(
        vilbert, captions, regions, precision="fp32", rerank=1, first_stage=run, out=tmp_path / "out"
    )
    for direction in ("text_to_image", "image_to_text"):
        for cut in ("r1", "r5", "r10", "mean"):
            key = f"{direction}.{cut}"
            assert found[f"retrieval.first_stage.{key}"] == alone[f"retrieval.{key}"], key
            assert found[f"retrieval.{key}"] == alone[f"retrieval.{key}"], key
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["title"] == "Retrieval, first stage by a dual encoder, re-ranked zero-shot"
    assert card["settings"]["first_stage"] == str(run)
    with pytest.raises(CheckpointError, match=r"run: a ViLBERT, not a DualEncoder"):
        evaluate_retrieval(vilbert, captions, regions, rerank=1, first_stage=vilbert)
    ViLBERT.from_pretrained(vilbert)


def test_the_pipeline_embeds_new_images_and_texts(tmp_path: Path, world: World):
    """The embeddings of the images of the store are those of their files; the cosine is the score."""
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(width=4, image_size=32)).eval(), tmp_path / "l3net", {})
    (tmp_path / "photos").mkdir()
    rng, lines = np.random.default_rng(0), []
    words = ["ball", "bell", "bird", "clock"]
    for i, word in enumerate(words):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"a {word}", "split": "train"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    extract_regions(tmp_path / "photos", tmp_path / "regions", str(tmp_path / "l3net"), dtype="float32")
    chosen = settings((tmp_path / "regions", tmp_path / "captions.jsonl", world[2]), batch_size=4, steps=2)
    train(recipe, chosen, tmp_path / "run", **OPTIONS)
    pipeline = comodal.load(tmp_path / "run", device="cpu", precision="fp32")
    assert isinstance(pipeline, DualEncoderPipeline)
    paths = [tmp_path / "photos" / f"{i}.png" for i in range(4)]
    images, texts = pipeline.embed_image(paths), pipeline.embed_text([f"a {word}" for word in words])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    store, model = RegionStore(tmp_path / "regions"), DualEncoder.from_pretrained(tmp_path / "run")
    for image, path in zip(images, paths, strict=True):
        row = store.find(path.stem)
        assert row is not None
        mean = torch.from_numpy(store.read_regions(row).features.astype(np.float32)).mean(0)
        with torch.no_grad():
            np.testing.assert_allclose(model.embed_image(mean[None, None], None)[0].numpy(), image, atol=1e-4)
    np.testing.assert_allclose(pipeline.score(Image.open(paths[1]), ["a ball", "a bird"]), texts[[0, 2]] @ images[1],
                               atol=1e-5)  # fmt: skip


def test_its_model_card_on_the_hub_names_its_own_paper(run: Path):
    config = json.loads((run / "model" / "config.json").read_text())
    card = format_model_card("captions", config, [], "mit")
    assert "- dual-encoder" in card and "- vilbert" not in card
    assert "A `DualEncoder` trained with comodal, after Radford et al." in card


def test_it_is_listed(capsys: pytest.CaptureFixture):
    assert main(["list", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert "dual_encoder " in shown and "dual_encoder_small_data" in shown
