"""Descriptions of crowded images (`world.make_crowd`): objects with their boxes, and statements that are unambiguous.

Questions, referring expressions and statements are composed of these parts. Positions and sizes are those of the boxes,
as in the files of the tasks. Where two objects are nearly diagonal to each other, or nearly of the same size, no
relation is stated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.media_writers import format_json_lines, write_image_file
from comodal.synthetic.scenes.motion import compute_object_box, compute_object_outline, compute_pose
from comodal.synthetic.scenes.rendering import render_frame
from comodal.synthetic.scenes.world import Purpose, SyntheticObject, World, make_crowd

RELATIVE_POSITIONS = ("left of", "right of", "above", "below")
OPPOSITE_POSITIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MIN_SIZE_RATIO = 1.3  # minimum ratio of distances along the two axes, or of areas, to state a relation


@dataclass(frozen=True)
class SceneObject:
    """An object in an image; its box is left, top, right, bottom in pixels."""

    kind: str
    color: str
    material: str
    box: tuple[int, int, int, int]

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class NounPhrase(NamedTuple):
    """A description of an object; attributes that are None are not mentioned."""

    kind: str | None = None
    color: str | None = None
    material: str | None = None

    @property
    def mentioned_attributes(self) -> str:
        """Which of kind, color and material are mentioned: all that the sentence reveals."""
        return "".join("-" if value is None else letter for letter, value in zip("kcm", self, strict=True))

    def __str__(self) -> str:
        return " ".join(filter(None, (self.color, self.material, self.kind or "thing")))


def list_scene_objects(world: World, side: int) -> tuple[SceneObject, ...]:
    """All objects of a silent world, from back to front."""
    return tuple(SceneObject(t.kind, t.color, t.material, compute_object_box(t, 0.0, side)) for t in world.objects)


@dataclass(frozen=True)
class SceneImage:
    """An image of a crowd; the file is named relative to the folder of all the set's images."""

    index: int
    file: str
    world: World
    objects: tuple[SceneObject, ...]


def list_scene_images(seed: int, purpose: Purpose, files: Sequence[str], side: int) -> list[SceneImage]:
    """The images of a set, by index."""
    worlds = [make_crowd(seed, purpose, index) for index in range(len(files))]
    return [
        SceneImage(i, file, world, list_scene_objects(world, side))
        for i, (file, world) in enumerate(zip(files, worlds, strict=True))
    ]


def select_fitting_objects(noun: NounPhrase, objects: Sequence[SceneObject]) -> list[SceneObject]:
    """The objects that the noun phrase fits."""
    kind, color, material = noun
    return [
        scene_object
        for scene_object in objects
        if kind in (None, scene_object.kind)
        and color in (None, scene_object.color)
        and material in (None, scene_object.material)
    ]


def list_unambiguous_nouns(scene_object: SceneObject, objects: Sequence[SceneObject]) -> list[NounPhrase]:
    """The noun phrases that fit only this object: by its kind, or by its color and kind."""
    nouns = (NounPhrase(scene_object.kind), NounPhrase(scene_object.kind, scene_object.color))
    return [noun for noun in nouns if len(select_fitting_objects(noun, objects)) == 1]


def compare_positions(first: SceneObject, second: SceneObject) -> str | None:
    """The position of the first object relative to the second; None if it is ambiguous."""
    (left, top, right, bottom), second_box = first.box, second.box
    across, down = (
        left + right - second_box[0] - second_box[2],
        top + bottom - second_box[1] - second_box[3],
    )  # twice those of the centers
    if abs(across) >= MIN_SIZE_RATIO * abs(down):
        return "left of" if across < 0 else "right of"
    if abs(down) >= MIN_SIZE_RATIO * abs(across):
        return "above" if down < 0 else "below"
    return None


def group_by_position(
    noun: NounPhrase, anchor: SceneObject, objects: Sequence[SceneObject]
) -> dict[str, list[SceneObject]] | None:
    """The objects that the noun phrase fits, by position relative to the anchor; None if ambiguous or empty."""
    objects_by_position: dict[str, list[SceneObject]] = {position: [] for position in RELATIVE_POSITIONS}
    for scene_object in select_fitting_objects(noun, objects):
        if scene_object is not anchor:
            position = compare_positions(scene_object, anchor)
            if position is None:
                return None
            objects_by_position[position].append(scene_object)
    return objects_by_position if any(objects_by_position.values()) else None


def compare_sizes(first: SceneObject, second: SceneObject) -> bool | None:
    """Whether the first object's box is larger; None if it is ambiguous."""
    if first.area >= MIN_SIZE_RATIO * second.area:
        return True
    return False if second.area >= MIN_SIZE_RATIO * first.area else None


def compute_hull(synthetic_object: SyntheticObject, side: int) -> list[tuple[float, float]]:
    """The convex hull of an object inside the image, in pixels (by Andrew's monotone chain)."""
    polygons = compute_object_outline(synthetic_object, compute_pose(synthetic_object, 0.0), side)
    points = np.clip(np.concatenate([polygon.points for polygon in polygons]), 0, side)
    ordered = sorted({(round(float(x), 2), round(float(y), 2)) for x, y in points})
    return [*_build_hull_chain(ordered), *_build_hull_chain(ordered[::-1])]


def _build_hull_chain(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One side of the hull, without its last point, which begins the other side."""
    chain: list[tuple[float, float]] = []
    for x, y in points:
        while len(chain) > 1:
            (a, b), (c, d) = chain[-2:]
            if (c - a) * (y - b) > (d - b) * (x - a):
                break
            chain.pop()
        chain.append((x, y))
    return chain[:-1]


def compute_polygon_area(points: Sequence[tuple[float, float]]) -> float:
    """The area of a polygon."""
    x, y = (np.array(axis) for axis in zip(*points, strict=True))
    twice: Float[np.ndarray, ""] = np.asarray(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    return float(abs(twice)) / 2


def list_image_jobs(
    folder: Path, seed: int, purpose: Purpose, files: Sequence[str], side: int
) -> list[Callable[[], None]]:
    """The jobs that render the images of a set."""
    return [partial(_write_crowd_image, folder / file, seed, purpose, index, side) for index, file in enumerate(files)]


def _write_crowd_image(path: Path, seed: int, purpose: Purpose, index: int, side: int) -> None:
    if not path.exists():
        write_image_file(path, render_frame(make_crowd(seed, purpose, index), 0.0, side))


def write_scene_boxes(path: Path, scene_images: Sequence[SceneImage], side: int) -> None:
    """The boxes and objects of each image, by its file: for `prepare regions --boxes`."""
    records: list[dict[str, Any]] = []
    for scene_image in scene_images:
        objects = [{"kind": t.kind, "color": t.color, "material": t.material} for t in scene_image.objects]
        boxes = [list(scene_object.box) for scene_object in scene_image.objects]
        records.append({"image": scene_image.file, "width": side, "height": side, "boxes": boxes, "objects": objects})
    write_bytes_atomically(path, format_json_lines(records).encode())
