"""Every test run checks the shapes in the signatures (jaxtyping with beartype) and keeps torch to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("comodal", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
