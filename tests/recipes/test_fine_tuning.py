"""Fine-tuning for any task: hand-worked losses, batches that hold each image once, controls, and learning."""

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

from comodal.cli.parser import CommandParser
from comodal.cli.program import build_recipe_page
from comodal.data.batch import TaskBatch
from comodal.data.regions.region_store import RegionWriter
from comodal.errors import CheckpointError, DataError, RecipeError
from comodal.hardware import Compute
from comodal.models.checkpoint import load_model, read_model_about
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel
from comodal.tasks.retrieval import caption_retrieval
from comodal.tasks.vision_language import nlvr2, vcr
from comodal.tasks.vision_language.grounding import refcoco
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskDataset, TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    FineTuningData,
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_choice_loss,
    compute_class_loss,
    compute_region_loss,
    compute_soft_answer_loss,
    load_fine_tuned_model,
    load_fine_tuning_data,
    score_examples,
)
from comodal.text_files import read_log
from comodal.training.run import train
from comodal.training.run_config import describe_changes, resolve_parameters, write_run_config
from tests.support.small_tasks import COLOURS, QUESTION, colour_of, write_colours, write_pretrained

CPU = Compute(torch.device("cpu"))
HEAD = Head("colour", "answers", len(COLOURS), 16)


class Setup(NamedTuple):
    """A pretrained model, a region store, and how a task is learned with them."""

    model: Path
    regions: Path
    fine_tune: ViLBERTFineTuneConfig

    def load(self) -> FineTuningData:
        return load_fine_tuning_data(*self)

    def changed(self, **values: object) -> "Setup":
        return self._replace(fine_tune=replace(self.fine_tune, **values))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    write_colours(tmp_path / "regions")
    model = write_pretrained(tmp_path / "run", [QUESTION, "one two three four five"])
    fine_tune = ViLBERTFineTuneConfig(batch_size=8, learning_rate=2e-3, max_regions=5, workers=0)
    return Setup(model, tmp_path / "regions", fine_tune)


def examples_of(setup: Setup, count: int = 40) -> FixedExamples:
    words = setup.load().tokenizer
    texts = (QUESTION, f"{QUESTION} one two")
    return FixedExamples([
        TaskExample(str(image), (tokenize_text(words, texts[image // 4 % 2], 36),), (image,), colour_of(image))
        for image in range(count)
    ])  # fmt: skip


def batches(setup: Setup, source: FixedExamples, seed: int | None = 0, **changed: object) -> TaskDataset:
    parts = setup.load()
    given = {"max_regions": 5, "has_visual_tokens": False, "ablate": "none", "batch_size": 8, "seed": seed} | changed
    return TaskDataset(source, parts.store, parts.tokenizer, **given)


def with_targets(targets: torch.Tensor, attended: torch.Tensor | None = None) -> TaskBatch:
    count = len(targets)
    attended = torch.ones(count, 3, dtype=torch.bool) if attended is None else attended
    words = torch.zeros(count, 2, dtype=torch.int64)
    return TaskBatch(
        words, words, words == 0, torch.zeros(count, 3, 1), torch.zeros(count, 3, 5), attended,
        torch.arange(count), targets, words[:0, 0], tuple(map(str, range(count))),
    )  # fmt: skip


# Losses worked by hand


def test_soft_answers_sum_over_the_answers_and_count_the_score_of_the_likeliest():
    scores = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    judged = compute_soft_answer_loss(scores, with_targets(torch.tensor([[1.0, 0.0], [0.3, 0.9]])))
    sigmoid = 1 / (1 + np.exp([-2.0, 1.0]))
    second = -(0.3 * np.log(sigmoid[0]) + 0.7 * np.log(1 - sigmoid[0]))
    second -= 0.9 * np.log(sigmoid[1]) + 0.1 * np.log(1 - sigmoid[1])
    assert judged.loss.item() == pytest.approx((2 * np.log(2) + second) / 2, rel=1e-6)
    assert judged.accuracy.item() == pytest.approx((1.0 + 0.3) / 2)


def test_a_choice_is_a_softmax_over_the_texts_of_an_example():
    scores = torch.tensor([[0.0], [np.log(3.0)], [0.0], [0.0]], dtype=torch.float32)
    judged = compute_choice_loss(scores, with_targets(torch.tensor([1, 0])))
    assert judged.loss.item() == pytest.approx((np.log(4 / 3) + np.log(2)) / 2, rel=1e-6)
    assert judged.accuracy.item() == 1.0


def test_regions_that_are_not_there_do_not_count():
    scores, targets = torch.tensor([[0.0, 0.0, -10000.0]]), torch.tensor([[0.0, 0.8, 0.0]])
    attended = torch.tensor([[True, True, False]])
    judged = compute_region_loss(scores + torch.tensor([[0.0, 1e-4, 0.0]]), with_targets(targets, attended))
    assert judged.loss.item() == pytest.approx(2 * np.log(2), rel=1e-3)
    assert judged.accuracy.item() == 1.0  # 0.8 is more than a half


def test_one_class_is_cross_entropy():
    judged = compute_class_loss(
        torch.tensor([[0.0, 0.0, np.log(2.0)]], dtype=torch.float32), with_targets(torch.tensor([2]))
    )
    assert judged.loss.item() == pytest.approx(np.log(2), rel=1e-6)


# Batches


def test_an_image_stands_once_however_many_texts_meet_it(setup: Setup):
    words = setup.load().tokenizer
    texts = tuple(tokenize_text(words, text, 36) for text in ("one", "one two", "three four five", "two"))
    examples = [TaskExample("a", texts, (3, 3, 3, 7), 0), TaskExample("b", texts, (7, 7, 2, 2), 1)]
    batch = batches(setup, FixedExamples(examples)).collate(examples)
    assert batch.image_indices.tolist() == [1, 1, 1, 2, 2, 2, 0, 0]
    assert len(batch.region_features) == 3
    assert batch.token_mask.sum(1).tolist() == [3, 4, 5, 3] * 2
    assert_close(batch.region_features[:, 0], batch.region_features[:, 1:].mean(1))  # row 0 is the whole image


def test_every_example_comes_once_an_epoch_and_the_seed_decides_when(setup: Setup):
    source = examples_of(setup)
    places = [[(epoch, index) for index in range(40)] for epoch in (0, 1)]
    first, second = (batches(setup, source).batch(some).keys for some in places)
    assert sorted(first) == sorted(second) == sorted(str(image) for image in range(40))
    assert first != second
    assert first == batches(setup, source).batch(places[0]).keys
    assert batches(setup, source, seed=None).batch(places[0]).keys == tuple(str(image) for image in range(40))


def test_the_controls_show_nothing_of_what_they_blank(setup: Setup):
    source = examples_of(setup)
    everything = [(0, index) for index in range(8)]
    pictures = batches(setup, source, ablate="image").batch(everything)
    assert not pictures.region_features.any() and pictures.region_features.shape[1] == 1
    assert pictures.spatials.unique(dim=0).tolist() == [[[0.0, 0.0, 1.0, 1.0, 1.0]]]
    texts = batches(setup, source, ablate="text").batch(everything)
    words = setup.load().tokenizer
    assert texts.token_ids.unique(dim=0).tolist() == [[words.cls_id, words.sep_id]]


def test_answers_come_out_with_their_own_examples_whatever_the_batch(setup: Setup, tmp_path: Path):
    model = run_of(setup, tmp_path / "out", steps=1)
    asked, examples = (
        load_fine_tuned_model(model, setup.regions, "none", 5, CPU, "colour"),
        examples_of(setup).examples,
    )
    together = {answered.example.key: answered.scores for answered in score_examples(asked, "colour", examples)}
    (alone,) = score_examples(asked, "colour", examples[5:6])
    assert len(together) == 40
    assert_close(torch.from_numpy(together["5"]), torch.from_numpy(alone.scores), rtol=1e-4, atol=1e-5)


# Training


def run_of(setup: Setup, out: Path, steps: int | None = None) -> Path:
    def recipe() -> object:
        parts, source = setup.load(), examples_of(setup)
        run = build_vilbert_run(parts, setup.fine_tune, HEAD, compute_class_loss, source, source, "data", {})
        return run if steps is None else replace(run, steps=steps)

    assert train(recipe, {}, out, device="cpu", precision="fp32") == 0
    return out


def share_right(setup: Setup, model: Path, ablate: str = "none") -> float:
    asked = load_fine_tuned_model(model, setup.regions, ablate, 5, CPU, "colour")
    found = list(score_examples(asked, "colour", examples_of(setup).examples))
    return float(np.mean([answered.scores.argmax() == answered.example.target for answered in found]))


def test_it_learns_what_the_picture_says_and_nothing_without_it(setup: Setup, tmp_path: Path):
    model = run_of(setup, tmp_path / "out")
    assert share_right(setup, model) == 1.0
    assert share_right(setup, model, ablate="image") <= 0.3  # four colours, ten pictures each
    blind = run_of(setup.changed(ablate="image"), tmp_path / "blind")
    assert share_right(setup, blind, ablate="image") <= 0.3


@pytest.mark.slow
def test_the_model_is_the_one_that_did_best_on_validation_however_often_it_was_stopped(setup: Setup, tmp_path: Path):
    """Validation says the contrary of what is learnt: it gets worse, and an early model is the best."""
    source = examples_of(setup)
    contrary = FixedExamples([one._replace(target=(one.target + 1) % len(COLOURS)) for one in source.examples])

    def recipe(steps: int) -> object:
        run = build_vilbert_run(setup.load(), setup.fine_tune, HEAD, compute_class_loss, source, contrary, "data", {})
        return replace(run, steps=steps)

    options = {"device": "cpu", "precision": "fp32", "validate_every": 5}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(recipe, {"steps": 60}, whole, **options) == 0
    for steps in (35, 60):
        assert train(recipe, {"steps": steps}, stopped, resume=True, **options) == 0
    lines = [line for line in read_log(whole / "metrics.jsonl") if line["split"] == "validation"]
    best = max(lines, key=lambda line: line["accuracy"])
    assert best["accuracy"] > lines[-1]["accuracy"] and best["step"] < 60
    assert read_model_about(whole)["best_checkpoint"] == {"step": best["step"], "accuracy": best["accuracy"]}
    asked = load_fine_tuned_model(whole, setup.regions, "none", 5, CPU, "colour")
    right = [
        found.scores.argmax() == found.example.target for found in score_examples(asked, "colour", contrary.examples)
    ]
    assert float(np.mean(right)) == pytest.approx(best["accuracy"])
    ours, theirs = load_model(stopped).state_dict(), load_model(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_pretrained_weights_are_where_it_begins_and_the_control_begins_elsewhere(setup: Setup):
    pretrained = load_model(setup.model).state_dict()
    run = build_vilbert_run(
        setup.load(), setup.fine_tune, HEAD, compute_class_loss, examples_of(setup), None, "data", {}
    )
    begun = run.objective.get_submodule("model.vilbert").state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in pretrained.items())
    scratch = setup.changed(start_from="scratch")
    other = build_vilbert_run(
        scratch.load(), scratch.fine_tune, HEAD, compute_class_loss, examples_of(setup), None, "data", {}
    )
    changed = other.objective.get_submodule("model.vilbert").state_dict()
    assert not torch.equal(changed["text_pooler.0.weight"], pretrained["text_pooler.0.weight"])
    rates = {group["lr_scale"] for group in run.optimizer.param_groups}
    assert rates == {1.0}  # this setup's rate is above the head's own
    slow = setup.changed(learning_rate=4e-5)
    groups = build_vilbert_run(
        slow.load(), slow.fine_tune, HEAD, compute_class_loss, examples_of(setup), None, "data", {}
    ).optimizer
    assert {round(group["lr_scale"], 6) for group in groups.param_groups} == {1.0, 0.4}


def test_what_a_head_does_not_depend_on_is_not_trained(setup: Setup):
    run = build_vilbert_run(
        setup.load(), setup.fine_tune, HEAD, compute_class_loss, examples_of(setup), None, "data", {}
    )
    model = run.objective.get_submodule("model")
    assert isinstance(model, TaskModel)
    assert not any(p.requires_grad for p in model.vilbert.region_head.parameters())
    assert not any(p.requires_grad for p in model.vilbert.alignment_head.parameters())
    assert all(p.requires_grad for p in model.heads.parameters())
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_model_without_heads_and_a_store_of_other_features_are_refused(setup: Setup, tmp_path: Path):
    with pytest.raises(CheckpointError, match="a ViLBERT, which has no task head; fine-tune it with"):
        load_fine_tuned_model(setup.model, setup.regions, "none", 5, CPU, "colour")
    with RegionWriter(tmp_path / "others", 5) as writer:
        writer.add("1", np.ones((1, 5), np.float32), np.array([[0, 0, 9, 9]], np.float32), 10, 10)
    with pytest.raises(DataError, match=r"has regions of .* features and .* reads 8"):
        setup._replace(regions=tmp_path / "others").load()


def test_the_options_of_a_run_are_written_and_read_under_their_own_names(tmp_path: Path):
    given = {"model": Path("m"), "data": Path("d"), "regions": Path("r"), "learning_rate": 1e-5, "seed": 3}
    values = resolve_parameters(nlvr2.recipe, given)
    assert (values["batch_size"], values["epochs"], values["learning_rate"], values["seed"]) == (64, 20.0, 1e-5, 3)
    write_run_config(tmp_path / "config.yaml", nlvr2.recipe, values)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["learning_rate"] == 1e-5 and written["ablate"] == "none" and "fine_tune" not in written
    page = build_recipe_page("nlvr2")
    assert (
        CommandParser(page.options, page.format_full).parse(["--config", str(tmp_path / "config.yaml")]).values
        == values
    )
    assert describe_changes(tmp_path / "config.yaml", {**values, "workers": 4}, {}) == ["workers 4 instead of auto"]
    with pytest.raises(RecipeError, match="learning_rate 2e-05 instead of 1e-05"):
        describe_changes(tmp_path / "config.yaml", {**values, "learning_rate": 2e-5}, {})


def test_every_task_has_the_original_s_settings():
    """vlbert_tasks.yml of vilbert-multi-task: VCR, RetrievalFlickr30k, refcoco+."""
    found = [signature(one.recipe).parameters for one in (vcr, caption_retrieval, refcoco)]
    names = ("batch_size", "learning_rate", "epochs")
    assert [[one[name].default for name in names] for one in found] == [[64, 2e-5, 20], [64, 2e-5, 20], [256, 4e-5, 20]]
