"""Referring expressions for one object of a crowd, in the style of RefCOCO+: without its position in the image.

Each expression fits one object and needs another one to resolve it: an object next to it, others of its kind of which
it is the largest or the smallest, or one with the same color. The noun alone fits several objects.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from comodal.synthetic.scenes.object_scenes import (
    NounPhrase,
    SceneObject,
    compare_sizes,
    group_by_position,
    list_unambiguous_nouns,
    select_fitting_objects,
)

WORDINGS = ("the {} {} the {}", "the {} that is {} the {}", "{} {} {}", "{} {} the {}")


def generate_expressions(
    target: SceneObject, things: Sequence[SceneObject], rng: np.random.Generator, count: int
) -> list[str]:
    """Up to this many different expressions for an object, of as many forms as there are."""
    forms = [list(form(target, things)) for form in (refer_by_position, refer_by_size, refer_by_color)]
    order = [forms[int(i)] for i in rng.permutation(len(forms)) if forms[int(i)]]
    chosen: list[str] = []
    while order and len(chosen) < count:
        options = order[len(chosen) % len(order)]
        chosen.append(str(rng.choice(options)))
    return list(dict.fromkeys(chosen))


def refer_by_position(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """By its position relative to another object; the noun also fits an object elsewhere."""
    for noun in _list_shared_nouns(target, things):
        for anchor in things:
            if anchor is target:
                continue
            for name in list_unambiguous_nouns(anchor, things):
                found = group_by_position(noun, anchor, things) or {}
                where = next((where for where, there in found.items() if there == [target]), None)
                if where is not None and sum(map(len, found.values())) > 1:
                    yield from (wording.format(noun, where, name) for wording in WORDINGS)


def refer_by_size(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """As the largest or the smallest of several of one kind."""
    for noun in _list_shared_nouns(target, things):
        others = [thing for thing in select_fitting_objects(noun, things) if thing is not target]
        for word, wanted in (("largest", True), ("smallest", False)):
            if noun.kind and all(compare_sizes(target, other) is wanted for other in others):
                yield from (f"the {word} {noun}", f"{word} {noun}")


def refer_by_color(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """As the only one of its kind with another object's color."""
    same = [thing for thing in things if thing.kind == target.kind and thing.colour == target.colour]
    if len(same) == 1 and len(select_fitting_objects(NounPhrase(target.kind), things)) > 1:
        for anchor in things:
            name = NounPhrase(anchor.kind)
            if (
                anchor.kind != target.kind
                and anchor.colour == target.colour
                and len(select_fitting_objects(name, things)) == 1
            ):
                yield f"the {target.kind} of the same color as the {name}"
                yield f"{target.kind} same color as {name}"


def _list_shared_nouns(target: SceneObject, things: Sequence[SceneObject]) -> list[NounPhrase]:
    """The nouns that fit this object and others too."""
    kind, colour, material = target.kind, target.colour, target.material
    nouns = (
        NounPhrase(kind),
        NounPhrase(kind, colour),
        NounPhrase(kind, material=material),
        NounPhrase(colour=colour),
        NounPhrase(),
    )
    return [noun for noun in nouns if len(select_fitting_objects(noun, things)) > 1]
