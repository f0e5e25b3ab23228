"""Loading and saving of models as methods: `from_pretrained` and `save_pretrained`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from comodal.errors import CheckpointError
from comodal.hub_download import resolve_model_path
from comodal.models.checkpoint import load_model, save_model

ModelClass = TypeVar("ModelClass", bound="PretrainedModel")


class PretrainedModel:
    """Loading and saving of a model; the second base class of the models of comodal."""

    @classmethod
    def from_pretrained(cls: type[ModelClass], path: Path | str) -> ModelClass:
        """Loads a model on the CPU, in evaluation mode.

        Args:
            path: Run folder, model folder, or OWNER/NAME on the Hugging Face hub.

        Raises:
            CheckpointError: There is no model, it is damaged, or it is of another class.
        """
        model = load_model(resolve_model_path(path))
        if not isinstance(model, cls):
            raise CheckpointError(f"{path} holds a {type(model).__name__}, not a {cls.__name__}")
        return model

    def save_pretrained(self, folder: Path | str, about: Mapping[str, object] | None = None) -> None:
        """Writes `model.safetensors` and `config.json` into a folder.

        Args:
            folder: Created if it does not exist; an older model in it is replaced.
            about: Metadata, anything that JSON supports.

        Raises:
            CheckpointError: A weight is NaN or infinite; nothing is written.
        """
        save_model(self, Path(folder), about or {})  # type: ignore[arg-type]  # every model is an nn.Module
