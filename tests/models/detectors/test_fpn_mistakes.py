"""The conventions of the ResNeXt's detector: each mistake, made on purpose, is seen by its parity test.

Levels and suppression without the ends of boxes are seen by the operators' own fixtures (test_c4_mistakes.py).
"""

from collections.abc import Callable

import pytest
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from comodal.models.detectors import detector_boxes, detector_fpn, detector_fpn_regions
from comodal.models.detectors.detector_boxes import MAX_LOG_SCALE, UNIT_BOX_WEIGHTS, decode_deltas
from comodal.models.detectors.detector_fpn import FPN, FPNBottleneck
from tests.models.detectors import test_fpn_parity
from tests.support.detector_fixtures import PYRAMID, fpn_of

Patch = pytest.MonkeyPatch
BLOCK, CLIP, LEVELS, RED, PAD, FUSE, DILATE = (
    FPNBottleneck.__init__,
    detector_boxes.clip_boxes_to_image,
    detector_boxes.assign_fpn_levels,
    detector_boxes.to_centered_bgr,
    F.pad,
    detector_fpn.fuse_conv_bn_weights,
    F.interpolate,
)


def stride_in_the_first_convolution(patch: Patch) -> None:
    def block(self: FPNBottleneck, channels: int, inside: int, out: int, groups: int, stride: int) -> None:
        BLOCK(self, channels, inside, out, groups, stride)
        self.conv1[0].stride, self.conv2[0].stride = (stride, stride), (1, 1)

    patch.setattr(FPNBottleneck, "__init__", block)


def groups_of_one_channel_fewer(patch: Patch) -> None:
    """Channels shuffled between groups."""

    def block(self: FPNBottleneck, channels: int, inside: int, out: int, groups: int, stride: int) -> None:
        BLOCK(self, channels, inside, out, groups, stride)
        self.conv2.register_forward_pre_hook(lambda _module, given: given[0].roll(1, 1))

    patch.setattr(FPNBottleneck, "__init__", block)


def norms_add_to_the_variance(patch: Patch) -> None:
    def norm(self: detector_fpn.FrozenNorm, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-2).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)

    def fuse(weight: Tensor, bias: None, mean: Tensor, variance: Tensor, _eps: float, *affine: Tensor) -> object:
        return FUSE(weight, bias, mean, variance, 1e-2, *affine)

    patch.setattr(detector_fpn.FrozenNorm, "forward", norm)
    patch.setattr(detector_fpn, "fuse_conv_bn_weights", fuse)


def aligned(patch: Patch) -> None:
    def pool(maps: Tensor, boxes: list[Tensor], size: int, scale: float, samples: int, *, aligned: bool) -> Tensor:
        return roi_align(maps, boxes, size, scale, samples, aligned=not aligned)

    patch.setattr(detector_fpn, "roi_align", pool)


def samples_by_size(patch: Patch) -> None:
    def pool(maps: Tensor, boxes: list[Tensor], size: int, scale: float, _samples: int, *, aligned: bool) -> Tensor:
        return roi_align(maps, boxes, size, scale, 0, aligned=aligned)

    patch.setattr(detector_fpn, "roi_align", pool)


def levels_one_lower(patch: Patch) -> None:
    patch.setattr(detector_fpn, "assign_fpn_levels", lambda boxes: (LEVELS(boxes) - 1).clamp(min=2))


def decoded_without_the_end(patch: Patch) -> None:
    patch.setattr(
        detector_fpn_regions,
        "decode_mask_rcnn",
        lambda boxes, deltas: decode_deltas(boxes, deltas, 1.0, 0.0, UNIT_BOX_WEIGHTS, MAX_LOG_SCALE),
    )


def decoded_as_coordinates(patch: Patch) -> None:
    patch.setattr(detector_fpn_regions, "decode_mask_rcnn", detector_boxes.decode_detectron2)


def clipped_at_the_size(patch: Patch) -> None:
    patch.setattr(
        detector_fpn_regions, "clip_boxes_to_image", lambda boxes, right, bottom: CLIP(boxes, right + 1, bottom + 1)
    )


def clipped_at_the_picture(patch: Patch) -> None:
    see = detector_fpn_regions.compute_fpn_feature_maps

    def without_filling(model: FPN, picture: Tensor, rules: detector_fpn_regions.FPNPostprocessing):
        seen = see(model, picture, rules)
        height, width = (round(side * seen.scale) for side in picture.shape[:2])
        return seen._replace(height=height, width=width)

    patch.setattr(test_fpn_parity, "compute_fpn_feature_maps", without_filling)


def filled_up_on_the_left(patch: Patch) -> None:
    patch.setattr(F, "pad", lambda x, sides: PAD(x, (sides[1], 0, sides[3], 0)))


def red_first(patch: Patch) -> None:
    patch.setattr(detector_fpn_regions, "to_centered_bgr", lambda picture: RED(picture.flip(2)))


def upsampled_smoothly(patch: Patch) -> None:
    patch.setattr(F, "interpolate", lambda x, scale_factor: DILATE(x, scale_factor=scale_factor, mode="bilinear"))


MISTAKES: list[tuple[str, Callable[[Patch], None]]] = [
    ("the stride in the first convolution", stride_in_the_first_convolution),
    ("channels in other groups", groups_of_one_channel_fewer),
    ("norms that add to the variance", norms_add_to_the_variance),
    ("RoIAlign with its later correction", aligned),
    ("as many samples as a cell has places", samples_by_size),
    ("levels one lower", levels_one_lower),
    ("an end left that the original takes off", decoded_without_the_end),
    ("boxes without their end", decoded_as_coordinates),
    ("clipping at the size", clipped_at_the_size),
    ("clipping at the picture before it is filled up", clipped_at_the_picture),
    ("filling up on the left", filled_up_on_the_left),
    ("red first", red_first),
    ("maps enlarged smoothly", upsampled_smoothly),
]


@pytest.mark.parametrize("mistake", [case[1] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_seen(mistake: Callable[[Patch], None], monkeypatch: Patch):
    """By one folder at least."""
    monkeypatch.setattr(test_fpn_parity, "fpn_of", fpn_of.__wrapped__)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        for folder in PYRAMID:
            test_fpn_parity.test_every_stage_and_choice(folder)
