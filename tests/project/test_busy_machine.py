"""Training beside another busy process keeps at least two fifths of its rate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BENCHMARK = ROOT / "benchmarks" / "busy_machine.py"
QUIET_LOAD = 0.7  # processes that were running in the last minute, a core


@pytest.mark.slow
def test_training_beside_a_busy_process_keeps_two_fifths_of_its_rate(tmp_path: Path):
    if (os.cpu_count() or 1) < 2 or os.getloadavg()[0] > QUIET_LOAD * (os.cpu_count() or 1):
        pytest.skip("needs two cores that nothing else uses")
    out = tmp_path / "rates.json"
    subprocess.run([sys.executable, str(BENCHMARK), "--repeats", "3", "--out", str(out)], check=True)
    rates = json.loads(out.read_text())
    assert rates["busy machine.two threads.kept"] >= 0.4
    assert rates["busy machine.automatic.kept"] >= 0.4
