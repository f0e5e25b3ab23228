"""Faster R-CNN on the C4 map of a ResNet (Anderson et al., CVPR 2018: "bottom-up attention", section 3.1).

This network computed ViLBERT's region features. ResNet-101 up to res4 gives the feature map and the proposals. Each
proposal is pooled to 14 x 14 cells and passed through res5; the mean is the region's feature. There are 1,601 classes
with background first, and 401 attributes with none first. It was trained in Caffe
(models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt of peteanderson80): the stride is in the first convolution
of a block, the pooling of the stem rounds its size up, and res5 has stride 1 and dilation 2. Batch normalization is
frozen and folded into the convolutions (models/convert/convert_c4.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.models.detectors.roi_pooling import build_maxima, pool_rois
from comodal.models.pretrained import PretrainedModel

C4_STRIDE = 16  # pixels per cell of the map
C4_ROI_CELLS = 14  # rows and columns of a region
C4_REGIONS_AT_ONCE = 20  # batch size of regions in res5: as fast as all at once, with little memory


@dataclass(frozen=True)
class C4Config:
    """The defaults are the published network.

    Args:
        blocks: Blocks of res2, res3, res4 and res5.
        stem: Channels of the first convolution.
        width: Bottleneck channels of res2; its output has four times as many, and each further stage twice as many.
        proposal_channels: Channels of the proposal network's convolution.
        anchors: Anchors per cell.
        classes: Number of classes with background, which is first.
        attributes: Number of attributes with none, which is first.
        embedding: Width of the class embedding in the attribute head.
        attribute_channels: Width of the attribute head's hidden layer.
    """

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    stem: int = 64
    width: int = 64
    proposal_channels: int = 512
    anchors: int = 12
    classes: int = 1601
    attributes: int = 401
    embedding: int = 256
    attribute_channels: int = 512

    @property
    def feature_dim(self) -> int:
        """Length of a region's feature."""
        return 32 * self.width


class C4Proposals(NamedTuple):
    """Objectness and box deltas of all anchors, in the order of `tile_anchors`."""

    scores: Float[Tensor, " anchors"]  # objectness logits
    deltas: Float[Tensor, "anchors 4"]


class C4DetectorOutput(NamedTuple):
    """Predictions of the detector for regions."""

    classes: Float[Tensor, "regions classes"]  # probabilities
    deltas: Float[Tensor, "regions fours"]  # box deltas, for each class
    attributes: Float[Tensor, "regions attributes"]  # before the softmax


class C4Bottleneck(nn.Module):
    """A bottleneck block with the stride in its first convolution.

    Args:
        channels: Input channels.
        width: Bottleneck channels; the output has four times as many.
        stride: Stride of the first block of a stage.
        dilation: Dilation of the middle convolution.
        first: Whether the block is the first of its stage, with a projection shortcut.
    """

    def __init__(self, channels: int, width: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, stride)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride) if first else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch out rows_out columns_out"]:
        inside = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return F.relu_(self.conv3(inside).add_(self.shortcut(x)))


def make_resnet_stage(channels: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    """A stage of a ResNet."""
    first = C4Bottleneck(channels, width, stride, dilation, first=True)
    return nn.Sequential(first, *(C4Bottleneck(4 * width, width, 1, dilation, first=False) for _ in range(blocks - 1)))


class C4(PretrainedModel, nn.Module):
    """The detector: feature map, proposals, region features and predictions."""

    cell_anchors: Tensor

    def __init__(self, config: C4Config) -> None:
        super().__init__()
        self.config, width = config, config.width
        if len(config.blocks) != 4:
            raise ValueError(f"four stages have blocks, got {config.blocks}")
        two, three, four, five = config.blocks
        self.stem = nn.Conv2d(3, config.stem, 7, 2, 3)
        self.res2 = make_resnet_stage(config.stem, width, two, 1, 1)
        self.res3 = make_resnet_stage(4 * width, 2 * width, three, 2, 1)
        self.res4 = make_resnet_stage(8 * width, 4 * width, four, 2, 1)
        self.res5 = make_resnet_stage(16 * width, 8 * width, five, 1, 2)
        self.proposal = nn.Conv2d(16 * width, config.proposal_channels, 3, padding=1)
        self.proposal_scores = nn.Conv2d(config.proposal_channels, config.anchors, 1)
        self.proposal_deltas = nn.Conv2d(config.proposal_channels, 4 * config.anchors, 1)
        self.class_scores = nn.Linear(config.feature_dim, config.classes)
        self.box_deltas = nn.Linear(config.feature_dim, 4 * config.classes)
        self.class_embedding = nn.Embedding(config.classes, config.embedding)
        self.attribute = nn.Linear(config.feature_dim + config.embedding, config.attribute_channels)
        self.attribute_scores = nn.Linear(config.attribute_channels, config.attributes)
        self.register_buffer("cell_anchors", torch.zeros(config.anchors, 4))

    def compute_feature_map(
        self, pixels: Float[Tensor, "1 3 height width"]
    ) -> Float[Tensor, "1 channels rows columns"]:
        """The feature map of an image in the format of `to_centered_bgr`."""
        x = F.relu_(self.stem(pixels))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)  # rounds up; `ceil_mode` has no dynamic export
        return self.res4(self.res3(self.res2(x)))

    def propose(self, feature_map: Float[Tensor, "1 channels rows columns"]) -> C4Proposals:
        """Objectness and box deltas of all anchors."""
        hidden = F.relu_(self.proposal(feature_map))
        scores, deltas = self.proposal_scores(hidden), self.proposal_deltas(hidden)
        return C4Proposals(scores.permute(0, 2, 3, 1).flatten(), deltas.permute(0, 2, 3, 1).reshape(-1, 4))

    def compute_features(
        self, feature_map: Float[Tensor, "1 channels rows columns"], boxes: Float[Tensor, "regions 4"]
    ) -> Float[Tensor, "regions features"]:
        """Features of boxes in pixels of the network's input, in the precision of res5's weights."""
        dtype = next(self.res5.parameters()).dtype
        table = build_maxima(
            feature_map.to(dtype), C4_ROI_CELLS
        )  # rounding preserves order, so the maximum is the same value rounded
        means = [boxes.new_empty(0, self.config.feature_dim)]
        for some in boxes.split(C4_REGIONS_AT_ONCE):
            cells = pool_rois(table, some, C4_ROI_CELLS, 1 / C4_STRIDE)
            means.append(self.res5(cells).mean((2, 3), dtype=torch.float32))
        return torch.cat(means)

    def predict(self, features: Float[Tensor, "regions features"]) -> C4DetectorOutput:
        """Predicts classes, boxes and attributes; the attributes depend on the likeliest class."""
        scores = self.class_scores(features)
        conditioned = torch.cat([features, self.class_embedding(scores.argmax(1))], 1)
        attributes = self.attribute_scores(F.relu_(self.attribute(conditioned)))
        return C4DetectorOutput(scores.softmax(1), self.box_deltas(features), attributes)


def optimize_c4_layout(model: C4, head: torch.dtype = torch.float32) -> C4:
    """Converts a network to the fastest memory format, and its res5 (90 % of the work) to its own precision."""
    model = model.eval().to(memory_format=torch.channels_last)
    model.res5.to(head)
    return model
