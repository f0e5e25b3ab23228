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


def write_references(folder: Path, images_with_ids: Sequence[tuple[int, SceneImage]], side: int) -> int:
    """Both files for these image ids and images; returns the number of sentences."""
    references: list[dict[str, Any]] = []
    sentences = 0
    for image_index, (image_id, scene_image) in enumerate(images_with_ids):
        for reference in generate_references(scene_image, image_id, image_index):
            reference["ref_id"] = len(references)
            for sentence in reference["sentences"]:
                sentence["sent_id"] = sentences
                sentences += 1
            reference["sent_ids"] = [sentence["sent_id"] for sentence in reference["sentences"]]
            references.append(reference)
    # Copied through JSON, because the bytes of a pickle depend on which equal values are the same object.
    write_bytes_atomically(folder / "refs(unc).p", pickle.dumps(json.loads(json.dumps(references)), protocol=2))
    write_bytes_atomically(folder / "instances.json", encode_json(build_instances(images_with_ids, side)))
    return sentences


def assign_refcoco_split(scene_object: SceneObject, image_index: int) -> str:
    """Of ten images, eight are for training, one for validation and one for both tests."""
    test = "testA" if scene_object.kind in SOUNDING_KINDS else "testB"
    return {8: "val", 9: test}.get(image_index % 10, "train")


def generate_references(scene_image: SceneImage, image_id: int, image_index: int) -> list[dict[str, Any]]:
    """The references to some of an image's objects, without the ids of the whole set."""
    rng = scene_image.world.make_generator(RandomStream.EXPRESSIONS)
    references: list[dict[str, Any]] = []
    for object_index in rng.permutation(len(scene_image.objects)):
        scene_object = scene_image.objects[int(object_index)]
        expressions = generate_expressions(scene_object, scene_image.objects, rng, MAX_REFERENCE_SENTENCES)
        if expressions and len(references) < MAX_REFERENCES:
            annotation = image_id * MAX_OBJECTS_PER_IMAGE + int(object_index)
            references.append(
                {
                    "ann_id": annotation,
                    "category_id": CATEGORY_IDS[scene_object.kind],
                    "file_name": f"{Path(scene_image.file).stem}_{annotation}.jpg",
                    "image_id": image_id,
                    "split": assign_refcoco_split(scene_object, image_index),
                    "sentences": [{"raw": text, "sent": text, "tokens": text.split()} for text in expressions],
                }
            )
    return references


def build_instances(images_with_ids: Sequence[tuple[int, SceneImage]], side: int) -> dict[str, Any]:
    """All images with all their objects, as in COCO."""
    images, annotations = [], []
    for image_id, scene_image in images_with_ids:
        name = Path(scene_image.file).name
        images.append({"id": image_id, "file_name": name, "width": side, "height": side, "license": 1})
        for index, (synthetic_object, scene_object) in enumerate(
            zip(scene_image.world.objects, scene_image.objects, strict=True)
        ):
            left, top, right, bottom = scene_object.box
            points = compute_hull(synthetic_object, side)
            annotations.append(
                {
                    "id": image_id * MAX_OBJECTS_PER_IMAGE + index,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[scene_object.kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": round(compute_polygon_area(points), 2),
                    "segmentation": [[coordinate for point in points for coordinate in point]],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": index, "name": kind, "supercategory": "sounding" if kind in SOUNDING_KINDS else "silent"}
        for kind, index in CATEGORY_IDS.items()
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
