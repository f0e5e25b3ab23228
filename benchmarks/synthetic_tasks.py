"""Every task with words and pictures on the synthetic: begun from pretraining, from chance, and with one side blank.

A small ViLBERT learns from the pictures with captions of one made-up world, and is fine-tuned on the official files of
another, whose pictures it has never seen. Each task is trained three times with the same settings: from what was
pretrained, from chance (the control of pretraining), and from what was pretrained without the picture (the control of
looking; grounding has only pictures to choose from, and goes without the text). Regions are the given boxes over all
maps of EfficientNet-Lite0. Scores are those of the validation split; every one lies in a results card, and
`comodal results OUT/results` makes one table of them.

    python benchmarks/synthetic_tasks.py --out tasks/
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from comodal.recipes import vilbert_pretraining
from comodal.regions.extract import extract_regions
from comodal.synthetic.synthesize import synthesize
from comodal.tasks.retrieval import caption_retrieval
from comodal.tasks.vision_language import nlvr2, snli_ve, vcr
from comodal.tasks.vision_language.grounding import refcoco
from comodal.tasks.vision_language.question_answering import vqa
from comodal.training.run import train

SETS = {"coco": "images", "flickr30k": "flickr30k-images", "vcr": "vcr1images", "nlvr2": "images"}
CONTROLS = {"pretrained": {}, "scratch": {"start_from": "scratch"}, "blind": {"ablate": "image"}}


@dataclass(frozen=True)
class Task:
    """How a task is trained, how it is scored, and what of its scores counts."""

    recipe: Callable[..., Any]
    training: dict[str, Any]
    evaluate: Callable[..., dict[str, float]]
    score: str
    epochs: float
    batch_size: int = 32
    learning_rate: float = 3e-4
    ablate: str = "image"


def tasks_of(world: Path, regions: Path) -> dict[str, Task]:
    """All tasks, on the official files of a world."""
    asked, seen, told = world / "coco" / "vqa", regions / "coco", regions / "flickr30k"
    references = world / "coco" / "refcoco+" / "refs(unc).p", world / "coco" / "refcoco+" / "instances.json", seen
    questions = {split: asked / f"v2_OpenEnded_mscoco_{split}_questions.json" for split in ("train2014", "val2014")}
    answers = {split: asked / f"v2_mscoco_{split}_annotations.json" for split in questions}
    captions, statements = world / "flickr30k" / "dataset_flickr30k.json", world / "flickr30k"
    return {
        "vqa": Task(
            vqa.recipe,
            {"questions": [questions["train2014"]], "annotations": [answers["train2014"]], "regions": seen},
            partial(vqa.evaluate_vqa, questions=questions["val2014"], annotations=answers["val2014"], regions=seen),
            "vqa.accuracy",
            epochs=16,
        ),
        "grounding": Task(
            refcoco.recipe,
            dict(zip(("references", "instances", "regions"), references, strict=True)),
            partial(
                refcoco.evaluate_grounding, references=references[0], instances=references[1], regions=references[2]
            ),
            "grounding.accuracy",
            epochs=2,  # after eight, chance has caught up
            ablate="text",
        ),
        "entailment": Task(
            snli_ve.recipe,
            {"data": statements / "snli_ve_train.jsonl", "regions": told},
            partial(snli_ve.evaluate_entailment, data=statements / "snli_ve_dev.jsonl", regions=told),
            "entailment.accuracy",
            epochs=10,
        ),
        "nlvr2": Task(
            nlvr2.recipe,
            {"data": world / "nlvr2" / "train.json", "regions": regions / "nlvr2"},
            partial(nlvr2.evaluate_nlvr2, data=world / "nlvr2" / "dev.json", regions=regions / "nlvr2"),
            "nlvr2.accuracy",
            epochs=10,
        ),
        "vcr": Task(
            vcr.recipe,
            {"data": world / "vcr" / "train.jsonl", "regions": regions / "vcr"},
            partial(vcr.evaluate_vcr, data=world / "vcr" / "val.jsonl", regions=regions / "vcr"),
            "vcr.q_to_ar",
            epochs=8,
            learning_rate=2e-4,
        ),
        "retrieval": Task(
            caption_retrieval.recipe,
            {"captions": captions, "regions": told},
            partial(caption_retrieval.evaluate_retrieval, captions=captions, regions=told, split="validation"),
            "retrieval.text_to_image.r10",
            epochs=4,  # each caption stands in four pairs
            learning_rate=2e-4,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="efficientnet_lite0", help="of `comodal extract`: a vision network")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--tasks", nargs="+", default=["vqa", "grounding", "entailment", "nlvr2", "vcr", "retrieval"])
    parser.add_argument("--scenes", type=int, default=1500, help="pictures of each task's set")
    parser.add_argument("--captioned", type=int, default=5000, help="pictures with captions to learn from")
    parser.add_argument("--steps", type=int, default=8000, help="of pretraining")
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs of each task")
    options = parser.parse_args()
    pretrained = pretrain(options.out, options.detector, options.captioned, options.steps)
    make_regions(options.out, "world", tuple(SETS), options.detector, options.scenes, seed=0)
    tasks = tasks_of(options.out / "world", options.out / "world_regions")
    numbers = learn(options.out, {name: tasks[name] for name in options.tasks}, pretrained, options.share)
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for name in options.tasks:
        print(f"{name:<12}", *(f"{control} {numbers[f'{name}.{control}']:.3f}" for control in CONTROLS), sep="  ")


def pretrain(out: Path, detector: str, captioned: int, steps: int) -> Path:
    """A small ViLBERT that has learnt from another world's captions."""
    world, regions = make_regions(out, "captioned", ("flickr30k",), detector, captioned, seed=1)
    settings = {
        "data": regions / "flickr30k", "captions": world / "flickr30k" / "dataset_flickr30k.json",
        "vocabulary": world / "vocab.txt", "variant": "small", "dropout": 0.0, "steps": steps, "batch_size": 64,
        "learning_rate": 5e-4, "workers": 0,
    }  # fmt: skip
    train(vilbert_pretraining.recipe, settings, out / "pretrained", resume=True, threads=torch.get_num_threads())
    return out / "pretrained"


def make_regions(out: Path, name: str, sets: Sequence[str], detector: str, scenes: int, seed: int) -> tuple[Path, Path]:
    """A world, and the regions of its sets."""
    world, regions = out / name, out / f"{name}_regions"
    synthesize(world, videos=0, audio=0, images=0, scenes=scenes, tasks=sets, seed=seed)
    for one in sets:
        folder = world / one
        extract_regions(folder / SETS[one], regions / one, detector, folder / "boxes.jsonl", maps="all")
    return world, regions


def learn(out: Path, tasks: dict[str, Task], pretrained: Path, share: float) -> dict[str, float]:
    """The score of each task and control."""
    numbers: dict[str, float] = {}
    for name, task in tasks.items():
        for control, changed in CONTROLS.items():
            ablation = {"ablate": task.ablate} if "ablate" in changed else {}
            settings = task.training | changed | ablation | {
                "model": pretrained, "epochs": share * task.epochs, "batch_size": task.batch_size,
                "learning_rate": task.learning_rate, "workers": 0,
            }  # fmt: skip
            if name == "vqa":
                settings["min_answer_count"] = 1
            run, results = out / "runs" / f"{name}_{control}", out / "results" / f"{name}_{control}"
            train(task.recipe, settings, run, resume=True, threads=torch.get_num_threads())
            numbers[f"{name}.{control}"] = task.evaluate(run, out=results, **ablation)[task.score]
    return numbers


if __name__ == "__main__":
    main()
