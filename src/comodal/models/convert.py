"""Weights of other people's files into our models, with an account of every name. Nothing is unpickled but tensors."""

import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import refuse_packed

FILES = ("model.safetensors", "pytorch_model.bin")  # what a folder of Hugging Face holds
WRAPPERS = ("module.", "model.")  # DistributedDataParallel, MMF
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of normalisation, in the first PyTorch BERTs
INSIDE = ("model_state_dict", "state_dict", "model")  # where training checkpoints keep their weights

DAMAGED = (  # what the two readers raise for a damaged file, found by changing bytes
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    SafetensorError,
)


@dataclass(frozen=True)
class Filled:
    """What became of every weight of a file, and where every weight of a model comes from.

    Args:
        filled: Our parameters that came from the file.
        new: Our parameters that the file does not have.
        unused: The file's tensors for which we have no place.
    """

    filled: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """A line for each name, and a first one that counts them."""
        counts = f"{len(self.filled)} filled, {len(self.new)} new, {len(self.unused)} of the file not used"
        names = {"filled": self.filled, "new": self.new, "not used": self.unused}
        return [counts, *(f"{what}: {name}" for what, group in names.items() for name in group)]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, or of the one in a folder, under their usual names.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds more than tensors.
    """
    refuse_packed(path)
    file = weights_file(path)
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: refused, it holds more than tensors: {first_line(error)}") from error
    except DAMAGED as error:
        raise CheckpointError(f"{file}: not a readable file of weights: {first_line(error)}") from error
    for name in INSIDE:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict (names with tensors)")
    named = {usual_name(name): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        raise CheckpointError(f"{file}: two of its names mean the same weights")
    return named


def weights_file(path: Path) -> Path:
    """The file that a path means."""
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: no weights here ({' or '.join(FILES)})")


def first_line(error: Exception) -> str:
    """What went wrong, without advice on how to load it all the same."""
    return str(error).strip().split("\n")[0].split(" In PyTorch 2.6")[0]


def usual_name(name: str) -> str:
    """A name without what wraps the model, and in the words of later versions."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    for old, usual in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + usual
    return name


@torch.no_grad()
def fill(model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> Filled:
    """Copies tensors into a model's parameters.

    Args:
        model: Its parameters are overwritten where the state has them.
        state: Tensors under their own names.
        names: Our name -> theirs.
        path: Where the state came from, for messages.

    Raises:
        CheckpointError: A tensor has another shape than the parameter.
    """
    own = model.state_dict()
    found = {ours: theirs for ours, theirs in names.items() if theirs in state}
    for ours, theirs in found.items():
        if own[ours].shape != state[theirs].shape:
            shapes = f"{tuple(state[theirs].shape)}, and the model's {ours} {tuple(own[ours].shape)}"
            raise CheckpointError(f"{path}: {theirs} has the shape {shapes}; the configurations differ")
    for ours, theirs in found.items():
        own[ours].copy_(state[theirs])
    return Filled(tuple(found), without(own, found), without(state, found.values()))


def without(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Names that are not among the known, in their order."""
    excluded = set(known)
    return tuple(name for name in names if name not in excluded)
