"""A run that is stopped in any way and resumed is the run that was never stopped, bit for bit on one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from comodal.cli.program import main
from comodal.errors import CheckpointError, RecipeError
from comodal.files import hash_host_name
from comodal.models.checkpoint import load_model
from comodal.recipes.avc_pretraining import recipe
from comodal.text_files import read_log
from comodal.training.run import train
from tests.support.small_world import write_world

SETTINGS = {"variant": "small", "width": 4, "image_size": 16, "batch_size": 8, "validation_pairs": 16}
OPTIONS = {"precision": "fp32", "device": "cpu", "log_every": 1, "validate_every": 10}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "train", 12)
    write_world(folder / "validation", 6, seed=1)
    return folder


def settings(shards: Path, steps: int, workers: int = 0) -> dict:
    return {**SETTINGS, "data": shards, "steps": steps, "workers": workers}


def losses(run: Path, split: str = "train") -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(run / "metrics.jsonl") if line["split"] == split}


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(recipe, settings(shards, 24), out, **OPTIONS) == 0
    return out


def command(shards: Path, out: Path, steps: int, *more: str) -> list[str]:
    words = [sys.executable, "-m", "comodal", "train", "l3net", "--data", str(shards), "--out", str(out)]
    for name, value in {**SETTINGS, **OPTIONS, "steps": steps, "workers": 0}.items():
        words += [f"--{name}", str(value)]
    return [*words, *more]


def test_stopping_at_a_step_and_going_on_changes_no_bit(shards: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    train(recipe, settings(shards, 9), out, **OPTIONS)
    train(recipe, settings(shards, 24), out, resume=True, **OPTIONS)
    assert losses(out) == losses(uninterrupted)
    ours, theirs = load_model(out).state_dict(), load_model(uninterrupted).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_number_of_workers_does_not_change_the_losses(shards: Path, uninterrupted: Path, tmp_path: Path):
    train(recipe, settings(shards, 24, workers=2), tmp_path / "run", **OPTIONS)
    assert losses(tmp_path / "run") == losses(uninterrupted)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(
    shards: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals, status: int
):
    """Stopped after it has logged two steps; then --resume finishes with the same losses."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(shards, out, 100_000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_steps(out, process, 2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "--resume" in said
    assert "Traceback" not in said
    stopped = max(losses(out))
    train(recipe, settings(shards, max(24, stopped + 1)), out, resume=True, **OPTIONS)
    expected = losses(uninterrupted)
    assert {step: loss for step, loss in losses(out).items() if step in expected} == expected


def wait_for_steps(out: Path, process: subprocess.Popen, steps: int) -> None:
    log = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if log.exists() and log.read_text().count('"train"') >= steps:
            return
        time.sleep(0.02)
    pytest.fail(f"no {steps} steps: {process.communicate()[0] if process.poll() is not None else 'too slow'}")


def test_a_second_training_in_the_folder_is_refused_and_the_first_works_on(
    shards: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "run"
    words = command(shards, out, 100_000, "--resume", "--checkpoint_minutes", "0")
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_steps(out, first, 1)
    assert main(words[3:]) == 1
    assert f"another command is writing to {out}: wait" in capsys.readouterr().err
    wait_for_steps(out, first, max(losses(out)) + 1)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    train(recipe, settings(shards, max(24, max(losses(out)) + 1)), out, resume=True, **OPTIONS)
    expected = losses(uninterrupted)
    assert {step: loss for step, loss in losses(out).items() if step in expected} == expected


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".config.yaml.PID.part"]], ids=["mkdir", "lock", "part"])
def test_a_run_that_was_killed_before_its_settings_were_written_can_be_resumed(
    shards: Path, uninterrupted: Path, tmp_path: Path, left: list[str]
):
    """The process that wrote them is one that has ended: the highest id of Linux is 2**22."""
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name.replace("PID", f"{(1 << 22) + 1}-{hash_host_name()}")).write_bytes(b"half")
    train(recipe, settings(shards, 2), out, resume=True, **OPTIONS)
    assert losses(out) == {step: loss for step, loss in losses(uninterrupted).items() if step <= 2}
    assert not list(out.rglob("*.part"))
    (out / "config.yaml").unlink()
    with pytest.raises(RecipeError, match=r"run is not the folder of a run: it has no config\.yaml"):
        train(recipe, settings(shards, 2), out, resume=True, **OPTIONS)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_in_the_same_place(shards: Path, uninterrupted: Path, tmp_path: Path):
    """kill -9 from a fraction of a second to several after the start, with a checkpoint at every step."""
    out, chance = tmp_path / "run", random.Random(0)
    words = command(shards, out, 24, "--resume", "--checkpoint_minutes", "0")
    for _ in range(10):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 8.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(uninterrupted)
    assert not list(out.rglob("*.part"))


def test_a_resumed_run_keeps_its_precision(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on another machine, where auto would choose another one."""
    out = tmp_path / "run"
    monkeypatch.setattr("comodal.hardware.cpu_has_native_bf16", lambda: True)
    train(recipe, settings(shards, 1), out, **{**OPTIONS, "precision": "auto"})
    assert yaml.safe_load((out / "config.yaml").read_text())["precision"] == "bf16"
    monkeypatch.setattr("comodal.hardware.cpu_has_native_bf16", lambda: False)
    with pytest.warns(UserWarning, match="bf16 is not native"):
        train(recipe, settings(shards, 2), out, resume=True, **{**OPTIONS, "precision": "auto"})
    assert yaml.safe_load((out / "config.yaml").read_text())["precision"] == "bf16"
    assert json.loads((out / "environment.json").read_text())["packages"]["torch"]


def test_a_resumed_run_keeps_its_layout(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The order of a convolution's sums depends on it."""
    monkeypatch.setattr(
        "comodal.training.training_options.choose_training_layout", lambda _compute, _module: "contiguous"
    )
    out = tmp_path / "run"
    train(recipe, settings(shards, 2), out, **OPTIONS)
    assert yaml.safe_load((out / "config.yaml").read_text())["memory_layout"] == "contiguous"
    monkeypatch.setattr(
        "comodal.training.training_options.choose_training_layout", lambda _compute, _module: "channels_last"
    )
    train(recipe, settings(shards, 4), out, resume=True, **OPTIONS)
    assert yaml.safe_load((out / "config.yaml").read_text())["memory_layout"] == "contiguous"


def test_a_run_is_not_overwritten_and_not_mixed_with_another(shards: Path, uninterrupted: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="--resume"):
        train(recipe, settings(shards, 24), uninterrupted, **OPTIONS)
    with pytest.raises(RecipeError, match="batch_size 4 instead of 8"):
        train(recipe, {**settings(shards, 24), "batch_size": 4}, uninterrupted, resume=True, **OPTIONS)
    write_world(tmp_path / "train", 12, seed=7)
    write_world(tmp_path / "validation", 6, seed=8)
    with pytest.raises(RecipeError, match="other data"):
        train(recipe, settings(tmp_path, 24), uninterrupted, resume=True, **OPTIONS)


def test_a_damaged_checkpoint_is_named_and_nothing_in_it_is_run(shards: Path, tmp_path: Path):
    out = tmp_path / "run"
    train(recipe, settings(shards, 3), out, **OPTIONS)
    last = sorted((out / "checkpoints").glob("*.pt"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=last.name):
        train(recipe, settings(shards, 6), out, resume=True, **OPTIONS)
    torch.save({"step": Trap(tmp_path / "sprung")}, last)
    with pytest.raises(CheckpointError, match=last.name):
        train(recipe, settings(shards, 6), out, resume=True, **OPTIONS)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """What a malicious checkpoint would hold: a call that is made when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_full_disk_keeps_the_checkpoint_before(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    train(recipe, settings(shards, 3), out, **OPTIONS)
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("comodal.training.checkpoints.torch.save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(recipe, settings(shards, 6), out, resume=True, **OPTIONS)
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_keys(shards: Path, tmp_path: Path):
    """A learning rate of 1e30 makes the weights overflow within two steps."""
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="at step"):
        train(recipe, {**settings(shards, 20), "learning_rate": 1e30}, out, **OPTIONS)
    told = json.loads((out / "not_finite.json").read_text())
    assert told["step"] >= 1
    assert "clip" in json.dumps(told["keys"])


def test_the_run_folder_holds_what_it_says(uninterrupted: Path):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model"} <= names
    assert list(losses(uninterrupted)) == list(range(1, 25))
    assert list(losses(uninterrupted, "validation")) == [10, 20, 24]
