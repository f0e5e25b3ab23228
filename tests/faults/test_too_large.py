"""Sizes that no machine could hold end in one sentence with the name and the value, wherever they are given."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from comodal import hardware
from comodal.cli.program import main
from comodal.errors import DataError, MediaError, wrap_item_errors
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig, make_small_l3net_config
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.tasks.evaluation.results_card import read_card
from comodal.tasks.vision_language.grounding.refcoco_files import read_coco_entries
from comodal.tasks.vision_language.nlvr2 import read_nlvr2_sentences
from comodal.tasks.vision_language.question_answering.gqa import read_gqa_questions
from comodal.tasks.vision_language.question_answering.visual_genome import read_visual_genome_questions
from comodal.tasks.vision_language.question_answering.vqa_files import (
    read_vqa_entries,
)
from comodal.tasks.vision_language.snli_ve import read_snli_ve_sentences
from comodal.tasks.vision_language.vcr_files import read_vcr_examples
from comodal.training.memory_limits import check_model_fits
from tests.support.small_captions import write_captions
from tests.support.small_tasks import config as small_config
from tests.support.small_world import write_world

VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "shards" / "train", 4)
    write_world(folder / "shards" / "validation", 4)
    write_captions(folder, 12)
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=1, image_size=24)), folder / "l3net", {})
    save_model(ViLBERT(small_config(40)), folder / "vilbert", {})
    return folder


def sentence_of(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line that a failing command prints."""
    assert main([str(word) for word in words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("comodal: error: ")]
    return line


WRONG_L3NET = [
    ("width", 100_000, "width is a number from 1 to 1,024, got 100000"),
    ("width", 0, "width is a number from 1 to 1,024, got 0"),
    ("width", -5, "got -5"),
    ("image_size", 10**9, "image_size is a number from 16 to 4,096, got 1000000000"),
    ("image_size", 0, "image_size is a number from 16 to 4,096, got 0"),
    ("batch_size", 10**20, "batch_size is a number from 1 to 65,536, got 1" + 20 * "0"),
    ("batch_size", 0, "batch_size is a number from 1 to 65,536, got 0"),
    ("workers", 100_000, "workers is a number from 0 to 1,024, got 100000"),
    ("threads", 100_000, "threads is a number from 1 to 1,024, got 100000"),
    ("checkpoint_minutes", "nan", "checkpoint_minutes is a number from 0 to inf, got nan"),
    ("log_every", 0, "log_every is a number from 1 to inf, got 0"),
    ("min_lr_ratio", "nan", "min_lr_ratio is a number from 0 to 1, got nan"),
    ("brightness_jitter", 1e30, "brightness_jitter is a number from 0 to 1, got 1e+30"),
    ("seed", -1, "seed is a number from 0 to "),
    ("seed", 10**30, "seed is a number from 0 to "),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_L3NET)
def test_a_wrong_size_of_l3net_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, value: object, sentence: str
):
    """On the command line, and in a file of settings."""
    words = ["train", "l3net", "--data", world / "shards", "--out", tmp_path / "run", "--variant", "small"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({name: value}))
    assert sentence in sentence_of(capsys, *words, f"--{name}", value)
    assert sentence in sentence_of(capsys, *words, "--config", tmp_path / "settings.yaml")
    assert not [path for path in tmp_path.glob("run/*") if path.name != ".lock"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("batch_size", 10**9, "batch_size is a number from 1 to 65,536, got 1000000000"),
        ("warmup_ratio", "inf", "warmup_ratio is a number from 0 to 1, got inf"),
        ("validation_fraction", "nan", "validation_fraction is a number from 0 to 1, got nan"),
        ("dropout", 5, "dropout is a number from 0 to 1, got 5.0"),
        ("max_tokens", 10**9, "--max-tokens 1000000000: this model has positions for 64"),
    ],
)
def test_a_wrong_size_of_vilbert_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, value: object, sentence: str
):
    words = ["train", "vilbert", "--data", world / "regions", "--captions", world / "captions.jsonl"]
    words += ["--variant", "small", "--out", tmp_path / "run", f"--{name}", value]
    assert sentence in sentence_of(capsys, *words)


@pytest.mark.parametrize(
    ("model", "place", "value", "sentence"),
    [
        ("l3net", "width", 100_000, "config: invalid configuration: width is a number from 1 to 1,024"),
        ("l3net", "image_size", 10**6, "image_size is a number from 16 to 4,096, got 1000000"),
        ("l3net", "fusion", 10**7, "fusion is a number from 1 to 65,536, got 10000000"),
        (
            "vilbert",
            "text.dim",
            10**7,
            "config.text: invalid configuration: dim is a number from 1 to 16,384",
        ),
        ("vilbert", "vision.layers", 10**6, "config.vision: invalid configuration: layers is a number"),
        ("vilbert", "text.intermediate", 10**7, "intermediate is a number from 1 to 65,536, got 10000000"),
        ("vilbert", "text.heads", 0, "heads is a number from 1 to 1,024, got 0"),
        ("vilbert", "vocabulary", 10**7, "vocabulary is a number from 1 to 1,048,576, got 10000000"),
        ("vilbert", "positions", 10**7, "positions is a number from 1 to 65,536, got 10000000"),
        ("vilbert", "joint_dim", -1, "joint_dim is a number from 1 to 16,384, got -1"),
        ("vilbert", "co_attention_layers", [[0, 9]], "co_attention_layers ((0, 9),) must be sorted"),
    ],
)
def test_a_wrong_size_in_a_checkpoint_is_named_with_its_file(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, model: str, place: str, value: object, sentence: str
):
    described = json.loads((world / model / "config.json").read_text())
    *path, name = place.split(".")
    inner = described["config"]
    for part in path:
        inner = inner[part]
    inner[name] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((world / model / "model.safetensors").read_bytes())
    said = sentence_of(capsys, "share", tmp_path, tmp_path / "out")
    assert sentence in said and str(tmp_path / "config.json") in said


def test_a_bert_of_a_wrong_size_is_named_before_its_weights_are_looked_for(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    sizes = {"vocab_size": 50, "hidden_size": 10**6, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 40}
    names = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(sizes | names))
    (tmp_path / "vocab.txt").write_text(VOCABULARY)
    words = ["train", "vilbert", "--data", world / "regions", "--captions", world / "captions.jsonl"]
    words += ["--variant", "small", "--out", tmp_path / "run", "--bert", tmp_path]
    said = sentence_of(capsys, *words)
    assert "dim is a number from 1 to 16,384, got 1000000" in said and str(tmp_path / "config.json") in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--side 1000000", "side is a number from 2 to 4,096, got 1000000"),
        ("--seconds 1e12", "seconds is a number from 1 to 3,600, got 1000000000000.0"),
        ("--videos 1000000000000", "videos is a number from 0 to 10,000,000, got 1000000000000"),
        ("--frames_per_second 1e18", "frames_per_second is a number from 1 to 240, got 1e+18"),
        ("--workers 100000", "workers is a number from 1 to 1,024, got 100000"),
    ],
)
def test_synthetic_data_of_a_wrong_size_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: str, sentence: str
):
    assert sentence in sentence_of(capsys, "synthesize", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epochs", ["inf", "nan", "-1"])
def test_epochs_without_an_end_are_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, epochs: str):
    words = ["--out", tmp_path / "run", "--epochs", epochs, "--model"]
    for task in (
        ["entailment", *words, world / "vilbert", "--regions", world / "regions", "--data", world / "captions.jsonl"],
        ["image_classes", *words, world / "l3net", "--data", world],
    ):
        said = sentence_of(capsys, "train", *task)
        assert "epochs is a number from 0 to 100,000, got " in said


@pytest.mark.parametrize("hop", ["nan", "-1", "0"])
def test_a_hop_that_is_no_duration_is_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, hop: str):
    (tmp_path / "a.wav").write_bytes(b"")
    words = ["embed", "audio", tmp_path / "a.wav", "--model", world / "l3net", "--hop_seconds", hop]
    assert "hop_seconds (" in sentence_of(capsys, *words)


def test_a_model_larger_than_the_memory_is_not_built(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Width 1,024 has some 256 times the paper's 9.5 million weights of 4 bytes, and Adam three times as many more."""
    words = ["train", "l3net", "--data", world / "shards", "--out", tmp_path / "run", "--variant", "small"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "read_memory_bytes", lambda _: 8_000_000_000)
        said = sentence_of(capsys, *words, "--width", 1024)
        assert "needs 9.6 GB and cpu has 8.0 GB of memory" in said
        check_model_fits(lambda: ViLBERT(ViLBERTConfig()))
        patch.setattr(hardware, "read_memory_bytes", lambda _: 10_000_000)
        assert "smaller than the model's 64" in sentence_of(capsys, *words)  # 9.6 MB: it begins to train
        patch.setattr(hardware, "read_memory_bytes", lambda _: 9_000_000)
        words[words.index(tmp_path / "run")] = tmp_path / "other"
        assert "of memory: choose a smaller model" in sentence_of(capsys, *words)
    assert hardware.read_memory_bytes(torch.device("cpu")) > 1 << 28


def test_the_count_on_the_meta_device_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch):
    config = make_small_l3net_config(4)
    weights = sum(parameter.numel() for parameter in L3Net(config).parameters())
    monkeypatch.setattr(hardware, "read_memory_bytes", lambda _: 4 * weights)
    before = torch.get_rng_state()
    check_model_fits(lambda: L3Net(config))
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(hardware, "read_memory_bytes", lambda _: 4 * weights - 1)
    with pytest.raises(Exception, match=f"{weights:,} parameters"):
        check_model_fits(lambda: L3Net(config))


BOMB = "a: &a [x, x, x, x, x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a, *a, *a, *a]\n" for n in range(20))
DEEP = "[" * 200_000 + "]" * 200_000
WRONG_YAML = {"[]": "this is a list", DEEP: "nested deeper than 64 levels", BOMB: "an alias (*a)", "a: [": "not YAML"}
WRONG_JSON = {"[]": "", DEEP: "nested deeper than 64 levels", '{"a": ' + DEEP + "}": "nested deeper", "{": "not JSON"}


LABEL_READERS = [
    lambda path: read_vqa_entries(path, "questions"),
    lambda path: read_coco_entries(path, "images", ("id",)),
    *(read_gqa_questions, read_visual_genome_questions, read_card),
    *(read_snli_ve_sentences, read_nlvr2_sentences),
    lambda path: read_vcr_examples(path, 0),
]


@pytest.mark.parametrize("content", WRONG_YAML, ids=lambda text: text[:4])
def test_hostile_yaml_is_one_sentence_for_every_reader(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
):
    """The settings of a command, the settings of a run that goes on, and those of a run that is reported."""
    run, settings, said = tmp_path / "run", tmp_path / "settings.yaml", WRONG_YAML[content]
    run.mkdir()
    for path in (settings, run / "config.yaml"):
        path.write_text(content)
    words = ["train", "l3net", "--data", world / "shards", "--out", run, "--variant", "small"]
    assert main([str(word) for word in [*words, "--config", settings]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{settings}: " in line and said in line
    for command in ([*words, "--resume"], ["inspect", run]):
        line = sentence_of(capsys, *command)
        assert f"{run / 'config.yaml'}: " in line and said in line


@pytest.mark.parametrize("content", WRONG_JSON, ids=lambda text: text[:7])
def test_hostile_json_is_one_sentence_for_every_reader(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, content: str
):
    """Of a model, a BERT, captions and a store by their commands, and of labels by what reads them."""
    model, names = tmp_path / "model", ("config.json", "captions.json", "captions.jsonl", "labels.json")
    model.mkdir()
    for name in names:
        (model / name).write_text(content)
    (model / "model.safetensors").write_bytes((world / "l3net" / "model.safetensors").read_bytes())
    (model / "vocab.txt").write_text(VOCABULARY)
    shutil.copytree(world / "regions", tmp_path / "store")
    (tmp_path / "store" / "about.json").write_text(content)
    vilbert = ["train", "vilbert", "--out", tmp_path / "run", "--variant", "small", "--data"]
    captions = ["--captions", world / "captions.jsonl"]
    commands: dict[Path, list] = {
        model / "config.json": ["share", model, tmp_path / "out"],
        model / "captions.json": [*vilbert, world / "regions", "--captions", model / "captions.json"],
        model / "captions.jsonl": [*vilbert, world / "regions", "--captions", model / "captions.jsonl"],
        tmp_path / "store" / "about.json": [*vilbert, tmp_path / "store", *captions],
    }
    for path, words in commands.items():
        line = sentence_of(capsys, *words)
        assert str(path) in line and WRONG_JSON[content] in line
    line = sentence_of(capsys, *vilbert, world / "regions", *captions, "--bert", model)
    assert str(model / "config.json") in line and WRONG_JSON[content] in line
    for read in LABEL_READERS:
        with pytest.raises(DataError, match=rf"labels\.json[^\n]*{WRONG_JSON[content]}[^\n]*\Z"):
            read(model / "labels.json")


def test_a_failed_allocation_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """PyTorch's own exception for 4 exabytes, from wherever it comes."""
    monkeypatch.setattr("comodal.cli.program.dispatch_command", lambda _: torch.empty(1 << 60))
    assert "not enough memory" in sentence_of(capsys, "inspect", "x")
    with pytest.raises(MemoryError, match=r"a\.jpg: .*alloc"), wrap_item_errors("a.jpg"):
        torch.empty(1 << 60)
    with pytest.raises(MediaError, match=r"a\.jpg"), wrap_item_errors("a.jpg"):
        torch.empty(2).view(3)
