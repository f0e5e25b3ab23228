"""Referring expressions in the file format of RefCOCO+ (Kazemzadeh et al. 2014, Yu et al. 2016).

refcoco+/refs(unc).p      a pickle (protocol 2) of plain lists and dicts: references to objects, with their sentences
refcoco+/instances.json   images, boxes (left, top, width, height) and categories, as in COCO

As in the original, all images are of COCO's train2014, whichever split of the references they are in. In testA the
object is of a kind that can sound (there: people), in testB of a silent one (there: everything else).
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comodal.files import write_bytes_atomically
from comodal.synthetic.formats.expressions import generate_expressions
from comodal.synthetic.scenes.media_writers import encode_json
from comodal.synthetic.scenes.object_scenes import SceneImage, SceneObject, compute_hull, compute_polygon_area
from comodal.synthetic.scenes.world import SILENT_KINDS, SOUNDING_KINDS, RandomStream

CATEGORY_IDS = {kind: number for number, kind in enumerate(SOUNDING_KINDS + SILENT_KINDS, start=1)}
MAX_OBJECTS_PER_IMAGE = 100  # an object's annotation id is its image id times this, plus its index
MAX_REFERENCES, MAX_REFERENCE_SENTENCES = 3, 3  # maximum, of an image and of a reference


def write_references(folder: Path, numbered: Sequence[tuple[int, SceneImage]], side: int) -> int:
    """Both files for these image ids and images; returns the number of sentences."""
    references: list[dict[str, Any]] = []
    sentences = 0
    for place, (image_id, picture) in enumerate(numbered):
        for reference in generate_references(picture, image_id, place):
            reference["ref_id"] = len(references)
            for sentence in reference["sentences"]:
                sentence["sent_id"] = sentences
                sentences += 1
            reference["sent_ids"] = [sentence["sent_id"] for sentence in reference["sentences"]]
            references.append(reference)
    # Copied through JSON, because the bytes of a pickle depend on which equal values are the same object.
    write_bytes_atomically(folder / "refs(unc).p", pickle.dumps(json.loads(json.dumps(references)), protocol=2))
    write_bytes_atomically(folder / "instances.json", encode_json(build_instances(numbered, side)))
    return sentences


def assign_refcoco_split(thing: SceneObject, place: int) -> str:
    """Of ten images, eight are for training, one for validation and one for both tests."""
    test = "testA" if thing.kind in SOUNDING_KINDS else "testB"
    return {8: "val", 9: test}.get(place % 10, "train")


def generate_references(picture: SceneImage, image_id: int, place: int) -> list[dict[str, Any]]:
    """The references to some of an image's objects, without the ids of the whole set."""
    rng = picture.world.generator(RandomStream.EXPRESSIONS)
    found: list[dict[str, Any]] = []
    for number in rng.permutation(len(picture.things)):
        thing = picture.things[int(number)]
        said = generate_expressions(thing, picture.things, rng, MAX_REFERENCE_SENTENCES)
        if said and len(found) < MAX_REFERENCES:
            annotation = image_id * MAX_OBJECTS_PER_IMAGE + int(number)
            found.append(
                {
                    "ann_id": annotation,
                    "category_id": CATEGORY_IDS[thing.kind],
                    "file_name": f"{Path(picture.file).stem}_{annotation}.jpg",
                    "image_id": image_id,
                    "split": assign_refcoco_split(thing, place),
                    "sentences": [{"raw": text, "sent": text, "tokens": text.split()} for text in said],
                }
            )
    return found


def build_instances(numbered: Sequence[tuple[int, SceneImage]], side: int) -> dict[str, Any]:
    """All images with all their objects, as in COCO."""
    images, annotations = [], []
    for image_id, picture in numbered:
        name = Path(picture.file).name
        images.append({"id": image_id, "file_name": name, "width": side, "height": side, "license": 1})
        for number, (thing, seen) in enumerate(zip(picture.world.things, picture.things, strict=True)):
            left, top, right, bottom = seen.box
            points = compute_hull(thing, side)
            annotations.append(
                {
                    "id": image_id * MAX_OBJECTS_PER_IMAGE + number,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[seen.kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": round(compute_polygon_area(points), 2),
                    "segmentation": [[coordinate for point in points for coordinate in point]],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": number, "name": kind, "supercategory": "sounding" if kind in SOUNDING_KINDS else "silent"}
        for kind, number in CATEGORY_IDS.items()
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
