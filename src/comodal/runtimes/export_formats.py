"""Writes programs of `torch.export` as ONNX, OpenVINO or PyTorch files, and opens such files as functions of arrays."""

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from comodal.errors import CheckpointError
from comodal.hardware import EmbedPrecision
from comodal.runtimes.exportable import ExportableNetwork

Format = Literal["onnx", "openvino", "torch"]
EngineChoice = Literal["auto", "torch", "onnx", "openvino"]
NetworkFunction = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]

FORMAT_SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
WRITER_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
}
RUNTIME_PACKAGES: dict[str, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "torch": ()}


def require_packages(packages: tuple[str, ...], format_: str) -> None:
    """Checks that packages are installed; the error has the command that installs them.

    Raises:
        CheckpointError: A package is missing.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise CheckpointError(f"{format_} needs {' and '.join(missing)}: pip install 'comodal[{format_}]'")


def trace_network(network: ExportableNetwork) -> ExportedProgram:
    """Traces a network to a program with dynamic batch size and numbers of tokens and regions."""
    names = sorted({axis.split("*")[-1] for axes in network.axes.values() for axis in axes if axis})
    dims = {name: Dim(name) for name in names}
    dims |= {name: Dim(name, min=minimum, max=maximum) for name, (minimum, maximum) in network.limits.items()}

    def make_dim(axis: str) -> Any:
        times, _, name = axis.rpartition("*")
        return int(times) * dims[name] if times else dims[name]

    shapes = tuple({dim: make_dim(axis) for dim, axis in enumerate(axes) if axis} for axes in network.axes.values())
    inputs = network.make_inputs(torch.Generator().manual_seed(0), network.trials[0])
    with torch.no_grad():
        return torch.export.export(network.module.eval(), inputs, dynamic_shapes=shapes)


def write_onnx(program: ExportedProgram, network: ExportableNetwork, path: Path) -> None:
    """Writes an ONNX file; weights of more than 2 GB are stored in a second file."""
    names = tuple({dim: axis for dim, axis in enumerate(axes) if axis.isidentifier()} for axes in network.axes.values())
    with silence_exporter_warnings():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=list(network.axes),
            output_names=list(network.outputs),
            dynamic_shapes=names,  # for an exported program it only names the axes
        )
    assert exported is not None
    exported.save(str(path))


def write_torch(program: ExportedProgram, path: Path) -> None:
    """Writes a file for `torch.export.load`, made in memory: PyTorch's writer aborts the process on a full disk."""
    made = io.BytesIO()
    with silence_exporter_warnings():
        torch.export.save(program, made)
    path.write_bytes(made.getbuffer())


def write_openvino(onnx: Path, path: Path) -> None:
    """Converts an ONNX file to .xml and .bin, in float32."""
    openvino = import_openvino(path)
    openvino.save_model(openvino.Core().read_model(str(onnx)), str(path), compress_to_fp16=False)


def open_torch(path: Path) -> NetworkFunction:
    """A saved program as a function of its named inputs."""
    with silence_exporter_warnings():
        program = torch.export.load(str(path))
    module = program.module()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(values) for values in inputs.values()))
        return [tensor.numpy() for tensor in torch.utils._pytree.tree_leaves(outputs)]

    return run


def open_onnx(path: Path) -> NetworkFunction:
    """An ONNX file on ONNX Runtime, with as many threads as PyTorch.

    Raises:
        CheckpointError: It is damaged.
    """
    require_packages(RUNTIME_PACKAGES["onnx"], "onnx")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.Fail,
        state.NotImplemented,
    ) as error:
        raise make_damaged_error(path, error) from error

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(None, dict(inputs))

    return run


def open_openvino(path: Path, precision: EmbedPrecision) -> NetworkFunction:
    """An OpenVINO model on the CPU; bfloat16 (for networks of one input) begins at the first convolution.

    A spectrogram in bfloat16 is too inaccurate, and OpenVINO uses bfloat16 for all layers where the CPU supports it.

    Raises:
        CheckpointError: It is damaged.
    """
    openvino = import_openvino(path)
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        parts = split_at_first_convolution(model, openvino) if precision == "bf16" else [(model, "f32")]
        compiled = [
            core.compile_model(part, "CPU", {
                "INFERENCE_PRECISION_HINT": hint,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            })
            for part, hint in parts
        ]  # fmt: skip
    except RuntimeError as error:
        raise make_damaged_error(path, error) from error

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays: Any = dict(inputs)
        for part in compiled:
            arrays = [values.copy() for values in part(arrays).to_tuple()]
        return arrays

    return run


def split_at_first_convolution(model: Any, openvino: Any) -> list[tuple[Any, str]]:
    """Splits a network before its first convolution; returns both parts with their precision."""
    first = next((op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"), None)
    if first is None:
        return [(model, "bf16")]
    source = first.input(0).get_source_output()
    before = openvino.Model([openvino.opset13.result(source)], model.get_parameters(), "before")
    middle = openvino.opset13.parameter(source.get_partial_shape(), source.get_element_type())
    for consumer in list(source.get_target_inputs()):
        if consumer.get_node().get_type_name() != "Result":
            consumer.replace_source_output(middle.output(0))
    return [(before, "f32"), (openvino.Model(model.get_results(), [middle], "after"), "bf16")]


def import_openvino(path: Path) -> Any:
    """Imports OpenVINO without `openvino_telemetry`, which reports every import over the network.

    Raises:
        CheckpointError: It is not installed.
    """
    require_packages(RUNTIME_PACKAGES["openvino"], "openvino")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise CheckpointError(f"{path}: OpenVINO cannot be loaded ({error})") from error
    return openvino


def make_damaged_error(path: Path, error: Exception) -> CheckpointError:
    """A one-line error from a runtime's longer message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CheckpointError(f"{path}: damaged, or not of this format ({lines[-1][:200]}); export it again")


@contextmanager
def silence_exporter_warnings() -> Iterator[None]:
    """Suppresses the deprecation warnings of exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
