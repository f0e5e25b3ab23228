"""The pipeline of AVE-Net on files and arrays, against the network itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import comodal
from comodal.cli.program import main
from comodal.errors import CheckpointError
from comodal.inference.ave_net_pipeline import JointEmbeddingPipeline
from comodal.models.ave_net.ave_net import SMALL_AVE_NET_CONFIG, AVENet
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.vilbert import ViLBERT
from tests.support.small_tasks import config as small_vilbert_config

RATE = 48_000
CONFIG = replace(SMALL_AVE_NET_CONFIG, width=4, image_size=56, embedding_dim=8)


@pytest.fixture(scope="module", params=["distance", "localization"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an image and 2.5 s of audio."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(AVENet(replace(CONFIG, comparison=request.param)).eval(), folder / "model", {})
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "image.png")
    soundfile.write(folder / "noise.wav", rng.normal(0, 0.1, RATE * 5 // 2), RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> JointEmbeddingPipeline:
    pipeline = comodal.load(folder / "model", device="cpu", precision="fp32")
    assert isinstance(pipeline, JointEmbeddingPipeline)
    return pipeline


def test_an_image_is_embedded_by_its_center(folder: Path, pipeline: JointEmbeddingPipeline):
    """A short side of 64 is 8/7 of 56, so nothing is resized."""
    pixels = np.asarray(Image.open(folder / "image.png"))
    center = torch.from_numpy(pixels[4:60, 4:60].copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = pipeline.model.compute_image_features(center).numpy()
    assert np.allclose(pipeline.embed_image(folder / "image.png"), expected, atol=1e-5)
    assert np.allclose(pipeline.embed_image([pixels, pixels]), np.repeat(expected, 2, 0), atol=1e-5)


def test_audio_is_embedded_by_its_windows(folder: Path, pipeline: JointEmbeddingPipeline):
    samples, _ = soundfile.read(folder / "noise.wav", dtype="float32")
    vectors, seconds = pipeline.embed_audio(folder / "noise.wav", hop_seconds=0.5)
    assert seconds.tolist() == [0.0, 0.5, 1.0, 1.5]
    with torch.inference_mode():
        expected = pipeline.model.compute_audio_features(torch.from_numpy(samples[None, RATE : 2 * RATE])).numpy()
    assert np.allclose(vectors[2, None], expected, atol=1e-5)
    with pytest.raises(ValueError, match="24000 samples"):
        pipeline.embed_audio(samples[:24_000], RATE)


def test_a_match_is_the_networks_probability(folder: Path, pipeline: JointEmbeddingPipeline):
    image = torch.from_numpy(np.asarray(Image.open(folder / "image.png")).copy()).permute(2, 0, 1)[None]
    samples, _ = soundfile.read(folder / "noise.wav", dtype="float32")
    with torch.inference_mode():
        logits = pipeline.model(image, torch.from_numpy(samples[None, :RATE])).logits
        positions = pipeline.model.localize(image, torch.from_numpy(samples[None, :RATE]))[0].numpy()
    first = pipeline.match(folder / "image.png", folder / "noise.wav").windows[0]
    assert first.probability == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)
    assert np.allclose(pipeline.localize(folder / "image.png", samples, RATE), positions, atol=1e-4)


def test_the_command_matches_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    files = [str(folder / "image.png"), str(folder / "noise.wav")]
    assert main(["match", *files, "--model", str(folder / "model"), "--json"]) == 0
    assert '"probability"' in capsys.readouterr().out
    save_model(ViLBERT(small_vilbert_config(40)), tmp_path, {})
    assert main(["match", *files, "--model", str(tmp_path)]) == 1
    assert "ViLBERT" in capsys.readouterr().err


def test_another_model_is_refused(tmp_path: Path):
    save_model(ViLBERT(small_vilbert_config(40)), tmp_path, {})
    with pytest.raises(CheckpointError, match="ViLBERT, not a AVENet"):
        AVENet.from_pretrained(tmp_path)
