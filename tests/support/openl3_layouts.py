"""Writes the fixture's weights in every layout in which OpenL3's and l3embedding's have been given out."""

import gzip
import io
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.paths import PARITY_FIXTURES

FIXTURES = PARITY_FIXTURES / "l3net"
if not (FIXTURES / "make_inputs.py").is_file():
    pytest.skip(f"{FIXTURES}: no fixtures of OpenL3", allow_module_level=True)
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
Layer = list[tuple[str, np.ndarray]]


def published(modality: str) -> Path:
    """The fixture's file in the layout of version 0.4."""
    (path,) = (FIXTURES / "h5").glob(f"openl3_{modality}_*.h5.gz")
    return path


@cache
def layers(modality: str) -> list[Layer]:
    """Layers with weights in their order, each of (kind, array)."""
    found = []
    with h5py.File(io.BytesIO(gzip.decompress(published(modality).read_bytes()))) as file:
        for name in file.attrs["layer_names"]:
            names = [weight.decode().split("/")[-1].split(":")[0] for weight in file[name].attrs["weight_names"]]
            weights = [file[name][weight][()] for weight in file[name].attrs["weight_names"]]
            found.append(list(zip(names, weights, strict=True)))
    return [layer for layer in found if layer]


def constants(representation: str) -> Layer:
    """What kapre 0.1.4 kept of its front end."""
    size = 512 if representation == "linear" else 2048
    dft = np.zeros((size, 1, 1, size // 2 + 1), np.float32)
    layer = [("real_kernels", dft), ("imag_kernels", dft)]
    bands = {"linear": 0, "mel128": 128, "mel256": 256}[representation]
    return [*layer, ("Variable", np.zeros((1025, bands), np.float32))] if bands else layer


def named(modality: str, convolution: int, norm: int, front: Layer | None = None) -> list[tuple[str, Layer]]:
    """Layers with names that count from where a session happened to be, with layers between that have no weights."""
    result: list[tuple[str, Layer]] = [("input_1", [])]
    if front:
        result.append(("melspectrogram_1", front))
    for number, layer in enumerate(layers(modality)):
        if len(layer) == 2:
            result.append((f"conv2d_{convolution + number // 2}", layer))
        else:
            result += [(f"batch_normalization_{norm + number // 2}", layer), (f"activation_{norm + number}", [])]
    return result


def tail(modality: str) -> Layer:
    """The norm after the last convolution, which OpenL3 cuts off."""
    kind = "vision" if modality == "image" else "audio"
    with np.load(FIXTURES / "ref" / "avc_mel128.npz") as file:
        return list(zip(NORM, file[f"bn_{kind}_tail"], strict=True))


def fusion() -> list[tuple[str, Layer]]:
    with np.load(FIXTURES / "ref" / "avc_mel128.npz") as file:
        kernels = file["fc1_kernel_in_fixture"], file["fc2_kernel_in_fixture"]
    biases = [np.linspace(-1, 1, kernel.shape[1], dtype=np.float32) for kernel in kernels]
    return [
        (f"dense_{number}", [("kernel", kernel), ("bias", bias)])
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True), 1)
    ]


def write(path: Path, groups: list[tuple[str, list[tuple[str, np.ndarray]]]], inside: str = "", text: bool = False):
    """A file of Keras: groups with their weights; `inside` is what model.save puts around them."""
    encode = str if text else str.encode
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        root.attrs["layer_names"] = [encode(name) for name, _ in groups]
        for name, weights in groups:
            group = root.create_group(name)
            group.attrs["weight_names"] = [encode(weight) for weight, _ in weights]
            for weight, array in weights:
                group.create_dataset(weight, data=array)
    return path


def write_flat(path: Path, parts: list[tuple[str, Layer]], **options: object) -> Path:
    return write(path, [(name, flat(name, layer)) for name, layer in parts], **options)


def flat(name: str, layer: Layer) -> Layer:
    return [(f"{name}/{kind}:0", array) for kind, array in layer]


def nested(parts: list[tuple[str, Layer]]) -> Layer:
    """The weights of a model in a model: those that are trained first, then all others."""
    every = [(kind, weight) for name, layer in parts for kind, weight in [(k, w) for k, w in flat(name, layer)]]
    fixed = ("moving_mean", "moving_variance", "real_kernels", "imag_kernels", "Variable")
    trained = [(name, array) for name, array in every if not any(word in name for word in fixed)]
    return trained + [(name, array) for name, array in every if any(word in name for word in fixed)]


def towers() -> tuple[list[tuple[str, Layer]], list[tuple[str, Layer]]]:
    """Both networks of a whole one, up to their last norm."""
    vision = [*named("image", 1, 1), ("batch_normalization_90", tail("image"))]
    audio = [*named("audio", 9, 10, constants("mel128")), ("batch_normalization_91", tail("audio"))]
    return vision, audio


def write_whole(path: Path) -> Path:
    """l3embedding's checkpoint: two models in a model."""
    vision, audio = towers()
    parts = [("input_1", []), ("vision_model", nested(vision)), ("audio_model", nested(audio))]
    return write(path, [*parts, *((name, flat(name, layer)) for name, layer in fusion())])


def write_whole_of_several_gpus(path: Path) -> Path:
    """The same, trained on several GPUs: all of it in one more model, beside layers that have no weights."""
    vision, audio = towers()
    return write(path, [("lambda_1", []), ("model_3", nested([*vision, *audio, *fusion()])), ("dense_2", [])])
