"""`comodal export`: exports the networks of a model to other runtimes, and compares each with the model.

An export folder holds the files and export.json: the inputs and outputs of each network, its difference from the model,
and the fingerprint of the weights. Exports that differ from the model are deleted.
"""

import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comodal.console import Table, print_line
from comodal.data.output_folder import encode_settings_json, lock_output_folder, translate_os_errors
from comodal.errors import CheckpointError
from comodal.files import name_written_file, write_atomically, write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.models.checkpoint import compute_weights_checksum, find_model_folder, load_model
from comodal.models.l3net.l3net import L3Net
from comodal.progress import track_progress
from comodal.runtimes.export_formats import (
    FORMAT_SUFFIXES,
    RUNTIME_PACKAGES,
    WRITER_PACKAGES,
    Format,
    NetworkFunction,
    open_onnx,
    open_openvino,
    open_torch,
    require_packages,
    trace_network,
    write_onnx,
    write_openvino,
    write_torch,
)
from comodal.runtimes.export_int8 import (
    QuantizationLoss,
    measure_quantization_loss,
    read_calibration_examples,
    write_int8,
)
from comodal.runtimes.export_networks import list_model_networks
from comodal.runtimes.exportable import ExportableNetwork
from comodal.runtimes.exported_engines import EXPORT_FOLDER, EXPORT_MANIFEST_FILE

MAX_RELATIVE_DIFFERENCE = 1e-3  # float32 leaves 1e-6 to 1e-5
EMBEDDER_NETWORKS = ("image", "audio")


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in another format.

    Args:
        path: Its file.
        difference: The maximum difference of any output from the model's, relative to the maximum of that output.
        quantization: The loss by 8 bits; None where it is only exported in float32.
    """

    path: Path
    difference: float
    quantization: QuantizationLoss | None


@dataclass(frozen=True)
class ExportResult:
    """The exported networks of a model.

    Args:
        folder: The folder of their files and of export.json.
        format: onnx, openvino or torch.
        networks: The networks by name, such as image and audio.
    """

    folder: Path
    format: Format
    networks: Mapping[str, ExportedNetwork]


@flatten_parameters
def export(
    run: Path, to: Format, out: Path | None = None, only: list[str] | None = None, int8: Path | None = None
) -> ExportResult:
    """Exports the networks of a model to another runtime, and compares each with the model.

    L3-Net has three: `image` (bytes) and `audio` (waveforms) to embeddings, and `l3net`, the whole model. ViLBERT has
    `vilbert`: both streams, both pooled outputs, and alignment; with task heads there is one network for each head.
    AVE-Net has `image`, `audio` and `ave_net`; a dual encoder has `text` and `image`.
    Batch size and numbers of tokens and regions are dynamic. `comodal embed --engine onnx` or `openvino` uses the
    embedders. The Visual Genome detectors have one network for the image and one for the cells of its regions
    (docs/guides/export.md).

    Args:
        run: Run folder or model folder.
        to: onnx, openvino, or torch (a program of `torch.export`).
        out: Output folder; by default `export/FORMAT` in the model folder, where `comodal embed` finds it.
        only: Names of the networks to export, such as vqa; by default all. Only networks in export.json are part of an
            export.
        int8: A folder of representative audio and images: L3-Net's embedders are also exported in 8 bits. Ranges are
            calibrated on half of its files; the loss is measured on the other half.

    Returns:
        The folder, and of each network its file, its difference from the model and the loss by 8 bits.

    Raises:
        CheckpointError: There is no model, its kind is not supported, a package is missing, or the outputs differ.

    Examples:
        comodal export RUN --to onnx
        comodal export RUN --to openvino --int8 recordings/
        comodal export 12-in-1/ --to onnx --only vqa score
    """
    model = load_model(run)
    require_packages((*WRITER_PACKAGES[to], *RUNTIME_PACKAGES[to]), to)
    if int8 is not None and (to == "torch" or not isinstance(model, L3Net)):
        raise ValueError("--int8 is for the embedders of an L3-Net, to onnx or openvino")
    networks = select_networks(list_model_networks(model), only)
    calibration_examples = (
        read_calibration_examples(int8, model.config) if int8 is not None and isinstance(model, L3Net) else {}
    )
    folder = out or find_model_folder(run) / EXPORT_FOLDER / to
    about: dict[str, Any] = {"format": to, "comodal": version("comodal"), "class": type(model).__name__}
    about["weights"] = compute_weights_checksum(model.state_dict())
    table = Table("network", "file", "MB", "sizes tried", "largest relative difference")
    with translate_os_errors(folder), lock_output_folder(folder), create_scratch_folder(folder) as temporary:
        about["networks"] = {}
        for network in track_progress(networks, "exporting"):
            export_path = temporary / (network.name + FORMAT_SUFFIXES[to])
            with name_written_file(folder / export_path.name):
                about["networks"][network.name] = described = write_network(
                    network, to, export_path, calibration_examples
                )
            axes = {axis: ", ".join(str(trial[axis]) for trial in network.trials) for axis in network.trials[0]}
            tried_sizes = "; ".join(f"{axis} {counts}" for axis, counts in axes.items())
            size = sum(path.stat().st_size for path in export_path.parent.glob(f"{network.name}.*")) / 1e6
            table.add_row(network.name, export_path.name, f"{size:.1f}", tried_sizes, f"{described['difference']:.1e}")
        replace_export_files(temporary, folder, about)
    exported = {
        name: read_exported_network(folder / (name + FORMAT_SUFFIXES[to]), described)
        for name, described in about["networks"].items()
    }
    result = ExportResult(folder, to, exported)
    print_export_report(table, result)
    if out is None:  # which the command line prints for all commands
        print_line(f"wrote {folder}", stderr=True)
    return result


def read_exported_network(path: Path, described: Mapping[str, Any]) -> ExportedNetwork:
    """A network, from its entry in export.json."""
    loss = {name: described[name] for name in QuantizationLoss._fields if name in described}
    return ExportedNetwork(path, described["difference"], QuantizationLoss(**loss) if loss else None)


@contextmanager
def create_scratch_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder inside another; those that interrupted commands left are removed first."""
    scratch = folder / ".scratch.part"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def select_networks(networks: list[ExportableNetwork], only: list[str] | None) -> list[ExportableNetwork]:
    """The networks of these names, or all."""
    names = [network.name for network in networks]
    if unknown := sorted(set(only or ()) - set(names)):
        raise ValueError(f"unknown networks: {', '.join(unknown)}; this model has {', '.join(names)}")
    return [network for network in networks if only is None or network.name in only]


def write_network(
    network: ExportableNetwork, to: Format, path: Path, calibration_examples: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """Writes one network and compares it with the model; with examples of its input also in 8 bits."""
    program, onnx = trace_network(network), path.with_suffix(".onnx")
    if to == "torch":
        write_torch(program, path)
    else:
        write_onnx(program, network, onnx)
    if to == "openvino":
        write_openvino(onnx, path)
    described: dict[str, Any] = {"inputs": describe_network_inputs(network), "outputs": list(network.outputs)}
    described["difference"] = measure_difference(network, open_network(path, to))
    if not described["difference"] <= MAX_RELATIVE_DIFFERENCE:
        raise CheckpointError(
            f"{path.name} differs from the model by {described['difference']:.1e}: no file is written"
        )
    if network.name in calibration_examples:
        int8_path = path.with_suffix(f".int8{FORMAT_SUFFIXES[to]}")
        calibration_batches, measurement_examples = (
            calibration_examples[network.name][0::2],
            calibration_examples[network.name][1::2],
        )
        write_int8(onnx, int8_path.with_suffix(".onnx"), network.name, calibration_batches)
        if to == "openvino":
            write_openvino(int8_path.with_suffix(".onnx"), int8_path)
        described |= measure_quantization_loss(
            network.name, measurement_examples, open_network(path, to), open_network(int8_path, to)
        )._asdict()
    if to == "openvino":
        for leftover in path.parent.glob("*.onnx*"):
            leftover.unlink()
    return described


def describe_network_inputs(network: ExportableNetwork) -> dict[str, dict[str, Any]]:
    """Types and shapes of a network's inputs, with names for dynamic axes."""
    tensors = network.make_inputs(torch.Generator().manual_seed(0), network.trials[0])
    return {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": [axis or size for axis, size in zip(axes, tensor.shape, strict=True)],
        }
        for (name, axes), tensor in zip(network.axes.items(), tensors, strict=True)
    }


def open_network(path: Path, to: Format) -> NetworkFunction:
    """An exported file as a function, in float32."""
    openers: dict[str, Callable[[], NetworkFunction]] = {
        "onnx": lambda: open_onnx(path),
        "openvino": lambda: open_openvino(path, "fp32"),
        "torch": lambda: open_torch(path),
    }
    return openers[to]()


def measure_difference(network: ExportableNetwork, run: NetworkFunction) -> float:
    """The maximum difference of any output, relative to that output's maximum, over all trial sizes."""
    largest = 0.0
    for seed, sizes in enumerate(network.trials):
        inputs = network.make_inputs(torch.Generator().manual_seed(seed), sizes)
        with torch.inference_mode():
            reference_output = network.reference(*inputs)
        expected = [reference_output] if isinstance(reference_output, Tensor) else list(reference_output)
        results = run({name: tensor.numpy() for name, tensor in zip(network.axes, inputs, strict=True)})
        for expected_tensor, result in zip(expected, results, strict=True):
            difference = np.abs(expected_tensor.numpy() - result).max() / max(float(expected_tensor.abs().max()), 1e-12)
            largest = max(largest, float(difference)) if np.isfinite(difference) else float("inf")
    return largest


def replace_export_files(export_folder: Path, folder: Path, about: dict[str, Any]) -> None:
    """Moves the files into the folder, export.json last: a folder with it is complete."""
    (folder / EXPORT_MANIFEST_FILE).unlink(missing_ok=True)
    about["files"] = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(export_folder.iterdir())}
    for name in about["files"]:
        with write_atomically(folder / name) as part:
            (export_folder / name).replace(part)
    write_bytes_atomically(folder / EXPORT_MANIFEST_FILE, encode_settings_json(about))


def print_export_report(table: Table, result: ExportResult) -> None:
    """Prints the exported networks, their difference from the model, and the loss by 8 bits."""
    table.show()
    for name in EMBEDDER_NETWORKS:
        loss = result.networks[name].quantization if name in result.networks else None
        if loss is not None:
            print_line(
                f"{name} in 8 bits, on {loss.examples:.0f} other examples: cosine with float32 {loss.mean_cosine:.4f} "
                f"on average, {loss.min_cosine:.4f} at least; the nearest other example stays the same for "
                f"{loss.neighbors:.0%}"
            )
