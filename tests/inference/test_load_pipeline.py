"""`comodal.load`: the pipeline that fits a model, and that it gives what the commands give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import comodal
from comodal.errors import CheckpointError
from comodal.inference.audio_visual import AudioVisualPipeline
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from tests.support.make_media import make_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("l3net") / "model"
    save_model(L3Net(make_small_l3net_config(width=4, image_size=32)).eval(), path, {})
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> AudioVisualPipeline:
    found = comodal.load(folder, device="cpu", precision="fp32")
    assert isinstance(found, AudioVisualPipeline)
    return found


AUDIO = 0.3 * np.sin(np.arange(96_000) * 2 * np.pi * 440 / 48_000).astype(np.float32)


def test_an_image_is_the_same_in_every_form(pipeline: AudioVisualPipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    forms = [tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(pixels), pixels]
    forms.append(torch.from_numpy(pixels).permute(2, 0, 1))
    together = pipeline.embed_image(forms)
    for form, row in zip(forms, together, strict=True):
        np.testing.assert_allclose(pipeline.embed_image(form)[0], row, atol=1e-5)
        np.testing.assert_allclose(row, together[0], atol=1e-5)


def test_audio_embeddings_are_pooled_maps_of_the_network(pipeline: AudioVisualPipeline) -> None:
    """The window in the middle of two seconds, by the network's own layers."""
    vectors, seconds = pipeline.embed_audio(AUDIO, 48_000, hop_seconds=0.5, center=False)
    np.testing.assert_allclose(seconds, [0.0, 0.5, 1.0])
    model = pipeline.model
    with torch.no_grad():
        maps = model.audio_tower(model.spectrogram(torch.from_numpy(AUDIO[None, 24_000:72_000])))
    channels = maps.shape[1]
    by_cell = vectors[1].reshape(-1, channels) if vectors.shape[1] % channels == 0 else None
    assert by_cell is not None
    np.testing.assert_allclose(by_cell.max(0), maps[0].amax((1, 2)).numpy(), atol=1e-4)


def test_match_is_the_probability_of_the_network(pipeline: AudioVisualPipeline) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (37, 37, 3), dtype=np.uint8)  # 8/7 of the model's 32
    found = pipeline.match(pixels, AUDIO[:48_000], 48_000)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    place = pipeline.localize(pixels, AUDIO[:48_000], 48_000)
    assert place.ndim == 2 and np.isfinite(place).all()
    model = pipeline.model
    with torch.no_grad():
        image_features = model.compute_image_features(images)
        logits = model.fuse_all_pairs(
            image_features, model.compute_audio_features(torch.from_numpy(AUDIO[None, :48_000]))
        )[0]
    assert found.windows[0].probability == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-4)


def test_a_video_has_two_streams_of_embeddings(pipeline: AudioVisualPipeline, tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4")
    found = pipeline.embed_video(path, frames_per_second=2.0)
    assert len(found.image_embeddings) == len(found.image_timestamps) > 1
    assert len(found.audio_embeddings) == len(found.audio_timestamps) > len(found.image_embeddings)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        comodal.load(tmp_path)
