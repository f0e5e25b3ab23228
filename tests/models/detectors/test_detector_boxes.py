"""Boxes are those of Caffe's, maskrcnn-benchmark's and OpenCV's own code, whose numbers the fixtures hold."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_iou, nms

from comodal.models.detectors.detector_boxes import (
    assign_fpn_levels,
    compute_resize_scale,
    decode_caffe,
    decode_detectron2,
    decode_mask_rcnn,
    make_cell_anchors,
    nms_inclusive,
    resize_like_opencv,
    tile_anchors,
    to_centered_bgr,
)
from tests.support.detector_fixtures import CONVENTIONS, ids, tensors

PIXELS = {"rtol": 0, "atol": 1e-2}
BYTES = 2e-3  # how far OpenCV's own instructions round from ours


def test_there_are_fixtures():
    assert CONVENTIONS


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
def test_anchors(folder: Path):
    theirs = tensors(folder, "ops")
    caffe = make_cell_anchors(16, (4, 8, 16, 32))
    assert_close(caffe, theirs["anchors.caffe_cell"], rtol=0, atol=0)
    last = tile_anchors(caffe, 38, 63, 16)[-12:]
    assert_close(last, theirs["anchors.caffe_last_cell_38x63"], rtol=0, atol=0)
    assert_close(make_cell_anchors(16, (2, 4, 8, 16, 32)), theirs["anchors.mrb_c4_cell"], rtol=0, atol=0)
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        assert_close(make_cell_anchors(stride, (8,)), theirs[f"anchors.mrb_fpn_cell.{level}"], rtol=0, atol=0)


def test_anchors_of_the_cells_stand_row_by_row():
    cell = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]])
    found = tile_anchors(cell, 2, 3, 10)
    assert found[:4].tolist() == [[0, 0, 1, 1], [5, 5, 6, 6], [10, 0, 11, 1], [15, 5, 16, 6]]
    assert found[6].tolist() == [0, 10, 1, 11] and len(found) == 12


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
def test_decoding(folder: Path):
    theirs = tensors(folder, "ops")
    boxes, deltas = theirs["decode.boxes"], theirs["decode.deltas"]
    assert_close(decode_caffe(boxes, deltas), theirs["decode.caffe"], rtol=1e-6, atol=1e-2)
    assert_close(decode_mask_rcnn(boxes, deltas), theirs["decode.mrb_w1"], **PIXELS)
    assert_close(decode_mask_rcnn(boxes, deltas, (10, 10, 5, 5)), theirs["decode.mrb_w10_10_5_5"], **PIXELS)


def test_no_delta_is_the_box_itself_or_one_pixel_more():
    boxes, nothing = torch.tensor([[2.0, 3, 11, 7]]), torch.zeros(1, 4)
    assert decode_caffe(boxes, nothing).tolist() == [[2, 3, 12, 8]]
    assert decode_mask_rcnn(boxes, nothing).tolist() == boxes.tolist()
    assert decode_detectron2(boxes, nothing).tolist() == boxes.tolist()


def test_a_box_of_detectron2_moves_by_its_own_width():
    moved = decode_detectron2(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 0, 0]]), (10, 10, 5, 5))
    assert moved.tolist() == [[5, 0, 15, 20]]  # ten wide, moved by half of that


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_suppression_counts_both_ends(folder: Path, threshold: float):
    theirs = tensors(folder, "ops")
    boxes, scores = theirs["nms.boxes"], theirs["nms.scores"]
    assert torch.equal(nms_inclusive(boxes, scores, threshold), theirs[f"nms_plus1.{threshold}.keep"])
    assert torch.equal(nms(boxes, scores, threshold), theirs[f"nms_plain.{threshold}.keep"])


def test_suppression_is_the_rule_written_out():
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + 1 + torch.rand(200, 2) * 20], 1), torch.rand(200)
    overlaps = box_iou(boxes + torch.tensor([0, 0, 1.0, 1]), boxes + torch.tensor([0, 0, 1.0, 1]))
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if not kept or overlaps[i, kept].max() <= 0.3:
            kept.append(i)
    assert nms_inclusive(boxes, scores, 0.3).tolist() == kept


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
def test_levels(folder: Path):
    theirs = tensors(folder, "ops")
    expected = theirs["level.expected"].long()
    offset = 0 if expected.max() > 3 else 2  # as the map's name, or counted from P2
    assert torch.equal(assign_fpn_levels(theirs["level.boxes"]) - offset, expected)


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
def test_resizing_is_opencvs(folder: Path):
    theirs = tensors(folder, "ops")
    expected, scale = theirs["resize.cv2_bgr_minus_mean"], theirs["resize.scale"].item()
    ours = resize_like_opencv(to_centered_bgr(theirs["resize.rgb"]), scale).permute(1, 2, 0)
    rows = theirs.get("resize.rows", torch.arange(len(ours)))
    assert_close(ours[rows], expected, rtol=0, atol=BYTES)


def test_scaling_stops_at_the_long_side():
    assert compute_resize_scale(480, 640, 600, 1000) == 1.25
    assert compute_resize_scale(300, 900, 600, 1000) == 1000 / 900
