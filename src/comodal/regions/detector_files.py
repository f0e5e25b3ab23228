"""Reads detector weights from Caffe, PyTorch, safetensors and Detectron2 files, without executing code from them.

Detectron2 stores weights as a pickle of numpy arrays. The restricted unpickler (data/regions/safe_unpickler.py) only
rebuilds arrays; everything else is rejected.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comodal.data.regions.safe_unpickler import load_pickle
from comodal.errors import CheckpointError, DataError
from comodal.files import open_regular_file
from comodal.models.checkpoint import MODEL_CONFIG_FILE, read_model_config
from comodal.models.convert.caffemodel import read_caffemodel
from comodal.models.convert.convert_c4 import build_c4, build_c4_from_caffe
from comodal.models.convert.convert_fpn import build_fpn, is_fpn_state_dict
from comodal.models.convert.state_dicts import (
    WEIGHT_FILE_NAMES,
    LoadReport,
    find_weights_file,
    normalize_tensor_name,
    read_tensors,
)
from comodal.models.detectors.detector_c4 import C4
from comodal.models.detectors.detector_fpn import FPN

CAFFEMODEL_SUFFIX = ".caffemodel"
PICKLE_MAGIC = b"\x80"  # first byte of a pickle; PyTorch's files are zips or begin with a magic number
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class NetworkFiles:
    """The file or folder of a network, by which region extractors recognize it. Each file is read once, when needed.

    Args:
        path: The file or folder; it need not exist.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json of a folder, of comodal or of transformers; empty if there is none."""
        folders = (self.path, self.path / "model")
        has_weights = any((self.path / name).is_file() for name in WEIGHT_FILE_NAMES)
        for folder in folders[:1] if has_weights else folders:
            if (folder / MODEL_CONFIG_FILE).is_file():
                return read_model_config(folder)
        return {}

    @property
    def model_class(self) -> object:
        """The class of a model of comodal; None for other networks."""
        return self.config.get("class")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file of weights, or of the one in a folder without config.json, under their standard names.

        Raises:
            CheckpointError: The file is damaged, or holds more than tensors.
        """
        is_readable = self.path.is_file() or any((self.path / name).is_file() for name in WEIGHT_FILE_NAMES)
        return read_detector(self.path) if is_readable and not self.config else {}

    def describe_contents(self) -> str:
        """What the files hold, for an error message."""
        if self.config:
            return f"a config.json of {self.model_class or self.config.get('model_type')}"
        return f"tensors that begin with {list(self.tensors)[:3]}" if self.tensors else "no config.json and no weights"


def load_detector(path: Path) -> tuple[C4 | FPN, LoadReport]:
    """The Visual Genome detector of a file in any container, with the load report of its tensors.

    Raises:
        CheckpointError: It is damaged, holds more than tensors, or is another network.
    """
    if path.suffix == CAFFEMODEL_SUFFIX:
        return build_c4_from_caffe(read_caffemodel(path), path)
    state = read_detector(path)
    return build_fpn(state, path) if is_fpn_state_dict(state) else build_c4(state, path)


def read_detector(path: Path) -> dict[str, Tensor]:
    """The tensors of a detector file, or of the one in a folder, under their standard names.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds more than tensors.
    """
    file = find_weights_file(path)
    try:
        with open_regular_file(file) as opened:
            start = opened.read(len(LEGACY_TORCH_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    if not start.startswith(PICKLE_MAGIC) or start == LEGACY_TORCH_MAGIC:
        return read_tensors(file)
    try:
        value = load_pickle(file.read_bytes())
    except DataError as error:
        raise CheckpointError(f"{file}: {error}") from error
    state = value.get("model", value) if isinstance(value, dict) else None
    if not isinstance(state, dict) or not all(is_numeric_array(array) for array in state.values()):
        raise CheckpointError(f"{file}: not Detectron2's weights (names with arrays)")
    return {normalize_tensor_name(str(name)): torch.from_numpy(np.array(array)) for name, array in state.items()}


def is_numeric_array(value: object) -> bool:
    """Whether a value is an array that a tensor can hold."""
    return isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "fi"
