"""VOLTA's ViLBERT: its numbered sub-layers give here what its own code gives.

Weights are sines in the order of their names. The expected numbers were printed by e-bug/volta's code (commit 62f78cd,
`BertForVLPreTraining` and `BertForVLTasks`) with these weights, inputs and configurations.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_vilbert import parse_original_config
from comodal.models.convert.convert_volta import convert_volta_to_vilbert
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import make_base_config
from comodal.tasks.convert_vilbert_files import convert

# VOLTA's config/vilbert_base.json and config/ctrl_vilbert_base.json: what decides the model
COMMON: dict[str, Any] = {
    "hidden_act": "gelu", "v_hidden_act": "gelu", "hidden_dropout_prob": 0.1, "v_hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "v_attention_probs_dropout_prob": 0.1, "type_vocab_size": 2,
    "bert_model": "bert-base-uncased", "num_locs": 5, "add_global_imgfeat": "first", "image_embeddings": "vilbert",
    "visual_target_weights": {"0": 1.0}, "fusion_method": "mul", "initializer_range": 0.02, "shared_sublayers": [],
    "single_ln_sublayers": [], "sublayer2attn_hidden_size": {}, "sublayer2num_attention_heads": {},
    "sublayer2intermediate_size": {}, "sublayer2v_attn_hidden_size": {}, "sublayer2v_num_attention_heads": {},
    "sublayer2v_intermediate_size": {},
}  # fmt: skip
JOINT = [12, 16, 20, 24, 28, 32]
PUBLISHED = COMMON | {
    "vocab_size": 30522, "max_position_embeddings": 512, "hidden_size": 768, "num_attention_heads": 12,
    "intermediate_size": 3072, "pooler_size": 1024, "v_feature_size": 2048, "v_hidden_size": 1024,
    "v_num_attention_heads": 8, "v_intermediate_size": 1024,
    "tt_attn_sublayers": [0, 2, 4, 6, 8, 10, 14, 18, 22, 26, 30, 34], "tv_attn_sublayers": JOINT,
    "vt_attn_sublayers": JOINT, "vv_attn_sublayers": [14, 18, 22, 26, 30, 34],
    "t_ff_sublayers": list(range(1, 37, 2)), "v_ff_sublayers": list(range(13, 37, 2)),
    "sublayer2attn_hidden_size": {str(n): 1024 for n in JOINT},
    "sublayer2num_attention_heads": {str(n): 8 for n in JOINT},
}  # fmt: skip
CONTROLLED = PUBLISHED | {
    "v_hidden_size": 768, "v_num_attention_heads": 12, "v_intermediate_size": 3072, "sublayer2attn_hidden_size": {},
    "sublayer2num_attention_heads": {},
}  # fmt: skip
SMALL = {
    "vocab_size": 50, "max_position_embeddings": 20, "hidden_size": 12, "num_attention_heads": 3,
    "intermediate_size": 20, "pooler_size": 16, "v_feature_size": 7, "tt_attn_sublayers": [0, 4, 8],
    "tv_attn_sublayers": [2, 6], "vt_attn_sublayers": [2, 6], "vv_attn_sublayers": [4, 8],
    "t_ff_sublayers": [1, 3, 5, 7, 9], "v_ff_sublayers": [3, 5, 7, 9],
}  # fmt: skip
WIDE = {"v_hidden_size": 16, "v_num_attention_heads": 2, "v_intermediate_size": 16}
SMALL_ORIGINAL = PUBLISHED | SMALL | WIDE | {
    "sublayer2attn_hidden_size": {"2": 16, "6": 16}, "sublayer2num_attention_heads": {"2": 2, "6": 2},
}  # fmt: skip
SMALL_CONTROLLED = CONTROLLED | SMALL | {"v_hidden_size": 12, "v_num_attention_heads": 3, "v_intermediate_size": 20}
TASKS = {"TASK1": "vqa", "TASK8": "score", "TASK10": "regions", "TASK12": "pairs", "TASK13": "entailment"}


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def shapes_of(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """VOLTA's names with their shapes, up to the pooled streams."""
    text, vision, pooled = (values[name] for name in ("hidden_size", "v_hidden_size", "pooler_size"))
    words = {"word": values["vocab_size"], "position": values["max_position_embeddings"], "token_type": 2}
    found: dict[str, tuple[int, ...]] = {f"bert.embeddings.{n}_embeddings.weight": (r, text) for n, r in words.items()}
    found |= norm("bert.embeddings.LayerNorm", text) | norm("bert.v_embeddings.LayerNorm", vision)
    found |= linear("bert.v_embeddings.image_embeddings", vision, values["v_feature_size"])
    found |= linear("bert.v_embeddings.image_location_embeddings", vision, 5)
    found |= linear("bert.t_pooler.dense", pooled, text) | linear("bert.v_pooler.dense", pooled, vision)
    for number in range(10):
        layer = f"bert.encoder.layer.{number}"
        for side, mark, dim in (("t", "", text), ("v", "v_", vision)):
            inner = values["intermediate_size" if side == "t" else "v_intermediate_size"]
            width = values["sublayer2attn_hidden_size"].get(str(number), dim)
            if any(number in values[f"{side}{other}_attn_sublayers"] for other in "tv"):
                for part in ("query", "key", "value"):
                    found |= linear(f"{layer}.attention_self.{mark}{part}", width, dim)
                found |= linear(f"{layer}.attention_output.{mark}dense", dim, width)
                found |= norm(f"{layer}.attention_output.{mark}LayerNorm", dim)
            if number in values[f"{side}_ff_sublayers"]:
                found |= linear(f"{layer}.intermediate.{mark}dense", inner, dim)
                found |= linear(f"{layer}.output.{mark}dense", dim, inner)
                found |= norm(f"{layer}.output.{mark}LayerNorm", dim)
    return found


def pretraining_of(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    text, vision = values["hidden_size"], values["v_hidden_size"]
    found = shapes_of(values) | linear("cls.bi_seq_relationship", 2, values["pooler_size"])
    found |= {"cls.predictions.bias": (values["vocab_size"],)}
    found |= linear("cls.imagePredictions.decoder_dict.0", 1601, vision)
    for head, dim in (("predictions", text), ("imagePredictions", vision)):
        found |= linear(f"cls.{head}.transform.dense", dim, dim) | norm(f"cls.{head}.transform.LayerNorm", dim)
    return found


def tasks_of(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    pooled, found = values["pooler_size"], shapes_of(values)
    for task, inputs, outputs in (("TASK1", pooled, 6), ("TASK12", 2 * pooled, 2)):
        found |= linear(f"clfs_dict.{task}.logit_fc.0", 10, inputs) | norm(f"clfs_dict.{task}.logit_fc.2", 10)
        found |= linear(f"clfs_dict.{task}.logit_fc.3", outputs, 10)
    found |= linear("clfs_dict.TASK8", 1, pooled) | linear("clfs_dict.TASK13", 3, pooled)
    return found | linear("clfs_dict.TASK10", 1, values["v_hidden_size"])


def sines(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    state = {}
    for number, (name, shape) in enumerate(sorted(shapes.items()), 1):
        waves = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + number)
        waves = waves * (0.5 if len(shape) > 1 else 0.1) + name.endswith(("LayerNorm.weight", "logit_fc.2.weight"))
        state[name] = waves.view(shape).float()
    return state


def inputs() -> tuple[torch.Tensor, ...]:
    words = torch.tensor([[1, 5, 9, 2, 0], [1, 17, 33, 8, 2]])
    regions = torch.cos(torch.arange(2 * 4 * 7, dtype=torch.float64)).view(2, 4, 7).float()
    places = [[0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.6, 0.16], [0.3, 0.1, 0.9, 0.4, 0.18], [0.5, 0.5, 1, 1, 0.25]]
    locations = torch.tensor(places).expand(2, 4, 5).contiguous()
    there = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    return words, torch.zeros_like(words), words != 0, regions, locations, there


def converted(folder: Path, values: dict[str, Any], state: dict[str, torch.Tensor]) -> ViLBERT | TaskModel:
    save_file(state, folder / "volta.safetensors")
    (folder / "volta.json").write_text(json.dumps(values))
    numbers = convert(folder / "volta.safetensors", folder / "out", folder / "volta.json")
    assert numbers.difference == 0 and numbers.unused == 0
    model = load_model(folder / "out")
    assert isinstance(model, ViLBERT | TaskModel)
    return model


PRETRAINED = {  # three scores of a word, three of a region, and together or not for two pairs
    "original": (
        SMALL_ORIGINAL,
        [-0.14733279, 0.29419649, -0.36652064],
        [-1.12912607, -0.87273693, 0.70564216],
        [[0.35952073, -0.24748048], [0.90696800, -0.36016613]],
    ),
    "controlled": (
        SMALL_CONTROLLED,
        [-0.08658220, 0.25147977, -0.38290673],
        [-1.14052868, 0.98963833, -0.04532292],
        [[-0.03435393, -0.08230317], [-0.16008952, -0.09147450]],
    ),
}
FINE_TUNED: dict[str, tuple[dict[str, Any], dict[str, list[float]]]] = {
    "original": (
        SMALL_ORIGINAL,
        {
            "TASK1": [0.4685, 0.72058, 0.62013, 0.21641, -0.29297, -0.65879,
                      0.3918, 0.45516, 0.29662, -0.00596, -0.30475, -0.45418],
            "TASK8": [-0.39558, -0.98566],
            "TASK10": [-0.08365, -0.1633, -0.32055, -0.34255, -0.22662, 0.13975, 0.11604, -9999.94434],
            "TASK12": [0.41562, -0.53598],
            "TASK13": [0.22561, 0.26112, -0.22546, 0.52689, 0.82269, -0.29875],
        },
    ),
    "controlled": (
        SMALL_CONTROLLED,
        {
            "TASK1": [0.46328, 2.08132, 2.67708, 1.95714, 0.27477, -1.54348,
                      -0.08994, 0.92553, 1.48759, 1.31942, 0.50269, -0.56209],
            "TASK8": [0.05369, 0.17891],
            "TASK10": [-0.0501, -0.20282, 0.33193, 0.53967, 0.62868, 0.72821, 0.58588, -9999.61719],
            "TASK12": [0.49575, 1.6052],
            "TASK13": [-0.07625, -0.14869, -0.08999, -0.10999, -0.27526, -0.10765],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PRETRAINED)
def test_pretrained_weights_give_what_voltas_code_gives(kind: str, tmp_path: Path):
    values, word, region, together = PRETRAINED[kind]
    model = converted(tmp_path, values, sines(pretraining_of(values)))
    assert isinstance(model, ViLBERT)
    with torch.no_grad():
        output = model(*inputs())
        scores = (
            model.compute_token_logits(output.token_states[0, 1:2]),
            model.region_head(output.region_states[1, 2:3]),
        )
        pairs = model.alignment_head(output.pooled_text, output.pooled_vision)
    for ours, theirs in zip((scores[0][0, :3], scores[1][0, :3], pairs), (word, region, together), strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", FINE_TUNED)
def test_heads_of_tasks_give_what_voltas_code_gives(kind: str, tmp_path: Path):
    values, expected = FINE_TUNED[kind]
    model = converted(tmp_path, values, sines(tasks_of(values)))
    assert isinstance(model, TaskModel)
    for task, theirs in expected.items():
        with torch.no_grad():
            ours = model(TASKS[task], *inputs(), torch.arange(2)).flatten()
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-5)


def test_the_published_configuration_is_the_papers_base_model():
    values, _ = convert_volta_to_vilbert(PUBLISHED, {}, Path("vilbert_base.json"))
    assert parse_original_config(values, Path("vilbert_base.json")).config == make_base_config(6)


def test_the_controlled_one_has_heads_of_zeros_that_never_learn(tmp_path: Path):
    values, _ = convert_volta_to_vilbert(CONTROLLED, {}, Path("ctrl_vilbert_base.json"))
    described = parse_original_config(values, Path("ctrl_vilbert_base.json")).config
    assert (described.joint_dim, described.joint_heads) == (1024, 16)  # 12 heads of 64, and four of zeros
    assert (described.vision.dim, described.vision.heads, described.vision.intermediate) == (768, 12, 3072)
    model = converted(tmp_path, SMALL_CONTROLLED, sines(pretraining_of(SMALL_CONTROLLED)))
    assert isinstance(model, ViLBERT)
    output = model(*inputs())
    (output.token_states.square().sum() + output.region_states.square().sum() + output.pooled_text.sum()).backward()
    for layer in model.co_layers:
        for stream in (layer.text.attention, layer.vision.attention):
            for part in (stream.query, stream.key, stream.value):
                assert part.weight.grad is not None and part.weight.grad[:12].abs().sum() > 0
                assert not part.weight[12:].any() and not part.weight.grad[12:].any()
                assert not part.bias[12:].any() and not part.bias.grad[12:].any()
            assert not stream.output.weight[:, 12:].any() and not stream.output.weight.grad[:, 12:].any()


def test_what_has_no_place_is_reported(tmp_path: Path):
    shapes = tasks_of(SMALL_ORIGINAL) | linear("clfs_dict.TASK7", 1, 16) | linear("clfs_dict.TASK9.0", 1, 16)
    save_file(sines(shapes), tmp_path / "volta.safetensors")
    (tmp_path / "volta.json").write_text(json.dumps(SMALL_ORIGINAL))
    convert(tmp_path / "volta.safetensors", tmp_path / "out", tmp_path / "volta.json")
    report = (tmp_path / "out" / "report.txt").read_text().splitlines()
    # one head of a kind, in the order of the names; VOLTA's two-layer heads of regions have no counterpart
    assert {line for line in report if line.startswith("not used")} == {
        f"not used: clfs_dict.{name}.{leaf}" for name in ("TASK8", "TASK9.0") for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_embeddings": "lxmert"}, "image_embeddings is 'lxmert', and 'vilbert' in VOLTA's ViLBERT"),
        ({"fusion_act": "tanh"}, "fusion_act is 'tanh'"),
        ({"bert_model": "xlm-roberta-base"}, "starts from a BERT"),
        ({"shared_sublayers": [0]}, "shared_sublayers is"),
        ({"tv_attn_sublayers": [2]}, "sub-layers 6 and 7 are not a layer of ViLBERT"),
        ({"t_ff_sublayers": [1, 3, 5, 7]}, "sub-layers 8 and 9 are not a layer of ViLBERT"),
        ({"t_ff_sublayers": [1, 3, 5, 7, 9, 11]}, "sub-layers 10 and 11 are not a layer of ViLBERT"),
        ({"t_ff_sublayers": 9}, "t_ff_sublayers is 9, not an integer"),
        ({"vv_attn_sublayers": [[0]]}, r"vv_attn_sublayers is \[\[0\]\], not an integer"),
        ({"sublayer2attn_hidden_size": [16]}, r"sublayer2attn_hidden_size is \[16\], not an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not an integer"),
        ({"sublayer2attn_hidden_size": {"2": 16}}, "only all layers of co-attention can have their own"),
        ({"sublayer2attn_hidden_size": {"0": 24, "2": 16, "6": 16}}, "only all layers of co-attention"),
        ({"pooler_size": 20}, "co-attention of 2 heads and 16 units does not match pooled streams of 20"),
    ],
)
def test_voltas_other_models_are_refused(change: dict[str, Any], told: str):
    with pytest.raises(CheckpointError, match=f"volta.json.*{told}"):
        convert_volta_to_vilbert(SMALL_ORIGINAL | change, {}, Path("volta.json"))
    lacking = {name: value for name, value in SMALL_ORIGINAL.items() if name != "vv_attn_sublayers"}
    with pytest.raises(CheckpointError, match=r"it lacks \['vv_attn_sublayers'\]"):
        convert_volta_to_vilbert(lacking, {}, Path("volta.json"))
