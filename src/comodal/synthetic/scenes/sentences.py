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
    rng = world.make_generator(RandomStream.CAPTIONS)
    sentences = [_list_objects(world, rng)]
    for synthetic_object in world.sounding_objects:
        verb = SOUND_VERBS[synthetic_object.kind][int(rng.integers(2))]
        sentences.append(
            f"The {describe_object(synthetic_object, rng)} {verb}, "
            f"with {NOISE_PHRASES[world.background.noise]} behind it."
        )
    if len(world.objects) > 1:
        first, second = (world.objects[int(i)] for i in rng.choice(len(world.objects), 2, replace=False))
        sentences.append(
            f"The {describe_object(first, rng)} is {describe_relation(first, second)} "
            f"the {describe_object(second, rng)}."
        )
        largest = max(world.objects, key=lambda synthetic_object: synthetic_object.size)
        sentences.append(f"The largest thing is the {describe_object(largest, rng)}.")
    return sentences


def generate_scene_captions(world: World) -> list[str]:
    """Three true sentences about a still image, each of which names several of its objects."""
    rng = world.make_generator(RandomStream.CAPTIONS)
    order = [world.objects[int(i)] for i in rng.permutation(len(world.objects))]
    names = [describe_object(synthetic_object, rng) for synthetic_object in order]
    neighbors = list(pairwise(zip(order, names, strict=True)))[:2]
    relations = [f"the {a} is {describe_relation(x, y)} the {b}" for (x, a), (y, b) in neighbors]
    all_but_first = ", ".join(describe_object(synthetic_object, rng) for synthetic_object in order[1:])
    listed = f"{all_but_first} and {describe_object(order[0], rng)}"
    return [
        _list_objects(world, rng),
        f"{' and '.join(relations)}.".capitalize(),
        f"{NUMBER_WORDS[len(order)]} things: {listed}.",
    ]


def generate_crowd_captions(world: World) -> list[str]:
    """Five true sentences about an image in which kinds and colors recur: those of a scene, and two that count."""
    rng = world.make_generator(RandomStream.CAPTIONS)
    count_by_kind = Counter(synthetic_object.kind for synthetic_object in world.objects)
    count_by_color = Counter(synthetic_object.color for synthetic_object in world.objects)
    kind_counts, color_counts = list(count_by_kind.items()), list(count_by_color.items())
    kind_phrases = [_format_count(*kind_counts[int(i)]) for i in rng.permutation(len(kind_counts))]
    color_phrases = [
        _format_count(f"{color} thing", count)
        for color, count in (color_counts[int(i)] for i in rng.permutation(len(color_counts)))
    ]
    return [
        *generate_scene_captions(world),
        f"{_join_names(kind_phrases)}.".capitalize(),
        f"{str(rng.choice(CAPTION_OPENINGS)).format(_join_names(color_phrases))}.",
    ]


def _format_count(name: str, count: int) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if count == 1 else f"{NUMBER_WORDS[count].lower()} {name}s"


def _join_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe_object(synthetic_object: SyntheticObject, rng: np.random.Generator) -> str:
    """An object in words, with its color or its material or both."""
    words = [
        [synthetic_object.color, synthetic_object.kind],
        [synthetic_object.material, synthetic_object.kind],
        [synthetic_object.color, synthetic_object.material, synthetic_object.kind],
    ]
    return " ".join(words[int(rng.integers(3))])


def describe_relation(first: SyntheticObject, second: SyntheticObject) -> str:
    """The position of the first object relative to the second, by the larger of the two distances."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def _list_objects(world: World, rng: np.random.Generator) -> str:
    names = [
        _format_count(f"{synthetic_object.color} {synthetic_object.material} {synthetic_object.kind}", 1)
        for synthetic_object in world.objects
    ]
    return str(rng.choice(CAPTION_OPENINGS)).format(_join_names(names)) + "."
