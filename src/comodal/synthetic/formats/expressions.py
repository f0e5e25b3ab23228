"""Words for one object of a crowd, in the manner of RefCOCO+: never where in the picture it is.

Each expression fits one object and needs another one to find it: a thing beside which it is, others of its kind of
which it is the largest or the smallest, or one whose colour it shares. The noun alone fits several objects.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from comodal.synthetic.scenes.object_scenes import NounPhrase, SceneObject, fitting, larger, names, placed

WORDINGS = ("the {} {} the {}", "the {} that is {} the {}", "{} {} {}", "{} {} the {}")


def expressions(target: SceneObject, things: Sequence[SceneObject], rng: np.random.Generator, count: int) -> list[str]:
    """Up to so many different expressions for an object, of as many forms as there are."""
    forms = [list(form(target, things)) for form in (beside, by_size, by_colour)]
    order = [forms[int(i)] for i in rng.permutation(len(forms)) if forms[int(i)]]
    chosen: list[str] = []
    while order and len(chosen) < count:
        options = order[len(chosen) % len(order)]
        chosen.append(str(rng.choice(options)))
    return list(dict.fromkeys(chosen))


def beside(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """By its place beside another object; the noun fits something else too, elsewhere."""
    for noun in _shared(target, things):
        for anchor in things:
            if anchor is target:
                continue
            for name in names(anchor, things):
                found = placed(noun, anchor, things) or {}
                where = next((where for where, there in found.items() if there == [target]), None)
                if where is not None and sum(map(len, found.values())) > 1:
                    yield from (wording.format(noun, where, name) for wording in WORDINGS)


def by_size(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """As the largest or the smallest of several of one kind."""
    for noun in _shared(target, things):
        others = [thing for thing in fitting(noun, things) if thing is not target]
        for word, wanted in (("largest", True), ("smallest", False)):
            if noun.kind and all(larger(target, other) is wanted for other in others):
                yield from (f"the {word} {noun}", f"{word} {noun}")


def by_colour(target: SceneObject, things: Sequence[SceneObject]) -> Iterator[str]:
    """As that one of its kind which has another object's colour."""
    same = [thing for thing in things if thing.kind == target.kind and thing.colour == target.colour]
    if len(same) == 1 and len(fitting(NounPhrase(target.kind), things)) > 1:
        for anchor in things:
            name = NounPhrase(anchor.kind)
            if anchor.kind != target.kind and anchor.colour == target.colour and len(fitting(name, things)) == 1:
                yield f"the {target.kind} of the same color as the {name}"
                yield f"{target.kind} same color as {name}"


def _shared(target: SceneObject, things: Sequence[SceneObject]) -> list[NounPhrase]:
    """The nouns that fit this object and others too."""
    kind, colour, material = target.kind, target.colour, target.material
    nouns = (
        NounPhrase(kind),
        NounPhrase(kind, colour),
        NounPhrase(kind, material=material),
        NounPhrase(colour=colour),
        NounPhrase(),
    )
    return [noun for noun in nouns if len(fitting(noun, things)) > 1]
