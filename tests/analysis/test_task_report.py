"""A report of a fine-tuned model tells the accuracy of the weights that are the model."""

import json
from pathlib import Path

import pytest

from comodal.analysis.reports.report import write_report
from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from tests.support.self_contained import check_page
from tests.support.small_tasks import config


def test_the_weights_that_did_best_are_told_and_what_a_task_cannot_show_is_refused(tmp_path: Path):
    run = tmp_path / "run"
    about = {"recipe": "grounding", "best_checkpoint": {"step": 1000, "accuracy": 0.9}}
    save_model(TaskModel(TaskModelConfig(config(20), (Head("regions", "regions", 1),))), run / "model", about)
    lines = [{"step": s, "split": "validation", "loss": 1.0, "accuracy": a} for s, a in ((1000, 0.9), (2000, 0.5))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text("model: runs/first\nstart_from: pretrained\nablate: none\n")
    write_report(run, tmp_path / "report.html")
    page = check_page((tmp_path / "report.html").read_text())
    assert "referring expressions (RefCOCO), from the weights of first." in page.text
    assert "The model is that of step 1,000: validation accuracy 0.900." in page.text
    assert "accuracy on validation examples at the last step\n0.500" in page.text
    with pytest.raises(DataError, match="was fine-tuned for a task"):
        write_report(run, tmp_path / "other.html", ground_truth=tmp_path / "worlds.jsonl")
    assert not (tmp_path / "other.html").exists()
