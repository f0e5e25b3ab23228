"""Every test run checks the shapes in the signatures (jaxtyping with beartype), keeps torch to one thread, and lets a
busy machine take its time over an example of hypothesis."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
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

from comodal.models.checkpoint import save_model  # noqa: E402
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small L3-Net with initial weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), folder / "model", {})
    return folder
