"""Joint training on two processes (gloo, by torchrun) does the steps of one: the same task, gradients averaged."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from comodal.models.checkpoint import load_model
from comodal.text_files import read_log
from tests.support.small_vilbert_data import write_task_set

# Without the dropout of the heads, which each process draws for itself.
PROGRAM = """
import sys
import comodal.models.vilbert.heads as heads
heads.TASK_HEAD_DROPOUT = 0.0
from comodal.cli.program import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("joint")
    write_task_set(folder, "coco")
    shared = {"regions": "regions", "batch_size": 8, "workers": 0}
    vqa = {
        "questions": ["world/coco/vqa/v2_OpenEnded_mscoco_train2014_questions.json"],
        "annotations": ["world/coco/vqa/v2_mscoco_train2014_annotations.json"],
        "min_answer_count": 1,
    }
    references = {name: f"world/coco/refcoco+/{file}" for name, file in (
        ("references", "refs(unc).p"), ("instances", "instances.json"))}  # fmt: skip
    tasks = {"vqa": {"recipe": "vqa"} | vqa | shared, "refcoco": {"recipe": "grounding"} | references | shared}
    (folder / "tasks.yaml").write_text(yaml.safe_dump(tasks, sort_keys=False))
    (folder / "program.py").write_text(PROGRAM)
    words = [str(folder / "program.py"), "train", "joint", "--model", str(folder / "model"), "--data", str(folder)]
    words += ["--tasks", str(folder / "tasks.yaml"), "--epochs", "0.5", "--learning-rate", "1e-3"]
    return [*words, "--device", "cpu", "--precision", "fp32", "--log-every", "1"]


def run(processes: int, words: list[str], out: Path) -> list[dict]:
    """The lines of the log, one a step."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in read_log(out / "metrics.jsonl") if line["split"] == "train"]


@pytest.mark.slow
def test_two_processes_train_the_tasks_of_one(words: list[str], tmp_path: Path):
    """Losses, norms of gradients and the trained weights; each step leaves out the head of the other task."""
    two, one = run(2, words, tmp_path / "two"), run(1, words, tmp_path / "one")
    assert len(two) == len(one) >= 6
    for name in ("loss", "accuracy", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-6), name
    ours, theirs = (load_model(tmp_path / name).state_dict() for name in ("two", "one"))
    differences = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    # The gradient of a key's bias is 0, since a softmax does not depend on it; Adam scales its rounding errors up, and
    # those of other small gradients a little: 1e-5 is a hundredth of a step.
    assert {name: value for name, value in differences.items() if value > 1e-5 and not name.endswith("key.bias")} == {}
