"""Reads the published weights of OpenL3 and related networks without TensorFlow: .h5, .h5.gz, .pth.tar.

In Keras' HDF5 layout the attribute `layer_names` lists groups in their order, and each group's `weight_names` its
data. Files of OpenL3 0.2 and 0.3 begin with the constants of the frontend. l3embedding's own checkpoints hold the
whole network, nested once or, if it was trained on several GPUs, twice.
"""

import gzip
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from comodal.console import print_line
from comodal.data.hdf5_files import open_hdf5
from comodal.errors import CheckpointError, DataError
from comodal.files import open_regular_file, write_bytes_atomically
from comodal.models.checkpoint import MODEL_CONFIG_FILE, save_model
from comodal.models.convert.convert_openl3 import (
    OpenL3Weights,
    TowerModality,
    build_openl3,
    infer_openl3_config,
    match_openl3_weights,
)
from comodal.models.convert.state_dicts import LoadReport, read_tensors
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.spectrogram import Frontend, Representation

HDF5_MAGIC, GZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b"
MAX_WEIGHTS_BYTES = 1_000_000_000  # of a decompressed file; the largest known one has 60 million
REPRESENTATION_NAME = re.compile(r"(linear|mel128|mel256)(?:_(music|env))?")
FOLDER_VARIABLE = "COMODAL_OPENL3"
PUBLISHED_URL = "https://github.com/marl/openl3/raw/models/"
PUBLISHED_VERSIONS = ("v0_4_0", "v0_3_0", "v0_2_0")


class OpenL3Checkpoint(NamedTuple):
    """A network read from one or two files, the load report of their tensors, and their metadata."""

    model: L3Net
    load_report: LoadReport
    towers: tuple[TowerModality, ...]
    about: dict[str, object]


def is_openl3_file(path: Path) -> bool:
    """Whether a path is a weights file and not a model folder."""
    return path.is_file() and path.name != MODEL_CONFIG_FILE and path.suffix != ".safetensors"


def read_openl3_weights(path: Path) -> dict[str, Tensor]:
    """A file's tensors in the order of its layers, kernels in PyTorch's layout.

    Raises:
        CheckpointError: There is no such file, it is damaged, or of another kind.
    """
    try:
        with open_regular_file(path) as file:
            head = file.read(8)
        if head.startswith(GZIP_MAGIC):
            with gzip.open(path) as file:
                data = file.read(MAX_WEIGHTS_BYTES + 1)
            if len(data) > MAX_WEIGHTS_BYTES:
                raise CheckpointError(f"{path}: rejected, it unpacks to more than {MAX_WEIGHTS_BYTES:,} bytes")
            if not data.startswith(HDF5_MAGIC):
                raise CheckpointError(f"{path}: the unpacked content is not HDF5")
            return read_keras_weights(path, data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{path}: a damaged or truncated .gz file ({error}); download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    return read_keras_weights(path) if head == HDF5_MAGIC else read_tensors(path)


def read_keras_weights(path: Path, content: bytes | None = None) -> dict[str, Tensor]:
    """The weights of Keras' layers in their order, from a file or its decompressed content."""
    state: dict[str, Tensor] = {}
    try:
        with open_hdf5(path, content) as file:
            root = file.get("model_weights", file)
            if not any(name.startswith("layer_names") for name in root.attrs):
                raise CheckpointError(f"{path}: HDF5, but not the weights of a Keras model (no layer_names)")
            for layer in read_layer_names(root, "layer_names"):
                for name in read_layer_names(root[layer], "weight_names"):
                    state[f"{layer}/{name}"] = read_layer_tensor(root[layer][name], name)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return state


def read_layer_names(group: Any, attribute: str) -> list[str]:
    """A list of names; Keras splits a long one into `weight_names0`, `weight_names1` and so on."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def read_layer_tensor(dataset: Any, name: str) -> Tensor:
    """One float tensor; kernels of (rows, columns, inputs, outputs) and of (inputs, outputs) are transposed."""
    if dataset.dtype.kind != "f" or dataset.size * max(dataset.dtype.itemsize, 4) > MAX_WEIGHTS_BYTES:
        raise ValueError(f"{name} is {dataset.dtype} of {dataset.shape}")
    values = np.asarray(dataset[()], dtype=np.float32)
    if name.split("/")[-1].startswith("kernel") and values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    elif name.split("/")[-1].startswith("kernel") and values.ndim == 2:
        values = values.T
    return torch.from_numpy(np.ascontiguousarray(values))


def load_openl3(
    path: Path,
    other: Path | None = None,
    representation: Representation | None = None,
    frontend: Frontend = "kapre014",
) -> OpenL3Checkpoint:
    """Loads a network from weights files; tensors that are in no file are zero.

    Args:
        path: OpenL3's audio or image file, torchopenl3's, or a whole network of l3embedding.
        other: the file of the other modality.
        representation: the spectrogram that the weights were trained with; by default read from the file or its name.
        frontend: spectrogram frontend; kapre014 is the one that the weights were trained with.

    Raises:
        CheckpointError: A file is damaged, of another network, or its representation is unknown.
    """
    parts = [
        (match_openl3_weights(read_openl3_weights(file), file), file) for file in (path, other) if file is not None
    ]
    towers = tuple(tower for weights, _ in parts for tower in weights.towers)
    resolved = resolve_representation(parts, representation)
    model, load_report = build_openl3(parts, infer_openl3_config([weights for weights, _ in parts], resolved, frontend))
    content = {
        match for file in (path, other) if file for match in REPRESENTATION_NAME.findall(file.name)[:1] if match[1]
    }
    about: dict[str, object] = {
        "files": [file.name for _, file in parts],
        "towers": list(towers),
        "representation": resolved,
        "frontend": frontend,
        "content": next(iter(content))[1] if content else "",
    }
    return OpenL3Checkpoint(model, load_report, towers, about)


def resolve_representation(
    parts: list[tuple[OpenL3Weights, Path]], representation: Representation | None
) -> Representation:
    """The representation from the caller, the file's own constants, or its name; an image network fits all three."""
    for weights, path in parts:
        stored = weights.representation
        if representation is not None and stored is not None and stored != representation:
            raise CheckpointError(f"{path}: its frontend computes {stored}, not {representation}")
        representation = representation or stored
    for weights, path in sorted(parts, key=lambda part: "audio" not in part[0].towers):
        matches = REPRESENTATION_NAME.findall(path.name)
        representation = representation or (matches[0][0] if matches else None)
        if representation is None and "audio" in weights.towers:
            hint = "convert it (comodal convert openl3) with --representation linear, mel128 or mel256"
            raise CheckpointError(f"{path}: neither its name nor its content specifies its spectrogram; {hint}")
    return representation or "mel256"


def convert_openl3(
    source: Path,
    out: Path,
    other: Path | None = None,
    representation: Representation | None = None,
    frontend: Frontend = "kapre014",
) -> LoadReport:
    """Writes the weights of OpenL3, torchopenl3 or l3embedding as a model folder, with a report of every tensor.

    Args:
        source: an .h5, .h5.gz or .pth.tar file.
        out: the model folder; its report.txt lists every tensor as filled, new or unused.
        other: the file of the other modality, so that the model has both; otherwise the missing tower is zero.
        representation: linear, mel128 or mel256, if neither the file nor its name shows it.
        frontend: kapre014 is the one that the published weights were trained with.

    Returns:
        The source of each tensor.

    Raises:
        CheckpointError: A file is damaged or of another network; nothing is written.

    Examples:
        comodal convert openl3 openl3_audio_mel256_music.h5.gz model/ --other openl3_image_mel256_music.h5.gz
    """
    checkpoint = load_openl3(source, other, representation, frontend)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out / "report.txt", ("\n".join(checkpoint.load_report.format_lines()) + "\n").encode())
    save_model(checkpoint.model, out, {"openl3": checkpoint.about})
    missing = sorted({"image", "audio"} - set(checkpoint.towers))
    print_line(f"{out}: {checkpoint.load_report.format_lines()[0]}; report.txt lists them")
    if missing:
        print_line(f"There are no weights of the {missing[0]}: its tower is zero (pass them with --other)")
    return checkpoint.load_report


def list_weights_folders() -> list[Path]:
    """The folders that are searched for published files: $COMODAL_OPENL3, then the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comodal" / "openl3"
    return [Path(os.environ[FOLDER_VARIABLE]), cache] if os.environ.get(FOLDER_VARIABLE) else [cache]


def find_published_weights(modality: TowerModality, representation: str, content: str) -> Path:
    """The published file of one network in one of the folders.

    Raises:
        CheckpointError: It is missing; the message names its download page and folder.
    """
    stem = f"openl3_{'audio' if modality == 'audio' else 'image'}_{representation}_{content}"
    endings = ["", *(f"-{version}" for version in PUBLISHED_VERSIONS)]
    names = [f"{stem}{ending}{suffix}" for ending in endings for suffix in (".h5", ".h5.gz")]
    if modality == "audio":
        names += [f"torchopenl3_{representation}_{content}_{size}.pth.tar" for size in (512, 6144)]
    folders = list_weights_folders()
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    file_name = f"{stem}-{PUBLISHED_VERSIONS[0]}.h5.gz"
    raise CheckpointError(
        f"no weights of {stem} in {' or '.join(map(str, folders))}: get {PUBLISHED_URL}{file_name} "
        f"and put it there without unpacking it, "
        f"or set its folder in the environment variable {FOLDER_VARIABLE}"
    )
