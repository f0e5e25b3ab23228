"""The five containers of the Visual Genome detector give one network, and damaged files one sentence."""

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from comodal.errors import CheckpointError
from comodal.models.convert.caffemodel import read_caffemodel
from comodal.models.convert.convert_c4 import build_c4, build_c4_from_caffe, rename_from_caffe
from comodal.models.detectors.detector_c4 import C4Config
from comodal.models.detectors.detector_rules import detect_caffe_regions
from comodal.regions.detector_files import load_detector, read_detector
from comodal.regions.extractors import ExtractorSource, load_extractor
from tests.support.detector_fixtures import CAFFE, FIXTURES, c4_of, caffe_rules, tensors

KEYS = FIXTURES / "frcnn_vg_r101c4_keys.json"
DETECTRON2 = {
    "stem": "backbone.stem.conv1",
    "proposal": "proposal_generator.rpn_head.conv",
    "proposal_scores": "proposal_generator.rpn_head.objectness_logits",
    "proposal_deltas": "proposal_generator.rpn_head.anchor_deltas",
    "class_scores": "roi_heads.box_predictor.cls_score",
    "box_deltas": "roi_heads.box_predictor.bbox_pred",
    "class_embedding": "roi_heads.box_predictor.cls_embedding",
    "attribute": "roi_heads.box_predictor.fc_attr",
    "attribute_scores": "roi_heads.box_predictor.attr_score",
}
MILVLG = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
SCALES = torch.tensor([0.1, 0.1, 0.2, 0.2])
State = dict[str, torch.Tensor]


def anchor_scales() -> tuple[int, ...]:
    return tuple(json.loads((CAFFE[0] / "config.json").read_text())["anchor_scales"])


@pytest.fixture(scope="module")
def caffemodel() -> Path:
    return next(CAFFE[0].glob("*.caffemodel"))


@pytest.fixture(scope="module")
def milvlg(caffemodel: Path) -> State:
    """Caffe's numbers under Detectron2's names, as MILVLG keeps them."""
    state = {}
    for name, tensor in rename_from_caffe(read_caffemodel(caffemodel), caffemodel, anchor_scales()).tensors.items():
        module, _, rest = name.partition(".")
        if name == "cell_anchors":
            state[ANCHORS] = tensor
        elif module.startswith("res"):
            state[f"{'roi_heads' if module == 'res5' else 'backbone'}.{name}"] = tensor
        else:
            theirs = DETECTRON2[module]
            for plain, milvlg in MILVLG.items():
                theirs = theirs.replace(plain, milvlg)
            state[f"{theirs}.{rest}"] = tensor
    return state


@pytest.fixture(scope="module")
def hugging_face(milvlg: State) -> State:
    """The same with "none" last and without a box, deltas ten and five times as large, one score of each anchor."""
    state = {}
    for name, tensor in milvlg.items():
        for plain, other in MILVLG.items():
            name = name.replace(other, plain)
        if "objectness" in name:
            tensor = tensor[len(tensor) // 2 :] - tensor[: len(tensor) // 2]
        elif "bbox_pred" in name:
            scales = SCALES.repeat(len(tensor) // 4 - 1)
            tensor = tensor[4:] / (scales[:, None] if tensor.ndim == 2 else scales)
        elif any(part in name for part in ("cls_score", "cls_embedding", "attr_score")):
            tensor = tensor.roll(-1, 0)
        state[name] = tensor
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def as_pickle(state: State, path: Path) -> Path:
    """As Detectron2 keeps weights: numpy arrays, and who made them."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}))
    return path


def as_torch(state: State, path: Path) -> Path:
    torch.save({"model": state, "iteration": 9}, path)
    return path


def as_old_torch(state: State, path: Path) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def as_safetensors(state: State, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


WAYS = [
    ("hugging_face", "pytorch_model.bin", as_old_torch),
    ("hugging_face", "model.safetensors", as_safetensors),
    ("hugging_face", "faster_rcnn_from_caffe_attr_original.pkl", as_pickle),
    ("milvlg", "bua-caffe-frcn-r101-k10-100.pth", as_torch),
]


@pytest.mark.parametrize("layout, name, write", WAYS, ids=[way[1] for way in WAYS])
def test_all_containers_hold_one_network(
    layout: str, name: str, write: Callable, tmp_path: Path, request: pytest.FixtureRequest
):
    """What Caffe's file gives, the fixtures of tests/models/detectors/test_c4_parity.py prove."""
    model, report = load_detector(write(request.getfixturevalue(layout), tmp_path / name))
    caffes = c4_of(CAFFE[0])
    assert model.config == caffes.config
    assert set(report.filled) == set(model.state_dict()) and report.new == () and report.unused == ()
    for name, weight in caffes.state_dict().items():
        if not name.startswith("box_deltas"):  # "none" has no box there
            assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    assert_close(model.box_deltas.weight[4:], caffes.box_deltas.weight[4:])
    picture, rules = tensors(CAFFE[0], "expected")["image_rgb"], caffe_rules(CAFFE[0], 4, 20)
    ours, theirs = detect_caffe_regions(model, picture, rules), detect_caffe_regions(caffes, picture, rules)
    assert torch.equal(ours.proposal_indices, theirs.proposal_indices)
    assert_close(ours.features, theirs.features, rtol=0, atol=1e-3)


def test_a_folder_of_hugging_faces_is_its_weights(hugging_face: State, tmp_path: Path):
    as_old_torch(hugging_face, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.yaml").write_text("model: {}\n")
    assert load_extractor(ExtractorSource(str(tmp_path))).network.num_classes == 41


def test_the_published_networks_keys():
    """640 names and 65.5 million numbers, on no memory at all."""
    shapes = json.loads(KEYS.read_text())
    with torch.device("meta"):
        state = {name: torch.zeros(shape) for name, shape in shapes.items()}
        model, report = build_c4(state, KEYS)
    assert len(shapes) == 640
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(65.5e6, rel=0.01)
    assert model.config == C4Config()
    assert report.new == () and report.unused == ()


def damaged(data: bytes, place: int, by: bytes) -> bytes:
    return data[:place] + by + data[place + len(by) :]


BAD = {
    "cut off": (lambda data: data[:-1000], "ends in the middle"),
    "cut in a name": (lambda data: data[:20], "damaged .caffemodel"),
    "empty": (lambda data: data[:0], "damaged .caffemodel"),
    "another file": (lambda _data: b"\x0a\x03abc", "not a .caffemodel"),
    "text": (lambda _data: b"layer { name: 'conv1' }", "damaged .caffemodel"),
    "an endless number": (lambda _data: b"\xff" * 40, "unterminated varint"),
    "a length beyond the end": (lambda _data: b"\xa2\x06\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends in the middle"),
}


@pytest.mark.parametrize("change, said", BAD.values(), ids=BAD)
def test_a_damaged_caffemodel_is_refused(change: Callable, said: str, caffemodel: Path, tmp_path: Path):
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(change(caffemodel.read_bytes()))
    with pytest.raises(CheckpointError, match=said) as refused:
        load_extractor(ExtractorSource(str(path)))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_any_byte_may_be_wrong(caffemodel: Path, tmp_path: Path):
    """A network all the same, or one sentence; never anything else."""
    rng, data = np.random.default_rng(0), caffemodel.read_bytes()
    path = tmp_path / "bad.caffemodel"
    refused = 0
    names = [found.start() for found in re.finditer(b"branch", data)]
    for name in rng.choice(names, 12):  # lengths stand before a name, shapes and more lengths behind it
        path.write_bytes(damaged(data, int(name + rng.integers(-20, 40)), rng.bytes(1)))
        try:
            build_c4_from_caffe(read_caffemodel(path), path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused


def layer(name: str, blobs: list[list[float]]) -> bytes:
    """One layer of a .caffemodel, its shapes as four numbers."""

    def part(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    inside = part(1, name.encode())
    for numbers in blobs:
        packed = struct.pack(f"<{len(numbers)}f", *numbers)
        inside += part(7, b"\x08\x01\x10\x01\x18\x01\x20" + bytes([len(numbers)]) + part(5, packed))
    return b"\xa2\x06" + bytes([len(inside)]) + inside


def test_caffes_wire_format_by_hand(tmp_path: Path):
    """protobuf.dev/programming-guides/encoding; the old shape is num, channels, height, width."""
    path = tmp_path / "small.caffemodel"
    path.write_bytes(layer("fc", [[1.0, 2.5], [-3.0]]))
    (found,) = read_caffemodel(path).items()
    assert found[0] == "fc" and [blob.tolist() for blob in found[1]] == [[[[[1.0, 2.5]]]], [[[[-3.0]]]]]


@pytest.mark.parametrize("name", ["res4b2_branch2b", "bn2a_branch1", "scale5c_branch2c", "rpn_cls_score", "fc_attr"])
def test_a_layer_that_is_missing_is_named(name: str, caffemodel: Path):
    layers = read_caffemodel(caffemodel)
    del layers[name]
    with pytest.raises(CheckpointError, match=r"tensor is missing|blocks are|norm"):
        build_c4_from_caffe(layers, caffemodel)


def test_another_shape_is_told(hugging_face: State, tmp_path: Path):
    state = dict(hugging_face)
    state["backbone.res3.1.conv2.weight"] = torch.zeros(16, 16, 1, 1)
    path = as_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"res3\.1\.conv2.* has the shape \(16, 16, 1, 1\)"):
        load_detector(path)
    state["backbone.res3.1.conv2.norm.weight"] = torch.zeros(3)
    path = as_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the norm of res3\.1\.conv2 does not have the 16 channels"):
        load_detector(path)


@pytest.mark.parametrize("name", ["backbone.res4.5.conv3.weight", "roi_heads.box_predictor.attr_score.bias", ANCHORS])
def test_a_tensor_that_is_missing_is_named(name: str, hugging_face: State, tmp_path: Path):
    path = as_safetensors(
        {key: value for key, value in hugging_face.items() if key != name}, tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match="a tensor is missing: "):
        load_detector(path)


def test_what_has_no_place_is_told(hugging_face: State, tmp_path: Path):
    path = as_safetensors(hugging_face | {"roi_heads.mask_head.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert load_detector(path)[1].unused == ("roi_heads.mask_head.weight",)


BIAS = "roi_heads.box_predictor.bbox_pred.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"backbone.res6.0.conv1.weight": torch.zeros(2)}, r"res6\.0\.conv1\.weight is in the file, but"),
        (lambda state: {BIAS: (10 * state[BIAS]).to(torch.int8)}, "bbox_pred.bias is of int8; quantized"),
        (lambda state: {BIAS: state[BIAS][:1]}, r"box.deltas.* has the shape \(1,\)"),
        (lambda state: {BIAS: state[BIAS][0]}, r"box.deltas.* has the shape \(\)"),
        (lambda _: {"roi_heads.box_predictor.attr_linear1.bias": torch.zeros(2)}, "another of its names denotes"),
    ],
)
def test_what_the_network_would_not_use_as_it_is_is_refused(
    change: Callable[[State], State], message: str, hugging_face: State, tmp_path: Path
):
    """A further layer, quantized weights, shapes that broadcast, and two tensors for one layer."""
    state = dict(hugging_face)
    with pytest.raises(CheckpointError, match=message):
        build_c4(state | change(state), tmp_path / "a.pth")


class Bomb:
    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return print, ("the pickle has run",)


def test_a_pickle_that_runs_is_refused(hugging_face: State, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps({"model": {"backbone.stem.conv1.weight": Bomb()}}))
    with pytest.raises(CheckpointError, match=r"bomb\.pkl: .*refused: it references builtins\.print"):
        load_detector(path)
    assert capsys.readouterr().out == ""
    cut = as_pickle(hugging_face, tmp_path / "cut.pkl")
    cut.write_bytes(cut.read_bytes()[:-50_000])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: a damaged pickle"):
        load_detector(cut)
    (tmp_path / "words.pkl").write_bytes(pickle.dumps({"model": {"a": "b"}}))
    with pytest.raises(CheckpointError, match="not Detectron2's weights"):
        read_detector(tmp_path / "words.pkl")
    with pytest.raises(CheckpointError, match="No such file"):
        read_detector(tmp_path / "none.pkl")
