"""AVE-Net and AVOL-Net against the paper's sizes, hand-worked numbers and plain loops."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.ave_net.ave_net import PAPER_AVE_NET_CONFIG, SMALL_AVE_NET_CONFIG, AVENet, AVENetConfig
from comodal.models.efficientnet_lite0 import build_efficientnet_lite0
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.spectrogram import SpectrogramConfig

TINY = replace(SMALL_AVE_NET_CONFIG, width=4, image_size=32, embedding_dim=8)
LOCALIZING = replace(TINY, comparison="localization")


def make_inputs(count: int, config: AVENetConfig = TINY, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8, generator=rng)
    return image, torch.randn(count, round(config.sample_rate * config.audio_seconds), generator=rng) * 0.1


def make_model(config: AVENetConfig = TINY, seed: int = 0) -> AVENet:
    torch.manual_seed(seed)
    return AVENet(config).eval()


def test_the_papers_maps_are_those_of_its_figure():
    """Figure 2: 257 x 200 spectrograms; the last maps are 14 x 14 and 16 x 12, and embeddings have 128 dimensions."""
    model = make_model(replace(PAPER_AVE_NET_CONFIG, width=2))
    image, audio = make_inputs(1, PAPER_AVE_NET_CONFIG)
    spectrogram = model.spectrogram(audio)
    assert spectrogram.shape == (1, 1, 257, 200)
    assert model.compute_image_map(image).shape[2:] == (14, 14)
    assert model.audio_tower(spectrogram).shape[2:] == (16, 12)
    assert [features.shape for features in model(image, audio)[1:]] == [(1, 128), (1, 128)]


def test_the_number_of_parameters_is_that_of_the_papers_layers():
    """Towers as L3-Net's: convolutions 4,685,376 and 4,684,224, norms 3,840 each; then 512-128-128 twice, and 1-2."""
    heads = 2 * (512 * 128 + 128 + 128 * 128 + 128)
    with torch.device("meta"):
        model = AVENet(PAPER_AVE_NET_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == 4_685_376 + 4_684_224 + 2 * 3_840 + heads + 4


def test_embeddings_are_unit_vectors():
    output = make_model()(*make_inputs(3))
    for features in output[1:]:
        assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)


def test_decisions_depend_on_the_distance_alone():
    """Unit vectors at 90 degrees are sqrt(2) apart, the initial threshold; at 0 degrees the margin is 2 sqrt(2), at 180
    degrees 2 (sqrt(2) - 2)."""
    first, at_right_angle, opposite = (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[-1.0, 0.0]]),
    )
    model = make_model()
    for other, margin in ((first, math.sqrt(8)), (at_right_angle, 0.0), (opposite, math.sqrt(8) - 4)):
        logits = model.fuse_pairs(first, other)[0]
        assert (logits[1] - logits[0]).item() == pytest.approx(margin, abs=1e-6)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    rotated = model.fuse_pairs(first @ turn.T, at_right_angle @ turn.T)
    assert torch.allclose(rotated, model.fuse_pairs(first, at_right_angle), atol=1e-6)


def test_localization_takes_the_best_position():
    """Two positions of two dimensions with scores 2 and 5 for the audio; weight 3 and bias -1 give a logit of 14."""
    model = make_model(replace(LOCALIZING, embedding_dim=2))
    with torch.no_grad():
        model.decision.weight.fill_(3.0)
        model.decision.bias.fill_(-1.0)
    image, audio = torch.tensor([[2.0, 7.0, 5.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    assert model.fuse_pairs(image, audio).tolist() == [[0.0, 14.0]]


@pytest.mark.parametrize("config", [TINY, LOCALIZING], ids=["AVE-Net", "AVOL-Net"])
def test_all_pairs_are_the_pairs_one_by_one(config: AVENetConfig):
    model = make_model(config)
    with torch.inference_mode():
        output = model(*make_inputs(3, config))
        matrix = model.fuse_all_pairs(output.image_features, output.audio_features)
        for row in range(3):
            for column in range(3):
                pair = model.fuse_pairs(output.image_features[row, None], output.audio_features[column, None])[0]
                assert torch.allclose(matrix[row, column], pair, atol=1e-5)
        assert torch.allclose(output.logits, matrix[range(3), range(3)], atol=1e-5)


def test_the_decision_of_avol_net_is_its_best_position():
    model = make_model(LOCALIZING)
    with torch.inference_mode():
        image, audio = make_inputs(2)
        positions, logits = model.localize(image, audio), model(image, audio).logits
    assert positions.shape == (2, 4, 4)
    assert torch.allclose(positions.amax((1, 2)), logits[:, 1] - logits[:, 0], atol=1e-5)


def test_an_image_of_equal_positions_is_scored_alike_everywhere_and_as_a_whole():
    model = make_model(replace(TINY, image_size=64))
    _, audio = make_inputs(1)
    with torch.inference_mode():
        gray = torch.full((1, 3, 256, 256), 90, dtype=torch.uint8)
        inner = model.localize(gray, audio)[:, 12:20, 12:20]  # beyond the reach of the zero padding
        assert inner.max() - inner.min() < 1e-5


def test_spectrogram_statistics_are_the_mean_and_the_deviation_over_time():
    model = make_model(replace(TINY, audio_backbone="spectrogram_statistics"))
    _, audio = make_inputs(2)
    spectrogram = model.spectrogram(audio)[:, 0]
    features = model.audio_tower(spectrogram[:, None]).flatten(1)
    expected = torch.cat(
        [spectrogram.mean(2), (spectrogram - spectrogram.mean(2, keepdim=True)).square().mean(2).sqrt()], 1
    )
    assert torch.allclose(features, expected, atol=1e-4)
    assert not list(model.audio_tower.parameters())


def test_lite0_features_are_those_of_its_own_network():
    """Its own average pooling, which precedes its ImageNet classifier, on images normalized to (x - 127) / 128."""
    lite0 = build_efficientnet_lite0()
    model = make_model(replace(TINY, image_backbone="efficientnet_lite0", image_size=64))
    model.image_tower.load_state_dict(lite0.state_dict(), strict=False)
    image, _ = make_inputs(2, model.config)
    with torch.inference_mode():
        expected = lite0.extract_features((image.float() - 127) / 128)
        assert torch.allclose(model.compute_image_map(image), expected, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [TINY, LOCALIZING, replace(TINY, image_backbone="efficientnet_lite0", audio_backbone="spectrogram_statistics")],
)
def test_a_saved_model_loads_as_it_was(config: AVENetConfig, tmp_path: Path):
    model, inputs = make_model(config), make_inputs(2, config)
    model.save_pretrained(tmp_path)
    loaded = AVENet.from_pretrained(tmp_path)
    assert loaded.config == config
    with torch.inference_mode():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded(*inputs), model(*inputs), strict=True))
    with pytest.raises(CheckpointError, match="AVENet"):
        L3Net.from_pretrained(tmp_path)


def test_inputs_that_do_not_fit_are_refused():
    model, (image, audio) = make_model(), make_inputs(1)
    with pytest.raises(TypeError):  # ours, or that of the check of shapes that every test run adds
        model.compute_image_map(image / 255)
    with pytest.raises(ValueError, match="47,999"):
        model.compute_audio_features(audio[:, 1:])
    with pytest.raises(ValueError, match="not finite"):
        model.compute_audio_features(audio.fill_(math.nan))


@pytest.mark.parametrize(
    "changes",
    [{"width": 0}, {"embedding_dim": 0}, {"first_stride": 0}, {"image_size": 8}, {"audio_seconds": 0.002}],
)
def test_impossible_configurations_are_refused(changes: dict):
    with pytest.raises(ValueError, match=next(iter(changes))):
        AVENetConfig(spectrogram=SpectrogramConfig(), **changes)
