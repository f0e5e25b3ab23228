"""Faster R-CNN on a feature pyramid of a ResNeXt (Lin et al., CVPR 2017; Xie et al., CVPR 2017).

This network computed the regions of 12-in-1 (Lu et al., CVPR 2020) and MMF. ResNeXt-152-32x8d gives maps of 512
channels with strides of 4 to 64, and proposals from each. Each proposal is pooled to 7 x 7 cells of the map of its size
and passed through two dense layers, of which the first (fc6) is the region's feature. There are 1,601 classes with
background first (vqa-maskrcnn-benchmark,
configs/visual_genome_vqa/e2e_faster_rcnn_X-152-32x8d-FPN_1x_MLP_2048_FPN_512_test.yaml). The stride is in the middle
convolution of a block, and batch normalization is frozen. `optimize_fpn_layout` folds it into the convolutions, which
is faster and rounds differently.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from comodal.models.detectors.box_ops import roi_align
from comodal.models.detectors.detector_boxes import assign_fpn_levels
from comodal.models.pretrained import PretrainedModel

FPN_STRIDES = (4, 8, 16, 32, 64)  # pixels per cell of P2 to P6
SIZE_DIVISOR = 32  # both sides of the input are multiples of it, so that each map is twice the next
FPN_ROI_CELLS = 7  # rows and columns of a region
ROI_ALIGN_SAMPLES = 2  # sampling points on each side of a cell
FPN_REGIONS_AT_ONCE = 250  # batch size of regions in the dense layers


@dataclass(frozen=True)
class FPNConfig:
    """The defaults are the published network.

    Args:
        blocks: Blocks of res2, res3, res4 and res5.
        stem: Channels of the first convolution.
        groups: Groups of the middle convolution of a block.
        group_width: Channels of a group in res2; twice as many in each further stage.
        channels: Output channels of res2; twice as many in each further stage.
        pyramid: Channels of each pyramid map.
        anchors: Anchors per cell.
        dense: Length of a region's feature.
        classes: Number of classes with background, which is first.
    """

    blocks: tuple[int, ...] = (3, 8, 36, 3)
    stem: int = 64
    groups: int = 32
    group_width: int = 8
    channels: int = 256
    pyramid: int = 512
    anchors: int = 3
    dense: int = 2048
    classes: int = 1601


class FPNProposals(NamedTuple):
    """Objectness and box deltas of a map's anchors, in the order of `tile_anchors`."""

    scores: Float[Tensor, " anchors"]  # objectness logits
    deltas: Float[Tensor, "anchors 4"]


class FPNDetectorOutput(NamedTuple):
    """Predictions of the detector for regions."""

    fc6: Float[Tensor, "regions dense"]
    fc7: Float[Tensor, "regions dense"]
    scores: Float[Tensor, "regions classes"]  # before the softmax
    deltas: Float[Tensor, "regions fours"]  # box deltas, for each class


class FrozenNorm(nn.Module):
    """Frozen batch normalization without epsilon (layers/batch_norm.py)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Tensor, "batch channels rows columns"]) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def make_conv_with_norm(channels: int, out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with frozen batch normalization."""
    convolution = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, FrozenNorm(out))


class FPNBottleneck(nn.Module):
    """A grouped bottleneck block with the stride in its middle convolution.

    Args:
        channels: Input channels.
        inside: Channels of the middle convolution.
        out: Output channels.
        groups: Groups of the middle convolution.
        stride: Stride of the first block of a stage.
    """

    def __init__(self, channels: int, inside: int, out: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = make_conv_with_norm(channels, inside, 1)
        self.conv2 = make_conv_with_norm(inside, inside, 3, stride, groups)
        self.conv3 = make_conv_with_norm(inside, out, 1)
        self.shortcut = nn.Identity() if channels == out else make_conv_with_norm(channels, out, 1, stride)

    def forward(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch out rows_out columns_out"]:
        inside = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return F.relu_(self.conv3(inside).add_(self.shortcut(x)))


def make_resnext_stage(channels: int, inside: int, out: int, groups: int, blocks: int, stride: int) -> nn.Sequential:
    """A stage of a ResNeXt."""
    first = FPNBottleneck(channels, inside, out, groups, stride)
    return nn.Sequential(first, *(FPNBottleneck(out, inside, out, groups, 1) for _ in range(blocks - 1)))


class FPN(PretrainedModel, nn.Module):
    """The detector: pyramid maps, proposals, region features and predictions."""

    cell_anchors: Tensor

    def __init__(self, config: FPNConfig) -> None:
        super().__init__()
        self.config = config
        if len(config.blocks) != 4:
            raise ValueError(f"four stages have blocks, got {config.blocks}")
        inside, out, pyramid = config.groups * config.group_width, config.channels, config.pyramid
        two, three, four, five = config.blocks
        self.stem = make_conv_with_norm(3, config.stem, 7, 2)
        self.res2 = make_resnext_stage(config.stem, inside, out, config.groups, two, 1)
        self.res3 = make_resnext_stage(out, 2 * inside, 2 * out, config.groups, three, 2)
        self.res4 = make_resnext_stage(2 * out, 4 * inside, 4 * out, config.groups, four, 2)
        self.res5 = make_resnext_stage(4 * out, 8 * inside, 8 * out, config.groups, five, 2)
        self.across = nn.ModuleList(nn.Conv2d(2**i * out, pyramid, 1) for i in range(4))  # the lowest map first
        self.smooth = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, padding=1) for _ in range(4))
        self.proposal = nn.Conv2d(pyramid, pyramid, 3, padding=1)
        self.proposal_scores = nn.Conv2d(pyramid, config.anchors, 1)
        self.proposal_deltas = nn.Conv2d(pyramid, 4 * config.anchors, 1)
        self.fc6 = nn.Linear(pyramid * FPN_ROI_CELLS**2, config.dense)
        self.fc7 = nn.Linear(config.dense, config.dense)
        self.class_scores = nn.Linear(config.dense, config.classes)
        self.box_deltas = nn.Linear(config.dense, 4 * config.classes)
        self.register_buffer("cell_anchors", torch.zeros(len(FPN_STRIDES), config.anchors, 4))

    def compute_maps(
        self, pixels: Float[Tensor, "1 3 height width"]
    ) -> list[Float[Tensor, "1 pyramid _rows _columns"]]:
        """P2 to P6 of an image in the format of `to_centered_bgr`; both sides are multiples of 32."""
        x = F.max_pool2d(F.relu_(self.stem(pixels)), 3, 2, 1)
        bottom_up = []
        for part in (self.res2, self.res3, self.res4, self.res5):
            x = part(x)
            bottom_up.append(x)
        above = self.across[3](x)
        pyramid_maps = [self.smooth[3](above)]
        for level in (2, 1, 0):
            above = self.across[level](bottom_up[level]) + F.interpolate(above, scale_factor=2.0)
            pyramid_maps.insert(0, self.smooth[level](above))
        return [*pyramid_maps, F.max_pool2d(pyramid_maps[-1], 1, 2)]

    def propose(self, feature_map: Float[Tensor, "1 pyramid rows columns"]) -> FPNProposals:
        """Objectness and box deltas of all anchors of a map."""
        hidden = F.relu_(self.proposal(feature_map))
        scores, deltas = self.proposal_scores(hidden), self.proposal_deltas(hidden)
        return FPNProposals(scores.permute(0, 2, 3, 1).flatten(), deltas.permute(0, 2, 3, 1).reshape(-1, 4))

    def pool(
        self, maps: list[Float[Tensor, "1 pyramid _rows _columns"]], boxes: Float[Tensor, "regions 4"]
    ) -> Float[Tensor, "regions pyramid cells cells"]:
        """Pools boxes in pixels of the network's input, each from the map of its size."""
        levels = assign_fpn_levels(boxes)
        cells = boxes.new_empty(len(boxes), self.config.pyramid, FPN_ROI_CELLS, FPN_ROI_CELLS)
        for level, (feature_map, stride) in enumerate(zip(maps[:4], FPN_STRIDES, strict=False), start=2):
            here = levels == level
            cells[here] = roi_align(
                feature_map, [boxes[here]], FPN_ROI_CELLS, 1 / stride, ROI_ALIGN_SAMPLES, aligned=False
            )
        return cells

    def predict_from_cells(self, cells: Float[Tensor, "regions pyramid cells cells"]) -> FPNDetectorOutput:
        """Features and predictions from the pooled cells of regions."""
        fc6 = F.relu(self.fc6(cells.flatten(1)))
        fc7 = F.relu(self.fc7(fc6))
        return FPNDetectorOutput(fc6, fc7, self.class_scores(fc7), self.box_deltas(fc7))

    def predict(
        self, maps: list[Float[Tensor, "1 pyramid _rows _columns"]], boxes: Float[Tensor, "regions 4"]
    ) -> FPNDetectorOutput:
        """Features and predictions of boxes."""
        some = [self.predict_from_cells(self.pool(maps, few)) for few in boxes.split(FPN_REGIONS_AT_ONCE)]
        return FPNDetectorOutput(*(torch.cat(parts) for parts in zip(*some, strict=True)))


@torch.no_grad()
def optimize_fpn_layout(model: FPN) -> FPN:
    """Converts a network to the fastest memory format, and folds its norms into its convolutions."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential) and isinstance(module[-1], FrozenNorm):
            convolution, norm = module[0], module[-1]
            assert isinstance(convolution, nn.Conv2d)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, None, norm.running_mean, norm.running_var, 0.0, norm.weight, norm.bias
            )
            del module[-1]
    return model.eval().to(memory_format=torch.channels_last)
