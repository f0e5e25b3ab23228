"""The convolutional tower of both L3 subnetworks (L3-Net, section 3.1 and figure 2).

Four blocks of two 3x3 convolutions, each with batch normalization and ReLU. The number of filters doubles from block to
block, and 2x2 max pooling without padding halves the map between blocks. The caller applies the last pooling.
"""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NUM_VGG_BLOCKS = 4
VGG_LAYER_NAMES = tuple(f"conv{block}_{layer}" for block in range(1, NUM_VGG_BLOCKS + 1) for layer in (1, 2))


def init_conv_weights(layer: nn.Conv2d | nn.Linear) -> None:
    """Keras' he_normal, as in l3embedding: a normal of variance 2 / fan_in, truncated at 2 std; biases of zero."""
    std = math.sqrt(2 / layer.weight[0].numel())
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class ConvLayer(nn.Module):
    """A 3x3 convolution, batch normalization and ReLU, the last two in either order."""

    def __init__(
        self,
        channels: int,
        filters: int,
        order: Literal["norm_relu", "relu_norm"],
        norm_eps: float,
        norm_momentum: float,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.order = order
        self.convolution = nn.Conv2d(channels, filters, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(filters, norm_eps, norm_momentum)
        init_conv_weights(self.convolution)

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch filters y x"]:
        x = self.convolution(x)
        return F.relu(self.norm(x)) if self.order == "norm_relu" else self.norm(F.relu(x))


class VGGTower(nn.Module):
    """Image or spectrogram to the map of conv4_2: an eighth of the size, with eight times the filters of conv1_1.

    Args:
        channels: Input channels, 3 for an image and 1 for a spectrogram.
        width: Filters of the first block, 64 in the paper.
        input_norm: Whether the input is batch-normalized (l3embedding, OpenL3).
        relu_before_norm: Layers with the ReLU before the batch normalization (OpenL3's image tower).
        norm_eps: Epsilon of batch normalization.
        norm_momentum: Momentum of batch normalization, in PyTorch's definition.
        first_stride: Stride of conv1_1, 2 in AVE-Net. It divides the size of all maps.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        input_norm: bool,
        relu_before_norm: tuple[str, ...],
        norm_eps: float,
        norm_momentum: float,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(channels, norm_eps, norm_momentum) if input_norm else nn.Identity()
        self.layers = nn.ModuleDict()
        for index, name in enumerate(VGG_LAYER_NAMES):
            filters = width * 2 ** (index // 2)
            order: Literal["norm_relu", "relu_norm"] = "relu_norm" if name in relu_before_norm else "norm_relu"
            stride = first_stride if index == 0 else 1
            self.layers[name] = ConvLayer(channels, filters, order, norm_eps, norm_momentum, stride)
            channels = filters

    def compute_last_layer_input(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch filters y x"]:
        """The input of conv4_2."""
        x = self.input_norm(x)
        for name in VGG_LAYER_NAMES[:-1]:
            x = self.layers[name](x)
            if name.endswith("_2"):
                x = F.max_pool2d(x, 2)
        return x

    def compute_stage_maps(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> list[Float[Tensor, "batch _filters _y _x"]]:
        """The maps of conv1_2, conv2_2, conv3_2 and conv4_2, each half the size of the one before."""
        x, stage_maps = self.input_norm(x), list[Tensor]()
        for name in VGG_LAYER_NAMES:
            x = self.layers[name](F.max_pool2d(x, 2) if stage_maps and name.endswith("_1") else x)
            if name.endswith("_2"):
                stage_maps.append(x)
        return stage_maps

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch filters y x"]:
        return self.layers["conv4_2"](self.compute_last_layer_input(x))

    def compute_last_convolution(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch filters y x"]:
        """The output of conv4_2 before its norm and ReLU, which OpenL3 uses as the embedding layer."""
        last = self.layers["conv4_2"]
        assert isinstance(last, ConvLayer)
        return last.convolution(self.compute_last_layer_input(x))
