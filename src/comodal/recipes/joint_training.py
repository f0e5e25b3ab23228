"""Joint training of one ViLBERT on several tasks (12-in-1: Multi-Task Vision and Language Representation Learning).

The tasks share the network and, where they have the same head, the head (VCR and retrieval). Every text has the token
of its task. Each step trains one task, round-robin; tasks stop and go (comodal.training.task_schedule).

Departs from the original (facebookresearch/vilbert-multi-task): all tasks are validated after a fixed number of steps,
the learning rate falls linearly, and no loss is weighted by the ratio of the tasks' learning rates.

The clean-splits rule (12-in-1, section 3.2) is checked: no image of a task's validation, and none that is listed as a
test image, is trained on by any task. They are matched by the ids of the images.

With several processes, all train the same task in a step, each on its part of the batch.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from comodal.console import print_line
from comodal.data.batch import TaskBatch
from comodal.data.image_ids import parse_coco_image_id
from comodal.data.loader import Loader
from comodal.errors import DataError, RecipeError
from comodal.models.checkpoint import load_model
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.recipes.recipe_configs import CONFIGS_DIR
from comodal.registry import RECIPES, import_object
from comodal.tasks.vision_language.answer_files import ANSWERS_FILE, name_answers_file
from comodal.tasks.vision_language.sentence_classification import TASK_FILE
from comodal.tasks.vision_language.task_tokens import NUM_TASK_TOKENS, choose_task_token
from comodal.tasks.vision_language.text_image_examples import TaskDataset
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    HEAD_LEARNING_RATE,
    VILBERT_WARMUP_RATIO,
    VILBERT_WEIGHT_DECAY,
    FineTuningObjective,
    LossOutput,
    get_backbone,
    score_batch,
)
from comodal.text_files import read_lines, read_yaml
from comodal.training.optimization import make_adamw, make_linear_schedule
from comodal.training.recipe_run import Run
from comodal.training.task_schedule import JointBatch, JointLoader, TaskSchedule

VISUAL7W_PREFIX = "v7w_"  # of Visual7W's file names of Visual Genome's images


class JointTask(NamedTuple):
    """One task of joint training: its name in the log, its head with the first weights, its loss, and its batches."""

    name: str
    head: Head
    weights: Mapping[str, Tensor]
    compute_loss: Callable[[Tensor, TaskBatch], LossOutput]
    train: Loader
    validation: Loader | None
    fingerprint: str
    files: Mapping[str, bytes | Path]


class JointObjective(nn.Module):
    """The loss of the task of a batch. In evaluation, its accuracy has the name of the task.

    Args:
        model: The model with the heads of all tasks.
        tasks: The tasks.
        schedule: The order of the tasks; it is kept here so that checkpoints have its state.
    """

    def __init__(self, model: TaskModel, tasks: Sequence[JointTask], schedule: TaskSchedule) -> None:
        super().__init__()
        self.model, self.schedule = model, schedule
        self.tasks = [(task.name, task.head.name, task.compute_loss) for task in tasks]

    def forward(self, joint: JointBatch) -> dict[str, Tensor]:
        name, head, compute_loss = self.tasks[joint.task]
        assert isinstance(joint.batch, TaskBatch)
        output = compute_loss(score_batch(self.model, head, joint.batch).float(), joint.batch)
        if self.training:
            return {"loss": output.loss, "accuracy": output.accuracy}
        return {"loss": output.loss, f"{name}_loss": output.loss, f"{name}_accuracy": output.accuracy}


def recipe(
    model: Path,
    tasks: Path,
    data: Path | None = None,
    only: Sequence[str] = (),
    epochs: float = 20.0,
    learning_rate: float = 4e-5,
    order: Literal["stop_and_go", "round_robin"] = "stop_and_go",
    test_images: Path | None = None,
    leaks: Literal["error", "drop"] = "error",
    seed: int = 0,
) -> Run:
    """Trains one ViLBERT jointly on several tasks, with task tokens and a shared network.

    Args:
        model: Run or model folder of a pretrained ViLBERT, or of a model with heads (the published multi-task model),
            whose heads and task tokens go on training.
        tasks: YAML file: a mapping of names to tasks. Each has `recipe` (vqa, gqa, vcr, grounding, retrieval, nlvr2,
            entailment, ...) and the options of `comodal train RECIPE`, such as its data, batch_size and task_token.
            Or a shipped list of tasks: twelve_in_one.
        data: Folder of the paths in `tasks`; by default they are relative to the working directory.
        only: Names of the tasks to train, in this order; by default all.
        epochs: Passes over the task with the most steps.
        learning_rate: Peak learning rate of the network; that of new heads and of task tokens is at least 1e-4.
        order: round_robin trains all tasks in turn. With stop_and_go a task whose validation accuracy stalls is trained
            in every fourth round, until its accuracy falls.
        test_images: Text file of image ids, one a line, that no task may be trained on: the test images of all tasks.
        leaks: If a task is trained on a test image, or on an image of another task's validation: stop with an error, or
            drop its examples.
        seed: Seed of new weights, of the order and of random draws.

    Examples:
        comodal train joint --model runs/vilbert --tasks tasks.yaml --out runs/joint
        comodal train --config twelve_in_one --model runs/vilbert --data data/ --out runs/joint
    """
    tasks = find_joint_tasks(tasks)
    entries = select_joint_tasks(read_joint_tasks(tasks), only, tasks)
    joint_tasks = [build_joint_task(name, model, entry, seed, tasks, data) for name, entry in entries.items()]
    enforce_clean_splits(joint_tasks, read_image_ids(test_images), leaks, tasks)
    files = merge_run_files(joint_tasks, tasks)
    network = build_joint_model(model, joint_tasks, seed)
    for task, entry in zip(joint_tasks, entries.values(), strict=True):
        given = entry.get("task_token")
        token = choose_task_token(network.config.vilbert, task.head.name, given)
        for loader in (task.train, task.validation):
            if loader is not None:
                dataset = get_task_dataset(loader)
                dataset.task_token, dataset.is_token_fixed = token, given is not None
    schedule = TaskSchedule(tuple(entries), order == "stop_and_go")
    objective = JointObjective(network, joint_tasks, schedule)
    freeze_unused_joint_parameters(objective, joint_tasks)
    max_steps = max(-(-len(task.train.samples) // task.train.batch_size) for task in joint_tasks)
    steps = max(1, round(epochs * max_steps)) * len(joint_tasks)
    rate = max(learning_rate, HEAD_LEARNING_RATE)
    pretrained = [p for name, p in network.vilbert.named_parameters() if name != "text_embeddings.tasks.weight"]
    validation = [task.validation for task in joint_tasks]
    return Run(
        objective=objective,
        batches=JointLoader([task.train for task in joint_tasks], schedule),
        validation=JointLoader(validation, None) if any(loader is not None for loader in validation) else None,
        optimizer=make_adamw(
            objective, rate, VILBERT_WEIGHT_DECAY, pretrained=pretrained, pretrained_lr_scale=learning_rate / rate
        ),
        learning_rate=make_linear_schedule(rate, steps, round(VILBERT_WARMUP_RATIO * steps)),
        steps=steps,
        seed=seed,
        fingerprint=hashlib.sha256(" ".join(task.fingerprint for task in joint_tasks).encode()).hexdigest()[:16],
        files=files,
        on_validation=schedule.update,
        has_unused_parameters=True,
    )


def find_joint_tasks(path: Path) -> Path:
    """The file of a list of tasks: an existing file, or else the shipped list of this name."""
    shipped = CONFIGS_DIR / "joint_tasks" / f"{path}.yaml"
    return shipped if not path.exists() and path.name == str(path) and shipped.is_file() else path


def read_joint_tasks(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the tasks.

    Raises:
        RecipeError: The file has another layout.
    """
    entries = read_yaml(path, RecipeError)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("recipe") not in RECIPES:
            raise RecipeError(f"{path}: {name} is no task; a task has a recipe ({', '.join(RECIPES)}) and its options")
    if len(entries) < 2:
        raise RecipeError(f"{path} has {len(entries)} tasks; joint training requires two or more")
    return entries


def select_joint_tasks(
    entries: dict[str, dict[str, Any]], only: Sequence[str], path: Path
) -> dict[str, dict[str, Any]]:
    """The tasks of these names, or all.

    Raises:
        RecipeError: There is no task of such a name.
    """
    if unknown := [name for name in only if name not in entries]:
        raise RecipeError(f"{path} has no task {unknown[0]!r}; it has {', '.join(entries)}")
    return {name: entries[name] for name in only} if only else entries


def build_joint_task(
    name: str, model: Path, entry: Mapping[str, Any], seed: int, path: Path, data: Path | None
) -> JointTask:
    """Builds the run of one task by its own recipe, and keeps its data, its head and its loss.

    Raises:
        RecipeError: The recipe has no such option, or does not fine-tune a ViLBERT.
    """
    function = import_object(RECIPES[entry["recipe"]].target)
    options = {key.replace("-", "_"): value for key, value in entry.items() if key not in ("recipe", "task_token")}
    parameters = inspect.signature(function).parameters
    if unknown := sorted(options.keys() - parameters.keys()):
        raise RecipeError(f"{path}: {name} has the options {', '.join(unknown)}, which {entry['recipe']} does not have")
    values = {key: to_paths(parameters[key].annotation, value, data or Path()) for key, value in options.items()}
    try:
        run = function(**{"model": model, "seed": seed} | values)
    except TypeError as error:
        raise RecipeError(f"{path}: {name}: {error}") from error
    objective = run.objective
    if not isinstance(objective, FineTuningObjective):
        raise RecipeError(f"{path}: {name}: the recipe {entry['recipe']} does not fine-tune a ViLBERT")
    head = next(head for head in objective.model.config.heads if head.name == objective.head)
    weights = objective.model.heads[head.name].state_dict()
    return JointTask(
        name, head, weights, objective.compute_loss, run.batches, run.validation, run.fingerprint, run.files
    )


def to_paths(annotation: Any, value: Any, folder: Path) -> Any:
    """Converts the strings of an option that takes paths, which are relative to a folder."""
    if "Path" not in str(annotation):
        return value
    return [folder / item for item in value] if isinstance(value, list) else None if value is None else folder / value


def build_joint_model(model: Path, tasks: Sequence[JointTask], seed: int) -> TaskModel:
    """The network with task tokens and the heads of all tasks; what the model has is kept.

    Raises:
        RecipeError: Two tasks have different heads of one name, or the model is a single stream.
    """
    unique: dict[str, Head] = {}
    for task in tasks:
        if unique.setdefault(task.head.name, task.head) != task.head:
            raise RecipeError(f"two tasks have a head {task.head.name!r} of different sizes: train them separately")
    backbone = get_backbone(load_model(model), model)
    if not isinstance(backbone, ViLBERT):
        raise RecipeError(f"{model}: a {type(backbone).__name__}, which has no task tokens; joint training needs them")
    config = replace(backbone.config, task_tokens=backbone.config.task_tokens or NUM_TASK_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TaskModel(TaskModelConfig(config, tuple(unique.values())))
    network.vilbert.load_state_dict(backbone.state_dict(), strict=False)  # lacks nothing but the task tokens
    for task in reversed(tasks):  # of tasks that share a head, the first
        network.heads[task.head.name].load_state_dict(task.weights)
    return network.train()


def get_task_dataset(loader: Loader) -> TaskDataset:
    """The data set of a task's loader."""
    assert isinstance(loader.samples, TaskDataset)
    return loader.samples


def freeze_unused_joint_parameters(objective: JointObjective, tasks: Sequence[JointTask]) -> None:
    """Freezes parameters that no task depends on. A step uses those of one task only."""
    for index, task in enumerate(tasks):
        objective(JointBatch(index, get_task_dataset(task.train).batch([(0, 0)])))["loss"].backward()
    for parameter in objective.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


def merge_run_files(tasks: Sequence[JointTask], path: Path) -> dict[str, bytes | Path]:
    """The files that inference needs; those of the first task where regions of several stores are recorded.

    Each answer head has its own answers. The description of a single task is left out.

    Raises:
        RecipeError: Two tasks have different vocabularies, or different answers for one head.
    """
    merged: dict[str, bytes | Path] = {}
    for task in tasks:
        for file, content in task.files.items():
            name = name_answers_file(task.head.name) if file == ANSWERS_FILE else file
            is_same = merged.setdefault(name, content) == content
            if not is_same and name == ANSWERS_FILE:
                raise RecipeError(
                    f"{path}: {task.name} has other answers than the tasks before with the head {task.head.name!r}: "
                    f"give both the same file of `answers`"
                )
            if not is_same and not name.startswith("regions") and name != TASK_FILE:
                raise RecipeError(
                    f"{path}: {task.name} needs another {name} than the tasks before: train it separately"
                )
    merged.pop(TASK_FILE, None)
    return merged


# Clean splits


def read_image_ids(path: Path | None) -> set[str]:
    """The ids of a text file, one a line."""
    return set() if path is None else {normalize_image_id(line) for line in read_lines(path) if line.strip()}


def normalize_image_id(name: str) -> str:
    """An id that is the same for all names of an image: without folder and suffix; a number for COCO and Visual7W."""
    stem = name.strip().rpartition("/")[2].partition(".")[0].removeprefix(VISUAL7W_PREFIX)
    return parse_coco_image_id(stem) or stem


def list_image_ids(dataset: TaskDataset) -> list[set[str]]:
    """The image ids of each example."""
    ids = dataset.store.ids
    return [
        {normalize_image_id(ids[row]) for row in dataset.source.example(0, index).rows}
        for index in range(len(dataset.source))
    ]


def enforce_clean_splits(
    tasks: Sequence[JointTask], test_ids: set[str], leaks: Literal["error", "drop"], path: Path
) -> None:
    """Checks that no task is trained on a test image or on an image of any task's validation.

    Raises:
        DataError: One is, and `leaks` is not "drop"; or nothing is left of a task.
    """
    held_out = {
        task.name: set().union(*list_image_ids(get_task_dataset(task.validation)))
        for task in tasks
        if task.validation is not None
    } | {"the test images": test_ids}
    for task in tasks:
        dataset = get_task_dataset(task.train)
        images = list_image_ids(dataset)
        shared = {name: ids & set().union(*images) for name, ids in held_out.items()}
        leaked = {name: ids for name, ids in shared.items() if ids}
        if not leaked:
            continue
        counts = ", ".join(f"{len(ids):,} images of {name} ({min(ids)})" for name, ids in leaked.items())
        if leaks == "error":
            raise DataError(f"{path}: {task.name} is trained on {counts}; --leaks drop leaves out their examples")
        forbidden = set().union(*leaked.values())
        kept = np.array([index for index, ids in enumerate(images) if not ids & forbidden], np.int64)
        print_line(
            f"{task.name}: {len(images) - len(kept):,} of {len(images):,} examples dropped: {counts}", stderr=True
        )
        if not len(kept):
            raise DataError(f"{path}: no training example of {task.name} is left")
        dataset.select_examples(kept)
