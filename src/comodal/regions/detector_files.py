"""Reads detector weights from Caffe, PyTorch, safetensors and Detectron2 files, without executing code from them.

Detectron2 stores weights as a pickle of numpy arrays. The restricted unpickler (data/regions/safe_unpickler.py) only
rebuilds arrays; everything else is rejected.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comodal.data.regions.safe_unpickler import load_pickle
from comodal.errors import CheckpointError, DataError
from comodal.models.convert.caffemodel import read_caffemodel
from comodal.models.convert.convert_c4 import build_c4, build_c4_from_caffe
from comodal.models.convert.convert_fpn import build_fpn, is_fpn_state_dict
from comodal.models.convert.state_dicts import LoadReport, find_weights_file, normalize_tensor_name, read_tensors
from comodal.models.detectors.detector_c4 import C4
from comodal.models.detectors.detector_fpn import FPN

CAFFEMODEL_SUFFIX = ".caffemodel"
CLASS_SCORES_KEY = "roi_heads.box_predictor.cls_score.weight"  # in every Faster R-CNN of torchvision
PICKLE_MAGIC = b"\x80"  # first byte of a pickle; PyTorch's files are zips or begin with a magic number
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


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
        with file.open("rb") as opened:
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
