"""The commands under attack: killed at random moments, given damaged files. The scripts can be run by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_script(name: str, *words: object) -> str:
    """What a script beside this file prints; without the shape checks of the test run, which would take most time."""
    command = [sys.executable, HERE / name, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["share", "embed", "export", "synthesize", "train"])
def test_killed_at_random_moments_a_command_loses_nothing(tmp_path: Path, command: str):
    assert run_script("kill_commands.py", command, tmp_path, 20) == "20"


@pytest.mark.slow
def test_damaged_files_give_no_stack_trace(tmp_path: Path):
    assert run_script("fuzz_commands.py", tmp_path / "fuzz", 1300).endswith(" files, 0 faults")


def test_a_few_damaged_files_of_the_quick_commands_give_no_stack_trace(tmp_path: Path):
    kinds = "json,npy,yaml,caffemodel,hdf5,lmdb,tsv,labels,bin,search"
    assert run_script("fuzz_commands.py", tmp_path / "fuzz", 60, 2, kinds).endswith(" files, 0 faults")
