"""The exported embedders of a model in its folder, checked to be complete and of the same weights."""

import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from comodal.errors import CheckpointError, DataError
from comodal.hardware import CPU_MICRO_BATCH, EmbedPrecision, has_native_bf16
from comodal.models.checkpoint import compute_weights_checksum, find_model_folder
from comodal.models.l3net.l3net import L3Net
from comodal.runtimes.export_formats import (
    FORMAT_SUFFIXES,
    RUNTIME_PACKAGES,
    Format,
    NetworkFunction,
    open_onnx,
    open_openvino,
    require_packages,
)
from comodal.text_files import read_json_object

EXPORT_MANIFEST_FILE, EXPORT_FOLDER = "export.json", "export"
EXPORT_ENGINES: tuple[Format, ...] = ("openvino", "onnx")  # the faster one first


class ExportedEmbedders:
    """The embedders of a model on another engine; each is opened on first use.

    Args:
        run: The model's or run's folder.
        model: The model in it.
        engine: onnx or openvino.
        precision: auto takes bf16 with OpenVINO where the CPU computes it natively, else fp32.
    """

    def __init__(self, run: Path, model: L3Net, engine: Format, precision: EmbedPrecision) -> None:
        if engine == "onnx" and precision == "bf16":
            raise ValueError("ONNX Runtime has no bf16 on a CPU; use --precision fp32 or int8, or --engine openvino")
        self.run, self.model, self.engine = run, model, engine
        if precision == "auto":
            precision = "bf16" if engine == "openvino" and has_native_bf16() else "fp32"
        self.precision: EmbedPrecision = precision
        self.runs: dict[str, NetworkFunction] = {}

    def open(self, name: str) -> NetworkFunction:
        """One embedder as a function.

        Raises:
            CheckpointError: There is none, or it is damaged or of other weights.
        """
        if name not in self.runs:
            self.runs[name] = open_exported_embedder(self.run, self.model, self.engine, name, self.precision)
        return self.runs[name]

    def __call__(self, name: str, batch: Shaped[np.ndarray, "rows ..."]) -> Float32[np.ndarray, "rows features"]:
        """The embeddings of a batch of inputs."""
        run = self.open(name)
        parts = (batch[start : start + CPU_MICRO_BATCH] for start in range(0, len(batch), CPU_MICRO_BATCH))
        return np.concatenate([run({name: np.ascontiguousarray(part)})[0] for part in parts])


def find_fastest_export(run: Path, model: L3Net, precision: EmbedPrecision) -> Format | None:
    """The fastest installed engine with an export of the same weights, in 8 bits if requested."""
    for engine in EXPORT_ENGINES:
        if (precision == "bf16" and engine == "onnx") or any(
            find_spec(name) is None for name in RUNTIME_PACKAGES[engine]
        ):
            continue
        try:
            about = read_json_object(find_model_folder(run) / EXPORT_FOLDER / engine / EXPORT_MANIFEST_FILE)
            has_same_weights, files = (
                about["weights"] == compute_weights_checksum(model.state_dict()),
                list(about["files"]),
            )
        except (DataError, KeyError, TypeError):
            continue
        if has_same_weights and (precision != "int8" or any(".int8." in name for name in files)):
            return engine
    return None


def open_exported_embedder(
    run: Path, model: L3Net, engine: Format, name: str, precision: EmbedPrecision
) -> NetworkFunction:
    """Opens an exported embedder of a model, after checking that its files are complete and of the same weights.

    Raises:
        CheckpointError: There is none, or it is damaged or of other weights.
    """
    require_packages(RUNTIME_PACKAGES[engine], engine)
    folder = find_model_folder(run) / EXPORT_FOLDER / engine
    again = f"run `comodal export {run} --to {engine}`"
    if not (folder / EXPORT_MANIFEST_FILE).is_file():
        raise CheckpointError(f"{folder}: no export here; {again}")
    try:
        about = read_json_object(folder / EXPORT_MANIFEST_FILE, CheckpointError)
        weights, files = about["weights"], dict(about["files"])
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / EXPORT_MANIFEST_FILE}: damaged; {again}") from error
    if weights != compute_weights_checksum(model.state_dict()):
        raise CheckpointError(f"{folder}: exported from other weights than this model's; {again}")
    file = folder / f"{name}{'.int8' if precision == 'int8' else ''}{FORMAT_SUFFIXES[engine]}"
    if file.name not in files:
        raise CheckpointError(f"{folder}: holds no {file.name}; {again}{' --int8 FOLDER' * (precision == 'int8')}")
    for part in (file, file.with_suffix(".bin")):
        if part.name in files and (not part.is_file() or zlib.crc32(part.read_bytes()) != files[part.name]):
            raise CheckpointError(f"{part}: damaged (checksum); {again}")
    if engine == "onnx":
        return open_onnx(file)
    return open_openvino(file, "bf16" if precision == "bf16" else "fp32")
