"""The allocator's settings, by what the system counts: pages that a process had to be given."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from comodal.training.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(10):
        torch.ones(16 * 2**20)  # 64 MiB, 16,384 pages, freed at once
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again_without_asking_the_system():
    faults = {}
    for way in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < 100
    assert faults["give back"] > 20 * max(1, faults["keep"])  # huge pages count as one fault, so not 163,840
