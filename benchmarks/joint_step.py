"""Steps of joint training (12-in-1) against steps of its single tasks, on the same batches, timed in turn.

One round of joint training is a step of each task. The single runs take the same steps, each with its own network,
as `comodal train TASK` does, with the token of the task. Those without it show what a longer text costs: a task token
is one more token of each text. All read their batches in the process, and take the trainer's step. The data are those
of the tests: synthetic images with random regions. The network has the base's widths and fewer layers.

    python benchmarks/joint_step.py [--batch 16] [--rounds 9] [--threads 1] [--out results.json]
"""

import argparse
import inspect
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from comodal.hardware import Compute
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import load_model, save_model
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.recipes.joint_training import find_joint_tasks, recipe, to_paths
from comodal.registry import RECIPES, import_object
from comodal.tasks.vision_language.task_tokens import NUM_TASK_TOKENS
from comodal.text_files import read_yaml
from comodal.training.recipe_run import Run
from comodal.training.training_loop import train_steps
from machine import describe_machine, print_ratio, save, seconds_in_turn

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.twelve_in_one import write_twelve_in_one

TASKS = ("vqa", "gqa", "refcoco_plus", "nlvr2")
TARGET = 0.95  # the rate of joint training, as a ratio to that of its single tasks


def write_model(folder: Path, task_tokens: int) -> Path:
    """A ViLBERT with the widths of the base, two co-attention layers and four text layers."""
    base, small = ViLBERTConfig(), load_model(folder / "model").config
    config = replace(
        base,
        vocabulary=small.vocabulary,
        text=replace(base.text, layers=4),
        vision=replace(base.vision, layers=2),
        co_attention_layers=((0, 2), (1, 3)),
        region_feature_dim=small.region_feature_dim,
        region_targets=small.region_targets,
        task_tokens=task_tokens,
    )
    torch.manual_seed(0)
    out = folder / f"base_{task_tokens}"
    save_model(ViLBERT(config), out, {})
    WordPieceTokenizer.read(folder / "model").save(out)
    return out


def make_steps(run: Run) -> Iterator[object]:
    """The steps of a run, as the trainer takes them."""
    compute, batches = Compute(torch.device("cpu"), "fp32"), run.batches.iterate_batches()
    return train_steps(run.objective, batches, run.optimizer, run.learning_rate, range(run.steps), compute)


def make_rounds(runs: list[Run], steps: int) -> Callable[[], None]:
    """A function that takes some steps of each run."""
    streams = [make_steps(run) for run in runs]

    def take_round() -> None:
        for stream in streams:
            for _ in range(steps):
                next(stream)

    return take_round


def build_single(model: Path, entry: dict, data: Path) -> Run:
    """The run of one task, with the options of the shipped list."""
    function = import_object(RECIPES[entry["recipe"]].target)
    kinds = {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()}
    values = {key: to_paths(kinds[key], value, data) for key, value in entry.items() if key in kinds}
    if "base_0" in model.name:
        values.pop("task_token")
    return function(**{"model": model, "epochs": 1000.0} | values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        data = write_twelve_in_one(Path(folder))
        with_tokens, without = write_model(Path(folder), NUM_TASK_TOKENS), write_model(Path(folder), 0)
        listed = read_yaml(find_joint_tasks(Path("twelve_in_one")))
        tasks = {name: listed[name] | {"batch_size": options.batch, "workers": 0} for name in TASKS}
        path = Path(folder) / "tasks.yaml"
        path.write_text(yaml.safe_dump(tasks, sort_keys=False))
        joint = recipe(with_tokens, path, data, epochs=1000.0, order="round_robin", leaks="drop")
        works = {
            "joint": make_rounds([joint], len(TASKS)),
            "single": make_rounds([build_single(with_tokens, entry, data) for entry in tasks.values()], 1),
            "single, no task token": make_rounds([build_single(without, entry, data) for entry in tasks.values()], 1),
        }
        seconds = seconds_in_turn(works, options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name}: {medians[name]:.2f} s a round of {len(TASKS)} steps ({min(values):.2f} - {max(values):.2f})")
    ratio = medians["single"] / medians["joint"]
    print_ratio(f"joint training of {', '.join(TASKS)} and single tasks, batch {options.batch}", ratio, TARGET, machine)
    numbers = {f"{name}.seconds": value for name, value in medians.items()}
    save({"joint.ratio": ratio, **numbers, **machine}, options.out)


if __name__ == "__main__":
    main()
