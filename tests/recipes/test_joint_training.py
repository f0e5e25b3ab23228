"""Joint training: stop-and-go as the original decides it, one task a step, resuming, task tokens, and clean splits."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from comodal.cli.program import main
from comodal.errors import DataError, RecipeError
from comodal.models.checkpoint import load_model, save_model
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.task_model import TaskModel
from comodal.recipes.joint_training import list_image_ids, normalize_image_id, recipe
from comodal.tasks.vision_language.grounding.refcoco import evaluate_grounding
from comodal.tasks.vision_language.question_answering.vqa import evaluate_vqa
from comodal.tasks.vision_language.task_tokens import choose_task_token
from comodal.text_files import read_log
from comodal.training.interruption import InterruptHandler
from comodal.training.run import train
from comodal.training.task_schedule import TaskSchedule, TaskState
from tests.support.small_tasks import QUESTION, config, write_colours, write_pretrained
from tests.support.small_vilbert_data import write_task_set
from tests.tasks.vision_language.test_refcoco import SENTENCES, write_references, write_store
from tests.tasks.vision_language.test_vqa import write_files

# Made with MultiTaskStopOnPlateau of facebookresearch/vilbert-multi-task as train_tasks.py calls it.
SCORES = [0.5, 0.6, 0.6, 0.6003, 0.6004, 0.6002, 0.59, 0.596, 0.61, 0.61, 0.61, 0.6, 0.6, 0.62, 0.62, 0.62, 0.61, 0.6]
STOPPED = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
OPTIONS = {"device": "cpu", "precision": "fp32", "log_every": 1, "validate_every": 4}


def test_a_task_stops_and_goes_as_the_original_decides():
    state, stopped = TaskState(), []
    for score in SCORES:
        state.update(score)
        stopped.append(int(state.is_stopped))
    assert stopped == STOPPED


def test_a_stopped_task_is_trained_in_every_fourth_round():
    schedule = TaskSchedule(("a", "b"))
    assert [schedule.choose_next() for _ in range(4)] == [0, 1, 0, 1]  # rounds 0 and 1
    for _ in range(3):
        schedule.update({"b_accuracy": 0.5})
    assert [state.is_stopped for state in schedule.states] == [False, True]
    assert [schedule.choose_next() for _ in range(9)] == [0, 0, 0, 1, 0, 0, 0, 0, 1]  # rounds 2 to 8
    copy = TaskSchedule(("a", "b"))
    copy.load_state_dict(schedule.state_dict())
    assert [copy.choose_next() for _ in range(10)] == [schedule.choose_next() for _ in range(10)]
    assert [state.steps for state in schedule.states] == [state.steps for state in copy.states]
    plain = TaskSchedule(("a", "b"), is_dynamic=False)
    for _ in range(3):
        plain.update({"b_accuracy": 0.5})
    assert [plain.choose_next() for _ in range(4)] == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The COCO set with VQA and RefCOCO+; the images of val2014 are not among those of the references."""
    folder = tmp_path_factory.mktemp("joint")
    write_task_set(folder, "coco")
    coco, regions = folder / "world" / "coco", str(folder / "regions")
    vqa = {name: str(coco / "vqa" / f"{file}.json") for name, file in (
        ("questions", "v2_OpenEnded_mscoco_train2014_questions"), ("annotations", "v2_mscoco_train2014_annotations"),
        ("validation_questions", "v2_OpenEnded_mscoco_val2014_questions"),
        ("validation_annotations", "v2_mscoco_val2014_annotations"),
    )}  # fmt: skip
    vqa |= {"questions": [vqa["questions"]], "annotations": [vqa["annotations"]]}
    shared = {"regions": regions, "batch_size": 8, "workers": 0}
    grounding = {"references": str(coco / "refcoco+" / "refs(unc).p")}
    grounding |= {"instances": str(coco / "refcoco+" / "instances.json"), "task_token": 10}
    tasks = {
        "vqa": {"recipe": "vqa", "min_answer_count": 1, **vqa, **shared},
        "refcoco": {"recipe": "grounding", **grounding, **shared},
    }
    (folder / "tasks.yaml").write_text(yaml.safe_dump(tasks))
    return folder


def settings(world: Path, **others: object) -> dict:
    values = {"model": world / "model", "tasks": world / "tasks.yaml", "epochs": 0.5, "leaks": "drop"}
    return values | others


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joint_runs") / "whole"
    assert train("joint", settings(world), out, **OPTIONS) == 0
    return out


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "metrics.jsonl") if line["split"] == "train"]


def test_one_model_is_evaluated_on_each_task(world: Path, trained: Path):
    model = load_model(trained)
    assert isinstance(model, TaskModel)
    assert set(model.heads) == {"vqa", "regions"} and model.vilbert.config.task_tokens == 20
    validation = [line for line in read_log(trained / "metrics.jsonl") if line["split"] == "validation"]
    assert {"vqa_accuracy", "vqa_loss", "loss"} <= validation[-1].keys()
    vqa = yaml.safe_load((world / "tasks.yaml").read_text())["vqa"]
    files = {"questions": Path(vqa["validation_questions"]), "annotations": Path(vqa["validation_annotations"])}
    metrics = evaluate_vqa(trained, **files, regions=world / "regions")
    assert 0 <= metrics["vqa.accuracy"] <= 1
    other = evaluate_vqa(trained, **files, regions=world / "regions", task_token=0)
    assert metrics.keys() == other.keys()
    with pytest.raises(ValueError, match="task_token is 20"):
        evaluate_vqa(trained, **files, regions=world / "regions", task_token=20)


@pytest.mark.slow
def test_stopping_and_going_on_changes_no_bit(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The state of stop-and-go and the samples of each task are part of a checkpoint."""
    asked = iter([0, 0, signal.SIGTERM])
    monkeypatch.setattr(InterruptHandler, "get_agreed_signal", lambda *_: next(asked))
    assert train("joint", settings(world), tmp_path / "run", **OPTIONS) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train("joint", settings(world), tmp_path / "run", resume=True, **OPTIONS) == 0
    assert losses(tmp_path / "run") == losses(trained) and len(losses(trained)) > 4


def test_what_a_model_with_heads_has_goes_on_training(world: Path, trained: Path):
    """As the published multi-task model: its heads and its task tokens are kept."""
    model, before = recipe(**settings(world, model=trained)).objective.model, load_model(trained)
    ours, theirs = model.state_dict(), before.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fresh = recipe(**settings(world)).objective.model.state_dict()
    assert not torch.equal(fresh["heads.vqa.0.weight"], theirs["heads.vqa.0.weight"])


def test_an_image_of_one_tasks_validation_is_not_trained_on(world: Path, tmp_path: Path):
    tasks = yaml.safe_load((world / "tasks.yaml").read_text())
    tasks["again"] = tasks["vqa"] | {
        "questions": [tasks["vqa"]["validation_questions"]],
        "annotations": [tasks["vqa"]["validation_annotations"]],
    }
    (tmp_path / "leaking.yaml").write_text(yaml.safe_dump(tasks))
    with pytest.raises(
        DataError, match=r"leaking.yaml: again is trained on [1-9]\d* images of \w+ \(\d+\).*leaks drop"
    ):
        recipe(**settings(world, tasks=tmp_path / "leaking.yaml", leaks="error"))
    with pytest.raises(DataError, match=r"leaking.yaml: no training example of again is left"):
        recipe(**settings(world, tasks=tmp_path / "leaking.yaml"))


def test_a_test_image_is_not_trained_on_by_any_task(world: Path, tmp_path: Path):
    run = recipe(**settings(world, leaks="error"))  # the set is clean
    ids = [list_image_ids(loader.samples) for loader in run.batches.loaders]
    image = min(set().union(*ids[0]) & set().union(*ids[1]))
    (tmp_path / "test.txt").write_text(f"test2015/COCO_test2015_{int(image):012d}.jpg\n\n")
    with pytest.raises(DataError, match=rf"is trained on 1 images of the test images \({image}\)"):
        recipe(**settings(world, test_images=tmp_path / "test.txt", leaks="error"))
    without = recipe(**settings(world, test_images=tmp_path / "test.txt"))
    for loader, before in zip(without.batches.loaders, ids, strict=True):
        kept = list_image_ids(loader.samples)
        assert kept == [images for images in before if image not in images] and len(kept) < len(before)
        keys = loader.samples.batch([(0, index) for index in range(len(kept))]).keys
        assert len(set(keys)) == len(kept)  # the order is that of the remaining examples
    assert normalize_image_id("train2014/COCO_train2014_000000000042.jpg") == "42" == normalize_image_id("42")


def test_task_tokens_are_those_of_the_original():
    tokens = replace(config(50), task_tokens=20)
    assert [choose_task_token(tokens, name, None) for name in ("vqa", "gqa", "pairs", "entailment")] == [1, 15, 12, 13]
    assert choose_task_token(tokens, "score", 5) == 5 and choose_task_token(config(50), "vqa", None) is None
    with pytest.raises(ValueError, match="no task tokens"):
        choose_task_token(config(50), "vqa", 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tasks: tasks.pop("vqa"), "has 1 tasks"),
        (lambda tasks: tasks["vqa"].update(recipe="none"), "vqa is no task"),
        (lambda tasks: tasks["vqa"].update(max_token=3), "vqa has the options max_token"),
        (lambda tasks: tasks["vqa"].pop("regions"), "vqa: .*regions"),
    ],
)
def test_a_list_of_tasks_that_cannot_be_used_is_told(world: Path, tmp_path: Path, change, sentence: str):
    tasks = yaml.safe_load((world / "tasks.yaml").read_text())
    change(tasks)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tasks))
    with pytest.raises(RecipeError, match=rf"other.yaml:? .*{sentence}|other.yaml {sentence}"):
        recipe(**settings(world, tasks=tmp_path / "other.yaml"))


def test_the_command_trains(world: Path, tmp_path: Path):
    words = ["train", "joint", "--model", str(world / "model"), "--tasks", str(world / "tasks.yaml"), "--epochs", "0.1"]
    assert main([*words, "--leaks", "drop", "--order", "round_robin", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]["recipe"] == "joint"


def test_a_single_stream_has_no_task_tokens(world: Path, tmp_path: Path):
    two = load_model(world / "model").config
    single = SingleStreamConfig(two.vocabulary, 100, 0, 2, two.text, two.region_feature_dim, 3)
    save_model(SingleStream(single), tmp_path / "model", {})
    (tmp_path / "model" / "tokenizer.json").write_bytes((world / "model" / "tokenizer.json").read_bytes())
    with pytest.raises(RecipeError, match="a SingleStream, which has no task tokens"):
        recipe(**settings(world, model=tmp_path / "model"))


@pytest.mark.slow
def test_two_tasks_are_learned_together_as_well_as_apart(tmp_path: Path):
    """Neither task loses more than 2 points of accuracy on held-out images."""
    store = write_colours(tmp_path / "colours", 60)
    questions, annotations = write_files(tmp_path / "files", [*range(40)])
    held_out = write_files(tmp_path / "held_out", [*range(40, 60)], "val2014")
    regions = write_store(tmp_path / "regions")
    references, instances = write_references(tmp_path / "refcoco+")
    model = write_pretrained(tmp_path / "model", [QUESTION, *SENTENCES])
    files = {
        "vqa": {"questions": [questions], "annotations": [annotations], "regions": store.folder, "min_answer_count": 3},
        "grounding": {"references": references, "instances": instances, "regions": regions.folder},
    }
    shared = {"batch_size": 8, "workers": 0}
    options = {"device": "cpu", "precision": "fp32", "log_every": 100, "validate_every": 40}
    for name, values in files.items():
        alone = {"model": model, "epochs": 30.0, "learning_rate": 2e-3} | values | shared
        assert train(name, alone, tmp_path / name, **options) == 0
    tasks = {name: {"recipe": name} | values | shared for name, values in files.items()}
    tasks["vqa"] |= dict(zip(("validation_questions", "validation_annotations"), held_out, strict=True))
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(tasks, default=str))))
    together = {"model": model, "tasks": tmp_path / "tasks.yaml", "epochs": 30.0, "learning_rate": 2e-3}
    assert train("joint", together | {"leaks": "drop"}, tmp_path / "joint", **options) == 0
    scores = {}
    for run in ("vqa", "grounding", "joint"):
        if run != "grounding":
            metrics = evaluate_vqa(tmp_path / run, held_out[0], annotations=held_out[1], regions=store.folder)
            scores["vqa", run] = metrics["vqa.accuracy"]
        if run != "vqa":
            metrics = evaluate_grounding(tmp_path / run, references, instances, regions.folder, "testA")
            scores["grounding", run] = metrics["grounding.accuracy"]
    for task in files:
        assert scores[task, "joint"] > scores[task, task] - 0.02 and scores[task, task] > 0.8
