"""Candidate boxes of images, from the files of several data sets, as the list that `comodal extract --boxes` takes.

Each line has the image, its boxes and their source, which the region store keeps and the results card reports.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comodal.data.image_ids import parse_coco_image_id
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.tasks.vision_language.grounding.candidate_files import (
    Box,
    list_candidate_boxes,
    read_guesswhat_games,
    read_visual7w_questions,
)
from comodal.tasks.vision_language.grounding.refcoco_files import convert_to_corners, read_coco_entries
from comodal.tasks.vision_language.vcr_files import BoxCounts, write_vcr_boxes
from comodal.text_files import read_json

MIN_MATTNET_SCORE = 0.65  # MAttNet's files have no detections below this score
JSON_LINES_SUFFIX = ".jsonl"


def prepare_boxes(source: Path, out: Path, instances: Path | None = None, images: Path | None = None) -> BoxCounts:
    """Writes boxes of images in the format of `comodal extract --boxes`.

    Args:
        source: An instances.json (COCO, RefCOCO), all of whose objects are taken; MAttNet's JSON of detections; VCR's
            folder of images and metadata; Visual7W's dataset_v7w_pointing.json; a guesswhat.*.jsonl, or several of them
            in one file.
        out: The JSON Lines file to write.
        instances: The instances.json with the images of MAttNet's detections.
        images: The folder of COCO's images, for GuessWhat?!, which refers to images by id.

    Returns:
        The numbers of images and boxes.

    Raises:
        DataError: A file cannot be read, or has another format.

    Examples:
        comodal prepare boxes vcr1images/ boxes.jsonl
        comodal prepare boxes refcoco+/instances.json boxes.jsonl
        comodal prepare boxes res101_coco_minus_refer_notime_dets.json boxes.jsonl --instances refcoco+/instances.json
        comodal prepare boxes dataset_v7w_pointing.json boxes.jsonl
        comodal prepare boxes guesswhat.jsonl boxes.jsonl --images coco/
    """
    if source.is_dir():
        return write_vcr_boxes(source, out)
    if source.suffix == JSON_LINES_SUFFIX:
        boxes = name_coco_images(source, list_candidate_boxes(read_guesswhat_games(source)), images)
        return write_boxes(out, boxes, f"{source.name}, all objects of its games")
    content = read_json(source)
    if isinstance(content, dict) and "boxes" in content:
        boxes = list_candidate_boxes(read_visual7w_questions(source))
        return write_boxes(out, boxes, f"{source.name}, all candidates of its questions")
    return write_boxes(out, *read_coco_boxes(source, content, instances))


def name_coco_images(source: Path, boxes: Mapping[str, list[Box]], images: Path | None) -> dict[str, list[Box]]:
    """Boxes by the file name of their image instead of its id in COCO; those without a file are left out.

    Raises:
        DataError: There is no folder of images, or it has none of them.
    """
    if images is None:
        raise DataError(f"{source} refers to images by id: pass --images, the folder of COCO's images")
    files = {parse_coco_image_id(Path(name).stem): name for name in find_image_files(images).names}
    named = {files[image]: image_boxes for image, image_boxes in boxes.items() if image in files}
    if not named:
        raise DataError(f"{images}: no image of {source}; the first is {next(iter(boxes), None)}")
    return named


def read_coco_boxes(source: Path, content: Any, instances: Path | None) -> tuple[dict[str, list[Box]], str]:
    """The boxes of COCO's objects or of MAttNet's detections by file name, and a description of their source.

    Raises:
        DataError: A file has another format.
    """
    is_detections = isinstance(content, list)
    if is_detections and instances is None:
        raise DataError(
            f"{source} has detections, which refer to images by id: pass --instances instances.json as well"
        )
    images = read_coco_entries(instances if is_detections and instances else source, "images", ("id", "file_name"))
    names = {entry["id"]: str(entry["file_name"]) for entry in images}
    entries = content if is_detections else read_coco_entries(source, "annotations", ("image_id", "bbox"))
    boxes: dict[str, list[Box]] = {name: [] for name in names.values()}
    for index, entry in enumerate(entries):
        key = "box" if is_detections else "bbox"
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int) or key not in entry or image_id not in names:
            raise DataError(
                f"{source}, entry {index}: no {key!r}, or of an image that {instances or source} does not have"
            )
        left, top, right, bottom = convert_to_corners(source, entry, key)
        score = entry.get("score", 1.0)
        if not isinstance(score, int | float):
            raise DataError(f"{source}, entry {index}: score {score!r} is not a number")
        if not is_detections or score >= MIN_MATTNET_SCORE:
            boxes[names[image_id]].append((left, top, right, bottom))
    kept = f"detections of {MIN_MATTNET_SCORE} or more" if is_detections else "all its objects"
    return boxes, f"{source.name}, {kept}"


def write_boxes(out: Path, boxes: Mapping[str, Sequence[Box]], origin: str) -> BoxCounts:
    """Writes the boxes of each image; empty boxes and images without boxes are left out."""
    valid = {name: [box for box in image_boxes if box[2] > box[0] and box[3] > box[1]]
             for name, image_boxes in boxes.items()}  # fmt: skip
    lines = [
        json.dumps({"image": name, "boxes": image_boxes, "from": origin})
        for name, image_boxes in valid.items()
        if image_boxes
    ]
    write_bytes_atomically(out, ("\n".join(lines) + "\n").encode())
    return BoxCounts(len(lines), sum(map(len, valid.values())))
