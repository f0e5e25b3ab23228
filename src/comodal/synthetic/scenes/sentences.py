"""Sentences about a world: its objects, which of them sound, and their relative positions."""

from collections import Counter
from itertools import pairwise

import numpy as np

from comodal.synthetic.scenes.world import RandomStream, SyntheticObject, World

CAPTION_OPENINGS = ("There is {}", "A scene with {}", "One can see {}", "This shows {}", "In the picture there is {}")
SOUND_VERBS = {
    "ball": ("bounces", "is bouncing"),
    "bell": ("rings", "is ringing"),
    "bird": ("chirps", "is singing"),
    "clock": ("ticks", "is ticking"),
    "drum": ("rolls", "is being drummed"),
    "fan": ("whirrs", "is humming"),
    "frog": ("croaks", "is croaking"),
    "guitar": ("plays", "is being plucked"),
    "horn": ("blows", "is being blown"),
    "siren": ("wails", "is wailing"),
}
NUMBER_WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
NOISE_PHRASES = {"pink": "some noise", "rain": "rain", "hum": "a low hum", "wind": "wind"}


def generate_captions(world: World) -> list[str]:
    """Several true sentences, worded differently from world to world."""
    rng = world.generator(RandomStream.CAPTIONS)
    sentences = [_list_objects(world, rng)]
    for thing in world.sounding:
        verb = SOUND_VERBS[thing.kind][int(rng.integers(2))]
        sentences.append(
            f"The {describe_object(thing, rng)} {verb}, with {NOISE_PHRASES[world.background.noise]} behind it."
        )
    if len(world.things) > 1:
        first, second = (world.things[int(i)] for i in rng.choice(len(world.things), 2, replace=False))
        sentences.append(
            f"The {describe_object(first, rng)} is {describe_relation(first, second)} "
            f"the {describe_object(second, rng)}."
        )
        largest = max(world.things, key=lambda thing: thing.size)
        sentences.append(f"The largest thing is the {describe_object(largest, rng)}.")
    return sentences


def generate_scene_captions(world: World) -> list[str]:
    """Three true sentences about a still image, each of which names several of its objects."""
    rng = world.generator(RandomStream.CAPTIONS)
    order = [world.things[int(i)] for i in rng.permutation(len(world.things))]
    names = [describe_object(thing, rng) for thing in order]
    neighbours = list(pairwise(zip(order, names, strict=True)))[:2]
    places = [f"the {a} is {describe_relation(x, y)} the {b}" for (x, a), (y, b) in neighbours]
    listed = f"{', '.join(describe_object(thing, rng) for thing in order[1:])} and {describe_object(order[0], rng)}"
    return [
        _list_objects(world, rng),
        f"{' and '.join(places)}.".capitalize(),
        f"{NUMBER_WORDS[len(order)]} things: {listed}.",
    ]


def generate_crowd_captions(world: World) -> list[str]:
    """Five true sentences about an image in which kinds and colors recur: those of a scene, and two that count."""
    rng = world.generator(RandomStream.CAPTIONS)
    by_kind = Counter(thing.kind for thing in world.things)
    by_colour = Counter(thing.colour for thing in world.things)
    kinds, colours = list(by_kind.items()), list(by_colour.items())
    counted = [_format_count(*kinds[int(i)]) for i in rng.permutation(len(kinds))]
    coloured = [
        _format_count(f"{colour} thing", number)
        for colour, number in (colours[int(i)] for i in rng.permutation(len(colours)))
    ]
    return [
        *generate_scene_captions(world),
        f"{_join_names(counted)}.".capitalize(),
        f"{str(rng.choice(CAPTION_OPENINGS)).format(_join_names(coloured))}.",
    ]


def _format_count(name: str, number: int) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if number == 1 else f"{NUMBER_WORDS[number].lower()} {name}s"


def _join_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe_object(thing: SyntheticObject, rng: np.random.Generator) -> str:
    """An object in words, with its color or its material or both."""
    words = [
        [thing.colour, thing.kind],
        [thing.material, thing.kind],
        [thing.colour, thing.material, thing.kind],
    ]
    return " ".join(words[int(rng.integers(3))])


def describe_relation(first: SyntheticObject, second: SyntheticObject) -> str:
    """The position of the first object relative to the second, by the larger of the two distances."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def _list_objects(world: World, rng: np.random.Generator) -> str:
    names = [_format_count(f"{thing.colour} {thing.material} {thing.kind}", 1) for thing in world.things]
    return str(rng.choice(CAPTION_OPENINGS)).format(_join_names(names)) + "."
