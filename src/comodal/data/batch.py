"""The batch types: frozen dataclasses of named tensors, batch dimension first."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@runtime_checkable
class Batch(Protocol):
    """The interface of a batch for the trainer: it can be moved to a device, and names its samples when a loss is not
    finite.
    """

    @property
    def keys(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device) -> "Batch": ...


AnyBatch = TypeVar("AnyBatch", bound="Tensors")


@dataclass(frozen=True)
class Tensors:
    """A batch whose fields are tensors, except for the keys of its samples."""

    def to(self: AnyBatch, device: torch.device, non_blocking: bool = True) -> AnyBatch:
        """The same batch on a device; from pinned memory the copy is asynchronous."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same batch in pinned memory."""
        return self.map(Tensor.pin_memory)

    def map(self: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
        """The same batch with a function applied to each tensor."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of a batch until the work of another stream on it is done."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def tensors(self) -> dict[str, Any]:
        """All fields except the keys, by name: tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "keys"}


@dataclass(frozen=True)
class AudioVisualBatch(Tensors):
    """Images and seconds of audio, and whether the two of a pair come from the same moment of the same clip."""

    image: UInt8[Tensor, "batch 3 height width"]
    audio: Float[Tensor, "batch samples"]
    is_match: Bool[Tensor, "batch"]
    source_ids: Int64[Tensor, "batch"]  # the id of the image's source video
    keys: tuple[str, ...]  # one a pair: the image's clip and frame, and the audio's clip and start


@dataclass(frozen=True)
class LabeledClipBatch(Tensors):
    """An image and a second of audio of each clip, with the class of the clip."""

    image: UInt8[Tensor, "batch 3 height width"]
    audio: Float[Tensor, "batch samples"]
    target: Int64[Tensor, "batch"]
    keys: tuple[str, ...]  # the clip, its frame and its audio


class TokenInput(IntEnum):
    """Special values of a batch's visual token inputs; the ids of visual tokens follow after these."""

    PADDING = 0
    IMAGE = 1  # row 0, and every region of a store without tokens
    MASK = 2


@dataclass(frozen=True)
class CaptionBatch(Tensors):
    """Captions with the regions of an image: the masked inputs of the model, and the targets (ViLBERT, section 3.2).

    Row 0 of the regions is the whole image: the mean of its regions' features (0 where masked), at (0, 0, 1, 1, 1).
    Masked positions are flat indices (row of the batch x its length + column), because most positions are not masked.
    """

    token_ids: Int64[Tensor, "batch length"]
    token_types: Int64[Tensor, "batch length"]
    token_mask: Bool[Tensor, "batch length"]
    region_features: Float[Tensor, "batch regions features"]
    spatials: Float[Tensor, "batch regions 5"]  # left, top, right, bottom and area, as fractions of the image
    region_mask: Bool[Tensor, "batch regions"]
    image_rows: Int64[Tensor, "batch"]  # the row of each image in the store
    is_match: Bool[Tensor, "batch"]  # False for a negative: the caption or the image was replaced
    masked_token_indices: Int64[Tensor, "masked_tokens"]  # flat indices into `token_ids`
    token_targets: Int64[Tensor, "masked_tokens"]  # the original token ids
    masked_region_indices: Int64[Tensor, "masked_regions"]  # flat indices into `region_features`, never row 0
    feature_targets: Float[Tensor, "masked_regions features"]  # the original features
    class_targets: Float[Tensor, "masked_regions classes"]  # class probabilities; no columns if the store has none
    visual_token_targets: Int64[Tensor, "masked_visual_tokens"]  # visual tokens; no rows if the store has none
    visual_tokens: Int64[
        Tensor, "batch regions"
    ]  # visual tokens as input: token + len(TokenInput), or one of TokenInput
    unpadded_token_indices: Int64[Tensor, "unpadded_tokens"]  # flat indices into `token_ids` that are not padding
    unpadded_region_indices: Int64[
        Tensor, "unpadded_regions"
    ]  # flat indices into `region_features` that are not padding
    keys: tuple[str, ...]  # the caption and its image


@dataclass(frozen=True)
class ImageTextBatch(Tensors):
    """Captions, each with the regions of its image, unmasked. Row 0 of the regions is the whole image."""

    token_ids: Int64[Tensor, "batch length"]
    token_mask: Bool[Tensor, "batch length"]
    text_features: Float[
        Tensor, "batch text_features"
    ]  # of a frozen text encoder; no columns if it computes in training
    region_features: Float[Tensor, "batch regions features"]
    region_mask: Bool[Tensor, "batch regions"]
    image_rows: Int64[Tensor, "batch"]  # the row of each image in the store
    keys: tuple[str, ...]  # the caption and its image


@dataclass(frozen=True)
class CaptionImageBatch(Tensors):
    """Captions, each with its image as pixels or as features of a frozen image network."""

    token_ids: Int64[Tensor, "batch length"]
    token_mask: Bool[Tensor, "batch length"]
    text_features: Float[
        Tensor, "batch text_features"
    ]  # of a frozen text encoder; no columns if it computes in training
    pixels: UInt8[Tensor, "batch 3 height width"]  # no pixels if image_features are given
    image_features: Float[Tensor, "batch image_features"]  # no columns if they are computed in training
    image_rows: Int64[Tensor, "batch"]  # the index of each image
    keys: tuple[str, ...]  # the caption and its image


@dataclass(frozen=True)
class TaskBatch(Tensors):
    """Texts with images, and the targets: answers, the index of the correct text, or a score for each region.

    Each image occurs once, however many texts refer to it. Row 0 of the regions is the whole image.
    """

    token_ids: Int64[Tensor, "texts length"]
    token_types: Int64[Tensor, "texts length"]
    token_mask: Bool[Tensor, "texts length"]
    region_features: (
        Float[Tensor, "images regions features"] | Int64[Tensor, "images regions"]
    )  # features, or visual tokens
    spatials: Float[Tensor, "images regions 5"]
    region_mask: Bool[Tensor, "images regions"]
    image_indices: Int64[Tensor, "texts"]  # the image of each text
    targets: Float[Tensor, "rows columns"] | Int64[Tensor, "rows"]  # one row per example; no rows without labels
    task_ids: Int64[Tensor, "task_texts"]  # the task token of each text; no rows for a model without task tokens
    keys: tuple[str, ...]  # one per example


@dataclass(frozen=True)
class ClassificationBatch(Tensors):
    """Images or audio, each with one class."""

    inputs: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch samples"]
    target: Int64[Tensor, "batch"]
    keys: tuple[str, ...]  # the name of each image or recording
