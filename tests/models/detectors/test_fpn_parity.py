"""Parity with vqa-maskrcnn-benchmark's own code and 12-in-1's choice of regions: same weights, same pictures.

Boxes to 1e-2 pixels, features and probabilities to 1e-3 (of a tensor's largest number where that is above one: scores
before the softmax reach nine), indices exactly.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from comodal.models.detectors.detector_boxes import compute_resize_scale, resize_like_opencv, to_centered_bgr
from comodal.models.detectors.detector_fpn import FPN, FPN_STRIDES, optimize_fpn_layout
from comodal.models.detectors.detector_fpn_regions import (
    FPNPostprocessing,
    compute_fpn_feature_maps,
    detect_fpn_regions,
    propose_fpn_boxes,
)
from tests.support.detector_fixtures import PYRAMID, fpn_of, fpn_rules, ids, tensors

PIXELS = 1e-2
ROUNDED_OTHERWISE = 2  # in float64 the same weights are 8e-3 pixels from the original's float32, norms folded 1.2e-2
BOXES = {"proposals", "sel.bbox"}
NOT_COMPARED = {"image_rgb", "gt.boxes", "sel.keep", "sel.num_boxes", "sel.max_conf", "sel.objects"}  # given, or follow
NOT_COMPARED |= {"det.boxes", "det.scores", "det.labels"}  # of detection, which regions are not chosen by


def near(ours: torch.Tensor, theirs: torch.Tensor, most: float, name: str) -> None:
    """No number is further from theirs."""
    assert_close(ours, theirs, rtol=0, atol=most, msg=lambda text: f"{name}: {text}")


def numbers(theirs: torch.Tensor) -> float:
    """How far numbers that are no pixels may be from theirs."""
    return 1e-3 * max(1.0, float(theirs.abs().max()))


def test_there_are_fixtures():
    assert PYRAMID


@torch.inference_mode()
def stages(model: FPN, picture: torch.Tensor, rules: FPNPostprocessing) -> dict[str, torch.Tensor]:
    """All that the network computes, under the fixtures' names and in their layout."""
    scale = compute_resize_scale(*picture.shape[:2], rules.size, rules.longest)
    seen = compute_fpn_feature_maps(model, picture, rules)
    boxes, objectness = propose_fpn_boxes(model, seen, rules)
    told = model.predict(seen.maps, boxes)
    ours = {
        "im_scale": torch.tensor([scale], dtype=torch.float64),
        "scaled_bgr": resize_like_opencv(to_centered_bgr(picture), scale),
        "proposals": boxes,
        "objectness": objectness,
        "pooled_first4": model.pool(seen.maps, boxes[:4]),
        "fc6": told.fc6,
        "fc7": told.fc7,
        "scores": told.scores,
        "class_probs": told.scores.softmax(1),
        "bbox_deltas": told.deltas,
    }
    for level in range(len(FPN_STRIDES)):
        feature_map = seen.maps[level]
        rows, columns = feature_map.shape[2:]
        scores, deltas = model.propose(feature_map)
        ours |= {
            f"p{level + 2}": feature_map,
            f"rpn_logits.{level}": scores.view(1, rows, columns, -1).permute(0, 3, 1, 2),
            f"rpn_deltas.{level}": deltas.view(1, rows, columns, -1).permute(0, 3, 1, 2),
        }
    return ours


def compared(model: FPN, folder: Path, slack: float = 1) -> None:
    """Every number of a folder: stages, the regions that are chosen, and given boxes."""
    theirs, rules = tensors(folder, "expected"), fpn_rules(folder)
    ours = stages(model, theirs["image_rgb"], rules)
    found = detect_fpn_regions(model, theirs["image_rgb"], rules)
    given = detect_fpn_regions(model, theirs["image_rgb"], rules, theirs["gt.boxes"])
    assert torch.equal(found.proposal_indices, theirs["sel.keep"])
    assert torch.equal(given.boxes, theirs["gt.boxes"])
    ours |= {"sel.bbox": found.boxes, "sel.features": found.features, "sel.cls_prob": found.classes}
    ours |= {"gt.fc6": given.features, "gt.class_probs": given.classes}
    assert theirs.keys() - ours.keys() <= NOT_COMPARED
    for name in ours.keys() & theirs.keys():
        near(ours[name], theirs[name], slack * (PIXELS if name in BOXES else numbers(theirs[name])), name)


@pytest.mark.parametrize("folder", **ids(PYRAMID))
def test_every_stage_and_choice(folder: Path):
    compared(fpn_of(folder), folder)


@pytest.mark.parametrize("folder", **ids(PYRAMID))
def test_laid_out_for_speed_it_is_the_same(folder: Path):
    model = optimize_fpn_layout(copy.deepcopy(fpn_of(folder)))
    assert not any(name.endswith("running_var") for name in model.state_dict())
    compared(model, folder, ROUNDED_OTHERWISE)
