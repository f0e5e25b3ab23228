"""Folders of what the original detectors gave: every one under $COMODAL_FIXTURES/detector, whatever its sizes."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

FIXTURES = Path(os.environ.get("COMODAL_FIXTURES", Path(__file__).parent / "fixtures")) / "detector"


def folders_with(name: str) -> list[Path]:
    """Folders that hold such a file."""
    return sorted(path.parent for path in FIXTURES.glob(f"*/{name}"))


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The content of one of their files."""
    return load_file(folder / f"{name}.safetensors")


def ids(folders: list[Path]) -> dict[str, object]:
    """Parameters of a test, one for each folder."""
    return {"argvalues": folders, "ids": [folder.name for folder in folders]}
