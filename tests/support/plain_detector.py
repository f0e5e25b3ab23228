"""The Visual Genome detector as one writes it down first: in float32, batch normalisation as a layer of its own, all
regions at once, and the classes one after the other.

What `comodal.models` does faster is compared with this, in tests and in benchmarks/detector.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_pool

from comodal.models.detectors.detector_boxes import clip_boxes_to_image, decode_caffe, tile_anchors
from comodal.models.detectors.detector_c4 import C4, C4Bottleneck, C4Config
from comodal.models.detectors.detector_rules import C4Postprocessing


class PlainBlock(nn.Module):
    """A bottleneck with its norms."""

    def __init__(self, channels: int, width: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False) if first else None
        self.shortcut_norm = nn.BatchNorm2d(4 * width) if first else None

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.norm1(self.conv1(x)))
        inside = F.relu(self.norm2(self.conv2(inside)))
        inside = self.norm3(self.conv3(inside))
        return F.relu(inside + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))


def plain_stage(channels: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    first = PlainBlock(channels, width, stride, dilation, True)
    return nn.Sequential(first, *(PlainBlock(4 * width, width, 1, dilation, False) for _ in range(blocks - 1)))


class PlainFound(NamedTuple):
    """The regions of a picture."""

    boxes: Tensor
    features: Tensor
    classes: Tensor
    kept: Tensor


class PlainC4(nn.Module):
    """The network, drawn at random so that its maps keep their size from layer to layer and boxes differ."""

    def __init__(self, config: C4Config) -> None:
        super().__init__()
        width, (two, three, four, five) = config.width, config.blocks
        self.stem, self.stem_norm = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False), nn.BatchNorm2d(config.stem)
        self.res2 = plain_stage(config.stem, width, two, 1, 1)
        self.res3 = plain_stage(4 * width, 2 * width, three, 2, 1)
        self.res4 = plain_stage(8 * width, 4 * width, four, 2, 1)
        self.res5 = plain_stage(16 * width, 8 * width, five, 1, 2)
        self.rest = C4(config)  # its convolutions without norms, and its dense layers
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 0.6)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.normal_(self.stem.weight, std=1e-3)  # pictures are bytes
        nn.init.normal_(self.rest.proposal_deltas.weight, std=0.01)
        nn.init.normal_(self.rest.class_scores.weight, std=0.2)

    def forward(self, pixels: Tensor, scale: float, rules: C4Postprocessing) -> PlainFound:
        """The regions of a picture that is scaled already."""
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(pixels))), 3, 2, ceil_mode=True)
        x = self.res4(self.res3(self.res2(x)))
        scores, deltas = self.rest.propose(x)
        anchors = tile_anchors(self.rest.cell_anchors, *x.shape[2:], 16)
        boxes = clip_boxes_to_image(decode_caffe(anchors, deltas), pixels.shape[3] - 1, pixels.shape[2] - 1)
        large = ((boxes[:, 2:] - boxes[:, :2] + 1) >= rules.min_proposal_side * scale).all(1)
        boxes, scores = boxes[large], scores[large]
        order = scores.argsort(descending=True, stable=True)[: rules.pre_nms_top_k]
        boxes, scores = boxes[order], scores[order]
        end = torch.tensor([0.0, 0, 1, 1])
        boxes = boxes[nms(boxes + end, scores, rules.nms_threshold)[: rules.post_nms_top_k]]
        features = self.res5(roi_pool(x, [boxes], 14, 1 / 16)).mean((2, 3))
        classes = self.rest.predict(features).classes
        boxes = boxes / scale
        kept = plain_choice(boxes, classes, rules)
        return PlainFound(boxes[kept], features[kept], classes[kept], kept)


def plain_choice(boxes: Tensor, classes: Tensor, rules: C4Postprocessing) -> Tensor:
    """Class by class over all boxes (generate_tsv.py)."""
    sureness = torch.zeros(len(boxes))
    for column in classes.T[1:]:
        kept = nms(boxes + torch.tensor([0.0, 0, 1, 1]), column, rules.class_nms_threshold)
        sureness[kept] = torch.maximum(sureness[kept], column[kept])
    sure = (sureness >= rules.score_threshold).nonzero().flatten()
    if rules.min_regions <= len(sure) <= rules.max_regions:
        return sure
    wanted = rules.min_regions if len(sure) < rules.min_regions else rules.max_regions
    return sureness.argsort(descending=True, stable=True)[:wanted]


@torch.no_grad()
def same_c4(plain: PlainC4, config: C4Config) -> C4:
    """Ours with the same weights, norms inside the convolutions."""
    model = C4(config).eval()
    model.load_state_dict(plain.rest.state_dict())
    fold(model.stem, plain.stem, plain.stem_norm)
    for name in ("res2", "res3", "res4", "res5"):
        for ours, theirs in zip(getattr(model, name), getattr(plain, name), strict=True):
            assert isinstance(ours, C4Bottleneck) and isinstance(theirs, PlainBlock)
            fold(ours.conv1, theirs.conv1, theirs.norm1)
            fold(ours.conv2, theirs.conv2, theirs.norm2)
            fold(ours.conv3, theirs.conv3, theirs.norm3)
            if theirs.shortcut is not None:
                fold(ours.shortcut, theirs.shortcut, theirs.shortcut_norm)
    return model


def fold(ours: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """A convolution with its norm inside."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    ours.weight.copy_(convolution.weight * scale[:, None, None, None])
    ours.bias.copy_(norm.bias - norm.running_mean * scale)
