"""Faster L3-Net embeddings on a CPU: batch normalization folded into convolutions, fused ReLU, bf16, small batches.

Each layer of a tower becomes one call of oneDNN on weights that were packed once for each input size. The calls are
private to PyTorch (`torch.ops.mkldnn`). Where they are missing or do not run on this CPU, the same layer is a
convolution and a ReLU.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.hardware import can_fuse_convolution, choose_inference_batch_size
from comodal.models.l3net.l3net import AUDIO_GRID, IMAGE_GRID, L3Net, max_pool_to_grid
from comodal.models.l3net.vgg import VGG_LAYER_NAMES, ConvLayer, VGGTower

UNIT_STRIDE = [1, 1]  # padding, stride and dilation are all one pixel
MAX_PACKED_SHAPES = 4  # input shapes for which a layer keeps packed weights: full batches and a last one, of two sizes


class Affine(NamedTuple):
    """Batch normalization in evaluation mode: x * scale + shift, for each channel."""

    scale: Float[Tensor, "channels 1 1"]
    shift: Float[Tensor, "channels 1 1"]

    def __call__(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        return torch.addcmul(self.shift, x, self.scale)


def fold_norm_to_affine(norm: nn.BatchNorm2d) -> Affine:
    """Converts a trained batch normalization to an affine map of its channels."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return Affine(scale.detach().view(-1, 1, 1), shift.detach().view(-1, 1, 1))


class FusedLayer:
    """A convolution with its batch normalization folded in, and its ReLU.

    If the ReLU is before the norm, the norm remains a separate operation. It cannot be folded into the next
    convolution, because the zero padding of that convolution follows it.
    """

    def __init__(self, layer: ConvLayer, dtype: torch.dtype, convolution_only: bool) -> None:
        weight, bias = layer.convolution.weight.detach(), layer.convolution.bias
        assert bias is not None
        bias, norm = bias.detach(), fold_norm_to_affine(layer.norm)
        self.relu, self.output_affine = not convolution_only, None
        if not convolution_only and layer.order == "norm_relu":
            weight, bias = weight * norm.scale.unsqueeze(1), bias * norm.scale.flatten() + norm.shift.flatten()
        elif not convolution_only:
            self.output_affine = Affine(norm.scale.to(dtype), norm.shift.to(dtype))
        self.weight, self.bias = weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)
        self.fused = weight.device.type == "cpu" and can_fuse_convolution(dtype)
        self.packed_weights: dict[torch.Size, Tensor] = {}

    def get_packed_weight(self, shape: torch.Size) -> Tensor:
        """The weights packed for inputs of this shape.

        oneDNN chooses its kernel when it packs the weights: for another batch size or map, or without a shape, the
        layout may be several times slower.
        """
        packed = self.packed_weights.pop(shape, None)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, UNIT_STRIDE, UNIT_STRIDE, UNIT_STRIDE, 1, list(shape)
            )
            while len(self.packed_weights) >= MAX_PACKED_SHAPES:
                self.packed_weights.pop(next(iter(self.packed_weights)), None)
        self.packed_weights[shape] = packed
        return packed

    def __call__(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch filters rows columns"]:
        if self.fused:
            attribute = "relu" if self.relu else "none"
            x = torch.ops.mkldnn._convolution_pointwise(
                x,
                self.get_packed_weight(x.shape),
                self.bias,
                UNIT_STRIDE,
                UNIT_STRIDE,
                UNIT_STRIDE,
                1,
                attribute,
                [],
                "",
            )
        else:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
            x = F.relu(x) if self.relu else x
        return x if self.output_affine is None else self.output_affine(x)


class FusedTower:
    """A tower up to the layer that embeddings pool (conv4_2 with or without norm and ReLU), or to an earlier layer."""

    def __init__(self, tower: VGGTower, dtype: torch.dtype, convolution_only: bool) -> None:
        self.dtype = dtype
        self.input_norm = (
            fold_norm_to_affine(tower.input_norm) if isinstance(tower.input_norm, nn.BatchNorm2d) else None
        )
        self.layers: dict[str, FusedLayer] = {}
        for name in VGG_LAYER_NAMES:
            layer = tower.layers[name]
            assert isinstance(layer, ConvLayer)
            self.layers[name] = FusedLayer(
                layer, dtype, convolution_only=convolution_only and name == VGG_LAYER_NAMES[-1]
            )

    def __call__(
        self, x: Float[Tensor, "batch channels rows columns"], last_layer: str = VGG_LAYER_NAMES[-1]
    ) -> Float[Tensor, "batch filters y x"]:
        x = x if self.input_norm is None else self.input_norm(x)
        x = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        for name, layer in self.layers.items():
            x = layer(x)
            if name == last_layer:
                break
            if name.endswith("_2"):
                x = F.max_pool2d(x, 2)
        return x


class FastL3Net:
    """A copy of an L3-Net for embedding only, with the weights at the time of the copy."""

    def __init__(self, model: L3Net, dtype: torch.dtype) -> None:
        self.config, self._model = model.config, model
        convolution_only = model.config.embedding == "convolution"
        self._image_tower = FusedTower(model.image_tower, dtype, convolution_only)
        self._audio_tower = FusedTower(model.audio_tower, dtype, convolution_only)

    @torch.inference_mode()
    def embed_image(
        self, image: UInt8[Tensor, "batch 3 height width"], grid: tuple[int, int] = IMAGE_GRID
    ) -> Float[Tensor, "batch features"]:
        """`L3Net.embed_image`, in float32 whatever the precision inside."""
        parts = image.split(choose_inference_batch_size(image.device))
        return torch.cat(
            [max_pool_to_grid(self._image_tower(self._model.normalize_image(part)), grid).float() for part in parts]
        )

    @torch.inference_mode()
    def compute_image_map(
        self, image: UInt8[Tensor, "batch 3 height width"], layer: str = VGG_LAYER_NAMES[-1]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The map of any layer, before the next pooling."""
        return self._image_tower(self._model.normalize_image(image), layer)

    @torch.inference_mode()
    def embed_audio(
        self, audio: Float[Tensor, "batch samples"], grid: tuple[int, int] = AUDIO_GRID
    ) -> Float[Tensor, "batch features"]:
        """`L3Net.embed_audio`, in float32 whatever the precision inside."""
        parts = self._model.check_audio(audio).split(choose_inference_batch_size(audio.device))
        return torch.cat(
            [max_pool_to_grid(self._audio_tower(self._model.spectrogram(part)), grid).float() for part in parts]
        )


def make_fast_l3net(model: L3Net, dtype: torch.dtype = torch.float32) -> FastL3Net:
    """Copies a model for embedding only; in bfloat16 its embeddings have a cosine of 0.9999 with the model's."""
    return FastL3Net(model, dtype)
