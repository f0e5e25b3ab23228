"""The weights of musicnn's VGG: a TensorFlow checkpoint written byte by byte, and the network against plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from comodal.errors import CheckpointError, DataError
from comodal.models.ave_net import ave_net
from comodal.models.ave_net.musicnn_vgg import MUSICNN_SPECTROGRAM_CONFIG, MusicnnVGG
from comodal.models.convert.convert_musicnn import convert_musicnn, find_musicnn_weights
from comodal.models.convert.tensor_bundle import read_tensor_bundle
from comodal.models.l3net.spectrogram import Spectrogram
from tests.support.musicnn_weights import make_musicnn_weights, write_bundle
from tests.support.paths import FIXTURES


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path):
    tensors = make_musicnn_weights() | {"scalar": np.float32(3.5)}
    write_bundle(tmp_path, tensors)
    read = read_tensor_bundle(tmp_path)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name].numpy(), value) for name, value in tensors.items())


def test_the_tower_is_the_original_layer_by_layer(tmp_path: Path):
    """models.py, `vgg`: conv2d with 'same' padding and ReLU, batch_normalization (epsilon 1e-3), max_pooling2d with
    [4, 1] and strides of 2 first, then [2, 2]; the input is (batch, frames, bands)."""
    weights = make_musicnn_weights()
    write_bundle(tmp_path, weights)
    tower = MusicnnVGG().eval()
    tower.load_state_dict(convert_musicnn(tmp_path))
    mel = torch.rand(2, 40, 96)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        gamma, beta, mean, var = (
            torch.tensor(weights[f"{name}/{field}"]).view(1, -1, 1, 1)
            for field in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / (var + 1e-3).sqrt() + beta

    x = norm(mel[:, None], "batch_normalization")
    for layer in range(1, 5):
        kernel = torch.tensor(weights[f"{layer}CNN/kernel"])
        patches = F.unfold(x, 3, padding=1)  # (batch, inputs x 9, positions)
        flat = kernel.permute(2, 0, 1, 3).reshape(-1, 128)
        x = (flat.T @ patches + torch.tensor(weights[f"{layer}CNN/bias"])[:, None]).relu().view(2, 128, *x.shape[2:])
        x = norm(x, f"batch_normalization_{layer}")
        windows = x.unfold(2, 4 if layer == 1 else 2, 2).unfold(3, 1 if layer == 1 else 2, 2)
        x = windows.amax((-2, -1))
    with torch.inference_mode():
        assert torch.allclose(tower(mel.mT[:, None]), x, atol=1e-4)


def test_the_tower_is_the_original_graph_in_tensorflow(tmp_path: Path):
    """tests/fixtures/musicnn: the original graph with these weights, run by TensorFlow."""
    write_bundle(tmp_path, make_musicnn_weights())
    tower = MusicnnVGG().eval()
    tower.load_state_dict(convert_musicnn(tmp_path))
    original = np.load(FIXTURES / "musicnn" / "vgg_random_weights.npz")
    with torch.inference_mode():
        maps = tower(torch.from_numpy(original["spectrograms"].astype(np.float32)).mT[:, None])
    assert maps.shape == (2, 128, 11, 6)
    assert np.allclose(maps.permute(0, 2, 3, 1).numpy(), original["pool4"], atol=1e-5)


def test_the_spectrogram_is_the_logarithm_of_the_power_in_96_bands():
    """extractor.py: log10(10,000 x power + 1). Silence is 0; ten times the amplitude adds 2 where it is loud."""
    spectrogram = Spectrogram(MUSICNN_SPECTROGRAM_CONFIG)
    tone = torch.sin(torch.arange(16_000) * 2 * torch.pi * 1000 / 16_000)[None]
    quiet, loud = spectrogram(tone / 10), spectrogram(tone)
    assert loud.shape == (1, 1, 96, 63) and spectrogram(torch.zeros(1, 16_000)).abs().max() == 0
    band = loud[0, 0, :, 30].argmax()
    assert (loud - quiet)[0, 0, band, 30].item() == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("damage", ["missing", "truncated", "compressed", "another network"])
def test_damaged_checkpoints_are_refused(damage: str, tmp_path: Path):
    folder = tmp_path / "MSD_vgg"
    write_bundle(folder, make_musicnn_weights() if damage != "another network" else {"dense/bias": np.ones(3)})
    if damage == "missing":
        (folder / ".index").unlink()
    elif damage == "truncated":
        (folder / ".data-00000-of-00001").write_bytes(b"12")
    elif damage == "compressed":
        table = bytearray((folder / ".index").read_bytes())
        table[-53] = 1  # before the checksum of the last block, the index, and the footer
        (folder / ".index").write_bytes(bytes(table))
    with pytest.raises(CheckpointError, match="MSD_vgg"):
        convert_musicnn(folder)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("comodal.models.convert.convert_musicnn.find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install --no-deps musicnn"):
        find_musicnn_weights()


def test_its_spectrogram_belongs_to_it():
    with pytest.raises(ValueError, match="musicnn_vgg"):
        ave_net.AVENetConfig(audio_backbone="musicnn_vgg")
    with pytest.raises(ValueError, match="musicnn_vgg"):
        ave_net.AVENetConfig(spectrogram=MUSICNN_SPECTROGRAM_CONFIG)
