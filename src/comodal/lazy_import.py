"""Objects whose module is imported when they are first needed, because it takes seconds and most calls go without."""

import importlib
from typing import Any


def import_object(address: str) -> Any:
    """The object of an address, such as comodal.inference.explain:AttentionExplainer."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)
