"""A synthetic world: objects of a few kinds, colors, materials and sizes, their motion, and their sound events.

Visible objects cause the audio. The kind determines the temporal pattern (rhythm, envelope, glide), the size the pitch,
the material the timbre. Color, position, angle and background are independent of the kind. Kinds share pitches and
timbres on purpose: an average spectrum separates them badly, one second of audio separates them well.

A world is a function of (seed, purpose, index) only, so the result does not depend on the number of workers.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from math import hypot

import numpy as np


class Purpose(IntEnum):
    """What a world is generated for; worlds of different purposes are independent."""

    VIDEO = 0
    AUDIO = 1
    IMAGE = 2
    SCENE = 3
    COCO = 4
    FLICKR30K = 5
    VCR = 6
    NLVR2 = 7
    DCASE2013 = 8
    TAU = 9
    URBANSOUND8K = 10


class RandomStream(IntEnum):
    """Parts of a world with separate random streams, so that one can be drawn without the others."""

    SCENE = 0
    IMAGE = 1
    AUDIO = 2
    CAPTIONS = 3
    MOMENT = 4
    QUESTIONS = 5
    EXPRESSIONS = 6
    STATEMENTS = 7


SOUNDING_KINDS = ("ball", "bell", "bird", "clock", "drum", "fan", "frog", "guitar", "horn", "siren")
SILENT_KINDS = ("cloud", "cone", "crate", "gem", "mug", "star", "tree")
MATERIALS = ("wood", "metal", "glass", "plastic")
OBJECT_COLORS = {
    "red": (205, 45, 40),
    "orange": (235, 135, 35),
    "yellow": (235, 210, 60),
    "green": (60, 160, 70),
    "teal": (40, 160, 165),
    "blue": (50, 90, 205),
    "purple": (130, 65, 175),
    "pink": (235, 130, 175),
    "brown": (130, 85, 50),
    "white": (235, 235, 230),
    "grey": (130, 130, 135),
    "black": (45, 45, 50),
}
TEXTURES = ("plain", "stripes", "checks", "dots", "waves")
NOISE_KINDS = ("pink", "rain", "hum", "wind")
MOTIONS = ("still", "sway", "drift", "circle")
SMALL_SIZES, LARGE_SIZES = 0.28, 0.38  # half the extent of an object, in sides of the image
SCENE_SIZES = (0.11, 0.18)  # likewise, for images of several objects
SCENE_COUNTS = {2: 0.25, 3: 0.35, 4: 0.25, 5: 0.15}
CROWD_SIZES = (0.10, 0.155)
CROWD_COUNTS = {4: 0.35, 5: 0.4, 6: 0.25}
CROWD_COLORS, CROWD_MATERIALS = 3, 2  # few in one image, so that no single word identifies an object


@dataclass(frozen=True)
class Note:
    """One sound event: `pitch` and `end_pitch` are multiples of the object's own pitch."""

    start_seconds: float
    seconds: float
    pitch: float = 1.0
    end_pitch: float = 1.0
    amplitude: float = 1.0


@dataclass(frozen=True)
class SyntheticObject:
    """One object; x, y (its center at rest) and `size` are in sides of the square image."""

    kind: str
    color: str
    material: str
    size: float
    x: float
    y: float
    angle: float
    is_flipped: bool
    motion: str
    reach: float
    phase: float
    sounding: bool
    pitch_hertz: float
    level: float
    tempo: float
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Background:
    """The visual and acoustic background; `noise_level` is relative to the loudest object."""

    texture: str
    colors: tuple[str, str]
    clutter: int
    light: float
    noise: str
    noise_level: float
    echo_seconds: float
    echo_level: float
    tilt_decibels: float


@dataclass(frozen=True)
class World:
    """A scene of some seconds; `objects` are ordered from back to front."""

    seed: int
    purpose: Purpose
    index: int
    seconds: float
    objects: tuple[SyntheticObject, ...]
    background: Background

    @property
    def sounding_objects(self) -> tuple[SyntheticObject, ...]:
        return tuple(synthetic_object for synthetic_object in self.objects if synthetic_object.sounding)

    def make_generator(self, part: RandomStream) -> np.random.Generator:
        """The random generator of one part of this world."""
        return np.random.default_rng((self.seed, int(self.purpose), self.index, int(part)))


def make_world(seed: int, purpose: Purpose, index: int, *, seconds: float, kind: str | None = None) -> World:
    """The world of (seed, purpose, index); with a `kind`, exactly one object sounds and it is of that kind."""
    rng = np.random.default_rng((seed, int(purpose), index, int(RandomStream.SCENE)))
    num_sounding = 1 if kind is not None or rng.random() > 0.1 else 2
    kinds = [str(name) for name in rng.choice(SOUNDING_KINDS, size=num_sounding, replace=False)]
    if kind is not None:
        kinds = [kind]
    distractors = int(rng.choice(3, p=(0.5, 0.35, 0.15))) if num_sounding == 1 else 0
    silent = [str(name) for name in rng.choice(SILENT_KINDS, size=distractors, replace=False)]
    names = silent + kinds
    sizes = [_draw_size(rng, name) for name in names]
    positions = _draw_positions(rng, sizes)
    background = _make_background(rng)
    colors = [color for color in OBJECT_COLORS if color not in background.colors]  # so that all are visible
    objects = tuple(_make_object(rng, *item, colors, seconds) for item in zip(names, sizes, positions, strict=True))
    return World(seed, purpose, index, seconds, objects, background)


def make_scene(seed: int, index: int) -> World:
    """A silent moment with several objects of different kinds, for images with captions."""
    rng = np.random.default_rng((seed, int(Purpose.SCENE), index, int(RandomStream.SCENE)))
    count = int(rng.choice(list(SCENE_COUNTS), p=list(SCENE_COUNTS.values())))
    names = [str(name) for name in rng.choice(SOUNDING_KINDS + SILENT_KINDS, size=count, replace=False)]
    sizes = [float(size) for size in rng.uniform(*SCENE_SIZES, size=count)]
    positions = _draw_positions(rng, sizes)
    background = _make_background(rng)
    colors = [color for color in OBJECT_COLORS if color not in background.colors]
    objects = tuple(_make_object(rng, *item, colors, None) for item in zip(names, sizes, positions, strict=True))
    return World(seed, Purpose.SCENE, index, 0.0, objects, background)


def make_crowd(seed: int, purpose: Purpose, index: int) -> World:
    """A silent moment in which kinds, colors and materials recur: two or three objects of one kind, and others.

    All kinds, colors and materials are interchangeable, so a question about a crowd that names one of them reveals
    nothing about the others.
    """
    rng = np.random.default_rng((seed, int(purpose), index, int(RandomStream.SCENE)))
    count = int(rng.choice(list(CROWD_COUNTS), p=list(CROWD_COUNTS.values())))
    kinds = [str(name) for name in rng.choice(SOUNDING_KINDS + SILENT_KINDS, size=count, replace=False)]
    first, second = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    names = [str(name) for name in rng.permutation(([kinds[0]] * first + [kinds[1]] * second + kinds[2:])[:count])]
    sizes = [float(size) for size in rng.uniform(*CROWD_SIZES, size=count)]
    positions = _spread_positions(rng, sizes)
    background = _make_background(rng)
    colors = [color for color in OBJECT_COLORS if color not in background.colors]
    palette = [str(name) for name in rng.choice(colors, CROWD_COLORS, replace=False)]
    materials = rng.choice(MATERIALS, CROWD_MATERIALS, replace=False)
    objects = tuple(
        replace(_make_object(rng, *item, palette, None), material=str(rng.choice(materials)))
        for item in zip(names, sizes, positions, strict=True)
    )
    return World(seed, purpose, index, 0.0, objects, background)


def _draw_size(rng: np.random.Generator, kind: str) -> float:
    low, high = (SMALL_SIZES, LARGE_SIZES) if kind in SOUNDING_KINDS else (0.09, 0.15)
    return float(rng.uniform(low, high))


def _draw_positions(rng: np.random.Generator, sizes: list[float]) -> list[tuple[float, float]]:
    """Centers that keep objects inside the image; the best of a few draws at keeping them apart."""
    best, best_gap = [(0.5, 0.5)] * len(sizes), -np.inf
    for _ in range(12):
        draw = [(float(rng.uniform(s, 1 - s)), float(rng.uniform(s, 1 - s))) for s in sizes]
        gaps = [
            np.hypot(a[0] - b[0], a[1] - b[1]) - sizes[i] - sizes[i + j + 1]
            for i, a in enumerate(draw)
            for j, b in enumerate(draw[i + 1 :])
        ]
        gap = min(gaps, default=0.0)
        if gap > best_gap:
            best, best_gap = draw, gap
    return best


def _spread_positions(rng: np.random.Generator, sizes: list[float]) -> list[tuple[float, float]]:
    """Centers inside the image, one after the other, each the best of a few draws at keeping away from the previous
    ones.
    """
    positions: list[tuple[float, float]] = []
    for size in sizes:
        draws = [(float(x), float(y)) for x, y in rng.uniform(size, 1 - size, (8, 2))]
        gaps = [
            min((hypot(x - a, y - b) - s for (a, b), s in zip(positions, sizes, strict=False)), default=0.0)
            for x, y in draws
        ]
        positions.append(draws[gaps.index(max(gaps))])
    return positions


def _make_object(
    rng: np.random.Generator,
    kind: str,
    size: float,
    position: tuple[float, float],
    colors: list[str],
    seconds: float | None,
) -> SyntheticObject:
    """An object; it sounds for this many seconds if its kind does, and not at all for None."""
    tempo = float(np.exp(rng.uniform(np.log(0.65), np.log(1.5))))
    # Larger is lower: an octave between the largest and the smallest, plus a random octave and a half.
    octaves = 1.0 - (size - SMALL_SIZES) / (LARGE_SIZES - SMALL_SIZES) + rng.uniform(0, 1.5)
    return SyntheticObject(
        kind=kind,
        color=str(rng.choice(colors)),
        material=str(rng.choice(MATERIALS)),
        size=size,
        x=position[0],
        y=position[1],
        angle=float(rng.uniform(-12, 12)),
        is_flipped=bool(rng.random() < 0.5),
        motion=str(rng.choice(MOTIONS)),
        reach=float(rng.uniform(0.03, 0.09)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        sounding=seconds is not None and kind in SOUNDING_KINDS,
        pitch_hertz=float(350.0 * 2.0**octaves),
        level=float(rng.uniform(0.4, 1.0)),
        tempo=tempo,
        notes=tuple(RHYTHMS[kind](rng, tempo, seconds)) if seconds is not None and kind in SOUNDING_KINDS else (),
    )


def _make_background(rng: np.random.Generator) -> Background:
    first, second = rng.choice(list(OBJECT_COLORS), size=2, replace=False)
    return Background(
        texture=str(rng.choice(TEXTURES)),
        colors=(str(first), str(second)),
        clutter=int(rng.integers(0, 4)),
        light=float(rng.uniform(0.85, 1.1)),
        noise=str(rng.choice(NOISE_KINDS)),
        noise_level=float(10 ** (rng.uniform(-30, -6) / 20)),
        echo_seconds=float(rng.uniform(0.05, 0.3)),
        echo_level=float(rng.uniform(0.0, 0.6)),
        tilt_decibels=float(rng.uniform(-6, 6)),
    )


def _make_beats(rng: np.random.Generator, period: float, seconds: float) -> list[float]:
    """Even beats through the whole time, with slight random timing; the first is before the clip begins."""
    starts = np.arange(-float(rng.uniform(0, period)), seconds, period)
    return [float(start) for start in starts + rng.uniform(-0.04, 0.04, len(starts)) * period]


def _play_even(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Bell and horn: the same beats and lengths; only the envelope differs (one is the other played backwards)."""
    return [
        Note(t, 0.30 / tempo, amplitude=float(rng.uniform(0.7, 1))) for t in _make_beats(rng, 0.36 / tempo, seconds)
    ]


def _play_rising(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Bird: short notes that rise by an octave."""
    return [
        Note(t, 0.17 / tempo, 0.71, 1.41, float(rng.uniform(0.7, 1))) for t in _make_beats(rng, 0.25 / tempo, seconds)
    ]


def _play_falling(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Frog: the bird's notes upside down."""
    return [
        Note(t, 0.17 / tempo, 1.41, 0.71, float(rng.uniform(0.7, 1))) for t in _make_beats(rng, 0.25 / tempo, seconds)
    ]


def _play_ticks(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Clock: short ticks at an even pace, high and low in turn."""
    beats = _make_beats(rng, 0.17 / tempo, seconds)
    return [Note(t, 0.05, 1.25 if i % 2 else 0.8, 1.25 if i % 2 else 0.8) for i, t in enumerate(beats)]


def _play_bounces(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Ball: hits ever closer and softer (each rebound takes 0.7 of the time of the last), then thrown up anew."""
    notes, t = [], -float(rng.uniform(0, 0.5))
    while t < seconds:
        interval, amplitude = 0.32 / tempo, 1.0
        while interval > 0.07 and t < seconds:
            notes.append(Note(t, 0.06, amplitude=amplitude))
            t, interval, amplitude = t + interval, interval * 0.72, amplitude * 0.85
        t += 0.12
    return notes


def _play_rolls(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Drum: three quick strokes, each with its pitch falling off at once, then a rest."""
    return [
        Note(t + 0.09 * stroke / tempo, 0.08 / tempo, 1.1, 0.6, 1.0 if stroke == 2 else 0.7)
        for t in _make_beats(rng, 0.45 / tempo, seconds)
        for stroke in range(3)
    ]


def _play_scale(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Guitar: plucked chords taken apart, up and down again in steps, each note cut off by the next."""
    steps = (0.63, 0.79, 0.94, 1.26, 0.94, 0.79)
    beats = _make_beats(rng, 0.14 / tempo, seconds)
    return [Note(t, 0.145 / tempo, steps[i % 6], steps[i % 6]) for i, t in enumerate(beats)]


def _play_wail(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Siren: one unbroken tone that climbs and sinks over an octave and a half."""
    half_period = 0.33 / tempo
    starts = _make_beats(rng, 2 * half_period, seconds)
    ends = [*starts[1:], starts[-1] + 2 * half_period]
    notes = []
    for start, end in zip(starts, ends, strict=True):
        middle = (start + end) / 2
        notes += [Note(start, middle - start, 0.6, 1.7), Note(middle, end - middle, 1.7, 0.6)]
    return notes


def _play_whirr(rng: np.random.Generator, tempo: float, seconds: float) -> list[Note]:
    """Fan: one tone for each blade that passes, so fast that they flutter."""
    return [Note(t, 0.08 / tempo) for t in _make_beats(rng, 0.09 / tempo, seconds)]


RHYTHMS = {
    "ball": _play_bounces,
    "bell": _play_even,
    "bird": _play_rising,
    "clock": _play_ticks,
    "drum": _play_rolls,
    "fan": _play_whirr,
    "frog": _play_falling,
    "guitar": _play_scale,
    "horn": _play_even,
    "siren": _play_wail,
}
