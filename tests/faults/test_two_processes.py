"""Two processes (gloo, by torchrun) do the steps that one does: the same pairs, gradients averaged, one log."""

import subprocess
import sys
from pathlib import Path

import pytest

from comodal.text_files import read_log
from tests.support.small_world import write_world

WORDS = ["--variant", "small", "--width", "4", "--image_size", "16", "--batch_size", "8", "--validation_pairs", "16"]
WORDS += ["--steps", "6", "--log_every", "1", "--validate_every", "3", "--precision", "fp32", "--workers", "0"]


def run(processes: int, data: Path, out: Path, *more: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    start = torchrun if processes > 1 else ["-m"]
    words = ["comodal", "train", "l3net", "--data", str(data), "--out", str(out), "--device", "cpu", *WORDS, *more]
    done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path, split: str) -> list[float]:
    return [line["loss"] for line in read_log(out / "metrics.jsonl") if line["split"] == split]


@pytest.mark.slow
def test_two_processes_share_the_pairs_of_one(tmp_path: Path):
    """The first loss is the mean over the same eight pairs up to batch normalisation, which sees four at a time.

    With one process and two parts (gradient accumulation) normalisation sees the same four: those losses agree.
    """
    write_world(tmp_path / "data" / "train", 12)
    write_world(tmp_path / "data" / "validation", 6, seed=1)
    run(2, tmp_path / "data", tmp_path / "two")
    run(1, tmp_path / "data", tmp_path / "one", "--accumulate", "2")
    two, one = losses(tmp_path / "two", "train"), losses(tmp_path / "one", "train")
    assert len(two) == 6
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[:3] == pytest.approx(one[:3], rel=0.02)  # the running means, not the gradients, drift apart
    assert len(losses(tmp_path / "two", "validation")) == 2
