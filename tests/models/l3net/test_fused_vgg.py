"""The fast path against the plain model, for every kind of network."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from comodal.models.l3net import fused_vgg
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    PAPER_L3NET_CONFIG,
    L3Net,
    L3NetConfig,
    make_openl3_config,
    make_small_l3net_config,
)

NARROW = {
    "paper": dataclasses.replace(PAPER_L3NET_CONFIG, width=8),
    "l3embedding": dataclasses.replace(L3EMBEDDING_L3NET_CONFIG, width=8),
    "openl3 linear": dataclasses.replace(make_openl3_config("linear"), width=8),
    "openl3 mel128": dataclasses.replace(make_openl3_config("mel128"), width=8),
    "small": make_small_l3net_config(8, 28),
}


def trained(config: L3NetConfig) -> L3Net:
    """A model whose norms do something: scales of either sign, shifts, means and variances."""
    torch.manual_seed(0)
    model = L3Net(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.4)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def both(config: L3NetConfig, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Plain and fast embeddings of five pictures and five sounds: not a multiple of a micro-batch."""
    model = trained(config)
    image = torch.randint(0, 256, (5, 3, config.image_size, config.image_size), dtype=torch.uint8)
    sound = torch.randn(5, 48_000) * torch.logspace(-3, 0, 5).unsqueeze(1)
    quick = make_fast_l3net(model, dtype)
    with torch.inference_mode():
        return [
            (model.embed_image(image), quick.embed_image(image)),
            (model.embed_audio(sound), quick.embed_audio(sound)),
            (model.embed_audio(sound, grid=(1, 1)), quick.embed_audio(sound, grid=(1, 1))),
        ]


@pytest.mark.parametrize("config", NARROW.values(), ids=NARROW)
def test_in_float32_only_the_rounding_differs(config: L3NetConfig):
    for plain, quick in both(config, torch.float32):
        assert (plain - quick).norm() / plain.norm() < 1e-5


def test_weights_are_laid_out_for_each_shape_and_only_the_latest_are_kept():
    model = trained(NARROW["paper"])
    quick = make_fast_l3net(model)
    shapes = [(2, 64), (1, 64), (4, 64), (3, 48), (2, 40), (1, 72), (2, 64)]
    for batch, side in shapes:
        image = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        with torch.inference_mode():
            plain = model.image_tower(model.normalize_image(image))
        assert (plain - quick.compute_image_map(image)).norm() / plain.norm() < 1e-5
    for layer in quick._image_tower.layers.values():
        assert len(layer.packed_weights) == (fused_vgg.MAX_PACKED_SHAPES if layer.fused else 0)


@pytest.mark.parametrize("config", NARROW.values(), ids=NARROW)
def test_in_bfloat16_embeddings_keep_their_direction(config: L3NetConfig):
    for plain, quick in both(config, torch.bfloat16):
        assert quick.dtype == torch.float32
        assert F.cosine_similarity(plain, quick).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_private_operations_it_is_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_vgg, "can_fuse_convolution", lambda _: False)
    for plain, quick in both(NARROW["openl3 mel128"], dtype):
        assert F.cosine_similarity(plain, quick).min() > 0.999


def test_it_keeps_the_weights_of_its_moment():
    model = trained(NARROW["small"])
    image = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8)
    quick = make_fast_l3net(model, torch.float32)
    before = quick.embed_image(image)
    nn.init.zeros_(model.image_tower.layers["conv4_2"].convolution.weight)
    assert torch.equal(quick.embed_image(image), before)
