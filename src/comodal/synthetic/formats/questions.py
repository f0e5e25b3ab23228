"""Questions about crowds in the style of VQA v2; each needs the image and more than one of its objects.

Ten forms: the color, the material or the kind of an object at a relative position; how many; is there; are there more;
is it of the same color; is it larger. A question is only asked if its answer is unambiguous, and if it would be
ambiguous without the position.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import numpy as np

from comodal.synthetic.formats.answer_balance import AnswerBalancer, ImageStatement
from comodal.synthetic.scenes.object_scenes import (
    NounPhrase,
    SceneObject,
    compare_sizes,
    group_by_position,
    list_unambiguous_nouns,
    select_fitting_objects,
)
from comodal.synthetic.scenes.world import MATERIALS, OBJECT_COLORS, SILENT_KINDS, SOUNDING_KINDS

YES_NO = ("yes", "no")
COUNT_ANSWERS = ("0", "1", "2", "3")
QUESTION_TYPES = {
    "colour": "what color is the",
    "material": "what is the",
    "kind": "what is the",
    "count": "how many",
    "count beside": "how many",
    "there": "is there a",
    "there beside": "is there a",
    "more": "are there",
    "same colour": "is the",
    "larger": "is the",
}


def generate_questions(
    things: Sequence[SceneObject], balance: AnswerBalancer, rng: np.random.Generator
) -> list[ImageStatement]:
    """At most one question of each form, in random order."""
    chosen = [balance.choose(list(form(things)), rng) for form in QUESTION_FORMS]
    asked = [claim for claim in chosen if claim is not None]
    return [asked[int(i)] for i in rng.permutation(len(asked))]


def classify_answers(answers: tuple[str, ...]) -> str:
    """The answer type, as in VQA v2."""
    return {YES_NO: "yes/no", COUNT_ANSWERS: "number"}.get(answers, "other")


def add_article(noun: NounPhrase) -> str:
    """The noun with its article."""
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _list_position_phrases(
    things: Sequence[SceneObject], nouns: Sequence[NounPhrase]
) -> Iterator[tuple[NounPhrase, str, NounPhrase, list[SceneObject], list[SceneObject]]]:
    """All phrases with a relative position: noun, position, anchor, the object there, and the objects that the noun
    fits.
    """
    for anchor in things:
        for name in list_unambiguous_nouns(anchor, things):
            for noun in nouns:
                found = group_by_position(noun, anchor, things) or {}
                candidates = [thing for there in found.values() for thing in there]
                yield from ((noun, where, name, there, candidates) for where, there in found.items())


def _make_cue(noun: NounPhrase, where: str, name: NounPhrase) -> str:
    """The attributes that are mentioned, and which of the words are equal."""
    return f"{noun.says} {where} {name.says} {noun.kind == name.kind} {noun.colour == name.colour}"


def _list_kind_nouns(things: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(kind) for kind in sorted({thing.kind for thing in things})]


def _list_color_nouns(things: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(colour=colour) for colour in sorted({thing.colour for thing in things})]


def ask_color_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never a color that the question names, which the other objects of an image would make likely."""
    for noun, where, name, found, candidates in _list_position_phrases(things, _list_kind_nouns(things)):
        colours = {thing.colour for thing in candidates}
        if len(found) == 1 and len(colours) > 1 and found[0].colour != name.colour:
            text = f"What color is the {noun} {where} the {name}?"
            yield ImageStatement("colour", text, found[0].colour, _make_cue(noun, where, name), tuple(OBJECT_COLORS))


def ask_material_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, where, name, found, candidates in _list_position_phrases(things, _list_kind_nouns(things)):
        if len(found) == 1 and len({thing.material for thing in candidates}) > 1:
            text = f"What is the {noun} {where} the {name} made of?"
            yield ImageStatement("material", text, found[0].material, _make_cue(noun, where, name), MATERIALS)


def ask_kind_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never the kind that the question names."""
    for noun, where, name, found, candidates in _list_position_phrases(
        things, [NounPhrase(), *_list_color_nouns(things)]
    ):
        kinds = {thing.kind for thing in candidates}
        if len(found) == 1 and len(kinds) > 1 and found[0].kind != name.kind:
            text = f"What is the {noun} {where} the {name}?"
            yield ImageStatement(
                "kind", text, found[0].kind, _make_cue(noun, where, name), SOUNDING_KINDS + SILENT_KINDS
            )


def ask_count(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    every = [NounPhrase(kind) for kind in SOUNDING_KINDS + SILENT_KINDS]
    every += [NounPhrase(colour=colour) for colour in OBJECT_COLORS] + [
        NounPhrase(material=material) for material in MATERIALS
    ]
    for noun in every:
        number = str(len(select_fitting_objects(noun, things)))
        if number in COUNT_ANSWERS:
            yield ImageStatement("count", f"How many {noun}s are there?", number, noun.says, COUNT_ANSWERS)


def ask_count_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, where, name, found, _ in _list_position_phrases(things, [NounPhrase()]):
        if str(len(found)) in COUNT_ANSWERS:
            text = f"How many {noun}s are {where} the {name}?"
            yield ImageStatement("count beside", text, str(len(found)), _make_cue(noun, where, name), COUNT_ANSWERS)


def ask_existence(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The color and the kind both occur in any case; the question is whether on the same object."""
    for colour in _list_color_nouns(things):
        for kind in _list_kind_nouns(things):
            noun = NounPhrase(kind.kind, colour.colour)
            answer = "yes" if select_fitting_objects(noun, things) else "no"
            yield ImageStatement("there", f"Is there {add_article(noun)}?", answer, "", YES_NO)


def ask_existence_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The object occurs in any case; the question is whether at this position."""
    for noun, where, name, found, _ in _list_position_phrases(
        things, [*_list_kind_nouns(things), *_list_color_nouns(things)]
    ):
        text = f"Is there {add_article(noun)} {where} the {name}?"
        yield ImageStatement("there beside", text, "yes" if found else "no", _make_cue(noun, where, name), YES_NO)


def ask_more(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for nouns in (_list_kind_nouns(things), _list_color_nouns(things)):
        for first, second in permutations(nouns, 2):
            difference = len(select_fitting_objects(first, things)) - len(select_fitting_objects(second, things))
            if difference:
                text = f"Are there more {first}s than {second}s?"
                yield ImageStatement("more", text, "yes" if difference > 0 else "no", first.says, YES_NO)


def ask_same_color(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    named = [
        (NounPhrase(thing.kind), thing)
        for thing in things
        if len(select_fitting_objects(NounPhrase(thing.kind), things)) == 1
    ]
    for (first, one), (second, other) in permutations(named, 2):
        text = f"Is the {first} the same color as the {second}?"
        yield ImageStatement("same colour", text, "yes" if one.colour == other.colour else "no", "", YES_NO)


def ask_larger(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """Among objects of one kind, since kinds differ in size."""
    named = [
        (NounPhrase(t.kind, t.colour), t)
        for t in things
        if len(select_fitting_objects(NounPhrase(t.kind, t.colour), things)) == 1
    ]
    for (first, one), (second, other) in permutations(named, 2):
        is_larger = compare_sizes(one, other)
        if one.kind == other.kind and is_larger is not None:
            text = f"Is the {first} larger than the {second}?"
            yield ImageStatement("larger", text, "yes" if is_larger else "no", "", YES_NO)


QUESTION_FORMS: tuple[Callable[[Sequence[SceneObject]], Iterator[ImageStatement]], ...] = (
    ask_color_beside,
    ask_material_beside,
    ask_kind_beside,
    ask_count,
    ask_count_beside,
    ask_existence,
    ask_existence_beside,
    ask_more,
    ask_same_color,
    ask_larger,
)
