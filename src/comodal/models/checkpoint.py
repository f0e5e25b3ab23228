"""Models as folders: `model.safetensors` (weights) and `config.json` (class, configuration, provenance).

Nothing is unpickled, and the class named in config.json is looked up in the table MODELS. Each file is written to a
temporary name and renamed when complete, the weights first: a folder with a config.json is a complete model.
"""

import dataclasses
import importlib
import json
import os
import re
import types
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from comodal.errors import CheckpointError
from comodal.files import open_regular_file, write_atomically, write_bytes_atomically
from comodal.text_files import read_json_object

ModelType = typing.TypeVar("ModelType", bound=nn.Module)

MODEL_WEIGHTS_FILE, MODEL_CONFIG_FILE = "model.safetensors", "config.json"
MAX_CONFIG_VALUE = 1 << 24  # maximum of an integer in a configuration; the largest vocabularies have 2**18 tokens
RANDOM_INIT_FUNCTIONS = {
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
}  # what comodal's models and PyTorch's layers call
SPARE_PARAMETERS = 1_000  # for modules that a model creates and drops, or shares
FLOATING_DTYPES = ("F64", "F32", "F16", "BF16")  # dtypes of safetensors; 8-bit types are quantized and need scales
MODEL_MODULES = {  # class named in config.json -> its module in comodal.models
    "L3Net": "l3net.l3net",
    "L3Classifier": "l3net.l3net_classifier",
    "ClipClassifier": "l3net.clip_classifier",
    "AVENet": "ave_net.ave_net",
    "ViLBERT": "vilbert.vilbert",
    "SingleStream": "vilbert.single_stream",
    "TaskModel": "vilbert.task_model",
    "DualEncoder": "dual_encoder.dual_encoder",
    "C4": "detectors.detector_c4",
    "FPN": "detectors.detector_fpn",
    "Codebook": "codebook.codebook",
}


def save_model(model: nn.Module, folder: Path, about: Mapping[str, object]) -> None:
    """Writes a model that `load_model` reads.

    Args:
        model: Model of comodal.models; its only argument is its `config`, a dataclass.
        folder: Created if it does not exist; an older model in it is replaced.
        about: Anything that JSON supports: recipe, parameters, fingerprint of the data, metrics.

    Raises:
        CheckpointError: A weight is NaN or infinite; nothing is written.
    """
    name = type(model).__name__
    if type(model).__module__ != f"comodal.models.{MODEL_MODULES.get(name)}":
        raise ValueError(f"{name} of {type(model).__module__} is not one of the models {', '.join(MODEL_MODULES)}")
    described = {
        "class": name,
        "config": dataclasses.asdict(typing.cast(typing.Any, model.config)),
        "comodal": version("comodal"),
        "about": dict(about),
    }
    text = json.dumps(described, indent=2) + "\n"
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    check_finite_weights(weights, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        write_atomically(folder / MODEL_WEIGHTS_FILE) as temporary,
        translate_write_errors(folder / MODEL_WEIGHTS_FILE),
    ):
        save_file(weights, temporary, metadata={"crc32": str(compute_weights_checksum(weights))})
    write_bytes_atomically(folder / MODEL_CONFIG_FILE, text.encode())


def load_model(path: Path) -> nn.Module:
    """Loads a model on the CPU, in evaluation mode.

    Args:
        path: Run folder or model folder.

    Raises:
        CheckpointError: There is no model, it is damaged, or its class, configuration and weights do not match.
    """
    folder = find_model_folder(path)
    described = read_model_config(folder)
    model_class, config_class = resolve_model_class(described.get("class"), folder)
    config = parse_config_value(config_class, described.get("config"), f"{folder / MODEL_CONFIG_FILE}: config")
    check_shapes(model_class, config, folder)
    weights = read_weights(folder / MODEL_WEIGHTS_FILE)
    with torch.random.fork_rng(devices=[]), NothingDrawn():  # the initial weights are overwritten
        model = model_class(config)
    model.load_state_dict(weights)
    return model.eval()


def check_shapes(model_class: type[nn.Module], config: object, folder: Path) -> None:
    """Compares a configuration with the header of the weights before the model is built.

    Raises:
        CheckpointError: No model has this configuration, or its parameters are not those of the file.
    """
    stored_shapes = read_safetensors_header(folder / MODEL_WEIGHTS_FILE)
    try:
        with torch.device("meta"), limit_parameters(2 * len(stored_shapes) + SPARE_PARAMETERS), NothingDrawn():
            expected = model_class(config).state_dict()
    except (ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(
            f"{folder / MODEL_CONFIG_FILE}: invalid configuration: {summarize_load_error(error)}"
        ) from error
    if stored_shapes.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - stored_shapes.keys()), sorted(stored_shapes.keys() - expected.keys())
        raise CheckpointError(
            f"{folder / MODEL_WEIGHTS_FILE}: missing weights {missing[:3]}, unknown weights {extra[:3]}"
        )
    for name, (shape, is_float) in stored_shapes.items():
        if shape != tuple(expected[name].shape):
            shapes = f"{shape}, and the configuration requires {tuple(expected[name].shape)}"
            raise CheckpointError(f"{folder / MODEL_WEIGHTS_FILE}: {name} has the shape {shapes}")
        if is_float != expected[name].is_floating_point():
            kind = "floating point" if is_float else "an integer type"
            raise CheckpointError(f"{folder / MODEL_WEIGHTS_FILE}: {name} is of {kind}, unlike in the model")


class NothingDrawn(TorchFunctionMode):
    """Context manager that skips random initialization, for weights that are overwritten or on the meta device.

    Initializing ViLBERT's base model takes a second. Random initialization on the meta device imports `torch._dynamo`,
    which takes another second.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in RANDOM_INIT_FUNCTIONS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def limit_parameters(parameters: int) -> Iterator[None]:
    """Stops the construction of a model with more parameters than the file of its weights could hold."""
    count = 0

    def count_parameter(*_: object) -> None:
        nonlocal count
        count += 1
        if count > parameters:
            raise ValueError(f"it has more than {parameters:,} parameters, more than the weights file")

    hook = register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        hook.remove()


def summarize_load_error(error: Exception) -> str:
    """The error in one line, without PyTorch's advice on how to load the file anyway."""
    return str(error).strip().partition("\n")[0].split(" In PyTorch 2.6")[0]


def read_model_about(path: Path) -> dict[str, object]:
    """Reads the metadata of a model (recipe, parameters, metrics), and the version that wrote it."""
    described = read_model_config(find_model_folder(path))
    about = described.get("about")
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: config.json has no 'about'")
    return {**about, "comodal": described.get("comodal"), "class": described.get("class")}


def make_untrained_copy(model: ModelType, seed: int) -> ModelType:
    """Returns a randomly initialized model of the same shape, in evaluation mode: the baseline of every evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).eval()


def find_model_folder(path: Path) -> Path:
    """Returns the model folder of a path: the path itself, or `model` in a run folder."""
    for folder in (path, path / "model"):
        if (folder / MODEL_CONFIG_FILE).is_file():
            return folder
    refuse_packed_run(path)
    raise CheckpointError(f"{path}: no model found (neither config.json nor model/config.json)")


def refuse_packed_run(path: Path) -> None:
    """Raises an error with advice if the path is a packed run (an archive)."""
    if path.suffix == ".zip":
        raise CheckpointError(f"{path} is a packed run: unpack it (`unzip {path}`), and pass the resulting folder")


def read_model_config(folder: Path) -> dict[str, object]:
    """Reads config.json."""
    return read_json_object(folder / MODEL_CONFIG_FILE, CheckpointError)


def resolve_model_class(name: object, folder: Path) -> tuple[type[nn.Module], type]:
    """Returns a model's class from the table, and its config dataclass.

    Raises:
        CheckpointError: The table has no such class.
    """
    if not isinstance(name, str) or name not in MODEL_MODULES:
        raise CheckpointError(
            f"{folder / MODEL_CONFIG_FILE}: {name!r:.80} is not one of the models {', '.join(MODEL_MODULES)}"
        )
    model_class = vars(importlib.import_module(f"comodal.models.{MODEL_MODULES[name]}"))[name]
    return model_class, typing.get_type_hints(model_class.__init__)["config"]


def parse_config_value(expected_type: typing.Any, value: object, location: str) -> typing.Any:
    """Converts a JSON value to the type of a dataclass field: a simple type, Literal, tuple[X, ...] or a dataclass.

    Of a union of dataclasses, the value is the one whose fields it has. Every field is required, so that a changed
    default cannot change a saved model.
    """
    if isinstance(expected_type, types.UnionType):
        members, keys = typing.get_args(expected_type), value.keys() if isinstance(value, dict) else set()
        names_of = {member: {field.name for field in dataclasses.fields(member)} for member in members}
        expected_type = next((member for member in members if names_of[member] == keys), members[0])
    if isinstance(expected_type, type) and dataclasses.is_dataclass(expected_type):
        types_of = typing.get_type_hints(expected_type)
        names = {field.name for field in dataclasses.fields(expected_type)}
        if not isinstance(value, dict):
            raise CheckpointError(f"{location} is {value!r}, not an object")
        if value.keys() != names:
            missing, unknown = sorted(names - value.keys()), sorted(value.keys() - names)
            raise CheckpointError(f"{location}: missing {missing}, unknown {unknown}")
        values = {name: parse_config_value(types_of[name], value[name], f"{location}.{name}") for name in value}
        try:
            return expected_type(**values)
        except ValueError as error:
            raise CheckpointError(f"{location}: invalid configuration: {error}") from error
    origin, arguments = typing.get_origin(expected_type), typing.get_args(expected_type)
    if origin is tuple and isinstance(value, list):
        return tuple(parse_config_value(arguments[0], item, f"{location}[{i}]") for i, item in enumerate(value))
    if expected_type is float and type(value) is int and abs(value) <= MAX_CONFIG_VALUE:
        return float(value)
    if type(value) is expected_type or (origin is typing.Literal and value in arguments):
        if isinstance(value, int | float) and not abs(value) <= MAX_CONFIG_VALUE:
            raise CheckpointError(f"{location} is {value}; numbers in a configuration are at most {MAX_CONFIG_VALUE:,}")
        return value
    raise CheckpointError(f"{location} is {value!r:.80}, not {expected_type}")


def read_safetensors_header(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Reads the shape of each tensor of a safetensors file and whether it is floating point; no tensor is read.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
    """
    try:
        open_regular_file(path).close()
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {
                name: (tuple(part.get_shape()), part.get_dtype() in FLOATING_DTYPES) for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file and verifies their checksum."""
    try:
        open_regular_file(path).close()
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            stored_checksum = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if stored_checksum != str(compute_weights_checksum(weights)):
        raise CheckpointError(f"{path}: the weights are damaged (checksum)")
    check_finite_weights(weights, path)
    return weights


def check_finite_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Checks that no weight is NaN or infinite.

    Raises:
        CheckpointError: A weight is not finite; the message names it.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} has values that are NaN or infinite; training has diverged")


def compute_weights_checksum(weights: Mapping[str, Tensor]) -> int:
    """CRC-32 over all tensors in the order of their names."""
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(weights[name].contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turns safetensors' write errors into the system's OSError, with the name of the file."""
    try:
        yield
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
