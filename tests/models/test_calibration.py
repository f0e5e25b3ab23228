"""The batch norms of the untrained control: those of its inputs, whatever the weights, and nothing else changes."""

import copy

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import update_bn

from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.l3net.l3net import L3Net, make_openl3_config, make_small_l3net_config

CONFIG = make_small_l3net_config(4, 32)


def pictures(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 200, size=(count, 3, 1, 1)) + rng.integers(0, 55, size=(count, 3, 32, 32))
    return torch.from_numpy(shades.astype(np.uint8))


def sounds(count: int) -> torch.Tensor:
    return 0.1 * torch.randn(count, 48_000, generator=torch.Generator().manual_seed(0))


def test_one_batch_gives_every_norm_the_mean_and_variance_of_its_input():
    """Worked by hand: each layer's input is normalized by itself, so its mean and variance are those of the layer."""
    control = make_untrained_copy(L3Net(CONFIG), 3)
    seen: dict[str, torch.Tensor] = {}
    for name, layer in control.image_tower.layers.items():
        layer.norm.register_forward_hook(lambda _n, inputs, _o, name=name: seen.__setitem__(name, inputs[0]))
    calibrate_batch_norms(control.image_tower, control.compute_image_map, pictures(20))
    for name, layer in control.image_tower.layers.items():
        assert torch.allclose(layer.norm.running_mean, seen[name].mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(layer.norm.running_var, seen[name].var((0, 2, 3)), rtol=1e-4)


def test_several_batches_are_as_torch_updates_them():
    control, images = make_untrained_copy(L3Net(CONFIG), 3), pictures(96)
    theirs = copy.deepcopy(control).image_tower
    update_bn([control.normalize_image(images[start::3]) for start in range(3)], theirs)
    calibrate_batch_norms(control.image_tower, control.compute_image_map, images)
    for (name, ours), other in zip(control.image_tower.named_buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(ours, other, rtol=1e-5, atol=1e-6), name


def test_no_weight_changes_and_neither_does_the_other_tower():
    model = L3Net(CONFIG)
    control, before = make_untrained_copy(model, 5), make_untrained_copy(model, 5).state_dict()
    calibrate_batch_norms(control.audio_tower, control.compute_audio_map, sounds(8))
    changed = {name for name, value in control.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("audio_tower.") and "norm." in name for name in changed)
    assert not any(name.endswith(("weight", "bias")) for name in changed)
    assert not control.training and control.audio_tower.layers["conv1_1"].norm.momentum == CONFIG.norm_momentum


@pytest.mark.parametrize("config", [CONFIG, make_openl3_config("mel128")])
def test_a_calibrated_network_has_no_dead_channels_at_its_end(config):
    """Of the outputs of conv4_2 about half are above 0, and every channel differs between sounds."""
    config = config if config is CONFIG else type(config)(**{**vars(config), "width": 4})
    control = make_untrained_copy(L3Net(config), 0)
    calibrate_batch_norms(control.audio_tower, control.audio_tower.forward, control.spectrogram(sounds(16)))
    last = control.audio_tower(control.spectrogram(sounds(16)))
    assert 0.3 < (last > 0).float().mean() < 0.7
    assert (last.amax((2, 3)).std(0) > 1e-4).all()
