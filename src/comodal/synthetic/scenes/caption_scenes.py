"""Pictures with captions and the boxes of what is in them: several objects each, all of them told apart by words.

scenes/images/NUMBER.jpg
scenes/captions.jsonl      image, captions, split: a source for `comodal train vilbert`
scenes/boxes.jsonl         image, width, height, boxes (left, top, right, bottom in pixels) and objects: for `prepare
                           regions --boxes`
"""

from pathlib import Path
from typing import Any

from comodal.files import write_whole
from comodal.synthetic.scenes.media_writers import json_lines, write_image
from comodal.synthetic.scenes.motion import box_at
from comodal.synthetic.scenes.rendering import render_frame
from comodal.synthetic.scenes.sentences import scene_captions
from comodal.synthetic.scenes.world import make_scene


def write_scene(folder: Path, seed: int, index: int, side: int) -> None:
    """The picture of one scene, unless it is there."""
    path = folder / "images" / scene_name(index)
    if not path.exists():
        write_image(path, render_frame(make_scene(seed, index), 0.0, side))


def scene_name(index: int) -> str:
    """The file of a scene."""
    return f"{index:05d}.jpg"


def write_scene_lists(folder: Path, seed: int, scenes: int, side: int) -> None:
    """What is said about each scene, and what is where in it. Eight of ten are for training."""
    told, there = [], []
    for index in range(scenes):
        world = make_scene(seed, index)
        name, split = scene_name(index), {8: "validation", 9: "test"}.get(index % 10, "train")
        told.append({"image": name, "captions": scene_captions(world), "split": split})
        boxes = [list(box_at(thing, 0.0, side)) for thing in world.things]
        objects = [{"kind": t.kind, "colour": t.colour, "material": t.material} for t in world.things]
        record: dict[str, Any] = {"image": name, "width": side, "height": side, "boxes": boxes, "objects": objects}
        there.append(record)
    write_whole(folder / "boxes.jsonl", json_lines(there).encode())
    write_whole(folder / "captions.jsonl", json_lines(told).encode())
