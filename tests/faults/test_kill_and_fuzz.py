"""The commands under attack: killed at random moments, given damaged files. The scripts can be run by themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def run_script(name: str, *words: object) -> str:
    """What a script of tests/support prints; without the shape checks of the test run, which would take most time."""
    command = [sys.executable, "-m", f"tests.support.{name}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["share", "embed", "export", "synthesize", "train"])
def test_killed_at_random_moments_a_command_loses_nothing(tmp_path: Path, command: str):
    assert run_script("kill_commands", command, tmp_path, 20).startswith("20 of ")


@pytest.mark.slow
def test_damaged_files_give_no_stack_trace(tmp_path: Path):
    assert run_script("fuzz_commands", tmp_path / "fuzz", 1300).endswith(" files, 0 faults")


@pytest.mark.slow
def test_a_few_damaged_files_of_the_quick_commands_give_no_stack_trace(tmp_path: Path):
    kinds = "json,npy,yaml,caffemodel,hdf5,lmdb,tsv,labels,bin,search"
    assert run_script("fuzz_commands", tmp_path / "fuzz", 60, 2, kinds).endswith(" files, 0 faults")
