"""The tower, layer by layer, against the table that the paper's figure 2 gives."""

import math

import pytest
import torch
from torch import nn

from comodal.models.l3net.vgg import VGG_LAYER_NAMES, VGGTower, init_conv_weights

# Layer: filters, parameters with 3 or with 1 input channels, and the size of its map for a picture and a spectrogram.
TABLE = {
    "conv1_1": (64, 1_792, 640, (224, 224), (257, 199)),
    "conv1_2": (64, 36_928, 36_928, (224, 224), (257, 199)),
    "conv2_1": (128, 73_856, 73_856, (112, 112), (128, 99)),
    "conv2_2": (128, 147_584, 147_584, (112, 112), (128, 99)),
    "conv3_1": (256, 295_168, 295_168, (56, 56), (64, 49)),
    "conv3_2": (256, 590_080, 590_080, (56, 56), (64, 49)),
    "conv4_1": (512, 1_180_160, 1_180_160, (28, 28), (32, 24)),
    "conv4_2": (512, 2_359_808, 2_359_808, (28, 28), (32, 24)),
}


def tower(channels: int, width: int = 64, input_norm: bool = False, relu_before_norm: tuple[str, ...] = ()) -> VGGTower:
    return VGGTower(channels, width, input_norm, relu_before_norm, 1e-5, 0.1)


def test_the_parameters_of_each_layer():
    for channels, column in ((3, 1), (1, 2)):
        layers = tower(channels).layers
        for name, row in TABLE.items():
            convolution = layers[name].convolution
            assert convolution.out_channels == row[0]
            assert sum(p.numel() for p in convolution.parameters()) == row[column], name
        assert sum(p.numel() for p in layers.parameters()) == {3: 4_685_376, 1: 4_684_224}[channels] + 3_840


@pytest.mark.parametrize(("channels", "column", "size"), [(3, 3, (224, 224)), (1, 4, (257, 199))])
def test_the_map_of_each_layer(channels: int, column: int, size: tuple[int, int]):
    """The sizes do not depend on the width, so a narrow tower shows them."""
    narrow, seen = tower(channels, width=1).eval(), {}
    for name in VGG_LAYER_NAMES:
        narrow.layers[name].register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: tuple(out.shape[2:])})
        )
    with torch.inference_mode():
        narrow(torch.zeros(1, channels, *size))
    assert seen == {name: row[column] for name, row in TABLE.items()}


def test_kernels_are_a_normal_cut_off_at_two_sigma():
    """He: variance 2 / inputs. Cutting a normal off at two sigma leaves 0.8796 of its deviation (closed form)."""
    layer = nn.Conv2d(128, 128, 3)
    init_conv_weights(layer)
    sigma = math.sqrt(2 / (128 * 9))
    assert layer.weight.abs().max() <= 2 * sigma
    assert layer.weight.std().item() == pytest.approx(0.8796 * sigma, rel=0.01)
    assert not layer.bias.any()


def test_either_order_of_relu_and_norm():
    """A norm that subtracts 1: relu(x - 1) can never be negative, relu(x) - 1 is never under -1."""
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    usual, early = tower(3, 4).eval(), tower(3, 4, relu_before_norm=("conv1_1",)).eval()
    early.load_state_dict(usual.state_dict())
    for either in (usual, early):
        nn.init.constant_(either.layers["conv1_1"].norm.bias, -1.0)
    with torch.inference_mode():
        after, before = usual.layers["conv1_1"](x), early.layers["conv1_1"](x)
    assert after.amin() == 0
    assert before.amin() == -1


def test_the_map_is_the_raw_one_after_norm_and_relu():
    torch.manual_seed(0)
    net, x = tower(3, 4, input_norm=True).eval(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(net(x), net.layers["conv4_2"].norm(net.compute_last_convolution(x)).relu())
