"""Referring expressions for one object of a crowd, in the style of RefCOCO+: without its position in the image.

Each expression fits one object and needs another one to resolve it. It names an object next to it, or one with the same
color, or compares its size with others of its kind. The noun alone fits several objects.
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
    target: SceneObject, objects: Sequence[SceneObject], rng: np.random.Generator, count: int
) -> list[str]:
    """Up to this many different expressions for an object, of as many forms as there are."""
    forms = [list(form(target, objects)) for form in (refer_by_position, refer_by_size, refer_by_color)]
    order = [forms[int(i)] for i in rng.permutation(len(forms)) if forms[int(i)]]
    expressions: list[str] = []
    while order and len(expressions) < count:
        options = order[len(expressions) % len(order)]
        expressions.append(str(rng.choice(options)))
    return list(dict.fromkeys(expressions))


def refer_by_position(target: SceneObject, objects: Sequence[SceneObject]) -> Iterator[str]:
    """By its position relative to another object; the noun also fits an object elsewhere."""
    for noun in _list_shared_nouns(target, objects):
        for anchor in objects:
            if anchor is target:
                continue
            for name in list_unambiguous_nouns(anchor, objects):
                objects_by_position = group_by_position(noun, anchor, objects) or {}
                position = next(
                    (position for position, located in objects_by_position.items() if located == [target]), None
                )
                if position is not None and sum(map(len, objects_by_position.values())) > 1:
                    yield from (wording.format(noun, position, name) for wording in WORDINGS)


def refer_by_size(target: SceneObject, objects: Sequence[SceneObject]) -> Iterator[str]:
    """As the largest or the smallest of several of one kind."""
    for noun in _list_shared_nouns(target, objects):
        alternatives = [
            scene_object for scene_object in select_fitting_objects(noun, objects) if scene_object is not target
        ]
        for adjective, is_larger in (("largest", True), ("smallest", False)):
            if noun.kind and all(compare_sizes(target, alternative) is is_larger for alternative in alternatives):
                yield from (f"the {adjective} {noun}", f"{adjective} {noun}")


def refer_by_color(target: SceneObject, objects: Sequence[SceneObject]) -> Iterator[str]:
    """As the only one of its kind with another object's color."""
    matching = [
        scene_object
        for scene_object in objects
        if scene_object.kind == target.kind and scene_object.color == target.color
    ]
    if len(matching) == 1 and len(select_fitting_objects(NounPhrase(target.kind), objects)) > 1:
        for anchor in objects:
            name = NounPhrase(anchor.kind)
            if (
                anchor.kind != target.kind
                and anchor.color == target.color
                and len(select_fitting_objects(name, objects)) == 1
            ):
                yield f"the {target.kind} of the same color as the {name}"
                yield f"{target.kind} same color as {name}"


def _list_shared_nouns(target: SceneObject, objects: Sequence[SceneObject]) -> list[NounPhrase]:
    """The nouns that fit this object and others too."""
    kind, color, material = target.kind, target.color, target.material
    nouns = (
        NounPhrase(kind),
        NounPhrase(kind, color),
        NounPhrase(kind, material=material),
        NounPhrase(color=color),
        NounPhrase(),
    )
    return [noun for noun in nouns if len(select_fitting_objects(noun, objects)) > 1]
