"""Reads third-party weights into our models, with a report on every name. Only tensors are unpickled."""

import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.files import open_regular_file
from comodal.models.checkpoint import (
    SPARE_PARAMETERS,
    NothingDrawn,
    check_finite_weights,
    limit_parameters,
    read_safetensors_header,
    refuse_packed_run,
    summarize_load_error,
)
from comodal.text_files import read_json_object

WEIGHT_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")  # weight files in a Hugging Face folder
INDEX_SUFFIX = ".index.json"  # index of a sharded model: {"weight_map": {name: file}}
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.", "0.auto_model.")  # DDP, MMF, torch.compile, SentenceTransformer
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # others are quantized
ENCODER_PREFIXES = ("text_embeddings.", "text_layers.", "region_embeddings.", "vision_layers.", "vision_gates.")
TASK_TOKENS, CO_LAYERS = "text_embeddings.tasks.", "co_layers."
# In BERT's files and the original's. The original also has co-attention weights that it never uses.
SOURCE_LAYER_PREFIXES = ("bert.encoder.layer.", "bert.encoder.v_layer.")
LEGACY_NAME_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}  # layer norms of the first PyTorch BERTs
MAX_WEIGHT_INDEX_BYTES = 64 << 20
NESTED_STATE_KEYS = ("model_state_dict", "state_dict", "model")  # where training checkpoints keep their weights

DAMAGED_WEIGHTS_ERRORS = (  # exceptions of the two readers for damaged files, found by fuzzing
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
class LoadReport:
    """A report on every weight of a file, and the source of every weight of a model.

    Args:
        filled: Parameters that came from the file.
        new: Parameters that the file does not have.
        unused: The file's tensors that have no counterpart.
    """

    filled: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def format_lines(self) -> list[str]:
        """A summary line with counts, then a line for each name."""
        counts = f"{len(self.filled)} loaded, {len(self.new)} new, {len(self.unused)} unused tensors in the file"
        names = {"filled": self.filled, "new": self.new, "not used": self.unused}
        return [counts, *(f"{what}: {name}" for what, group in names.items() for name in group)]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file, or of the one in a folder, under their normalized names.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds more than tensors.
    """
    refuse_packed_run(path)
    file = find_weights_file(path)
    state = read_sharded_weights(file) if file.name.endswith(INDEX_SUFFIX) else read_state_file(file)
    renamed = {normalize_tensor_name(name): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise CheckpointError(f"{file}: two of its names denote the same weights")
    return renamed


def read_state_file(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of one file under its own names."""
    try:
        open_regular_file(file).close()
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: refused, it holds more than tensors: {summarize_load_error(error)}") from error
    except DAMAGED_WEIGHTS_ERRORS as error:
        raise CheckpointError(f"{file}: not a readable file of weights: {summarize_load_error(error)}") from error
    for name in NESTED_STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    is_named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not is_named or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict (names with tensors)")
    return state


def read_sharded_weights(index: Path) -> dict[str, Tensor]:
    """Reads the tensors of a sharded model, each from the file that the index names."""
    weight_map = read_json_object(index, CheckpointError, MAX_WEIGHT_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: an index has a weight_map of names with files")
    state: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if not name or Path(name).name != name or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(f"{index}: {name!r} is not the name of a file next to it")
        inside, keys = (
            read_state_file(index.parent / name),
            {key for key, file_name in weight_map.items() if file_name == name},
        )
        if missing := sorted(keys - inside.keys()):
            raise CheckpointError(f"{index.parent / name}: {missing[0]} is missing, although {index.name} lists it")
        state |= {key: inside[key] for key in keys}
    return state


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the tensors of `read_tensors`; of a single safetensors file only the header is read.

    Raises:
        CheckpointError: As `read_tensors`.
    """
    file = find_weights_file(path)
    if file.name.endswith(INDEX_SUFFIX) or file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    return {normalize_tensor_name(name): shape for name, (shape, _) in read_safetensors_header(file).items()}


def check_config_against_shapes(
    build: Callable[[], nn.Module],
    map_names: Callable[[nn.Module], Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
) -> None:
    """Compares the parameters of a configuration with the shapes of a file before the model is built.

    Args:
        build: Builds the model.
        map_names: Our name -> theirs, for the parameters of a model.
        shapes: Shapes of the file's tensors.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: A tensor has another shape, or no model has this configuration.
    """
    try:
        with torch.device("meta"), limit_parameters(2 * len(shapes) + SPARE_PARAMETERS), NothingDrawn():
            model = build()
    except (RuntimeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(
            f"{path}: no network has the sizes of its configuration: {summarize_load_error(error)}"
        ) from error
    own = model.state_dict()
    for comodal_name, source_name in map_names(model).items():
        if source_name in shapes and shapes[source_name] != tuple(own[comodal_name].shape):
            difference = f"{shapes[source_name]}, and the model's {comodal_name} {tuple(own[comodal_name].shape)}"
            raise CheckpointError(f"{path}: {source_name} has the shape {difference}; the configurations differ")


def find_weights_file(path: Path) -> Path:
    """The weights file of a path; for a sharded model its index."""
    if not path.is_dir():
        return path
    for name in (*WEIGHT_FILE_NAMES, *(f"{name}{INDEX_SUFFIX}" for name in WEIGHT_FILE_NAMES)):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: no weights found ({' or '.join(WEIGHT_FILE_NAMES)}, or their {INDEX_SUFFIX[1:]})")


def normalize_tensor_name(name: str) -> str:
    """Removes wrapper prefixes from a name, and renames old names to later ones."""
    while wrapper := next((prefix for prefix in WRAPPER_PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(wrapper)
    name = name.replace("._orig_mod.", ".")  # prefix of a submodule that was compiled separately
    for old, replacement in LEGACY_NAME_SUFFIXES.items():
        if name.endswith(old):
            return name.removesuffix(old) + replacement
    return name


@torch.no_grad()
def copy_matching_weights(
    model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], path: Path
) -> LoadReport:
    """Copies tensors into a model's parameters.

    Args:
        model: Model whose parameters are overwritten if the state dict has them.
        state: Tensors under their own names.
        names: Our name -> theirs.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: A tensor has another shape than the parameter, is quantized, or is not finite.
    """
    own = model.state_dict()
    matches = {comodal_name: source_name for comodal_name, source_name in names.items() if source_name in state}
    for comodal_name, source_name in matches.items():
        if own[comodal_name].shape != state[source_name].shape:
            shapes = (
                f"{tuple(state[source_name].shape)}, and the model's {comodal_name} {tuple(own[comodal_name].shape)}"
            )
            raise CheckpointError(f"{path}: {source_name} has the shape {shapes}; the configurations differ")
        check_weight_tensor(source_name, state[source_name], path)
    for comodal_name, source_name in matches.items():
        own[comodal_name].copy_(state[source_name])
    return LoadReport(tuple(matches), exclude_names(own, matches), exclude_names(state, matches.values()))


def check_weight_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Checks that a weight is floating point and finite.

    Raises:
        CheckpointError: It is quantized, NaN or infinite.
    """
    if tensor.dtype not in FLOAT_DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {name} is of {kind}; quantized weights are not supported, use float ones")
    check_finite_weights({name: tensor}, path)


def check_encoder_complete(
    report: LoadReport, names: Mapping[str, str], path: Path, allow_missing: bool = False
) -> LoadReport:
    """Checks that the file has the whole encoder; poolers, heads, task tokens and all of co-attention may be missing.

    Args:
        report: Report of the loaded weights.
        names: Our name -> theirs.
        path: Path of the file, for messages.
        allow_missing: Accept missing tensors, which stay randomly initialized.

    Raises:
        CheckpointError: The file lacks a tensor of the encoder, or has layers beyond the configuration.
    """
    advice = "; use the configuration of this checkpoint"
    refuse_surplus_weights(report.unused, SOURCE_LAYER_PREFIXES, path, " of the encoder", advice)
    has_co_layers = any(name.startswith(CO_LAYERS) for name in report.filled)
    required_prefixes = (*ENCODER_PREFIXES, CO_LAYERS) if has_co_layers else ENCODER_PREFIXES
    absent = [names[name] for name in report.new
              if name.startswith(required_prefixes) and not name.startswith(TASK_TOKENS) and name in names]  # fmt: skip
    if absent and not allow_missing:
        num_more = f" and {len(absent) - 1} more of the encoder are" if len(absent) > 1 else " of the encoder is"
        raise CheckpointError(
            f"{path}: {absent[0]}{num_more} not in the file, which the configuration requires; "
            "--allow-missing initializes them at random"
        )
    return report


def refuse_surplus_weights(
    unused: Iterable[str], prefixes: str | tuple[str, ...], path: Path, part: str = "", advice: str = ""
) -> None:
    """Refuses a file with layers that the network does not have.

    Args:
        unused: Names of the file's tensors that have no counterpart.
        prefixes: Prefixes of the names of the network's own layers.
        path: Path of the file, for messages.
        part: The part of the network that the prefixes denote, after the names in the message.
        advice: What to do, as the end of the message.

    Raises:
        CheckpointError: A tensor without a counterpart is one of the network's layers.
    """
    if surplus := [name for name in unused if name.startswith(prefixes)]:
        more, verb = (f" and {len(surplus) - 1} more", "are") if len(surplus) > 1 else ("", "is")
        raise CheckpointError(
            f"{path}: {surplus[0]}{more}{part} {verb} in the file, but the network has no such layers{advice}"
        )


@contextmanager
def translate_shape_errors(path: Path) -> Iterator[None]:
    """Turns errors of computing with tensors of wrong shapes into a CheckpointError with the file's name."""
    try:
        yield
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its tensors are not those of this network: {summarize_load_error(error)}"
        ) from error


def exclude_names(names: Iterable[str], excluded_names: Iterable[str]) -> tuple[str, ...]:
    """Names that are not excluded, in their order."""
    excluded = set(excluded_names)
    return tuple(name for name in names if name not in excluded)
