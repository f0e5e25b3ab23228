"""Every test run checks the shapes in the signatures (jaxtyping with beartype), keeps torch to one thread, and lets a
busy machine take its time over an example of hypothesis."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("comodal", "beartype.beartype")

import torch  # noqa: E402

from comodal import hardware  # noqa: E402

without = os.environ.get("COMODAL_TEST_WITHOUT", "").split(",")  # see test_instruction_sets.py
if "bf16" in without:
    hardware.cpu_has_native_bf16 = lambda: False
if "kernels" in without:
    hardware.can_fuse_convolution = lambda _: False

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
