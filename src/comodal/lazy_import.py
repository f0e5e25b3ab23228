"""Lazy imports of objects whose module takes seconds to import."""

import importlib
from typing import Any


def import_object(address: str) -> Any:
    """Imports the object of an address, such as comodal.inference.explain:AttentionExplainer."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)
