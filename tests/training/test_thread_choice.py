"""The number of compute threads is chosen by timing, is recorded, and changes no bit of a run that is resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from comodal import hardware
from comodal.recipes.avc_pretraining import recipe
from comodal.text_files import read_log
from comodal.training import run as training_run
from comodal.training.run import train
from comodal.training.thread_choice import MAX_STEP_SECONDS, choose_thread_count
from tests.support.small_world import write_world

SETTINGS = {"variant": "small", "width": 4, "image_size": 16, "batch_size": 8, "validation_pairs": 0, "workers": 0}
OPTIONS = {"precision": "fp32", "device": "cpu", "log_every": 1}


def make_timer(seconds: dict[int, float]) -> tuple[Callable[[int], float], list[int]]:
    """A step that takes as long as its number of threads says, and the numbers that were asked for."""
    asked: list[int] = []

    def time_step(threads: int) -> float:
        asked.append(threads)
        return seconds[threads]

    return time_step, asked


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({2: 0.2, 1: 0.3}, 2),
        ({2: 0.2, 1: 0.196}, 2),  # less than 5 % faster
        ({2: 0.2, 1: 0.15}, 1),
        ({8: 0.4, 4: 0.3, 2: 0.2, 1: 0.25}, 2),
        ({8: 0.4, 4: 0.45}, 8),  # smaller numbers are not tried
        ({6: 0.3, 3: 0.2, 1: 0.1}, 1),
    ],
)
def test_the_faster_number_of_threads_is_taken(seconds: dict[int, float], expected: int):
    time_step, _ = make_timer(seconds)
    threads, medians = choose_thread_count(time_step, max(seconds))
    assert threads == expected
    assert medians == seconds


def test_numbers_are_timed_in_turn_and_one_slow_moment_does_not_count():
    calls = 0

    def time_step(threads: int) -> float:
        nonlocal calls
        calls += 1
        return {2: 0.4, 1: 0.3}[threads] if calls != 7 else 100.0

    assert choose_thread_count(time_step, 2)[0] == 1
    time_step, asked = make_timer({2: 0.4, 1: 0.5})
    choose_thread_count(time_step, 2)
    assert asked[-10:] == [2, 1] * 5


def test_long_steps_keep_all_threads_after_one_step():
    time_step, asked = make_timer({4: 2 * MAX_STEP_SECONDS})
    assert choose_thread_count(time_step, 4) == (4, {})
    assert asked == [4]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_world(tmp_path / "data" / "train", 8)
    return tmp_path / "data"


@pytest.fixture
def two_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "count_cores", lambda: 2)
    monkeypatch.setattr(hardware, "count_busy_cores", lambda: 0.0)


def read_losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "metrics.jsonl") if line["split"] == "train"]


def read_threads(run: Path) -> int:
    return yaml.safe_load((run / "config.yaml").read_text())["threads"]


@pytest.mark.usefixtures("two_idle_cores")
def test_the_choice_is_recorded_kept_and_changes_no_bit(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    used: list[int] = []
    steps = training_run.train_steps

    def train_steps(*arguments, **options):
        used.append(torch.get_num_threads())
        return steps(*arguments, **options)

    def choose(time_step: Callable[[int], float], most: int) -> tuple[int, dict[int, float]]:
        assert all(time_step(threads) > 0 for threads in (2, 1, 2))  # real steps, which must leave no trace
        assert most == 2
        return 1, {2: 0.004, 1: 0.0025}

    monkeypatch.setattr(training_run, "train_steps", train_steps)
    monkeypatch.setattr(training_run, "choose_thread_count", choose)
    monkeypatch.setattr(training_run, "MIN_STEPS", 1)
    chosen, given = tmp_path / "chosen", tmp_path / "given"
    train(recipe, SETTINGS | {"data": shards, "steps": 4}, chosen, **OPTIONS)
    assert "1 compute thread, chosen by timing: 2 take 4 ms a step, 1 take 2.5 ms a step" in capsys.readouterr().err
    assert read_threads(chosen) == 1

    def refuse(*_: object) -> None:
        pytest.fail("a resumed run keeps its number of threads")

    monkeypatch.setattr(training_run, "choose_thread_count", refuse)
    train(recipe, SETTINGS | {"data": shards, "steps": 8}, chosen, resume=True, **OPTIONS)
    train(recipe, SETTINGS | {"data": shards, "steps": 8}, given, threads=1, **OPTIONS)
    assert used == [1, 1, 1]
    assert read_losses(chosen) == read_losses(given) and len(read_losses(given)) == 8
    train(recipe, SETTINGS | {"data": shards, "steps": 9}, chosen, resume=True, threads=2, **OPTIONS)
    assert used[-1] == read_threads(chosen) == 2


@pytest.mark.usefixtures("two_idle_cores")
def test_short_runs_are_not_timed_and_a_smaller_machine_uses_all_it_has(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    train(recipe, SETTINGS | {"data": shards, "steps": 2}, out, threads=3, **OPTIONS)
    assert read_threads(out) == 3
    train(recipe, SETTINGS | {"data": shards, "steps": 3}, out, resume=True, **OPTIONS)
    assert read_threads(out) == 2
    assert ", with threads 2 instead of 3" in capsys.readouterr().err
    fresh = tmp_path / "fresh"
    train(recipe, SETTINGS | {"data": shards, "steps": 2}, fresh, **OPTIONS)
    assert "chosen by timing" not in capsys.readouterr().err
    assert read_threads(fresh) == 2
