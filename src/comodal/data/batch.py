"""The batch types: frozen dataclasses of named tensors, batch dimension first."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@runtime_checkable
class Batch(Protocol):
    """What the trainer needs of a batch: to be moved, and to say which samples it holds when a loss is not finite."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device) -> "Batch": ...


@dataclass(frozen=True)
class PairBatch:
    """Pictures and seconds of sound, and whether the two of a pair come from one moment of one clip."""

    image: UInt8[Tensor, "batch 3 height width"]
    sound: Float[Tensor, "batch samples"]
    together: Bool[Tensor, "batch"]
    keys: tuple[str, ...]  # one a pair: the picture's clip and frame, and the sound's clip and start

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on a device; the copy does not wait for pinned memory."""
        image, sound, together = (
            tensor.to(device, non_blocking=True) for tensor in (self.image, self.sound, self.together)
        )
        return PairBatch(image, sound, together, self.keys)

    def pin_memory(self) -> "PairBatch":
        """The same batch in memory from which a GPU can copy by itself."""
        return PairBatch(self.image.pin_memory(), self.sound.pin_memory(), self.together.pin_memory(), self.keys)
