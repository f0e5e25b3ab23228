"""Parity with bottom-up attention's own code (Caffe's rules) and with Hugging Face's: same weights, same pictures.

Boxes to 1e-2 pixels, features and probabilities to 1e-3, indices exactly.
"""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from comodal.models.detectors.detector_c4 import C4, C4Config, C4Proposals
from comodal.models.detectors.detector_rules import (
    C4FeatureMap,
    C4Postprocessing,
    compute_caffe_feature_map,
    compute_lxmert_feature_map,
    detect_caffe_regions,
    detect_lxmert_regions,
    propose_caffe,
    propose_lxmert,
)
from tests.support.detector_fixtures import CAFFE, CONVENTIONS, LXMERT, c4_of, caffe_rules, ids, lxmert_rules, tensors

PIXELS, NUMBERS = {"rtol": 0, "atol": 1e-2}, {"rtol": 0, "atol": 1e-3}


def test_there_are_fixtures():
    assert CAFFE


def compared(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], pixels: set[str]) -> None:
    """All that a fixture holds of these names."""
    for name in ours.keys() & theirs.keys():
        tolerance = PIXELS if name in pixels else NUMBERS
        assert_close(ours[name], theirs[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("folder", **ids(CAFFE))
@torch.inference_mode()
def test_every_stage_of_caffes(folder: Path):
    model, theirs, rules = c4_of(folder), tensors(folder, "expected"), caffe_rules(folder)
    seen = compute_caffe_feature_map(model, theirs["image_rgb"], rules)
    proposed = model.propose(seen.values)
    assert_close(model.cell_anchors, theirs["cell_anchors"], rtol=0, atol=0)
    rows, columns = seen.values.shape[2:]
    probabilities = theirs["rpn_cls_prob"][0, model.config.anchors :]
    boxes = propose_caffe(model, seen, rules)
    features = model.compute_features(seen.values, boxes)
    told = model.predict(features)
    ours = {
        "res4": seen.values,
        "rpn_bbox_pred": proposed.deltas.view(1, rows, columns, -1).permute(0, 3, 1, 2),
        "rois": torch.cat([torch.zeros(len(boxes), 1), boxes], 1),
        "pool5": features,
        "cls_prob": told.classes,
        "bbox_pred": told.deltas,
        "attr_prob": told.attributes.softmax(1),
    }
    assert_close(proposed.scores.sigmoid().view(rows, columns, -1).permute(2, 0, 1), probabilities, **NUMBERS)
    assert ours.keys() <= theirs.keys()
    compared(ours, theirs, {"rois"})


@pytest.mark.parametrize("folder", **ids(CAFFE))
@pytest.mark.parametrize(
    "fewest, most, name", [(12, 12, "fixed12"), (4, 20, "adaptive_4_20"), (2, 40, "adaptive_2_40")]
)
def test_selections_of_caffes(folder: Path, fewest: int, most: int, name: str):
    theirs = tensors(folder, "expected")
    found = detect_caffe_regions(c4_of(folder), theirs["image_rgb"], caffe_rules(folder, fewest, most))
    assert torch.equal(found.proposal_indices, theirs[f"{name}.keep"])
    assert_close(found.boxes, theirs[f"{name}.boxes"], **PIXELS)
    assert_close(found.features, theirs["pool5"][found.proposal_indices], **NUMBERS)
    assert_close(found.classes, theirs["cls_prob"][found.proposal_indices], **NUMBERS)
    assert_close(found.attributes, theirs["attr_prob"][found.proposal_indices], **NUMBERS)


@pytest.mark.parametrize("folder", **ids(CAFFE))
def test_given_boxes_of_caffes(folder: Path):
    theirs = tensors(folder, "expected")
    found = detect_caffe_regions(c4_of(folder), theirs["image_rgb"], caffe_rules(folder), theirs["gt.boxes"])
    assert torch.equal(found.boxes, theirs["gt.boxes"])
    assert_close(found.features, theirs["gt.pool5"], **NUMBERS)
    assert_close(found.classes, theirs["gt.cls_prob"], **NUMBERS)


@pytest.mark.parametrize("folder", **ids(LXMERT))
@torch.inference_mode()
def test_every_stage_of_lxmerts(folder: Path):
    model, theirs, rules = c4_of(folder), tensors(folder, "expected"), lxmert_rules(folder)
    seen = compute_lxmert_feature_map(model, theirs["image_rgb"], rules)
    proposed = model.propose(seen.values)
    rows, columns = seen.values.shape[2:]
    proposals = propose_lxmert(model, seen, rules)
    features = model.compute_features(seen.values, proposals)
    told = model.predict(features)
    scales = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(model.config.classes - 1)
    ours = {
        "res4": seen.values,
        "rpn_logits": proposed.scores.view(1, rows, columns, -1).permute(0, 3, 1, 2),
        "rpn_deltas": proposed.deltas.view(1, rows, columns, -1).permute(0, 3, 1, 2),
        "proposals.0": proposals,
        "roi_features": features,
        "class_probs": told.classes.roll(-1, 1),  # theirs end with "none"
        "box_deltas": told.deltas[:, 4:] / scales,
        "attr_logits": told.attributes.roll(-1, 1),
    }
    assert ours.keys() <= theirs.keys()
    compared(ours, theirs, {"proposals.0"})


@pytest.mark.parametrize("folder", **ids(LXMERT))
def test_regions_of_lxmerts(folder: Path):
    theirs = tensors(folder, "expected")
    found = detect_lxmert_regions(c4_of(folder), theirs["image_rgb"], lxmert_rules(folder))
    classes, attributes = found.classes[:, 1:].max(1), found.attributes.max(1)
    assert torch.equal(classes.indices, theirs["out.obj_ids.0"])
    assert torch.equal(attributes.indices, theirs["out.attr_ids.0"])
    assert_close(found.boxes, theirs["out.boxes.0"], **PIXELS)
    assert_close(found.features, theirs["out.features.0"], **NUMBERS)
    assert_close(classes.values, theirs["out.obj_probs.0"], **NUMBERS)
    assert_close(attributes.values, theirs["out.attr_probs.0"], **NUMBERS)


@pytest.mark.parametrize("folder", **ids(CONVENTIONS))
def test_proposals_of_crafted_maps(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The ProposalLayer's own answer where small boxes are many and the picture was scaled."""
    theirs = tensors(folder, "ops")
    (height, width, scale), cell = theirs["pl.im_info"][0].tolist(), theirs["pl.cell_anchors"]
    model = C4(C4Config(blocks=(1, 1, 1, 1), stem=1, width=1, proposal_channels=1, classes=2, attributes=2))
    model.cell_anchors.copy_(cell)
    scores = theirs["pl.scores"][0, len(cell) :].permute(1, 2, 0).flatten()
    deltas = theirs["pl.deltas"][0].permute(1, 2, 0).reshape(-1, 4)
    monkeypatch.setattr(model, "propose", lambda _map: C4Proposals(scores, deltas))
    feature_map = torch.zeros(1, 1, *theirs["pl.scores"].shape[2:])
    seen = C4FeatureMap(feature_map, int(height), int(width), torch.full((4,), scale))
    found = propose_caffe(model, seen, C4Postprocessing(pre_nms_top_k=60, post_nms_top_k=20))
    assert_close(found, theirs["pl.rois"][:, 1:], **PIXELS)
