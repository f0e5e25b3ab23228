"""Folders of what the original detectors gave: every one under $COMODAL_FIXTURES/detector, whatever its sizes."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from comodal.models.convert.caffemodel import read_caffemodel
from comodal.models.convert.convert_c4 import build_c4, build_c4_from_caffe, is_c4_state_dict
from comodal.models.convert.convert_fpn import build_fpn, is_fpn_state_dict
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.detectors.detector_c4 import C4
from comodal.models.detectors.detector_fpn import FPN
from comodal.models.detectors.detector_fpn_regions import FPNPostprocessing
from comodal.models.detectors.detector_rules import C4Postprocessing, LXMERTPostprocessing
from comodal.text_files import read_json
from tests.support.paths import PARITY_FIXTURES

FIXTURES = PARITY_FIXTURES / "detector"


def folders_with(name: str) -> list[Path]:
    """Folders that hold such a file."""
    return sorted(path.parent for path in FIXTURES.glob(f"*/{name}"))


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The content of one of their files."""
    return load_file(folder / f"{name}.safetensors")


def ids(folders: list[Path]) -> dict[str, object]:
    """Parameters of a test, one for each folder."""
    return {"argvalues": folders, "ids": [folder.name for folder in folders]}


CONVENTIONS = folders_with("ops.safetensors")
CAFFE = folders_with("*.caffemodel")
PYRAMID = [folder for folder in folders_with("model.safetensors") if is_fpn_state_dict(read_tensors(folder))]
LXMERT = [folder for folder in folders_with("model.safetensors") if is_c4_state_dict(read_tensors(folder))]


@cache
@torch.inference_mode(False)
def c4_of(folder: Path) -> C4:
    """The network of a folder."""
    for path in folder.glob("*.caffemodel"):
        scales = tuple(read_json(folder / "config.json")["anchor_scales"])
        return build_c4_from_caffe(read_caffemodel(path), path, scales)[0]
    return build_c4(read_tensors(folder), folder)[0]


def caffe_rules(folder: Path, fewest: int = 36, most: int = 36) -> C4Postprocessing:
    """The settings of a folder of Caffe's."""
    told = read_json(folder / "config.json")
    return C4Postprocessing(
        size=told["scales"],
        longest=told["max_size"],
        min_proposal_side=told["rpn_min_size"],
        pre_nms_top_k=told["pre_nms"],
        post_nms_top_k=told["post_nms"],
        nms_threshold=told["rpn_nms"],
        class_nms_threshold=told["nms"],
        min_regions=fewest,
        max_regions=most,
        score_threshold=told["conf_thresh"],
    )


def lxmert_rules(folder: Path) -> LXMERTPostprocessing:
    """The settings of a folder of Hugging Face's."""
    told = read_json(folder / "config.json")
    return LXMERTPostprocessing(
        size=told["input"]["min_size_test"],
        longest=told["input"]["max_size_test"],
        pre_nms_top_k=told["rpn"]["pre_nms_topk_test"],
        post_nms_top_k=told["rpn"]["post_nms_topk_test"],
        nms_threshold=told["rpn"]["nms_thresh"],
        class_nms_thresholds=tuple(told["roi_heads"]["nms_thresh_test"]),
        min_regions=told["min_detections"],
        max_regions=told["max_detections"],
    )


@cache
@torch.inference_mode(False)
def fpn_of(folder: Path) -> FPN:
    """The network of a folder of vqa-maskrcnn-benchmark's."""
    return build_fpn(read_tensors(folder), folder)[0]


def fpn_rules(folder: Path) -> FPNPostprocessing:
    """Its settings."""
    told = read_json(folder / "config.json")
    changed = dict(zip(told["overrides"][::2], told["overrides"][1::2], strict=True))
    return FPNPostprocessing(
        size=told["min_size"],
        longest=told["max_size"],
        pre_nms_top_k=changed["MODEL.RPN.PRE_NMS_TOP_N_TEST"],
        map_post_nms_top_k=changed["MODEL.RPN.POST_NMS_TOP_N_TEST"],
        post_nms_top_k=changed["MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"],
        max_regions=told["num_features"],
    )
