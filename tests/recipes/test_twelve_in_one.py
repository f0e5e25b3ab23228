"""12-in-1: the shipped configs, tasks with different answers, the heads of the published model, VCR's two tokens."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from comodal.cli.program import main
from comodal.errors import CheckpointError, RecipeError
from comodal.models.checkpoint import load_model, save_model
from comodal.models.vilbert.heads import make_twelve_in_one_heads
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.recipes.joint_training import find_joint_tasks, recipe
from comodal.recipes.recipe_configs import CONFIGS_DIR, list_recipe_configs, read_recipe_config
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.tasks.retrieval.gallery import load_retrieval_data
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.vision_language import vcr
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering import gqa, vqa
from comodal.tasks.vision_language.vilbert_fine_tuning import EvaluationOptions, score_examples
from comodal.text_files import read_log, read_yaml
from comodal.training.run import train
from tests.support.small_vilbert_data import write_task_set
from tests.support.twelve_in_one import GQA_ANSWERS, VQA_ANSWERS, write_twelve_in_one

CONFIGS = [name for name, entry in list_recipe_configs().items() if entry.target == "joint"]
TASKS = read_yaml(find_joint_tasks(Path("twelve_in_one")))
OPTIONS = {"device": "cpu", "precision": "fp32", "log_every": 1}
# The ids of facebookresearch/vilbert-multi-task, vilbert_tasks.yml.
ORIGINAL_IDS = {
    "vqa": 1, "visual_genome": 2, "retrieval_coco": 7, "retrieval_flickr30k": 8, "refcoco": 9, "refcoco_plus": 10,
    "refcocog": 11, "nlvr2": 12, "snli_ve": 13, "gqa": 15, "visual7w": 4, "guesswhat": 17,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("twelve")
    write_twelve_in_one(path)
    return path


def small_tasks(folder: Path, names: Sequence[str]) -> Path:
    """The shipped list with small batches."""
    small = {name: TASKS[name] | {"batch_size": 2, "workers": 0} for name in names}
    path = folder / f"{'_'.join(names)}.yaml"
    path.write_text(yaml.safe_dump(small, sort_keys=False))
    return path


def settings(folder: Path, names: Sequence[str], **others: object) -> dict:
    values = {"model": folder / "model", "tasks": small_tasks(folder, names), "data": folder / "data"}
    return values | {"epochs": 0.01, "leaks": "drop"} | others


def test_the_task_tokens_are_the_ids_of_the_original():
    assert {name: entry["task_token"] for name, entry in TASKS.items()} == ORIGINAL_IDS
    groups = [read_recipe_config(Path(name)).options.get("only") for name in CONFIGS]
    grouped = [task for group in groups if group for task in group]
    assert len(groups) == 5 and sorted(grouped) == sorted(TASKS)  # each task is in one group


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_one_round(name: str, folder: Path, tmp_path: Path):
    """With one step of each task; the batches of the shipped list are larger than the small data."""
    only = read_recipe_config(Path(name)).options.get("only", list(TASKS))
    words = ["--model", f"{folder / 'model'}", "--tasks", f"{small_tasks(folder, list(TASKS))}"]
    words += ["--data", f"{folder / 'data'}", "--epochs", "0.01", "--device", "cpu", "--precision", "fp32"]
    assert main(["train", "--config", name, *words, "--out", str(tmp_path / "run"), "--log-every", "1"]) == 0
    log = read_log(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in log if line["split"] == "train"] == list(range(1, len(only) + 1))
    model = load_model(tmp_path / "run")
    assert isinstance(model, TaskModel) and model.vilbert.config.task_tokens == 20


def test_the_batches_have_the_token_of_their_task(folder: Path):
    run = recipe(**settings(folder, list(TASKS)))
    tokens = [set(loader.samples.batch([(0, 0)]).task_ids.tolist()) for loader in run.batches.loaders]
    assert tokens == [{ORIGINAL_IDS[name]} for name in TASKS]


@pytest.fixture(scope="module")
def answering(folder: Path) -> Path:
    out = folder / "runs" / "answering"
    assert train("joint", settings(folder, ["gqa", "vqa", "visual_genome"], epochs=1.0), out, **OPTIONS) == 0
    return out


def evaluate_both(run: Path, folder: Path, out: Path) -> tuple[set[str], set[str]]:
    """The answers that one model gives to VQA's and to GQA's questions."""
    data, names = folder / "data", TASKS["vqa"]
    files = {"questions": data / names["validation_questions"], "annotations": data / names["validation_annotations"]}
    vqa.evaluate_vqa(run, **files, regions=data / "regions" / "coco", out=out / "vqa")
    gqa.evaluate_gqa(run, data / TASKS["gqa"]["validation"], data / "regions" / "gqa", out=out / "gqa")
    vqa_answers = {row["answer"] for row in json.loads((out / "vqa" / "submission.json").read_text())}
    gqa_answers = {row["prediction"] for row in json.loads((out / "gqa" / "submission.json").read_text())}
    return vqa_answers, gqa_answers


@pytest.mark.slow
def test_one_model_answers_with_the_vocabulary_of_each_task(folder: Path, answering: Path, tmp_path: Path):
    """With a bias on the last output of each head, each task is answered with the last answer of its vocabulary."""
    model = load_model(answering)
    assert model.heads["vqa"][3].out_features == 7 and model.heads["gqa"][3].out_features == 5
    with torch.no_grad():
        for head in ("vqa", "gqa"):
            model.heads[head][3].bias[-1] += 100
    save_model(model, tmp_path / "model", {})
    for name in ("tokenizer.json", "answers.json", "gqa_answers.json"):
        (tmp_path / "model" / name).write_bytes((answering / "model" / name).read_bytes())
    assert evaluate_both(tmp_path / "model", folder, tmp_path) == ({VQA_ANSWERS[-1]}, {GQA_ANSWERS[-1]})
    (tmp_path / "model" / "gqa_answers.json").unlink()
    with pytest.raises(CheckpointError, match=r"its 7 answers do not fit its 5 scores \(answers.json\)"):
        evaluate_both(tmp_path / "model", folder, tmp_path)


def test_two_tasks_with_one_head_have_the_same_answers(folder: Path, tmp_path: Path):
    tasks = yaml.safe_load(small_tasks(folder, ["vqa", "visual_genome"]).read_text())
    tasks["visual_genome"] = {key: value for key, value in tasks["visual_genome"].items() if key != "answers"}
    tasks["visual_genome"]["min_answer_count"] = 1
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tasks, sort_keys=False))
    with pytest.raises(RecipeError, match=r"tasks.yaml: visual_genome has other answers .* 'vqa'.*`answers`"):
        recipe(**settings(folder, ["vqa"], tasks=tmp_path / "tasks.yaml"))


def published(folder: Path, out: Path) -> TaskModel:
    """A model with the heads of the published one, at small sizes, with its answers."""
    sizes = replace(load_model(folder / "model").config, task_tokens=20)
    counts = {"vqa": len(VQA_ANSWERS), "gqa": len(GQA_ANSWERS)}
    heads = [replace(head, outputs=counts.get(head.name, head.outputs)) for head in make_twelve_in_one_heads(32)]
    model = TaskModel(TaskModelConfig(sizes, tuple(heads)))
    save_model(model, out, {})
    (out / "tokenizer.json").write_bytes((folder / "model" / "tokenizer.json").read_bytes())
    (out / "answers.json").write_text(json.dumps(VQA_ANSWERS))
    (out / "gqa_answers.json").write_text(json.dumps(GQA_ANSWERS))
    return model


def equals(model: TaskModel, other: TaskModel, head: str) -> bool:
    ours, theirs = model.heads[head].state_dict(), other.heads[head].state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_heads_of_the_published_model_go_on_training(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = published(folder, tmp_path / "model")
    ours = recipe(**settings(folder, list(TASKS), model=tmp_path / "model")).objective.model
    assert set(ours.heads) == set(model.heads) - {"tokens"}
    assert all(equals(ours, model, head) for head in ours.heads)
    assert torch.equal(ours.vilbert.text_embeddings.tasks.weight, model.vilbert.text_embeddings.tasks.weight)
    (tmp_path / "model" / "gqa_answers.json").write_text(json.dumps(GQA_ANSWERS[::-1]))  # the same in another order
    capsys.readouterr()
    ours = recipe(**settings(folder, list(TASKS), model=tmp_path / "model")).objective.model
    assert not equals(ours, model, "gqa") and all(equals(ours, model, head) for head in ours.heads if head != "gqa")
    assert "the head 'gqa' of" in capsys.readouterr().err


def test_a_task_goes_on_from_the_head_of_all_tasks(folder: Path, tmp_path: Path):
    """The rows of 12-in-1 that are fine-tuned on one task from the model of all tasks."""
    model, data = published(folder, tmp_path / "model"), folder / "data"
    files = {"questions": data / TASKS["gqa"]["questions"], "regions": data / "regions" / "gqa"}
    run = gqa.recipe(tmp_path / "model", **files, answers=data / TASKS["gqa"]["answers"], batch_size=2, workers=0)
    assert equals(run.objective.model, model, "gqa")
    other = gqa.recipe(tmp_path / "model", **files, min_answer_count=1, batch_size=2, workers=0)
    assert other.objective.model.heads["gqa"][3].out_features == 1
    scratch = gqa.recipe(
        tmp_path / "model", **files, answers=data / TASKS["gqa"]["answers"], batch_size=2, start_from="scratch"
    )
    assert not equals(scratch.objective.model, model, "gqa")


def test_an_unknown_task_is_named(folder: Path):
    with pytest.raises(RecipeError, match=r"vqa_gqa.yaml has no task .vcr.; it has vqa, gqa"):
        recipe(**settings(folder, ["vqa", "gqa"], only=["vqa", "vcr"]))
    assert find_joint_tasks(Path("twelve_in_one")) == CONFIGS_DIR / "joint_tasks" / "twelve_in_one.yaml"


def test_the_two_choices_of_vcr_have_their_own_tokens(folder: Path, tmp_path: Path):
    """TASK5 and TASK6 of the original, in joint training and alone; a given token is that of both."""
    write_task_set(tmp_path, "vcr")
    published(folder, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").write_bytes((tmp_path / "model" / "tokenizer.json").read_bytes())
    entry = {"recipe": "vcr", "data": "world/vcr/train.jsonl", "regions": "regions", "batch_size": 2, "workers": 0}
    for given, expected in ((None, {"answer": 5, "rationale": 6}), (8, {"answer": 8, "rationale": 8})):
        tasks = {name: entry | ({} if given is None else {"task_token": given}) for name in ("vcr", "again")}
        (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tasks))
        run = recipe(tmp_path / "tokens", tmp_path / "tasks.yaml", tmp_path)
        alone = vcr.recipe(
            tmp_path / "tokens", tmp_path / entry["data"], tmp_path / "regions", task_token=given, workers=0
        )
        for samples in (run.batches.loaders[0].samples, alone.batches.samples):
            batch = samples.batch([(0, index) for index in range(len(samples))])
            parts = [key.split(" ")[1] for key in batch.keys for _ in range(4)]
            assert dict(zip(parts, batch.task_ids.tolist(), strict=True)) == expected
    without = vcr.recipe(tmp_path / "model", tmp_path / entry["data"], tmp_path / "regions", workers=0)
    assert not len(without.batches.samples.batch([(0, 0)]).task_ids)


def test_the_tokens_of_an_evaluation_reach_the_network(folder: Path, tmp_path: Path):
    """VCR's evaluation with tokens 5 and 6 has the scores of token 5 for answers and of token 6 for rationales."""
    write_task_set(tmp_path, "vcr")
    published(folder, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").write_bytes((tmp_path / "model" / "tokenizer.json").read_bytes())
    loaded = EvaluationOptions(device="cpu", precision="fp32").load_model(
        tmp_path / "tokens", tmp_path / "regions", "score"
    )
    rows = ImageRows(loaded.store)
    question = vcr.read_vcr_examples(tmp_path / "world" / "vcr" / "val.jsonl", 0)[0]
    examples = [
        vcr.build_answer_choices(question, rows, loaded.tokenizer, 60),
        vcr.build_rationale_choices(question, 0, rows, loaded.tokenizer, 80),
    ]

    def score(task_token: int | None) -> list[list[float]]:
        scored = score_examples(loaded._replace(task_token=task_token), "score", examples)
        return [item.scores.tolist() for item in sorted(scored, key=lambda item: item.position)]

    assert score(None) == [score(5)[0], score(6)[1]]
    assert score(5)[0] != score(6)[0] and score(5)[1] != score(6)[1]


def test_the_token_of_a_retrieval_evaluation_reaches_the_network(folder: Path, tmp_path: Path):
    """COCO's retrieval has token 7, and Flickr30k's token 8 is the default."""
    model = published(folder, tmp_path / "model").eval()
    files = (folder / "data" / "coco" / "dataset_coco.json", folder / "data" / "regions" / "coco")
    with pytest.raises(ValueError, match="task_token is 20, and the model has 20"):
        evaluate_retrieval(tmp_path / "model", *files, task_token=20)
    gallery = load_retrieval_data(tmp_path / "model", model.vilbert.config, *files, "train", 36, "none").gallery
    pairs = (np.arange(8), np.arange(8))

    def score(task_token: int | None) -> list[float]:
        return PairScorer(model.vilbert, gallery, task_token=task_token).score_pairs(*pairs).tolist()

    before, default = score(7), score(None)
    with torch.no_grad():
        model.vilbert.text_embeddings.tasks.weight[7] += 1 + torch.arange(32)
    assert score(7) != before and score(8) == score(None) == default
