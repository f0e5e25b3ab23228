"""Every task of the registry that reads regions takes a training split for its baselines, on the command line too."""

import inspect

import pytest

from comodal.registry import TASKS, import_object

WITHOUT_TRAINING_SPLIT = {"foils"}  # benchmarks of foils are test sets
VISION_LANGUAGE = [
    name
    for name, entry in TASKS.items()
    if "regions" in inspect.signature(import_object(entry.target)).parameters and name not in WITHOUT_TRAINING_SPLIT
]


def test_the_vision_language_tasks_are_those_of_the_papers():
    assert {
        "vqa", "vcr", "grounding", "retrieval", "phrases", "gqa", "nlvr2", "visual_genome", "entailment", "visual7w",
        "guesswhat",
    } == set(VISION_LANGUAGE)  # fmt: skip


@pytest.mark.parametrize("task", VISION_LANGUAGE)
def test_a_vision_language_task_takes_a_training_split(task: str):
    parameters = inspect.signature(import_object(TASKS[task].target)).parameters
    assert parameters["train_data"].default is None
    assert task == "vcr" or "train_regions" in parameters  # the baselines of VCR do not see the image
