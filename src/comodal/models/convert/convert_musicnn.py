"""The weights of musicnn's VGG (PyPI `musicnn` 0.1.0, ISC license), read from the installed package.

The package is only searched for its files and never imported, so TensorFlow is not needed:
`pip install --no-deps musicnn`.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from comodal.errors import CheckpointError, DataError
from comodal.models.ave_net.musicnn_vgg import MUSICNN_CONVOLUTIONS, MusicnnVGG
from comodal.models.checkpoint import check_finite_weights
from comodal.models.convert.tensor_bundle import read_tensor_bundle

WEIGHTS_FOLDER = "MSD_vgg"  # trained on the Million Song Dataset, the larger of its two data sets
NORM_FIELDS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def find_musicnn_weights() -> Path:
    """The folder of the weights in the installed package.

    Raises:
        DataError: The package is not installed.
    """
    spec = find_spec("musicnn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / WEIGHTS_FOLDER).is_dir():
            return Path(folder) / WEIGHTS_FOLDER
    raise DataError("musicnn_vgg needs the weights of the package musicnn: pip install --no-deps musicnn")


def convert_musicnn(folder: Path) -> dict[str, Tensor]:
    """The state dict of a `MusicnnVGG`. TensorFlow's kernels are (rows, columns, inputs, outputs).

    Raises:
        CheckpointError: The folder holds no checkpoint of this network.
    """
    tensors = read_tensor_bundle(folder, "")
    state: dict[str, Tensor] = {}
    try:
        for layer in range(MUSICNN_CONVOLUTIONS + 1):
            source = f"batch_normalization_{layer}" if layer else "batch_normalization"
            target = f"norms.{layer - 1}" if layer else "input_norm"
            state |= {f"{target}.{name}": tensors[f"{source}/{field}"] for name, field in NORM_FIELDS.items()}
            state[f"{target}.num_batches_tracked"] = torch.tensor(0)
            if layer:
                kernel = tensors[f"{layer}CNN/kernel"].permute(3, 2, 0, 1).contiguous()
                state |= {
                    f"convolutions.{layer - 1}.weight": kernel,
                    f"convolutions.{layer - 1}.bias": tensors[f"{layer}CNN/bias"],
                }
        MusicnnVGG().load_state_dict(state)
        check_finite_weights(state, folder)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: not the VGG of musicnn: {error}") from error
    return state
