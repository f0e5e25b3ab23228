"""Converts weights of OpenL3, torchopenl3 and l3embedding to an L3-Net, by order and kind of the tensors, not by layer
name.

Keras counts its layers by session (`conv2d_8`, `batch_normalization_10`), nests models and puts the trainable weights
of a nested model first. Only the last part of a name and the order among tensors of one kind are stable. The k-th
kernel is that of the k-th convolution, and the k-th gamma that of the k-th norm.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.models.convert.state_dicts import (
    LoadReport,
    check_weight_tensor,
    exclude_names,
    refuse_surplus_weights,
)
from comodal.models.l3net import spectrogram as front_ends
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.models.l3net.l3net import make_openl3_config as openl3_config
from comodal.models.l3net.spectrogram import Frontend, Representation
from comodal.models.l3net.vgg import VGG_LAYER_NAMES

TowerModality = Literal["image", "audio"]

# The last part of a name, Keras' or PyTorch's, and what it is; a PyTorch weight of one dimension is a gamma.
TENSOR_KINDS = {
    "kernel": "kernel", "weight": "kernel", "bias": "bias", "gamma": "gamma", "beta": "beta",
    "moving_mean": "mean", "running_mean": "mean", "moving_variance": "variance", "running_var": "variance",
}  # fmt: skip
SPECTROGRAM_CONSTANTS = ("spectrogram", "speclayer", "stft", "real_kernels", "imag_kernels", "freq2mel", "Variable")
NORM_PARAMETERS = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
MODALITY_OF_CHANNELS = {3: "image", 1: "audio"}
OPENL3_FFT_BINS = 1025  # of a window of 2048
NamedTensor = tuple[str, Tensor]


@dataclass
class TensorsByKind:
    """The tensors of one kind in the order of the file, with their names; convolutions are OIHW."""

    kernels: list[NamedTensor] = dataclasses.field(default_factory=list)
    dense: list[NamedTensor] = dataclasses.field(default_factory=list)
    biases: list[NamedTensor] = dataclasses.field(default_factory=list)
    norms: dict[str, list[NamedTensor]] = dataclasses.field(
        default_factory=lambda: {kind: [] for kind in NORM_PARAMETERS}
    )
    constants: list[NamedTensor] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class OpenL3Weights:
    """The tensors of a file by our names, and the inferred properties of the network.

    Args:
        tensors: Our name -> its name and the tensor.
        towers: Towers that the file has weights of.
        input_norm: Towers with batch normalization of their input; l3embedding's first models have none.
        has_fusion_layers: Whether the file also has the fusion network.
        representation: Spectrogram according to the file's frontend constants, None if it has none.
        unused: The file's tensors that have no counterpart.
    """

    tensors: dict[str, NamedTensor]
    towers: tuple[TowerModality, ...]
    input_norm: tuple[TowerModality, ...]
    has_fusion_layers: bool
    representation: Representation | None
    unused: tuple[str, ...]


def match_openl3_weights(state: Mapping[str, Tensor], path: Path) -> OpenL3Weights:
    """Matches the tensors of a file to ours.

    Args:
        state: The file's tensors in its order, Keras' kernels as OIHW (two dimensions: outputs, inputs).
        path: Path of the file, for messages.

    Raises:
        CheckpointError: It is another network, or a tensor is missing, surplus or of another shape.
    """
    kinds = sort_tensors_by_kind(state)
    tensors: dict[str, NamedTensor] = {}
    towers: list[TowerModality] = []
    with_input_norm: list[TowerModality] = []
    kernel_index, norm_index = 0, 0
    while kernel_index < len(kinds.kernels):
        channels = kinds.kernels[kernel_index][1].shape[1]
        modality: TowerModality = "image" if channels == 3 else "audio"
        if channels not in MODALITY_OF_CHANNELS or modality in towers:
            raise make_foreign_file_error(path, kinds)
        kernel_index = assign_convolutions(kinds, kernel_index, modality, tensors, path)
        first_norm_index = norm_index
        norm_index = assign_norms(kinds, norm_index, modality, tensors, path)
        towers.append(modality)
        if f"{modality}_tower.input_norm.weight" in tensors:
            with_input_norm.append(modality)
        assert norm_index > first_norm_index
    if not towers or norm_index != len(kinds.norms["gamma"]):
        raise make_foreign_file_error(path, kinds)
    has_fusion_layers = assign_fusion_layers(kinds, len(towers), tensors, path)
    used = {name for name, _ in tensors.values()}
    layers = [name for name in state if get_last_part(name) in TENSOR_KINDS and name not in used]
    refuse_surplus_weights(exclude_names(layers, (name for name, _ in kinds.constants)), "", path)
    unused = (*kinds.unknown, *(name for name, _ in kinds.constants))
    return OpenL3Weights(
        tensors,
        tuple(towers),
        tuple(with_input_norm),
        has_fusion_layers,
        infer_representation(kinds.constants),
        tuple(unused),
    )


def sort_tensors_by_kind(state: Mapping[str, Tensor]) -> TensorsByKind:
    """Groups tensors by the last part of their names and their number of dimensions."""
    kinds = TensorsByKind()
    for name, tensor in state.items():
        kind = TENSOR_KINDS.get(get_last_part(name), "")
        if kind == "kernel" and tensor.ndim == 1:
            kind = "gamma"
        if any(part in name for part in SPECTROGRAM_CONSTANTS):
            kinds.constants.append((name, tensor))
        elif kind == "kernel" and tensor.ndim == 4:
            kinds.kernels.append((name, tensor))
        elif kind == "kernel" and tensor.ndim == 2:
            kinds.dense.append((name, tensor))
        elif kind in NORM_PARAMETERS and tensor.ndim == 1:
            kinds.norms[kind].append((name, tensor))
        elif kind == "bias" and tensor.ndim == 1:
            kinds.biases.append((name, tensor))
        else:
            kinds.unknown.append(name)
    return separate_norm_betas(kinds)


def get_last_part(name: str) -> str:
    """The last part of a name: what the tensor is in its layer."""
    return name.split("/")[-1].split(".")[-1].split(":")[0]


def separate_norm_betas(kinds: TensorsByKind) -> TensorsByKind:
    """Separates betas, which PyTorch calls biases as well: without betas they are the tensors after a gamma."""
    gammas = {name.rsplit(".", 1)[0] for name, _ in kinds.norms["gamma"]}
    for named_bias in list(kinds.biases):
        if named_bias[0].rsplit(".", 1)[0] in gammas:
            kinds.norms["beta"].append(named_bias)
    kinds.biases = [named_bias for named_bias in kinds.biases if named_bias[0].rsplit(".", 1)[0] not in gammas]
    return kinds


def assign_convolutions(
    kinds: TensorsByKind, start: int, modality: TowerModality, tensors: dict[str, NamedTensor], path: Path
) -> int:
    """Assigns the eight convolutions of a tower from an index on; returns the next index."""
    channels = kinds.kernels[start][1].shape[1]
    width = kinds.kernels[start][1].shape[0]
    for index, layer in enumerate(VGG_LAYER_NAMES):
        filters = width * 2 ** (index // 2)
        expected_shape = (filters, channels, 3, 3)
        if start + index >= len(kinds.kernels) or start + index >= len(kinds.biases):
            raise CheckpointError(f"{path}: a tensor is missing: the {modality}'s {layer} has no kernel or no bias")
        name, kernel = kinds.kernels[start + index]
        if tuple(kernel.shape) != expected_shape:
            if index == 0:
                raise make_foreign_file_error(path, kinds)
            shapes = f"{tuple(kernel.shape)}, and {layer} of OpenL3 {expected_shape} (outputs, inputs, rows, columns)"
            raise CheckpointError(f"{path}: {name} has the shape {shapes}")
        tensors[f"{modality}_tower.layers.{layer}.convolution.weight"] = (name, kernel)
        check_vector_size(kinds.biases[start + index], filters, layer, path)
        tensors[f"{modality}_tower.layers.{layer}.convolution.bias"] = kinds.biases[start + index]
        channels = filters
    return start + len(VGG_LAYER_NAMES)


def assign_norms(
    kinds: TensorsByKind, norm: int, modality: TowerModality, tensors: dict[str, NamedTensor], path: Path
) -> int:
    """Assigns a tower's norms: of its input (or none), of seven layers, and of conv4_2 unless the network ends before
    it."""
    channels = 3 if modality == "image" else 1
    sizes = [len(tensor) for _, tensor in kinds.norms["gamma"]]
    names = [f"{modality}_tower.layers.{layer}.norm" for layer in VGG_LAYER_NAMES]
    expected_sizes = [
        tensors[f"{modality}_tower.layers.{layer}.convolution.bias"][1].shape[0] for layer in VGG_LAYER_NAMES
    ]
    if norm < len(sizes) and sizes[norm] == channels:
        names, expected_sizes = [f"{modality}_tower.input_norm", *names], [channels, *expected_sizes]
    if norm + len(names) > len(sizes) or sizes[norm + len(names) - 1] != expected_sizes[-1]:
        names, expected_sizes = names[:-1], expected_sizes[:-1]
    for name, size in zip(names, expected_sizes, strict=True):
        for kind, last in NORM_PARAMETERS.items():
            if norm >= len(kinds.norms[kind]):
                raise CheckpointError(f"{path}: a tensor is missing: the {kind} of norm {norm + 1} ({name})")
            check_vector_size(kinds.norms[kind][norm], size, name, path)
            tensors[f"{name}.{last}"] = kinds.norms[kind][norm]
        norm += 1
    return norm


def assign_fusion_layers(kinds: TensorsByKind, towers: int, tensors: dict[str, NamedTensor], path: Path) -> bool:
    """Assigns the two layers of the fusion network, if the file has them."""
    if not kinds.dense:
        return False
    biases = kinds.biases[towers * len(VGG_LAYER_NAMES) :]
    if towers != 2 or len(kinds.dense) != 2 or len(biases) != 2:
        raise CheckpointError(f"{path}: {len(kinds.dense)} dense layers behind {towers} towers; L3-Net has 2 behind 2")
    for layer, kernel, bias in zip(("fc1", "fc2"), kinds.dense, biases, strict=True):
        check_vector_size(bias, kernel[1].shape[0], layer, path)
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = kernel, bias
    return True


def check_vector_size(named_tensor: NamedTensor, size: int, layer: str, path: Path) -> None:
    """Raises an error for a vector of the wrong length."""
    if tuple(named_tensor[1].shape) != (size,):
        raise CheckpointError(
            f"{path}: {named_tensor[0]} has the shape {tuple(named_tensor[1].shape)}, and {layer} ({size},)"
        )


def make_foreign_file_error(path: Path, kinds: TensorsByKind) -> CheckpointError:
    """An error that describes the file's content."""
    shapes = [tuple(kernel.shape) for _, kernel in kinds.kernels]
    contents = f"{len(shapes)} convolutions, the first {shapes[0]}" if shapes else "no convolution"
    contents += f", and {len(kinds.norms['gamma'])} norms"
    return CheckpointError(
        f"{path}: not the weights of OpenL3 or l3embedding; it has {contents}, and each of their towers has 8 of 3 x 3"
    )


def infer_representation(constants: list[NamedTensor]) -> Representation | None:
    """Infers the spectrogram: kapre and torchopenl3 store mel filters, or only the DFT of a linear spectrogram."""
    for _, tensor in constants:
        if tensor.ndim == 2 and OPENL3_FFT_BINS in tensor.shape:
            bands = min(tensor.shape)
            return {128: "mel128", 256: "mel256"}.get(bands)  # type: ignore[return-value]
    return "linear" if any(512 in tensor.shape and 257 in tensor.shape for _, tensor in constants) else None


def infer_openl3_config(parts: list[OpenL3Weights], representation: Representation, frontend: Frontend) -> L3NetConfig:
    """Infers the configuration; l3embedding's `cnn_L3_orig` is linear without input norms."""
    config = openl3_config(representation, frontend)
    if not any(weights.input_norm for weights in parts):
        config = dataclasses.replace(config, input_norm=False)
        if representation == "linear":
            config = dataclasses.replace(config, spectrogram=front_ends.L3EMBEDDING_SPECTROGRAM_CONFIG)
    for weights in parts:
        first = weights.tensors[f"{weights.towers[0]}_tower.layers.conv1_1.convolution.bias"][1]
        fusion = weights.tensors["fc1.bias"][1].shape[0] if weights.has_fusion_layers else config.fusion
        config = dataclasses.replace(config, width=first.shape[0], fusion=fusion)
    return config


@torch.no_grad()
def build_openl3(parts: list[tuple[OpenL3Weights, Path]], config: L3NetConfig) -> tuple[L3Net, LoadReport]:
    """Builds an L3-Net with the weights of one or two files. Weights that no file has are zero.

    Raises:
        CheckpointError: Two files hold the same tower, or a tensor has the wrong shape.
    """
    with torch.random.fork_rng(devices=[]):
        model = L3Net(config).eval()
    own = model.state_dict()
    filled: list[str] = []
    for tensor in own.values():
        tensor.zero_()
    for weights, path in parts:
        for name, (source_name, tensor) in weights.tensors.items():
            if name in filled:
                raise CheckpointError(f"{path}: {source_name} is {name}, which the other file has as well")
            if own[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, and our {name} {tuple(own[name].shape)}"
                raise CheckpointError(f"{path}: {source_name} has the shape {shapes}")
            check_weight_tensor(source_name, tensor, path)
            own[name].copy_(tensor)
            filled.append(name)
        if config.input_norm:
            set_identity_input_norm(model, weights)
    new = tuple(name for name in exclude_names(own, filled) if not name.endswith("num_batches_tracked"))
    return model, LoadReport(tuple(filled), new, tuple(name for weights, _ in parts for name in weights.unused))


def set_identity_input_norm(model: L3Net, weights: OpenL3Weights) -> None:
    """Sets the input norm to the identity for towers without one."""
    for modality in weights.towers:
        if modality not in weights.input_norm:
            norm = model.get_submodule(f"{modality}_tower.input_norm")
            assert isinstance(norm, torch.nn.BatchNorm2d) and norm.running_var is not None
            norm.weight.fill_(1.0)
            norm.running_var.fill_(1 - norm.eps)
