"""Objectives on a model with parts that are not trained, such as pretrained towers."""

from torch import nn

BOTH_TOWERS = ("image_tower", "audio_tower")


class FrozenPartsObjective(nn.Module):
    """An objective whose model has parts that are not trained.

    These parts stay in evaluation mode, so that their batch norms keep the statistics that they were trained with.

    Args:
        model: The model to train.
        frozen_parts: Names of the submodules that are not trained.
    """

    def __init__(self, model: nn.Module, frozen_parts: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model = model
        self.frozen_parts = frozen_parts
        for name in frozen_parts:
            model.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenPartsObjective":
        super().train(mode)
        for name in self.frozen_parts:
            self.model.get_submodule(name).eval()
        return self
