"""The published names of the feature pyramid's detector: all of them are read, and what does not fit is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comodal.errors import CheckpointError
from comodal.models.convert.convert_fpn import FPN_RENAMES, build_fpn, is_fpn_state_dict, rename_fpn_tensor
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.detectors.detector_fpn import FPN, FPNConfig
from tests.support.detector_fixtures import FIXTURES, PYRAMID

KEYS = FIXTURES / "vqa_mrcnn_x152fpn_keys.json"
State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return read_tensors(PYRAMID[0])


@pytest.mark.skipif(not KEYS.exists(), reason="no list of the published names")
def test_every_published_name_and_shape_has_its_place_in_the_published_network():
    published = json.loads(KEYS.read_text())
    with torch.device("meta"):
        network = FPN(FPNConfig()).state_dict()
    ours = {rename_fpn_tensor(theirs): tuple(shape) for theirs, shape in published.items()}
    anchors = {name for name in ours if name and name.startswith("cell_anchors.")}
    assert None not in ours and len(ours) == len(published) == 810 and len(anchors) == 5
    assert {name: tuple(tensor.shape) for name, tensor in network.items() if name != "cell_anchors"} == {
        name: shape for name, shape in ours.items() if name not in anchors
    }
    assert {ours[name] for name in anchors} == {tuple(network["cell_anchors"].shape[1:])}
    assert round(sum(map(math.prod, published.values())) / 1e6, 1) == 206.4


def test_every_way_of_renaming_is_used(state: State):
    used = set(map(rename_fpn_tensor, state))
    assert len(used) == len(state) and None not in used and len(FPN_RENAMES) == 14


def test_wrapped_and_saved_by_several_processes(state: State, tmp_path: Path):
    """The original saves {"model": ...} with `module.` before each name."""
    wrapped = {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "iteration": 3}
    torch.save(wrapped, tmp_path / "model_final.pth")
    read = read_tensors(tmp_path / "model_final.pth")
    assert is_fpn_state_dict(read)
    model, report = build_fpn(read, tmp_path / "model_final.pth")
    assert not report.new and not report.unused
    assert all(torch.equal(model.state_dict()[rename_fpn_tensor(name)], tensor) for name, tensor in state.items()
               if "cell_anchors" not in name)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["backbone.fpn.fpn_layer2.bias", "rpn.anchor_generator.cell_anchors.3", "backbone.body.layer2.0.conv2.weight"],
)
def test_a_missing_tensor_is_named(state: State, name: str, tmp_path: Path):
    del state[name]
    with pytest.raises(CheckpointError, match=r"missing") as told:
        build_fpn(state, tmp_path / "model_final.pth")
    assert "model_final.pth" in str(told.value)
    assert rename_fpn_tensor(name) in str(told.value) or name in str(told.value)


@pytest.mark.parametrize(
    "name",
    [
        "roi_heads.box.feature_extractor.fc6.weight",
        "backbone.body.layer1.0.conv2.weight",
        "backbone.fpn.fpn_inner1.weight",
    ],
)
def test_a_tensor_of_another_shape_is_named(state: State, name: str, tmp_path: Path):
    state[name] = state[name][:-1, :-1].contiguous()
    with pytest.raises(CheckpointError, match=r"shape|sizes|not a ResNeXt") as told:
        build_fpn(state, tmp_path / "model_final.pth")
    assert "model_final.pth" in str(told.value)


def test_a_resnet_is_not_taken_for_a_resnext(state: State, tmp_path: Path):
    """Its strides are elsewhere, which no shape tells."""
    name = "backbone.body.layer1.0.conv2.weight"
    state[name] = torch.zeros(len(state[name]), len(state[name]), 3, 3)
    with pytest.raises(CheckpointError, match="not a ResNeXt: its convolutions have 1 groups"):
        build_fpn(state, tmp_path / "model_final.pth")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "backbone.body.layer5.0.conv1.weight",
            torch.Tensor.clone,
            "layer5.0.conv1.weight is in the file, but the netw",
        ),
        ("roi_heads.box.feature_extractor.fc8.bias", torch.Tensor.clone, "fc8.bias is in the file, but the network"),
        ("rpn.head.conv.weight", torch.Tensor.char, "rpn.head.conv.weight is of int8; quantized"),
    ],
)
def test_further_layers_and_quantized_weights_are_refused(
    state: State, name: str, change: Callable, message: str, tmp_path: Path
):
    state[name] = change(state["rpn.head.conv.weight"])
    with pytest.raises(CheckpointError, match=message):
        build_fpn(state, tmp_path / "x")


def test_what_is_left_over_is_told(state: State, tmp_path: Path):
    state["roi_heads.mask.predictor.weight"] = torch.zeros(2)
    assert build_fpn(state, tmp_path / "x")[1].unused == ("roi_heads.mask.predictor.weight",)


def test_other_detectors_are_not_this_one(tmp_path: Path):
    save_file({"backbone.res2.0.conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert not is_fpn_state_dict(read_tensors(tmp_path / "other.safetensors"))
