"""An hour of stereo sound, file to file on the command line, in less than 1 GB; read whole, its windows are 12 GB."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net

RATE, SECONDS = 44_100, 3600
CODE = (
    "import resource, sys\nimport torch\nfrom comodal.cli.program import main\n"
    "assert main(sys.argv[1:]) == 0\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
)


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, another second each second."""
    path, rng = tmp_path_factory.mktemp("hour") / "hour.flac", np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((RATE, 2))
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for _ in range(SECONDS):
            file.write(np.roll(noise, int(rng.integers(RATE)), axis=0))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("width", "hop_seconds"), [(64, 2.0), (1, 0.1)], ids=["the paper's network", "every 100 ms"])
def test_an_hour_of_sound_takes_less_than_a_gigabyte(hour: Path, tmp_path: Path, width: int, hop_seconds: float):
    torch.manual_seed(0)
    save_model(L3Net(dataclasses.replace(PAPER_L3NET_CONFIG, width=width)), tmp_path / "model", {})
    words = ["embed", "audio", hour, "--model", tmp_path / "model", "--out", tmp_path, "--hop_seconds", hop_seconds]
    command = [sys.executable, "-c", CODE, *map(str, words), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = math.ceil((0.5 + SECONDS - 1.0) / hop_seconds) + 1  # half a second of silence stands before the sound
    with np.load(tmp_path / "hour.npz") as found:
        assert found["embedding"].shape == (rows, 4 * 3 * 8 * width)
    assert float(done.stdout.split()[-1]) < 1000
