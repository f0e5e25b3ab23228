"""Exported detectors, run by ONNX Runtime, against what the original code gave."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from comodal.models.checkpoint import save_model
from comodal.models.detectors.detector_boxes import compute_resize_scale, resize_like_opencv, to_centered_bgr
from comodal.models.detectors.detector_c4 import C4_ROI_CELLS, C4_STRIDE
from comodal.models.detectors.detector_fpn_regions import compute_fpn_feature_maps
from comodal.models.detectors.roi_pooling import build_maxima, pool_rois
from comodal.runtimes.export import export
from tests.support.detector_fixtures import CAFFE, PYRAMID, c4_of, caffe_rules, fpn_of, fpn_rules, ids, tensors

NUMBERS = {"rtol": 0, "atol": 1e-3}


def run(folder: Path, name: str, given: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (axis,) = session.get_inputs()
    return [torch.from_numpy(values) for values in session.run(None, {axis.name: given.numpy()})]


@pytest.mark.parametrize("folder", **ids(CAFFE))
def test_both_halves_of_caffes_detector(folder: Path, tmp_path: Path):
    """Maps, scores and deltas of a picture, and all of the regions that Caffe's code proposed."""
    theirs, rules = tensors(folder, "expected"), caffe_rules(folder)
    save_model(c4_of(folder), tmp_path / "model", {})
    assert all(one.difference < 1e-5 for one in export(tmp_path, "onnx", tmp_path / "onnx").networks.values())
    picture = theirs["image_rgb"]
    scale = compute_resize_scale(*picture.shape[:2], rules.size, rules.longest)
    feature_map, scores, deltas = run(
        tmp_path / "onnx", "image", resize_like_opencv(to_centered_bgr(picture), scale)[None]
    )
    rows, columns = feature_map.shape[2:]
    assert_close(feature_map, theirs["res4"], **NUMBERS)
    anchors = theirs["rpn_cls_prob"].shape[1] // 2
    assert_close(
        scores.sigmoid().view(rows, columns, -1).permute(2, 0, 1), theirs["rpn_cls_prob"][0, anchors:], **NUMBERS
    )
    assert_close(deltas.view(1, rows, columns, -1).permute(0, 3, 1, 2), theirs["rpn_bbox_pred"], **NUMBERS)
    cells = pool_rois(
        build_maxima(feature_map, C4_ROI_CELLS), theirs["rois"][:, 1:], C4_ROI_CELLS, 1 / C4_STRIDE
    ).contiguous()
    features, classes, boxes, attributes = run(tmp_path / "onnx", "regions", cells)
    assert_close(features, theirs["pool5"], **NUMBERS)
    assert_close(classes, theirs["cls_prob"], **NUMBERS)
    assert_close(boxes, theirs["bbox_pred"], **NUMBERS)
    assert_close(attributes.softmax(1), theirs["attr_prob"], **NUMBERS)


@pytest.mark.slow
@pytest.mark.parametrize("folder", **ids(PYRAMID))
@torch.inference_mode()
def test_both_halves_of_the_pyramids_detector(folder: Path, tmp_path: Path):
    """Maps and proposals of a picture that is filled up, and all of the regions that the original's code proposed."""
    theirs, rules, model = tensors(folder, "expected"), fpn_rules(folder), fpn_of(folder)
    with torch.inference_mode(False):
        save_model(model, tmp_path / "model", {})
        assert all(one.difference < 1e-5 for one in export(tmp_path, "onnx", tmp_path / "onnx").networks.values())
    picture = theirs["image_rgb"]
    pixels = resize_like_opencv(
        to_centered_bgr(picture), compute_resize_scale(*picture.shape[:2], rules.size, rules.longest)
    )
    filled = F.pad(pixels, (0, -pixels.shape[2] % 32, 0, -pixels.shape[1] % 32))[None]
    given = run(tmp_path / "onnx", "image", filled)
    maps, scores = given[:5], given[5:10]
    assert_close(maps[3], theirs["p5"], **NUMBERS)
    assert_close(maps[4], theirs["p6"], **NUMBERS)
    rows, columns = maps[4].shape[2:]
    assert_close(scores[4].view(1, rows, columns, -1).permute(0, 3, 1, 2), theirs["rpn_logits.4"], **NUMBERS)
    cells = model.pool(compute_fpn_feature_maps(model, picture, rules).maps, theirs["proposals"])
    features, _, scores, deltas = run(tmp_path / "onnx", "regions", cells)
    assert_close(features, theirs["fc6"], **NUMBERS)
    assert_close(scores, theirs["scores"], rtol=0, atol=1e-2)
    assert_close(deltas, theirs["bbox_deltas"], rtol=0, atol=1e-2)
