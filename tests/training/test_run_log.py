"""What a run writes down while it works."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comodal.text_files import read_log
from comodal.training.run_log import RunLog, format_metrics_note


def write(folder: Path, after: int, steps: range) -> None:
    log = RunLog(folder, after)
    for step in steps:
        log.write("train", step, {"loss": 1 / step})
    log.close()


def test_lines_after_the_checkpoint_are_written_anew(tmp_path: Path):
    """Killed in the middle of the line of step 6; the last checkpoint was at step 3."""
    write(tmp_path, 0, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')
    assert [line["step"] for line in read_log(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    write(tmp_path, 3, range(4, 8))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 8)]


def test_tensorboard_shows_the_same_numbers_once(tmp_path: Path):
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 3, range(4, 8))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in events] == list(range(1, 8))
    assert [event.value for event in events] == pytest.approx([1 / step for step in range(1, 8)])


def test_the_note_holds_what_people_watch():
    metrics = {"loss": 0.25, "gradient_norm": 3.0, "accuracy": 0.9, "samples_per_second": 128.0, "mfu": 0.4321}
    assert format_metrics_note(metrics) == "loss 0.25, accuracy 0.9, samples per second 128, mfu 0.4321"
