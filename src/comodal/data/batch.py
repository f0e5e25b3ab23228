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
    """What the trainer needs of a batch: to be moved, and to say which samples it holds when a loss is not finite."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device) -> "Batch": ...


AnyBatch = TypeVar("AnyBatch", bound="Tensors")


@dataclass(frozen=True)
class Tensors:
    """A batch whose fields are tensors, but for the keys of its samples."""

    def to(self: AnyBatch, device: torch.device, non_blocking: bool = True) -> AnyBatch:
        """The same batch on a device; from pinned memory the copy is not waited for."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same batch in memory from which a GPU can copy by itself."""
        return self.map(Tensor.pin_memory)

    def map(self: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
        """The same batch with each of its tensors changed."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of a batch until the work of another stream on it is done."""
        for tensor in self.tensors().values():
            tensor.record_stream(stream)

    def tensors(self) -> dict[str, Any]:
        """Everything but the keys, by name: tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "keys"}


@dataclass(frozen=True)
class AudioVisualBatch(Tensors):
    """Pictures and seconds of sound, and whether the two of a pair come from one moment of one clip."""

    image: UInt8[Tensor, "batch 3 height width"]
    sound: Float[Tensor, "batch samples"]
    together: Bool[Tensor, "batch"]
    sources: Int64[Tensor, "batch"]  # the source video of the picture, as a number
    keys: tuple[str, ...]  # one a pair: the picture's clip and frame, and the sound's clip and start


class TokenInput(IntEnum):
    """What stands in a batch's visual tokens where there is none; the tokens themselves are counted after these."""

    PADDING = 0
    IMAGE = 1  # row 0, and every region of a store without tokens
    HIDDEN = 2


@dataclass(frozen=True)
class CaptionBatch(Tensors):
    """Captions beside the regions of an image: what the model sees, and what was hidden from it (ViLBERT, section 3.2).

    Row 0 of the regions is the whole image: the sum of its regions' features over their number, at (0, 0, 1, 1, 1).
    What was hidden is kept as flat places (row of the batch x its length + column), because most places hide nothing.
    """

    words: Int64[Tensor, "batch words"]
    segments: Int64[Tensor, "batch words"]
    words_attended: Bool[Tensor, "batch words"]
    regions: Float[Tensor, "batch regions features"]
    locations: Float[Tensor, "batch regions 5"]  # left, top, right, bottom and area, as fractions of the image
    regions_attended: Bool[Tensor, "batch regions"]
    images: Int64[Tensor, "batch"]  # the row of each image in the store
    mismatched: Bool[Tensor, "batch"]  # the caption or the image was replaced by another's
    masked_words: Int64[Tensor, "hidden_words"]  # flat places in `words`
    word_targets: Int64[Tensor, "hidden_words"]  # the words that stood there
    masked_regions: Int64[Tensor, "hidden_regions"]  # flat places in `regions`, never row 0
    region_features: Float[Tensor, "hidden_regions features"]  # what stood there
    region_classes: Float[Tensor, "hidden_regions classes"]  # class probabilities there; no columns if there are none
    region_tokens: Int64[Tensor, "hidden_tokens"]  # visual tokens there; no rows if the store has none
    tokens: Int64[Tensor, "batch regions"]  # visual tokens as input: token + len(TokenInput), or one of TokenInput
    attended_words: Int64[Tensor, "words_there"]  # flat places in `words` that are no padding
    attended_regions: Int64[Tensor, "regions_there"]  # flat places in `regions` that are no padding
    keys: tuple[str, ...]  # the caption and its image


@dataclass(frozen=True)
class TaskBatch(Tensors):
    """Texts beside images, and what is right: answers, the one of several texts, or how well each region fits.

    Each image stands once, however many texts meet it. Row 0 of the regions is the whole image.
    """

    words: Int64[Tensor, "texts words"]
    segments: Int64[Tensor, "texts words"]
    words_attended: Bool[Tensor, "texts words"]
    regions: Float[Tensor, "images regions features"] | Int64[Tensor, "images regions"]  # features, or visual tokens
    locations: Float[Tensor, "images regions 5"]
    regions_attended: Bool[Tensor, "images regions"]
    images: Int64[Tensor, "texts"]  # which image each text meets
    targets: Float[Tensor, "rows columns"] | Int64[Tensor, "rows"]  # of one example each; no rows where none are known
    keys: tuple[str, ...]  # of one example each


@dataclass(frozen=True)
class ClassificationBatch(Tensors):
    """Pictures or sounds, each of one class."""

    shown: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch samples"]
    target: Int64[Tensor, "batch"]
    keys: tuple[str, ...]  # one a picture or sound: its name
