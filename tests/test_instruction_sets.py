"""The precision-sensitive files once more, as on a CPU with AVX2 alone, without bf16, and without private kernels.

The variables restrict oneDNN and PyTorch's own kernels, but not what PyTorch says of the CPU; `COMODAL_TEST_WITHOUT`
takes the capabilities away (tests/conftest.py). What the machine lacks anyway is not run again.
"""

import os
import subprocess
import sys

import pytest

from comodal import hardware
from tests.support.paths import ROOT

NETWORKS = (
    "l3net/test_fused_vgg.py",
    "l3net/test_l3net_parity.py",
    "vilbert/test_vilbert_parity.py",
    "detectors/test_c4_parity.py",
    "detectors/test_fpn_parity.py",
    "l3net/test_spectrogram.py",
)
FILES = {  # of each mode, what depends on it: the parity of networks neither asks for bf16 nor has private kernels
    "avx2": NETWORKS,
    "without bf16": NETWORKS[:1],
    "without private kernels": NETWORKS[:1],
}
MODES = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "COMODAL_TEST_WITHOUT": "bf16"},
    "without bf16": {"COMODAL_TEST_WITHOUT": "bf16"},
    "without private kernels": {"COMODAL_TEST_WITHOUT": "bf16,kernels"},
}


@pytest.mark.parametrize("mode", MODES)
def test_numbers_hold_with_fewer_instructions(mode: str):
    if mode == "avx2" and hardware.get_instruction_set() != "AVX512":
        pytest.skip("the CPU has no more than AVX2: the files run so in any case")
    if mode == "without bf16" and not hardware.has_native_bf16():
        pytest.skip("the CPU has no native bf16: the files run so in any case")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, *(str(ROOT / "tests" / "models" / name) for name in FILES[mode])],
        env=os.environ | MODES[mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
