"""A checkpoint that lacks a part, or whose configuration is of another size, is refused before it costs memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comodal.cli.program import main
from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model, save_model
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.l3net import make_small_l3net_config as small_l3net
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig, make_co_attention_schedule
from comodal.tasks.convert_vilbert_files import convert

STREAM = StreamConfig(dim=16, layers=4, heads=2, intermediate=24)
TINY = ViLBERTConfig(
    vocabulary=50, positions=12, text=STREAM, vision=StreamConfig(16, 2, 2, 24), joint_dim=16, joint_heads=2,
    co_attention_layers=make_co_attention_schedule(4, 2), region_feature_dim=8, region_targets=8,
)  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}  # fmt: skip


def bert_state() -> dict[str, Tensor]:
    """The tensors of a BERT of four layers under Hugging Face's names."""
    torch.manual_seed(0)
    state = {
        "bert.embeddings.word_embeddings.weight": (50, 16),
        "bert.embeddings.position_embeddings.weight": (12, 16),
        "bert.embeddings.token_type_embeddings.weight": (2, 16),
    }
    shapes = {
        "attention.self.query": (16, 16), "attention.self.key": (16, 16), "attention.self.value": (16, 16),
        "attention.output.dense": (16, 16), "intermediate.dense": (24, 16), "output.dense": (16, 24),
    }  # fmt: skip
    for layer in range(4):
        for name, shape in shapes.items():
            state |= {f"bert.encoder.layer.{layer}.{name}.weight": shape}
            state |= {f"bert.encoder.layer.{layer}.{name}.bias": shape[:1]}
    norms = ["bert.embeddings.LayerNorm"]
    norms += [f"bert.encoder.layer.{n}.{p}.LayerNorm" for n in range(4) for p in ("attention.output", "output")]
    state |= {f"{norm}.{leaf}": (16,) for norm in norms for leaf in ("weight", "bias")}
    return {name: torch.randn(shape) for name, shape in state.items()}


def write_bert(folder: Path, state: dict[str, Tensor], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(BERT | changes))
    return folder


def test_a_whole_bert_leaves_poolers_heads_and_co_attention_new(tmp_path: Path):
    bert = write_bert(tmp_path / "bert", bert_state())
    filled = load_bert_weights(ViLBERT(derive_config_from_bert(bert, TINY)), bert)
    assert not [name for name in filled.new if name.startswith(("text_layers", "text_embeddings"))]
    assert [name for name in filled.new if name.startswith("co_layers")]


def test_layers_that_the_file_does_not_have_are_named(tmp_path: Path):
    bert = write_bert(tmp_path / "bert", bert_state(), num_hidden_layers=6)
    model = ViLBERT(derive_config_from_bert(bert, TINY))
    with pytest.raises(CheckpointError, match=r"bert: bert\.encoder\.layer\.4\.\S+ and 31 more of the encoder"):
        load_bert_weights(model, bert)
    new = load_bert_weights(model, bert, allow_missing=True).new
    assert len([name for name in new if name.startswith("text_layers")]) == 32


def test_layers_that_the_configuration_does_not_have_are_named(tmp_path: Path):
    bert = write_bert(tmp_path / "bert", bert_state(), num_hidden_layers=3)
    model = ViLBERT(derive_config_from_bert(bert, TINY))
    with pytest.raises(CheckpointError, match=r"bert: bert\.encoder\.layer\.3\.\S+ and 15 more of the encoder"):
        load_bert_weights(model, bert)


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.bias", "bert.embeddings.LayerNorm.weight"])
def test_one_tensor_that_is_missing_is_named(tmp_path: Path, name: str):
    state = bert_state()
    del state[name]
    bert = write_bert(tmp_path / "bert", state)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") + " of the encoder is not in the file"):
        load_bert_weights(ViLBERT(derive_config_from_bert(bert, TINY)), bert)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: (t * 10).to(torch.int8), "is of int8"),
        (lambda t: t.to(torch.float8_e4m3fn), "is of float8_e4m3fn"),
        (lambda t: t * float("nan"), "NaN"),
        (lambda t: t / 0, "NaN or infinite"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, change: Callable[[Tensor], Tensor], said: str):
    name = "bert.encoder.layer.2.intermediate.dense.weight"
    bert = write_bert(tmp_path / "bert", bert_state() | {name: change(bert_state()[name])})
    with pytest.raises(CheckpointError, match=rf"{name} .*{said}"):
        load_bert_weights(ViLBERT(derive_config_from_bert(bert, TINY)), bert)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_model_in_several_files_is_read_by_its_index(tmp_path: Path, ending: str):
    state, places = bert_state(), {}
    stem = "model" if ending == "safetensors" else "pytorch_model"
    for number in range(2):
        file = f"{stem}-0000{number + 1}-of-00002.{ending}"
        part = {name: tensor for place, (name, tensor) in enumerate(state.items()) if place % 2 == number}
        save_file(part, tmp_path / file) if ending == "safetensors" else torch.save(part, tmp_path / file)
        places |= dict.fromkeys(part, file)
    index = tmp_path / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    read = read_tensors(tmp_path)
    assert read.keys() == set(state)
    assert all(torch.equal(read[name], state[name]) for name in state)
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    assert load_bert_weights(ViLBERT(derive_config_from_bert(tmp_path, TINY)), tmp_path).filled
    (tmp_path / places["bert.embeddings.LayerNorm.bias"]).unlink()
    with pytest.raises(CheckpointError, match="of-00002"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "places", [[], {"a": 1}, {"a": "../other.safetensors"}, {"a": "/etc/passwd"}, {"a": ""}, {"a": "x.index.json"}]
)
def test_an_index_names_files_beside_it_alone(tmp_path: Path, places: object):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_tensors(tmp_path)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A ViLBERT under the original's names."""
    torch.manual_seed(0)
    save_model(ViLBERT(TINY), tmp_path / "ours", {})
    convert(tmp_path / "ours", tmp_path / "original")
    return tmp_path / "original"


@pytest.mark.parametrize(
    "part", ["bert.encoder.layer.3.", "bert.encoder.v_layer.0.", "bert.encoder.c_layer.1.", "bert.v_embeddings."]
)
def test_a_part_that_published_weights_lack_is_named(original: Path, tmp_path: Path, part: str):
    file = original / "pytorch_model.safetensors"
    state = load_file(file)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(part)}, file)
    with pytest.raises(CheckpointError, match=rf"{part}\S+ and \d+ more of the encoder are not in the file"):
        convert(file, tmp_path / "out", original / "config.json")
    assert not (tmp_path / "out").exists()
    found = convert(file, tmp_path / "out", original / "config.json", allow_missing=True)
    assert found.new and not found.difference


def test_the_command_takes_a_missing_part_only_if_that_is_allowed(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = original / "pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "v_layer.0." not in name}, file)
    words = ["convert", "vilbert", file, tmp_path / "out", "--original-config", original / "config.json"]
    assert main([str(word) for word in words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{file}: bert.encoder.v_layer.0." in said and "--allow-missing" in said and not (tmp_path / "out").exists()
    assert main([*map(str, words), "--allow-missing"]) == 0
    report = (tmp_path / "out" / "report.txt").read_text().splitlines()
    assert {line.split(".")[1] for line in report if line.startswith("new: vision_layers.")} == {"0"}


@pytest.mark.parametrize(("kind", "said"), [("nan", "NaN or infinite"), ("int8", "is of int8")])
def test_published_weights_that_are_no_numbers_are_named(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, said: str
):
    file, name = original / "pytorch_model.safetensors", "bert.encoder.c_layer.1.biOutput.dense1.weight"
    state = load_file(file)
    state[name] = (10 * state[name]).to(torch.int8) if kind == "int8" else state[name] * float("nan")
    save_file(state, file)
    words = ["convert", "vilbert", file, tmp_path / "out", "--original-config", original / "config.json"]
    assert main([str(word) for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: {name} " in line and said in line and not (tmp_path / "out").exists()


def test_heads_poolers_and_co_attention_as_a_whole_may_be_new(original: Path, tmp_path: Path):
    file = original / "pytorch_model.safetensors"
    left_out = ("cls.", "bert.t_pooler", "bert.v_pooler", "bert.encoder.c_layer.")
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith(left_out)}, file)
    assert convert(file, tmp_path / "out", original / "config.json").new


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 100_000), ("width", 10**15), ("width", -1), ("fusion", 1 << 23), ("image_size", 10**6), ("width", True)],
)
def test_a_configuration_that_is_not_of_the_weights_builds_nothing(tmp_path: Path, name: str, value: object):
    save_model(L3Net(small_l3net(width=2, image_size=32)), tmp_path, {})
    described = json.loads((tmp_path / "config.json").read_text())
    described["config"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}[^\n]*\Z"):
        load_model(tmp_path)


@pytest.mark.parametrize("change", [{"layers": 10_000_000}, {"dim": 1 << 23, "heads": 1}, {"norm_eps": float("nan")}])
def test_a_stream_that_is_not_of_the_weights_builds_nothing(tmp_path: Path, change: dict[str, object]):
    save_model(ViLBERT(TINY), tmp_path, {})
    described = json.loads((tmp_path / "config.json").read_text())
    described["config"]["text"] |= change
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}[^\n]*\Z"):
        load_model(tmp_path)


@pytest.mark.parametrize("change", [{"vocab_size": 1 << 24}, {"hidden_size": 1 << 20}, {"num_hidden_layers": 1 << 20}])
def test_a_bert_of_another_size_builds_nothing(tmp_path: Path, change: dict[str, object]):
    bert = write_bert(tmp_path / "bert", bert_state(), **change)
    with pytest.raises(CheckpointError, match=r"bert[^\n]*\Z"):
        derive_config_from_bert(bert, TINY)


def test_integers_are_no_weights(tmp_path: Path):
    save_model(L3Net(small_l3net(width=2, image_size=32)), tmp_path, {})
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"fc1.weight": weights["fc1.weight"].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1\.weight is of an integer type"):
        load_model(tmp_path)
