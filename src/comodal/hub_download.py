"""Models on the Hugging Face hub, by name: OWNER/NAME. Files are downloaded once, into the cache of huggingface_hub."""

import importlib
import re
from pathlib import Path
from typing import Any

from comodal.errors import CheckpointError

HUB_NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILE_PATTERNS = ("*.json", "*.safetensors", "*.md", "*.txt")  # of a shared model, in all its folders
HUB_NOT_INSTALLED = "the hub needs huggingface_hub: pip install 'comodal[hub]'"


def is_hub_name(path: Path | str) -> bool:
    """Whether a path is a name on the hub: OWNER/NAME, and there is no folder OWNER here."""
    return HUB_NAME_PATTERN.fullmatch(str(path)) is not None and not Path(path).parent.exists()


def resolve_model_path(path: Path | str) -> Path:
    """The folder of a model: the path itself, or the downloaded files of a name on the hub.

    Raises:
        CheckpointError: There is no such model on the hub, the hub cannot be reached, or its library is not installed.
    """
    return download_from_hub(str(path)) if is_hub_name(path) else Path(path)


def download_from_hub(name: str, folder: Path | None = None) -> Path:
    """Downloads the files of a model from the hub.

    Args:
        name: OWNER/NAME.
        folder: Output folder; by default the cache of huggingface_hub.

    Raises:
        CheckpointError: There is no such repository, the hub cannot be reached, or its library is not installed.
    """
    hub = import_hub_library()
    try:
        return Path(hub.snapshot_download(name, local_dir=folder, allow_patterns=list(HUB_FILE_PATTERNS)))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{name}: no such folder, and not downloaded from the hub: {reason}") from error


def import_hub_library() -> Any:
    """Imports huggingface_hub.

    Raises:
        CheckpointError: It is not installed.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise CheckpointError(HUB_NOT_INSTALLED) from error
    return hub
