"""Images with captions and the boxes of their objects: several objects each, all of them distinguishable by words.

scenes/images/NUMBER.jpg
scenes/captions.jsonl      image, captions, split: a source for `comodal train vilbert`
scenes/boxes.jsonl         image, width, height, boxes (left, top, right, bottom in pixels) and objects: for `prepare
                           regions --boxes`
"""

from pathlib import Path
from typing import Any

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.media_writers import format_json_lines, write_image_file
from comodal.synthetic.scenes.motion import compute_object_box
from comodal.synthetic.scenes.rendering import render_frame
from comodal.synthetic.scenes.sentences import generate_scene_captions
from comodal.synthetic.scenes.world import make_scene


def write_scene_image(folder: Path, seed: int, index: int, side: int) -> None:
    """Write the image of one scene, unless it exists."""
    path = folder / "images" / make_scene_name(index)
    if not path.exists():
        write_image_file(path, render_frame(make_scene(seed, index), 0.0, side))


def make_scene_name(index: int) -> str:
    """The file name of a scene."""
    return f"{index:05d}.jpg"


def write_scene_lists(folder: Path, seed: int, scenes: int, side: int) -> None:
    """The captions, boxes and objects of each scene. Eight of ten are for training."""
    caption_records, box_records = [], []
    for index in range(scenes):
        world = make_scene(seed, index)
        name, split = make_scene_name(index), {8: "validation", 9: "test"}.get(index % 10, "train")
        caption_records.append({"image": name, "captions": generate_scene_captions(world), "split": split})
        boxes = [list(compute_object_box(synthetic_object, 0.0, side)) for synthetic_object in world.objects]
        objects = [{"kind": t.kind, "color": t.color, "material": t.material} for t in world.objects]
        record: dict[str, Any] = {"image": name, "width": side, "height": side, "boxes": boxes, "objects": objects}
        box_records.append(record)
    write_bytes_atomically(folder / "boxes.jsonl", format_json_lines(box_records).encode())
    write_bytes_atomically(folder / "captions.jsonl", format_json_lines(caption_records).encode())
