"""`comodal convert vilbert`: the original's files become folders that give its outputs, and come back the same."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comodal.cli.program import main
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import load_model
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.tasks.convert_vilbert_files import convert
from comodal.tasks.vision_language.answer_files import read_model_vocabulary
from tests.support.vilbert_fixtures import (
    FIXTURES,
    folders_with,
    forward,
    predictions,
    state_of,
    tensors,
    text_inputs,
    vision_inputs,
)

TASKS = [folder for folder in folders_with("outputs.safetensors") if "vil_logit" in tensors(folder, "outputs")]
PLAIN = FIXTURES / "pretrain_vt0"


@pytest.mark.parametrize("folder", TASKS, ids=lambda folder: folder.name)
def test_a_converted_model_gives_the_originals_task_scores(folder: Path, tmp_path: Path):
    save_file(state_of(folder), tmp_path / "multi_task_model.safetensors")
    numbers = convert(tmp_path / "multi_task_model.safetensors", tmp_path / "out", folder / "config.json")
    assert numbers.difference == 0.0 and numbers.new == 0
    model = load_model(tmp_path / "out")
    assert isinstance(model, TaskModel)
    inputs, expected = tensors(folder, "inputs"), tensors(folder, "outputs")
    tasks = inputs["task_ids"][:, 0] if model.vilbert.config.task_tokens else None
    images = torch.arange(len(inputs["input_ids"]))
    for name, theirs in (("vqa", "vil_prediction"), ("entailment", "vil_tri_prediction"), ("score", "vil_logit")):
        with torch.no_grad():
            scores = model(name, *text_inputs(inputs), *vision_inputs(inputs), images, tasks)
        torch.testing.assert_close(scores, expected[theirs], rtol=1e-5, atol=1e-5)


def test_pretrained_weights_are_read_from_a_bin_with_its_wrappers_and_old_names(tmp_path: Path):
    state = state_of(PLAIN)
    wrapped = {
        f"module.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in state.items()
    }
    torch.save(wrapped, tmp_path / "pretrained_model.bin")
    convert(tmp_path / "pretrained_model.bin", tmp_path / "out", PLAIN / "config.json")
    model, inputs = load_model(tmp_path / "out"), tensors(PLAIN, "inputs")
    assert isinstance(model, ViLBERT)
    with torch.no_grad():
        ours = predictions(model, forward(model, inputs))
    for name, expected in tensors(PLAIN, "outputs").items():
        if name in ours:
            torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=2e-5)
    report = (tmp_path / "out" / "report.txt").read_text().splitlines()
    assert len([line for line in report if line.startswith("filled: ")]) == len(model.state_dict())
    assert all("q_dense" in line for line in report if line.startswith("not used: "))


def test_there_and_back_is_the_same_file(tmp_path: Path):
    convert(PLAIN / "state.safetensors", tmp_path / "ours", PLAIN / "config.json")
    convert(tmp_path / "ours", tmp_path / "theirs")
    again, state = load_file(tmp_path / "theirs" / "pytorch_model.safetensors"), state_of(PLAIN)
    used = [name for name in state if "q_dense" not in name]
    assert all(torch.equal(again[name], state[name]) for name in used)
    written, original = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "theirs", PLAIN))
    assert {key: original[key] for key in written if key in original} == {
        k: v for k, v in written.items() if k in original
    }
    convert(tmp_path / "theirs" / "pytorch_model.safetensors", tmp_path / "again", tmp_path / "theirs" / "config.json")
    first, second = (load_model(tmp_path / name).state_dict() for name in ("ours", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_codes_head_and_mmfs_are_what_pytorch_makes_of_them(tmp_path: Path):
    """vilbert_beta: weight_norm(Linear), ReLU, Dropout, weight_norm(Linear); torch's own weight_norm is the oracle."""
    torch.manual_seed(0)
    joint = 40
    layers = [torch.nn.Linear(joint, 30), torch.nn.Linear(30, 7)]
    plain = torch.nn.Sequential(layers[0], torch.nn.ReLU(), torch.nn.Dropout(0.5), layers[1]).eval()
    state = dict(state_of(PLAIN))
    for place, layer in ((0, layers[0]), (3, layers[1])):
        norm = layer.weight.detach().norm()
        state[f"vil_prediction.main.{place}.weight_v"] = layer.weight.detach() * 3  # only its direction counts
        state[f"vil_prediction.main.{place}.weight_g"] = norm.clone()
        state[f"vil_prediction.main.{place}.bias"] = layer.bias.detach()
    save_file(state, tmp_path / "beta.safetensors")
    convert(tmp_path / "beta.safetensors", tmp_path / "beta", PLAIN / "config.json")
    model = load_model(tmp_path / "beta")
    assert isinstance(model, TaskModel)
    assert [(h.name, h.activation, h.hidden, h.outputs) for h in model.config.heads] == [("vqa", "relu", 30, 7)]
    x = torch.randn(5, joint)
    torch.testing.assert_close(model.heads["vqa"](x), plain(x), rtol=1e-5, atol=1e-6)

    transform = torch.nn.Sequential(torch.nn.Linear(joint, joint), torch.nn.GELU(), torch.nn.LayerNorm(joint, 1e-12))
    classifier = torch.nn.Sequential(transform, torch.nn.Linear(joint, 9)).eval()
    names = {"0.0.": "0.dense.", "0.2.": "0.LayerNorm.", "1.": "1."}
    mmf = {f"model.{name}": tensor for name, tensor in state_of(PLAIN).items()}
    for name, tensor in classifier.state_dict().items():
        old = next(old for old in names if name.startswith(old))
        mmf[f"model.classifier.{name.replace(old, names[old], 1)}"] = tensor
    torch.save({"model": mmf}, tmp_path / "mmf.pth")
    convert(tmp_path / "mmf.pth", tmp_path / "mmf", PLAIN / "config.json")
    model = load_model(tmp_path / "mmf")
    assert isinstance(model, TaskModel)
    torch.testing.assert_close(model.heads["vqa"](x), classifier(x), rtol=1e-5, atol=1e-6)


def test_words_and_answers_come_along(tmp_path: Path):
    folder = TASKS[0]
    state = state_of(folder)
    save_file(state, tmp_path / "m.safetensors")
    count = len(state["vil_prediction.logit_fc.3.bias"])
    (tmp_path / "label2ans.pkl").write_bytes(pickle.dumps([f"answer {i}" for i in range(count)], protocol=2))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]))
    convert(
        tmp_path / "m.safetensors",
        tmp_path / "out",
        folder / "config.json",
        tmp_path / "vocab.txt",
        tmp_path / "label2ans.pkl",
    )
    assert json.loads((tmp_path / "out" / "answers.json").read_text())[-1] == f"answer {count - 1}"
    assert "dog" in (tmp_path / "out" / "tokenizer.json").read_text()
    (tmp_path / "few.json").write_text('["yes", "no"]')
    gqa = len(state["vil_prediction_gqa.logit_fc.3.bias"])
    (tmp_path / "gqa.json").write_text(json.dumps([f"gqa {i}" for i in range(gqa)]))
    both = {"answers": tmp_path / "label2ans.pkl", "gqa_answers": tmp_path / "gqa.json"}
    convert(tmp_path / "m.safetensors", tmp_path / "both", folder / "config.json", **both)
    heads = {head.name: head for head in load_model(tmp_path / "both").config.heads}
    assert read_model_vocabulary(tmp_path / "both", heads["vqa"])[-1] == f"answer {count - 1}"
    assert read_model_vocabulary(tmp_path / "both", heads["gqa"])[-1] == f"gqa {gqa - 1}"
    with pytest.raises(CheckpointError, match=f"has 2 answers, the answer head of .* {count}"):
        convert(tmp_path / "m.safetensors", tmp_path / "o", folder / "config.json", answers=tmp_path / "few.json")


class Harmful:
    def __reduce__(self) -> tuple:

        return os.mkdir, ("harmed",)


def test_what_cannot_be_converted_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    state, config = state_of(PLAIN), PLAIN / "config.json"
    (tmp_path / "bomb.bin").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    wide = dict(state) | {"bert.t_pooler.dense.weight": torch.zeros(3, 3)}
    save_file(wide, tmp_path / "wide.safetensors")
    save_file({"something": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((PLAIN / "state.safetensors").read_bytes()[:5000])
    for name, sentence in (
        ("bomb.bin", "refused, it holds more than tensors"),
        ("wide.safetensors", r"bert.t_pooler.dense.weight has the shape \(3, 3\)"),
        ("other.safetensors", "none of its names is a ViLBERT's"),
        ("cut.safetensors", "not a readable file of weights"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            convert(tmp_path / name, tmp_path / "out", config)
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "harmed").exists()
    assert main(["convert", "vilbert", str(PLAIN / "state.safetensors"), str(tmp_path / "out")]) == 1
    assert "pass --original-config, the JSON configuration" in capsys.readouterr().err
    with pytest.raises(DataError, match="No such file"):
        convert(PLAIN / "state.safetensors", tmp_path / "out", config, answers=tmp_path / "nowhere.json")
