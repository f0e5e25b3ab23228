"""A JSON object of captions. Its keys are unique, except image ids of {image id: caption}, which may have several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comodal.data.sources.caption_tables import CAPTION_COLUMNS, IMAGE_COLUMNS
from comodal.errors import DataError
from comodal.text_files import DuplicateKeyError, parse_json


def parse_caption_object(path: Path, text: str) -> dict[str, Any]:
    """Parses an object; the captions of an image id that is twice in {image id: caption} become one list.

    Raises:
        DataError: It is not JSON, or any other object has a duplicate key.
    """
    try:
        return parse_json(text, path)
    except DataError as error:
        if not isinstance(error.__cause__, DuplicateKeyError):
            raise
        merged = parse_json(text, path, hook=merge_captions)
        if "images" in merged or is_caption_entry(merged):
            raise
        return merged


def is_caption_entry(value: Mapping[str, Any]) -> bool:
    """Whether an object is an image with its captions."""
    has_both = {*IMAGE_COLUMNS} & value.keys() and {*CAPTION_COLUMNS} & value.keys()
    return bool(has_both or {"image", "img_path"} & value.keys())


def merge_captions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; the values of a duplicate key are a list."""
    merged: dict[str, list[Any]] = {}
    for name, value in pairs:
        merged.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return dict(pairs) | {name: values for name, values in merged.items() if len(values) > 1}
