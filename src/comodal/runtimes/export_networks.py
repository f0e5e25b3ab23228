"""The exportable networks of each model, with their dynamic axes and sample inputs.

A new kind of model is added to NETWORK_LISTERS.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.detectors.detector_c4 import C4
from comodal.models.detectors.detector_fpn import FPN
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.l3net.l3net import AUDIO_GRID, IMAGE_GRID, L3Net
from comodal.models.vilbert import single_stream, vilbert
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.runtimes.export_detectors import list_c4_networks, list_fpn_networks
from comodal.runtimes.export_joint_space import list_ave_net_networks, list_dual_encoder_networks
from comodal.runtimes.export_spectrogram import PortableSpectrogram
from comodal.runtimes.exportable import (
    CorrespondenceNetwork,
    ExportableNetwork,
    Sizes,
    copy_without_parts,
    make_noise_with_tone,
)

PairConfig = vilbert.ViLBERTConfig | single_stream.SingleStreamConfig


def list_model_networks(model: nn.Module) -> list[ExportableNetwork]:
    """The networks of a model.

    Raises:
        CheckpointError: Its kind is not supported.
    """
    for kind, networks in NETWORK_LISTERS.items():
        if isinstance(model, kind):
            return networks(model)
    supported = ", ".join(kind.__name__ for kind in NETWORK_LISTERS)
    raise CheckpointError(f"a {type(model).__name__} cannot be exported; supported are: {supported}")


def pool_grid_cells(
    feature_map: Float[Tensor, "batch channels rows columns"], grid: tuple[int, int]
) -> Float[Tensor, "batch features"]:
    """`max_pool_to_grid`, cell by cell: ONNX cannot pool overlapping cells, such as a map of 4 columns in 3 cells."""
    rows, columns = feature_map.shape[2:]
    down, across = min(grid[0], rows), min(grid[1], columns)
    parts = [
        feature_map[:, :, row * rows // down : -(-(row + 1) * rows // down), from_:to]
        for row in range(down)
        for from_, to in ((i * columns // across, -(-(i + 1) * columns // across)) for i in range(across))
    ]
    return torch.cat([part.amax((2, 3)) for part in parts], 1)


class ImageEmbedder(nn.Module):
    """From images to the output of `embed_image`."""

    def __init__(self, model: L3Net) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return pool_grid_cells(self.model.compute_image_map(image), IMAGE_GRID)


class AudioEmbedder(nn.Module):
    """From waveforms to the output of `embed_audio`."""

    def __init__(self, model: L3Net) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch features"]:
        return pool_grid_cells(self.model.compute_audio_map(audio), AUDIO_GRID)


def list_l3net_networks(model: L3Net) -> list[ExportableNetwork]:
    """The image embedder, the audio embedder, and the whole model."""
    config = model.config
    portable = copy.deepcopy(model)
    portable.spectrogram = PortableSpectrogram(config.spectrogram)
    size, samples = config.image_size, round(config.audio_seconds * config.sample_rate)
    trials = tuple({"batch": batch} for batch in (2, 1, 5))

    def make_image(generator: torch.Generator, sizes: Sizes) -> Tensor:
        return torch.randint(0, 256, (sizes["batch"], 3, size, size), generator=generator, dtype=torch.uint8)

    def make_audio(generator: torch.Generator, sizes: Sizes) -> Tensor:
        return make_noise_with_tone(generator, sizes["batch"], samples, config.sample_rate)

    image_model, audio_model = (
        copy_without_parts(portable, "audio_tower", "spectrogram"),
        copy_without_parts(portable, "image_tower"),
    )
    image_axes: dict[str, tuple[str, ...]] = {"image": ("batch", "", "", "")}
    audio_axes: dict[str, tuple[str, ...]] = {"audio": ("batch", "")}
    features = ("logits", "image_features", "audio_features")
    return [
        ExportableNetwork(
            "image", ImageEmbedder(image_model), model.embed_image, image_axes, ("embedding",),
            lambda generator, sizes: (make_image(generator, sizes),), trials, {},
        ),
        ExportableNetwork(
            "audio", AudioEmbedder(audio_model), model.embed_audio, audio_axes, ("embedding",),
            lambda generator, sizes: (make_audio(generator, sizes),), trials, {},
        ),
        ExportableNetwork(
            "l3net", CorrespondenceNetwork(portable), model, image_axes | audio_axes, features,
            lambda generator, sizes: (make_image(generator, sizes), make_audio(generator, sizes)), trials, {},
        ),
    ]  # fmt: skip


class ViLBERTEncoder(nn.Module):
    """Both streams, both pooled outputs, and the two scores of alignment: aligned and not."""

    def __init__(self, model: ViLBERT | SingleStream) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        token_mask: Bool[Tensor, "batch length"],
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Bool[Tensor, "batch regions"],
        task_ids: Int64[Tensor, "batch"] | None = None,
    ) -> tuple[Tensor, ...]:
        inputs = (token_ids, token_types, token_mask, region_features, spatials, region_mask)
        output = self.model(*inputs) if task_ids is None else self.model(*inputs, task_ids)
        return *output, self.model.alignment_head(output.pooled_text, output.pooled_vision)


class HeadScores(nn.Module):
    """The scores of one head; text i is paired with image i."""

    def __init__(self, model: TaskModel, head: str) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(
        self,
        token_ids: Int64[Tensor, "batch length"],
        token_types: Int64[Tensor, "batch length"],
        token_mask: Bool[Tensor, "batch length"],
        region_features: Float[Tensor, "batch regions features"] | Int64[Tensor, "batch regions"],
        spatials: Float[Tensor, "batch regions 5"],
        region_mask: Bool[Tensor, "batch regions"],
        task_ids: Int64[Tensor, "batch"] | None = None,
    ) -> tuple[Tensor, ...]:
        image_indices = torch.arange(token_ids.shape[0])
        inputs = (token_ids, token_types, token_mask, region_features, spatials, region_mask)
        return (self.model(self.head, *inputs, image_indices, task_ids),)


def list_vilbert_networks(model: ViLBERT | SingleStream) -> list[ExportableNetwork]:
    """The encoder with its pooled outputs and the alignment scores."""
    outputs = ("token_states", "region_states", "pooled_text", "pooled_vision", "alignment")
    return [build_pair_network("vilbert", ViLBERTEncoder(model), model.config, outputs, "batch")]


def list_task_networks(model: TaskModel) -> list[ExportableNetwork]:
    """One network for each head."""

    def axis(head: Head) -> str:
        return "2*pairs" if head.kind == "pairs" else "batch"

    return [
        build_pair_network(head.name, HeadScores(model, head.name), model.config.vilbert, ("scores",), axis(head))
        for head in model.config.heads
    ]


def build_pair_network(
    name: str, module: nn.Module, config: PairConfig, outputs: tuple[str, ...], batch: str
) -> ExportableNetwork:
    """A network on texts with images, with any number of tokens and regions."""
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(("token_ids", "token_types", "token_mask"), (batch, "tokens"))
    axes["region_features"] = (batch, "regions") if config.num_visual_tokens else (batch, "regions", "")
    axes |= {"spatials": (batch, "regions", ""), "region_mask": (batch, "regions")}
    if config.task_tokens:
        axes["task_ids"] = (batch,)
    max_tokens = config.positions - config.first_position
    min_tokens = 3 if config.task_tokens else 2  # the task token is between the first token and the others
    count = batch.split("*")[-1]
    trials = [
        {count: rows, "tokens": min(num_tokens, max_tokens), "regions": num_regions}
        for rows, num_tokens, num_regions in ((2, 7, 5), (1 if batch == count else 4, 20, 37), (3, 12, 101))
    ]
    limits: dict[str, tuple[int, int | None]] = {"tokens": (min_tokens, max_tokens)}
    if batch != count:
        limits[count] = (2, None)  # torch.export specializes an axis of size 1

    def sample(generator: torch.Generator, sizes: Sizes) -> tuple[Tensor, ...]:
        rows = sizes[count] * (1 if batch == count else 2)
        return make_pair_inputs(generator, config, rows, sizes["tokens"], sizes["regions"])

    return ExportableNetwork(name, module, module, axes, outputs, sample, tuple(trials), limits)


def make_pair_inputs(
    generator: torch.Generator, config: PairConfig, rows: int, num_tokens: int, num_regions: int
) -> tuple[Tensor, ...]:
    """Texts and images of different lengths: the last i tokens and regions of row i are padding."""

    def draw_ids(upper: int, *shape: int) -> Tensor:
        return torch.randint(0, upper, shape, generator=generator)

    missing = torch.arange(rows).unsqueeze(1).clamp(max=3)
    if config.num_visual_tokens:
        region_features = draw_ids(config.num_visual_tokens, rows, num_regions)
    else:
        region_features = torch.rand(rows, num_regions, config.region_feature_dim, generator=generator)
    tensors = (
        draw_ids(config.vocabulary, rows, num_tokens),
        draw_ids(config.num_token_types, rows, num_tokens),
        torch.arange(num_tokens) < num_tokens - missing,
        region_features,
        torch.rand(rows, num_regions, 5, generator=generator),
        torch.arange(num_regions) < num_regions - missing,
    )
    return (*tensors, draw_ids(config.task_tokens, rows)) if config.task_tokens else tensors


NETWORK_LISTERS: dict[type[nn.Module], Callable[[Any], list[ExportableNetwork]]] = {
    L3Net: list_l3net_networks,
    ViLBERT: list_vilbert_networks,
    SingleStream: list_vilbert_networks,
    TaskModel: list_task_networks,
    C4: list_c4_networks,
    FPN: list_fpn_networks,
    AVENet: list_ave_net_networks,
    DualEncoder: list_dual_encoder_networks,
}
