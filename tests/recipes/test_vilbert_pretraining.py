"""`comodal train vilbert` learns what can be learnt, resumes to the bit, and leaves a folder that can be served."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from comodal.analysis.reports.report import write_report
from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionWriter
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.recipes.vilbert_pretraining import recipe, select_data_fraction
from comodal.regions.visual_tokens import prepare_tokens
from comodal.text_files import read_log
from comodal.training.interruption import InterruptHandler
from comodal.training.run import train
from tests.support.small_captions import DIM, KINDS, write_captions

SETTINGS = {
    "variant": "small",
    "batch_size": 8,
    "validation_pairs": 16,
    "workers": 0,
    "steps": 6,
    "learning_rate": 1e-3,
}
OPTIONS = {"device": "cpu", "log_every": 1, "validate_every": 3, "precision": "fp32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_captions(tmp_path_factory.mktemp("captions"))


def settings(world: tuple[Path, Path], **others) -> dict:
    return {**SETTINGS, "data": world[0], "captions": world[1], **others}


def losses(run: Path, split: str = "train") -> list[float]:
    return [line["loss"] for line in read_log(run / "metrics.jsonl") if line["split"] == split]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(recipe, settings(world), out, **OPTIONS) == 0
    return out


def test_the_folder_holds_what_serving_needs(trained: Path):
    model = load_model(trained)
    assert isinstance(model, ViLBERT)
    assert (model.config.region_feature_dim, model.config.region_targets) == (DIM, len(KINDS))
    words = WordPieceTokenizer.read(trained)
    assert words.size == model.config.vocabulary
    assert words.unknown_id not in words.encode("a bell and a clock.")
    about = json.loads((trained / "model" / "regions.json").read_text())
    assert about["dim"] == DIM and len(about["fingerprint"]) == 16
    metrics = {line["split"]: line for line in read_log(trained / "metrics.jsonl")}
    for name in ("token", "region", "alignment"):
        assert {f"{name}_loss", f"{name}_accuracy"} <= metrics["validation"].keys()


def test_stopping_and_going_on_changes_no_bit(trained: Path, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Dropout is on: the state of torch's chance is part of a checkpoint."""
    asked = iter([0, 0, signal.SIGTERM])
    monkeypatch.setattr(InterruptHandler, "get_agreed_signal", lambda *_: next(asked))
    assert train(recipe, settings(world), tmp_path / "run", **OPTIONS) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert len(losses(tmp_path / "run")) == 3
    assert train(recipe, settings(world, workers=1), tmp_path / "run", resume=True, **OPTIONS) == 0
    assert losses(tmp_path / "run") == losses(trained)
    ours, theirs = load_model(tmp_path / "run").state_dict(), load_model(trained).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_do_the_steps_of_one(world, tmp_path: Path):
    """Without dropout; hidden places are averaged in each part of a batch, as they are by accumulation."""
    words = ["comodal", "train", "vilbert"]
    values = settings(world, dropout=0.0) | OPTIONS
    words += [text for name, value in values.items() for text in (f"--{name}", str(value))]
    for processes, out, more in ((2, "two", []), (1, "one", ["--accumulate", "2"])):
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
        command = [sys.executable, *start, "-m", *words, "--out", str(tmp_path / out), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
    assert two == pytest.approx(one, rel=0.01)  # Adam's first steps have the sign of gradients, however small


@pytest.mark.slow
def test_it_learns_words_regions_and_alignment_of_pairs_that_it_has_not_seen(tmp_path: Path):
    """Which two of six things an image shows decides its caption: far above chance (0.5, and 1/6) in a minute."""
    world = write_captions(tmp_path, images=480)
    values = settings(world, steps=300, batch_size=32, validation_pairs=256, dropout=0.0)
    train(recipe, values, tmp_path / "run", **{**OPTIONS, "validate_every": 1000, "log_every": 50})
    (found,) = [line for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["split"] == "validation"]
    assert found["alignment_accuracy"] > 0.8
    assert found["token_accuracy"] > 0.6
    assert found["region_accuracy"] > 0.3


@pytest.mark.parametrize(
    "others",
    [
        {"region_targets": ["features", "contrast"]},
        {"region_targets": ["tokens"], "regions_as": "tokens"},
        {"variant": "small_single_stream", "region_targets": ["tokens"], "regions_as": "tokens"},
        {"variant": "small_single_stream", "region_targets": ["features"]},
        {"faithful": True, "mask_loss_on_mismatched": False, "overlap": 0.4},
    ],
)
def test_every_way_to_train_trains(tmp_path: Path, others: dict):
    world = write_captions(tmp_path)
    prepare_tokens(world[0], tokens=8, projection=4, per_image=2, sample=1000)
    train(recipe, settings(world, steps=2, **others), tmp_path / "run", **OPTIONS)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize("left_out", ["token", "region", "alignment"])
def test_a_pretext_task_of_weight_zero_is_left_out(world: tuple[Path, Path], left_out: str):
    """Nothing is masked for it, no pair is mismatched for it, and the loss is the sum of the others."""
    run = recipe(**settings(world, **{f"{left_out}_weight": 0.0}))
    assert run.validation is not None
    for loader in (run.batches, run.validation):
        batch = loader.samples.batch([(index // 10, index % 10) for index in range(40)])
        counts = {"token": batch.masked_token_indices.numel(), "region": batch.masked_region_indices.numel()}
        counts["alignment"] = int((~batch.is_match).sum())
        assert {name for name, count in counts.items() if not count} == {left_out}
    run.objective.eval()
    metrics = run.objective(batch)
    rest = sum(metrics[f"{name}_loss"] for name in ("token", "region", "alignment") if name != left_out)
    assert metrics["loss"].item() == pytest.approx(rest.item(), rel=1e-6)


def test_without_co_attention_the_streams_meet_in_the_alignment_only(world: tuple[Path, Path]):
    model = recipe(**settings(world, without_co_attention=True)).objective.model.eval()
    assert len(model.co_layers) == 0
    text = (torch.tensor([[2, 5, 6, 3]]), torch.zeros(1, 4, dtype=torch.int64), None)
    generator = torch.Generator().manual_seed(0)
    outputs = [model(*text, torch.randn(1, 3, DIM, generator=generator), torch.rand(1, 3, 5), None) for _ in range(2)]
    assert torch.equal(outputs[0].token_states, outputs[1].token_states)
    scores = [model.alignment_head(output.pooled_text, output.pooled_vision) for output in outputs]
    assert not torch.equal(*scores)
    with pytest.raises(ValueError, match="no co-attention"):
        recipe(**settings(world, variant="small_single_stream", without_co_attention=True))


def test_a_smaller_fraction_of_the_data_is_part_of_a_larger_one(world: tuple[Path, Path]):
    ids = [f"{number}.jpg" for number in range(4000)]
    pairs = [(Caption((ids[row],), "a", None, str(row)), row) for row in range(4000) for _ in range(2)]
    rows = {fraction: {row for _, row in select_data_fraction(pairs, ids, fraction)} for fraction in (0.25, 0.5, 1.0)}
    assert rows[0.25] < rows[0.5] < rows[1.0] == set(range(4000))
    assert abs(len(rows[0.25]) - 1000) < 5 * 27.4  # the standard deviation of a binomial is 27.4
    assert len(select_data_fraction(pairs, ids, 0.5)) == 2 * len(rows[0.5])  # all captions of an image or none
    runs = [recipe(**settings(world, data_fraction=fraction)) for fraction in (0.5, 1.0)]
    assert runs[0].fingerprint != runs[1].fingerprint
    assert len(runs[0].batches.samples) < len(runs[1].batches.samples)
    with pytest.raises(DataError, match=r"captions.jsonl: .*--data-fraction 0"):
        recipe(**settings(world, data_fraction=0.0))


def write_bert(folder: Path, vocabulary: tuple[str, ...], dim: int = 32) -> Path:
    """The files of a small BERT: configuration, vocabulary, embeddings, and a bias that ViLBERT has no place for."""
    folder.mkdir()
    config = {"model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": dim, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}
    config |= {"attention_probs_dropout_prob": 0.1, "max_position_embeddings": 40, "type_vocab_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    weights = {"bert.embeddings.word_embeddings.weight": torch.randn(len(vocabulary), dim)}
    weights["bert.pooler.dense.bias"] = torch.zeros(dim)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_it_begins_with_a_bert_whose_weights_learn_more_slowly(world, tmp_path: Path):
    vocabulary = WordPieceTokenizer.from_texts(["a ball and a bell.", " ".join(KINDS)]).vocabulary
    bert = write_bert(tmp_path / "bert", vocabulary)
    run = recipe(**settings(world, bert=bert, backbone_lr_scale=0.1, allow_missing=True))
    embeddings = run.objective.model.text_embeddings.tokens.weight
    shares = {group["lr_scale"] for group in run.optimizer.param_groups}
    assert shares == {0.1, 1.0}
    slow = [p for group in run.optimizer.param_groups if group["lr_scale"] == 0.1 for p in group["params"]]
    assert any(p is embeddings for p in slow) and len(slow) == 1
    count, *named = run.files["bert.txt"].decode().splitlines()
    parameters = {name for name, _ in run.objective.model.named_parameters()} - {"text_embeddings.tokens.weight"}
    assert count == f"1 loaded, {len(parameters)} new, 1 unused tensors in the file"
    assert set(named) == {
        "filled: text_embeddings.tokens.weight",
        "not used: bert.pooler.dense.bias",
        *(f"new: {name}" for name in parameters),
    }


def test_what_the_model_will_not_see_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    with RegionWriter(tmp_path / "regions", DIM) as writer:
        for image, count in (("a", 2), ("b", 0), ("c", 1)):
            boxes = np.tile(np.float32([0, 0, 9, 9]), (count, 1))
            writer.add(image, np.ones((count, DIM), np.float32), boxes, 10, 10)
    texts = {"a": ["A ball.", "A ball and a bell and a bird."], "b": "A drum.", "c": ["A frog.", " "], "d": "A clock."}
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    values = settings((tmp_path / "regions", tmp_path / "captions.json"), max_tokens=6, validation_fraction=0.0)
    assert recipe(**values).excluded == {"caption is empty": 1, "image is not in the store": 1}
    said = capsys.readouterr().out
    assert "captions of 3 images (1 without regions), 4 train" in said
    assert "1 skipped: caption is empty; 1 skipped: image is not in the store" in said
    assert "captions.json: 1 of 4 captions have more than 6 tokens and are truncated" in said
    with pytest.raises(RecipeError, match="--max-tokens 65: this model has positions for 64 tokens"):
        recipe(**values | {"max_tokens": 65})


def test_one_image_is_no_validation(tmp_path: Path, capsys: pytest.CaptureFixture):
    with RegionWriter(tmp_path / "regions", DIM) as writer:
        for image in "abc":
            writer.add(image, np.ones((1, DIM), np.float32), np.float32([[0, 0, 9, 9]]), 10, 10)
    lines = [
        {"image": image, "caption": f"A thing {image}.", "split": split}
        for image, split in (("a", "train"), ("b", "train"), ("c", "val"))
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert recipe(**settings((tmp_path / "regions", tmp_path / "captions.jsonl"))).validation is None
    assert "no validation, since it would have one image only" in capsys.readouterr().out


def test_a_run_can_begin_with_another(trained: Path, world):
    run = recipe(**settings(world, start_from=trained))
    theirs = load_model(trained).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.objective.model.state_dict().items())
    with pytest.raises(CheckpointError, match="has another configuration"):
        recipe(**settings(world, start_from=trained, dropout=0.3))


def test_what_does_not_fit_is_told(world, tmp_path: Path):
    with pytest.raises(DataError, match="has no tokens: `comodal prepare tokens"):
        recipe(**settings(world, region_targets=["tokens"]))
    with pytest.raises(DataError, match="has no visual tokens"):
        recipe(**settings(world, regions_as="tokens"))
    with pytest.raises(ValueError, match="--faithful replaces captions"):
        recipe(**settings(world, faithful=True, negatives="image"))
    with pytest.raises(ValueError, match="unknown region target 'colours'"):
        recipe(**settings(world, region_targets=["colours"]))
    with pytest.raises(DataError, match="captions name"):
        (tmp_path / "others.jsonl").write_text(
            '{"image": "x.jpg", "caption": "Nothing."}\n{"image": "y", "caption": "B"}'
        )
        recipe(**settings((world[0], tmp_path / "others.jsonl")))
    bert = write_bert(tmp_path / "bert", WordPieceTokenizer.from_texts(["a"]).vocabulary)
    (tmp_path / "vocab.txt").write_text("\n".join(WordPieceTokenizer.from_texts(["many more words"]).vocabulary) + "\n")
    with pytest.raises(RecipeError, match="they do not match"):
        recipe(**settings(world, bert=bert, vocabulary=tmp_path / "vocab.txt"))


def test_the_report_shows_the_three_tasks_and_where_words_look(trained: Path, world, tmp_path: Path):
    from PIL import Image

    for number in range(60):
        Image.new("RGB", (100, 100), (number, 0, 0)).save(tmp_path / f"{number:04d}.jpg")
    write_report(trained, tmp_path / "report.html", data=world[0], captions=world[1], images=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 2
    assert "Attention of tokens to regions" in page
    with pytest.raises(DataError, match="holds no images"):
        write_report(trained, tmp_path / "r.html", data=world[0], captions=world[1], images=trained)
    (tmp_path / "others").mkdir()
    (tmp_path / "0000.jpg").rename(tmp_path / "others" / "other.jpg")
    with pytest.raises(DataError, match="has no image named"):
        write_report(trained, tmp_path / "r.html", data=world[0], captions=world[1], images=tmp_path / "others")
