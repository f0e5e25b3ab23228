"""The conventions that a reimplementation gets wrong: each mistake, made on purpose, is seen by a parity test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from comodal.models.convert import convert_c4
from comodal.models.detectors import detector_boxes, detector_c4, detector_rules
from comodal.models.detectors.detector_boxes import MAX_LOG_SCALE, UNIT_BOX_WEIGHTS, decode_deltas, make_cell_anchors
from comodal.models.detectors.detector_c4 import C4Bottleneck
from comodal.models.detectors.detector_rules import C4FeatureMap, C4Postprocessing
from tests.models.detectors import test_c4_parity, test_detector_boxes
from tests.support.detector_fixtures import CAFFE, CONVENTIONS, LXMERT, c4_of

Patch = pytest.MonkeyPatch
BLOCK, STAGE, POOL, FOLDED, CLIP = (
    C4Bottleneck.__init__,
    detector_c4.make_resnet_stage,
    F.max_pool2d,
    convert_c4.fold_batch_norms,
    detector_boxes.clip_boxes_to_image,
)


def stride_in_the_middle_convolution(patch: Patch) -> None:
    def block(self: C4Bottleneck, channels: int, width: int, stride: int, dilation: int, first: bool) -> None:
        BLOCK(self, channels, width, stride, dilation, first)
        self.conv1.stride, self.conv2.stride = (1, 1), (stride, stride)

    patch.setattr(C4Bottleneck, "__init__", block)


def stem_padded(patch: Patch) -> None:
    stem_rounded_down(patch)
    patch.setattr(F, "max_pool2d", lambda x, size, step: POOL(x, size, step, padding=1))


def stem_rounded_down(patch: Patch) -> None:
    patch.setattr(F, "pad", lambda x, _sides: x)


def first_block_of_res5_not_dilated(patch: Patch) -> None:
    def stage(channels: int, width: int, blocks: int, stride: int, dilation: int) -> torch.nn.Sequential:
        made = STAGE(channels, width, blocks, stride, dilation)
        made[0].conv2.dilation = made[0].conv2.padding = (1, 1)
        return made

    patch.setattr(detector_c4, "make_resnet_stage", stage)


def norms_add_nothing(patch: Patch) -> None:
    patch.setattr(convert_c4, "C4_NORM_EPS", 0)


def roi_align_for_roi_pool(patch: Patch) -> None:
    patch.setattr(detector_c4, "build_maxima", lambda feature_map, _bins: feature_map)
    patch.setattr(detector_c4, "pool_rois", lambda found, boxes, bins, scale: roi_align(found, [boxes], bins, scale))


def red_first(patch: Patch) -> None:
    def red_green_blue(picture: Tensor) -> Tensor:
        return detector_boxes.to_centered_bgr(picture.flip(2))

    patch.setattr(detector_rules, "to_centered_bgr", red_green_blue)


def changed(patch: Patch, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Other weights than those of the file."""

    def folded(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        found = FOLDED(tensors, path)
        change(found)
        return found

    patch.setattr(convert_c4, "fold_batch_norms", folded)


def rolled(*modules: str) -> Callable[[Patch], None]:
    def roll(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.partition(".")[0] in modules:
                tensors[name] = tensors[name].roll(1, 0)

    return lambda patch: changed(patch, roll)


def nothing_scored_for_something(patch: Patch) -> None:
    def turn(tensors: dict[str, Tensor]) -> None:
        tensors["proposal_scores.weight"] *= -1

    changed(patch, turn)


def deltas_of_detectron2s_size(patch: Patch) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["box_deltas.weight"] *= torch.tensor([10.0, 10, 5, 5]).repeat(len(tensors["box_deltas.bias"]) // 4)[
            :, None
        ]

    changed(patch, enlarge)


def other_anchors(change: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    def patched(patch: Patch) -> None:
        for module in (convert_c4, test_detector_boxes):
            patch.setattr(module, "make_cell_anchors", lambda stride, scales: change(make_cell_anchors(stride, scales)))

    return patched


def sizes_outermost(anchors: Tensor) -> Tensor:
    return anchors.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)


def sides_not_rounded(anchors: Tensor) -> Tensor:
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = torch.tensor([[2**0.5, 0.5**0.5], [1, 1], [0.5**0.5, 2**0.5]])[:, None] * sizes(anchors)
    halves = (sides.flatten(0, 1) - 1) / 2
    return torch.cat([middles - halves, middles + halves], 1)


def sizes(anchors: Tensor) -> Tensor:
    """Sides of the squares, of which the second third are."""
    count = len(anchors) // 3
    squares = anchors[count : 2 * count]
    return (squares[:, 2:] - squares[:, :2] + 1)[None]


def stride_of_the_picture(patch: Patch) -> None:
    """600 pixels by 38 cells is 15, as torchvision's anchors reckon."""
    patch.setattr(detector_rules, "C4_STRIDE", 15)


def decoded_by_detectron2(patch: Patch) -> None:
    patch.setattr(detector_rules, "decode_caffe", detector_boxes.decode_detectron2)


def decoded_without_its_own_end(patch: Patch) -> None:
    patch.setattr(
        test_detector_boxes,
        "decode_mask_rcnn",
        lambda boxes, deltas, weights=UNIT_BOX_WEIGHTS: decode_deltas(boxes, deltas, 1.0, 0.0, weights, MAX_LOG_SCALE),
    )


def decoded_with_another_end(patch: Patch) -> None:
    patch.setattr(
        detector_rules,
        "decode_caffe",
        lambda boxes, deltas: decode_deltas(boxes, deltas, 1.0, 1.0, UNIT_BOX_WEIGHTS, float("inf")),
    )


def clipped_at_the_size(patch: Patch) -> None:
    patch.setattr(
        detector_rules, "clip_boxes_to_image", lambda boxes, right, bottom: CLIP(boxes, right + 1, bottom + 1)
    )


def clipped_before_the_size(patch: Patch) -> None:
    patch.setattr(
        detector_rules, "clip_boxes_to_image", lambda boxes, right, bottom: CLIP(boxes, right - 1, bottom - 1)
    )


def suppressed_without_the_ends(patch: Patch) -> None:
    for module in (detector_boxes, test_detector_boxes, detector_rules):
        patch.setattr(module, "nms_inclusive", nms)


def small_ones_dropped_too_late(patch: Patch) -> None:
    def surest_first(
        boxes: Tensor, scores: Tensor, smallest: float, before: int, threshold: float, after: int
    ) -> Tensor:
        order = scores.argsort(descending=True, stable=True)[:before]
        return order[
            detector_boxes.select_top_proposals(boxes[order], scores[order], smallest, before, threshold, after)
        ]

    patch.setattr(detector_rules, "select_top_proposals", surest_first)


def smallest_side_not_scaled(patch: Patch) -> None:
    propose = detector_rules.propose_caffe

    def unscaled(model: detector_c4.C4, seen: C4FeatureMap, rules: C4Postprocessing) -> Tensor:
        return propose(model, seen._replace(scale=torch.ones(4)), rules)

    patch.setattr(test_c4_parity, "propose_caffe", unscaled)


def levels_without_the_ends(patch: Patch) -> None:
    def levels(boxes: Tensor) -> Tensor:
        return detector_boxes.assign_fpn_levels(boxes - torch.tensor([0, 0, 1.0, 1]))

    patch.setattr(test_detector_boxes, "assign_fpn_levels", levels)


def scaled_to_the_size(patch: Patch) -> None:
    """Places decided by the rounded size, not by the factor."""

    def resized(picture: Tensor, scale: float) -> Tensor:
        rows, columns = (round(side * scale) for side in picture.shape[1:])
        return F.interpolate(picture[None], (rows, columns), mode="bilinear", align_corners=False)[0]

    patch.setattr(test_detector_boxes, "resize_like_opencv", resized)


def stages(_patch: Patch) -> None:
    test_c4_parity.test_every_stage_of_caffes(CAFFE[0])


def lxmerts_stages(_patch: Patch) -> None:
    test_c4_parity.test_every_stage_of_lxmerts(LXMERT[0])


def lxmerts_regions(_patch: Patch) -> None:
    test_c4_parity.test_regions_of_lxmerts(LXMERT[0])


def crafted(patch: Patch) -> None:
    test_c4_parity.test_proposals_of_crafted_maps(CONVENTIONS[0], patch)


def of_boxes(name: str) -> Callable[[Patch], None]:
    return lambda _patch: getattr(test_detector_boxes, name)(CONVENTIONS[0])


def suppression(_patch: Patch) -> None:
    test_detector_boxes.test_suppression_counts_both_ends(CONVENTIONS[0], 0.3)


ANCHORS, DECODING = of_boxes("test_anchors"), of_boxes("test_decoding")
MISTAKES: list[tuple[str, Callable[[Patch], None], Callable[[Patch], None]]] = [
    ("the stride in the middle convolution", stride_in_the_middle_convolution, stages),
    ("a padded pooling of the stem", stem_padded, stages),
    ("a pooling of the stem that rounds down", stem_rounded_down, stages),
    ("no dilation in res5's first block", first_block_of_res5_not_dilated, stages),
    ("norms that add nothing to the variance", norms_add_nothing, stages),
    ("RoIAlign for RoIPool", roi_align_for_roi_pool, stages),
    ("red first", red_first, stages),
    ("background not first", rolled("class_scores"), stages),
    ("attributes' none not first", rolled("attribute_scores"), stages),
    ("classes' embeddings in another order", rolled("class_embedding"), stages),
    ("scores of nothing", nothing_scored_for_something, stages),
    ("deltas of another size", deltas_of_detectron2s_size, stages),
    ("anchors' sizes outermost", other_anchors(sizes_outermost), stages),
    ("anchors centred on 0", other_anchors(lambda anchors: anchors - 7.5), stages),
    ("anchors not rounded", other_anchors(sides_not_rounded), stages),
    ("anchors' sizes outermost", other_anchors(sizes_outermost), ANCHORS),
    ("anchors centred on 0", other_anchors(lambda anchors: anchors - 7.5), ANCHORS),
    ("anchors by the picture's stride", stride_of_the_picture, stages),
    ("boxes without their end", decoded_by_detectron2, stages),
    ("boxes without their end, crafted", decoded_by_detectron2, crafted),
    ("an end taken off that Caffe leaves", decoded_with_another_end, stages),
    ("an end left that maskrcnn-benchmark takes off", decoded_without_its_own_end, DECODING),
    ("clipping at the size", clipped_at_the_size, stages),
    ("suppression without the ends", suppressed_without_the_ends, suppression),
    ("small boxes dropped after the surest are taken", small_ones_dropped_too_late, crafted),
    ("a smallest side in the scaled picture", smallest_side_not_scaled, crafted),
    ("levels without the ends", levels_without_the_ends, of_boxes("test_levels")),
    ("a picture resized to the rounded size", scaled_to_the_size, of_boxes("test_resizing_is_opencvs")),
]
LXMERTS = [
    ("the stride in the middle convolution", stride_in_the_middle_convolution, lxmerts_stages),
    ("background not last", rolled("class_scores"), lxmerts_stages),
    ("deltas of another size", deltas_of_detectron2s_size, lxmerts_regions),
    ("clipping before the size", clipped_before_the_size, lxmerts_stages),
]


@pytest.mark.parametrize("mistake, check", [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_seen(mistake: Callable[[Patch], None], check: Callable[[Patch], None], monkeypatch: Patch):
    monkeypatch.setattr(test_c4_parity, "c4_of", c4_of.__wrapped__)
    check(monkeypatch)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(monkeypatch)


@pytest.mark.skipif(not LXMERT, reason="no folder of Hugging Face's detector under $COMODAL_FIXTURES")
@pytest.mark.parametrize("mistake, check", [case[1:] for case in LXMERTS], ids=[case[0] for case in LXMERTS])
def test_a_mistake_with_lxmerts_is_seen(
    mistake: Callable[[Patch], None], check: Callable[[Patch], None], monkeypatch: Patch
):
    test_a_mistake_is_seen(mistake, check, monkeypatch)
