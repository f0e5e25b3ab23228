"""The files of RefCOCO, RefCOCO+ and RefCOCOg (lichengunc/refer), and candidate boxes.

refs({unc,umd,google}).p   references to objects with their sentences and split: a pickle, loaded without running code
instances.json             images and the boxes (left, top, width, height) of all their objects, in COCO's format

Candidate boxes are in the region store: a detector's, or those of `comodal prepare boxes` (`prepare_boxes.py`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from comodal.errors import DataError
from comodal.models.vilbert.heads import Head
from comodal.tasks.vision_language.answer_files import read_safe_pickle
from comodal.text_files import read_json

GROUNDING_HEAD = Head("regions", "regions", 1)  # of models
REFERENCE_FIELDS = {"ref_id": int, "ann_id": int, "image_id": int, "split": str, "sentences": list}


class ReferringExpression(NamedTuple):
    """A sentence or phrase that refers to an object; its box is None if unknown."""

    sentence: int | str
    reference: int | str
    image: int | str
    split: str
    text: str
    box: tuple[float, float, float, float] | None  # left, top, right, bottom


def read_expressions(references: Path, instances: Path) -> list[ReferringExpression]:
    """All sentences of a file of references.

    Raises:
        DataError: A file cannot be read, has another format, or the two files do not match.
    """
    entries, objects = read_safe_pickle(references), read_instance_boxes(instances)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{references}: not a list of references, as refs(unc).p is")
    expressions, index_by_sentence_id = [], dict[int, int]()
    for index, entry in enumerate(entries):
        for name, kind in REFERENCE_FIELDS.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise DataError(f"{references}, reference {index}: no {name!r}; is it a refs(...).p of refer?")
        if entry["ann_id"] not in objects:
            raise DataError(f"{instances}: no object {entry['ann_id']} of reference {entry['ref_id']} of {references}")
        image, box = objects[entry["ann_id"]]
        if image not in (None, entry["image_id"]):
            raise DataError(
                f"{instances}: object {entry['ann_id']} is in image {image!r:.40}, and reference {entry['ref_id']} of "
                f"{references.name} in image {entry['image_id']}"
            )
        for sentence in entry["sentences"]:
            text = sentence.get("raw") or sentence.get("sent") if isinstance(sentence, dict) else None
            if not isinstance(text, str) or not isinstance(sentence.get("sent_id"), int):
                raise DataError(f"{references}, reference {entry['ref_id']}: a sentence without 'raw' or 'sent_id'")
            if sentence["sent_id"] in index_by_sentence_id:
                first_index = index_by_sentence_id[sentence["sent_id"]]
                raise DataError(
                    f"{references}, reference {index}: sent_id {sentence['sent_id']} is also in {first_index}"
                )
            index_by_sentence_id[sentence["sent_id"]] = index
            ids = (sentence["sent_id"], entry["ref_id"], entry["image_id"], entry["split"])
            expressions.append(ReferringExpression(*ids, text, box))
    return expressions


def read_instance_boxes(instances: Path) -> dict[int, tuple[Any, tuple[float, float, float, float]]]:
    """The image of every object, if the file names it, and its left, top, right, bottom, by its annotation id.

    Raises:
        DataError: The file cannot be read or has another format, or two objects have the same id.
    """
    objects: dict[int, tuple[Any, tuple[float, float, float, float]]] = {}
    for entry in read_coco_entries(instances, "annotations", ("id", "bbox")):
        if entry["id"] in objects:
            raise DataError(f"{instances}: two annotations have the id {entry['id']}")
        objects[entry["id"]] = entry.get("image_id"), convert_to_corners(instances, entry)
    return objects


def convert_to_corners(path: Path, entry: Mapping[str, Any], name: str = "bbox") -> tuple[float, float, float, float]:
    """Converts COCO's left, top, width, height to left, top, right, bottom."""
    try:
        left, top, width, height = map(float, entry[name])
        if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) < 0:
            raise ValueError("a side is not finite, or negative")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {name} {entry[name]!r} is not left, top, width, height") from error
    return left, top, left + width, top + height


def read_coco_entries(path: Path, key: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The entries of a list of a COCO file, each with the required fields."""
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: not a COCO file, it has no list of {key!r}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(name not in entry for name in names):
            raise DataError(f"{path}: {key}[{index}] lacks one of {', '.join(names)}")
        invalid = [name for name in ("id", "image_id") if name in names and not isinstance(entry[name], int)]
        if invalid:
            raise DataError(f"{path}: {key}[{index}] has {invalid[0]} {entry[invalid[0]]!r}, which is not an integer")
    return entries
