"""The shape of each kind of object: filled polygons in the object's own square, -1 to 1, y downwards.

The shape of a sounding object is a function of its own movement. Polygons are painted in order, each in one of the few
paints of an object. Kinds differ only in outline and parts, so color and material reveal nothing about them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "points 2"]
Number = float | int


class Polygon(NamedTuple):
    points: Points
    paint: str  # "body", "dark", "light", "ink"


class Movement(NamedTuple):
    """The inner movement of an object: how strongly it sounds (0 to 1), and the angle in degrees of rotating parts."""

    action: float
    turn: float


Shape = list[Polygon]


def _make_ellipse(
    x: Number, y: Number, width: Number, height: Number, start: Number = 0.0, end: Number = 360.0
) -> Points:
    """Points of an ellipse or of a part of one; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, max(6, round(abs(end - start) / 15)), endpoint=abs(end - start) < 360))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def _make_box(left: Number, top: Number, right: Number, bottom: Number) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def _make_points(*points: tuple[Number, Number]) -> Points:
    return np.array(points, dtype=float)


def _rotate_points(points: Points, degrees: Number, x: Number = 0.0, y: Number = 0.0) -> Points:
    radians = np.radians(degrees)
    turn = np.array([(np.cos(radians), np.sin(radians)), (-np.sin(radians), np.cos(radians))])
    return (points - (x, y)) @ turn + (x, y)


def draw_ball(movement: Movement) -> Shape:
    """A beach ball: sectors, rolling; flat where it hits the ground."""
    flat = 1 - 0.3 * movement.action
    disc = [Polygon(_make_ellipse(0, 0, 1, 1), "light")]
    for sector in range(3):
        start = sector * 120 + movement.turn
        wedge = np.concatenate([_make_ellipse(0, 0, 1, 1, start, start + 60), [(0.0, 0.0)]])
        disc.append(Polygon(wedge, "body"))
    disc.append(Polygon(_make_ellipse(0, 0, 0.2, 0.2), "ink"))
    return [Polygon(p.points * (1 / np.sqrt(flat), flat) + (0, 1 - flat), p.paint) for p in disc]


def draw_bell(movement: Movement) -> Shape:
    """A hand bell with its clapper out to one side while it rings."""
    swing = 0.35 * movement.action * np.sign(np.sin(np.radians(movement.turn)) + 1e-6)
    profile = [(-0.25, -0.75), (-0.45, -0.45), (-0.5, 0.1), (-0.9, 0.55), (0.9, 0.55), (0.5, 0.1), (0.45, -0.45)]
    return [
        Polygon(_make_ellipse(0, -0.82, 0.2, 0.18), "dark"),
        Polygon(_make_ellipse(swing, 0.72, 0.24, 0.24), "ink"),
        Polygon(_make_points(*profile, (0.25, -0.75)), "body"),
        Polygon(_make_box(-0.9, 0.45, 0.9, 0.6), "dark"),
    ]


def draw_bird(movement: Movement) -> Shape:
    """A bird from the side; the beak opens and the wing lifts while it sings."""
    gape = 0.04 + 0.2 * movement.action
    wing = _rotate_points(
        _make_points((-0.5, -0.05), (0.25, -0.05), (-0.1, 0.35), (-0.75, 0.3)), -30 * movement.action, 0.2, 0.0
    )
    return [
        Polygon(_make_points((-0.5, 0.1), (-1.0, -0.3), (-0.95, 0.2)), "dark"),
        Polygon(_make_points((-0.1, 0.5), (-0.02, 0.5), (0.0, 1.0), (-0.1, 1.0)), "ink"),
        Polygon(_make_points((0.12, 0.5), (0.2, 0.5), (0.22, 1.0), (0.12, 1.0)), "ink"),
        Polygon(_make_ellipse(0, 0.15, 0.65, 0.45), "body"),
        Polygon(_make_ellipse(0.5, -0.35, 0.34, 0.34), "body"),
        Polygon(_make_points((0.75, -0.42), (1.15, -0.35 - gape), (0.8, -0.3)), "ink"),
        Polygon(_make_points((0.75, -0.35), (1.1, -0.3 + gape), (0.7, -0.2)), "ink"),
        Polygon(wing, "dark"),
        Polygon(_make_ellipse(0.55, -0.42, 0.09, 0.09), "ink"),
    ]


def draw_clock(movement: Movement) -> Shape:
    """A wall clock with twelve marks and two hands."""
    marks = [Polygon(_rotate_points(_make_box(-0.04, -0.75, 0.04, -0.58), 30.0 * hour), "ink") for hour in range(12)]
    return [
        Polygon(_make_ellipse(0, 0, 1, 1), "body"),
        Polygon(_make_ellipse(0, 0, 0.8, 0.8), "light"),
        *marks,
        Polygon(_rotate_points(_make_points((-0.05, 0.15), (0.05, 0.15), (0, -0.68)), movement.turn), "ink"),
        Polygon(_rotate_points(_make_points((-0.08, 0.1), (0.08, 0.1), (0, -0.45)), movement.turn / 12 + 100), "dark"),
        Polygon(_make_ellipse(0, 0, 0.08 + 0.08 * movement.action, 0.08 + 0.08 * movement.action), "body"),
    ]


def draw_drum(movement: Movement) -> Shape:
    """A laced drum with two sticks, one of which is on the skin."""
    zigzag = [(-0.8 + 0.4 * i, 0.65 if i % 2 else -0.05) for i in range(5)]
    lace = np.array(zigzag + [(x + 0.08, y) for x, y in reversed(zigzag)])
    lift = 24 * (1 - movement.action)
    left = _make_points((-0.2, -0.3), (-0.95, -0.75), (-0.9, -0.85), (-0.15, -0.38))
    right = _make_points((0.2, -0.3), (0.95, -0.75), (0.9, -0.85), (0.15, -0.38))
    return [
        Polygon(
            np.concatenate([_make_ellipse(0, 0.65, 0.85, 0.28, 0, 180), _make_box(-0.85, -0.2, 0.85, -0.2)[:2]]), "body"
        ),
        Polygon(lace, "light"),
        Polygon(_make_ellipse(0, -0.2, 0.85, 0.28), "dark"),
        Polygon(_make_ellipse(0, -0.2, 0.74, 0.2), "light"),
        Polygon(_rotate_points(left, lift, -0.95, -0.8), "ink"),
        Polygon(_rotate_points(right, -12.0, 0.95, -0.8), "ink"),
    ]


def draw_fan(movement: Movement) -> Shape:
    """A table fan: four blades inside a ring, on a stand."""
    blade = _make_points((0.0, 0.0), (0.1, -0.3), (0.38, -0.62), (0.0, -0.68), (-0.12, -0.4))
    blades = [
        Polygon(_rotate_points(blade + np.array((0, -0.25)), movement.turn + 90 * k, 0, -0.25), "body")
        for k in range(4)
    ]
    return [
        Polygon(_make_points((-0.1, 0.4), (0.1, 0.4), (0.45, 1.0), (-0.45, 1.0)), "dark"),
        Polygon(_make_ellipse(0, -0.25, 0.78, 0.78), "ink"),
        Polygon(_make_ellipse(0, -0.25, 0.7, 0.7), "light"),
        *blades,
        Polygon(_make_ellipse(0, -0.25, 0.13, 0.13), "ink"),
    ]


def draw_frog(movement: Movement) -> Shape:
    """A frog from the front, its throat blown up while it croaks."""
    throat = 0.15 + 0.3 * movement.action
    eyes = [
        Polygon(_make_ellipse(x, y, r, r), paint)
        for x in (-0.42, 0.42)
        for y, r, paint in ((-0.55, 0.28, "body"), (-0.58, 0.17, "light"), (-0.58, 0.08, "ink"))
    ]
    return [
        Polygon(_make_ellipse(-0.75, 0.5, 0.3, 0.42), "dark"),
        Polygon(_make_ellipse(0.75, 0.5, 0.3, 0.42), "dark"),
        Polygon(_make_ellipse(0, 0.15, 0.82, 0.65), "body"),
        *eyes,
        Polygon(_make_ellipse(0, 0.5, throat * 1.3, throat), "light"),
        Polygon(_make_points((-0.55, -0.02), (0, 0.12), (0.55, -0.02), (0, 0.24)), "ink"),
    ]


def draw_guitar(movement: Movement) -> Shape:
    """A guitar; its strings spread while they swing."""
    spread = 0.03 + 0.06 * movement.action
    strings = [Polygon(_make_box(x - 0.015, -0.85, x + 0.015, 0.65), "light") for x in (-spread, 0.0, spread)]
    return [
        Polygon(_make_box(-0.1, -0.8, 0.1, 0.2), "dark"),
        Polygon(_make_box(-0.17, -1.05, 0.17, -0.78), "ink"),
        Polygon(_make_ellipse(0, 0.1, 0.42, 0.36), "body"),
        Polygon(_make_ellipse(0, 0.58, 0.58, 0.46), "body"),
        Polygon(_make_ellipse(0, 0.3, 0.19, 0.19), "ink"),
        Polygon(_make_box(-0.25, 0.68, 0.25, 0.78), "dark"),
        *strings,
    ]


def draw_horn(movement: Movement) -> Shape:
    """A post horn with its loop; the open end widens while it sounds."""
    wide = 0.45 + 0.15 * movement.action
    cone = _make_points((-0.1, 0.06), (0.55, 0.15), (0.95, wide), (0.95, -wide), (0.55, -0.15), (-0.1, -0.06))
    return [
        Polygon(_make_ellipse(-0.2, 0.3, 0.42, 0.4), "dark"),
        Polygon(_make_ellipse(-0.2, 0.3, 0.26, 0.24), "light"),
        Polygon(_make_box(-0.95, -0.09, 0.2, 0.09), "body"),
        Polygon(cone, "body"),
        Polygon(_make_ellipse(0.95, 0, 0.12, wide), "ink"),
        Polygon(_make_box(-1.05, -0.18, -0.93, 0.18), "ink"),
    ]


def draw_siren(movement: Movement) -> Shape:
    """A warning lamp on its base, with a rotating beam and short rays around the dome."""
    rays = [
        Polygon(_rotate_points(_make_points((-0.05, -0.72), (0.05, -0.72), (0, -1.05)), angle, 0, 0.15), "light")
        for angle in (-75, -37, 0, 37, 75)
    ]
    across = 0.3 * np.sin(np.radians(movement.turn))
    return [
        *rays,
        Polygon(
            np.concatenate([_make_ellipse(0, 0.15, 0.55, 0.7, 180, 360), _make_box(-0.55, 0.45, 0.55, 0.45)[1::-1]]),
            "body",
        ),
        Polygon(
            _make_points((across - 0.14, -0.35), (across + 0.14, -0.35), (across + 0.14, 0.4), (across - 0.14, 0.4)),
            "light",
        ),
        Polygon(_make_box(-0.75, 0.42, 0.75, 0.65), "ink"),
        Polygon(_make_box(-0.95, 0.62, 0.95, 0.95), "dark"),
    ]


def draw_tree() -> Shape:
    """Three layers of leaves on a trunk."""
    layers = [(0.4 * k, 0.45 + 0.15 * k) for k in range(3)]
    leaves = [_make_points((0, down - 1), (half, down - 0.35), (-half, down - 0.35)) for down, half in layers]
    return [Polygon(_make_box(-0.14, 0.4, 0.14, 1.0), "dark"), *(Polygon(leaf, "body") for leaf in leaves)]


def draw_star() -> Shape:
    """A five-pointed star."""
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)
    return [Polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), "body")]


SILENT_SHAPES: dict[str, Shape] = {
    "cloud": [
        Polygon(_make_ellipse(x, y, r, r * 0.85), "light")
        for x, y, r in ((-0.55, 0.2, 0.42), (0.0, -0.1, 0.55), (0.55, 0.2, 0.42), (0.0, 0.3, 0.5))
    ],
    "cone": [
        Polygon(_make_points((0, -1), (0.55, 0.7), (-0.55, 0.7)), "body"),
        Polygon(_make_points((-0.22, -0.3), (0.22, -0.3), (0.35, 0.1), (-0.35, 0.1)), "light"),
        Polygon(_make_box(-0.85, 0.7, 0.85, 0.95), "dark"),
    ],
    "crate": [
        Polygon(_make_box(-0.85, -0.85, 0.85, 0.85), "dark"),
        Polygon(_make_box(-0.65, -0.65, 0.65, 0.65), "body"),
        Polygon(_make_points((-0.65, -0.65), (-0.45, -0.65), (0.65, 0.65), (0.45, 0.65)), "dark"),
    ],
    "gem": [
        Polygon(_make_points((-0.55, -0.6), (0.55, -0.6), (1, -0.1), (0, 0.95), (-1, -0.1)), "body"),
        Polygon(_make_points((-0.35, -0.1), (0.35, -0.1), (0, 0.95)), "light"),
        Polygon(_make_points((-1, -0.1), (-0.35, -0.1), (-0.55, -0.6)), "dark"),
    ],
    "mug": [
        Polygon(_make_ellipse(0.6, 0.1, 0.4, 0.45), "dark"),
        Polygon(_make_box(-0.7, -0.7, 0.55, 0.85), "body"),
        Polygon(_make_ellipse(-0.08, -0.7, 0.63, 0.18), "ink"),
    ],
    "star": draw_star(),
    "tree": draw_tree(),
}
SOUNDING_SHAPES: dict[str, Callable[[Movement], Shape]] = {
    "ball": draw_ball,
    "bell": draw_bell,
    "bird": draw_bird,
    "clock": draw_clock,
    "drum": draw_drum,
    "fan": draw_fan,
    "frog": draw_frog,
    "guitar": draw_guitar,
    "horn": draw_horn,
    "siren": draw_siren,
}


def build_object_shape(kind: str, movement: Movement) -> Shape:
    """The polygons of a kind at a moment of its movement, back to front."""
    return SILENT_SHAPES[kind] if kind in SILENT_SHAPES else SOUNDING_SHAPES[kind](movement)
