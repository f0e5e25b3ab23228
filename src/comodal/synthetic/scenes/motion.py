"""The motion of objects: the pose of an object at a given moment, its outline in the image and its box.

Poses follow from the same notes as the audio: a ball is on the ground when it is heard, a beak is open while it sings.
"""

from dataclasses import dataclass

import numpy as np

from comodal.synthetic.scenes.shapes import Movement, Polygon, build_object_shape
from comodal.synthetic.scenes.world import SyntheticObject

HIT_SECONDS = 0.12  # how long a hit is visible
SOFT_EDGE = 0.5  # pixels beyond the outline that antialiasing may touch


@dataclass(frozen=True)
class Pose:
    """Center in sides of the image, angle and turn in degrees, action from 0 to 1."""

    x: float
    y: float
    angle: float
    action: float
    turn: float


def compute_pose(synthetic_object: SyntheticObject, seconds: float) -> Pose:
    """The pose of an object at a moment of its world."""
    wave = synthetic_object.phase + 2 * np.pi * 0.4 * seconds
    across, down, lean = {
        "still": (0.0, 0.0, 0.0),
        "sway": (0.0, 0.0, 8 * np.sin(2 * wave)),
        "drift": (np.sin(wave / 2), 0.0, 0.0),
        "circle": (np.cos(wave), np.sin(wave), 0.0),
    }[synthetic_object.motion]
    action = _compute_action(synthetic_object, seconds)
    rise = _compute_ball_height(synthetic_object, seconds) if synthetic_object.kind == "ball" else 0.0
    turn = np.degrees(synthetic_object.phase) + seconds * synthetic_object.tempo * {
        "fan": 870.0,
        "clock": 35.0,
        "siren": 545.0,
    }.get(synthetic_object.kind, 90.0)
    if not synthetic_object.sounding:
        turn = 0.0
    return Pose(
        x=synthetic_object.x + synthetic_object.reach * float(across),
        y=synthetic_object.y + synthetic_object.reach * float(down) - rise,
        angle=synthetic_object.angle + float(lean),
        action=action,
        turn=float(turn),
    )


def _compute_action(synthetic_object: SyntheticObject, seconds: float) -> float:
    """How strongly the object sounds, as far as it is visible."""
    strongest = 0.0
    for note in synthetic_object.notes:
        age = seconds - note.start_seconds
        if 0 <= age < max(note.seconds, HIT_SECONDS):
            strongest = max(strongest, note.amplitude * (1 - age / max(note.seconds, HIT_SECONDS)))
    return float(strongest)


def _compute_ball_height(synthetic_object: SyntheticObject, seconds: float) -> float:
    """Height of a ball between two of its bounces: a parabola as high as the flight is long."""
    before = max((note.start_seconds for note in synthetic_object.notes if note.start_seconds <= seconds), default=None)
    after = min((note.start_seconds for note in synthetic_object.notes if note.start_seconds > seconds), default=None)
    if before is None or after is None:
        return 0.0
    flight, part = after - before, (seconds - before) / (after - before)
    return float(0.6 * synthetic_object.size * (flight / 0.4) ** 2 * 4 * part * (1 - part))


def compute_object_outline(synthetic_object: SyntheticObject, pose: Pose, side: int) -> list[Polygon]:
    """The polygons of an object in pixels of a square image, back to front."""
    radians = np.radians(pose.angle)
    scale = synthetic_object.size * side
    flip_sign = -1.0 if synthetic_object.is_flipped else 1.0
    turn = np.array([(np.cos(radians), np.sin(radians)), (-np.sin(radians), np.cos(radians))])
    matrix = np.diag([flip_sign, 1.0]) @ turn * scale
    center = (pose.x * side, pose.y * side)
    return [
        Polygon(p.points @ matrix + center, p.paint)
        for p in build_object_shape(synthetic_object.kind, Movement(pose.action, pose.turn))
    ]


def compute_object_box(synthetic_object: SyntheticObject, seconds: float, side: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels of the part inside the image; right and bottom are exclusive."""
    points = np.concatenate(
        [p.points for p in compute_object_outline(synthetic_object, compute_pose(synthetic_object, seconds), side)]
    )
    left, top = np.floor(points.min(axis=0) - SOFT_EDGE).astype(int)
    right, bottom = np.ceil(points.max(axis=0) + SOFT_EDGE).astype(int)
    return max(int(left), 0), max(int(top), 0), min(int(right), side), min(int(bottom), side)
