"""Questions about crowds in the manner of VQA v2, each of which needs the picture and more than one of its objects.

Ten forms: the colour, the material or the kind of what is beside something; how many; is there; are there more; is it
of the same colour; is it larger. A question is asked only where its answer is beyond doubt, and where leaving out the
place would leave it open.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import numpy as np

from comodal.synthetic.formats.answer_balance import AnswerBalancer, ImageStatement
from comodal.synthetic.scenes.object_scenes import NounPhrase, SceneObject, fitting, larger, names, placed
from comodal.synthetic.scenes.world import COLOURS, KINDS, MATERIALS, SILENT_KINDS

YES_NO = ("yes", "no")
NUMBERS = ("0", "1", "2", "3")
TYPES = {
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


def ask(things: Sequence[SceneObject], balance: AnswerBalancer, rng: np.random.Generator) -> list[ImageStatement]:
    """At most one question of each form, in random order."""
    chosen = [balance.choose(list(form(things)), rng) for form in FORMS]
    asked = [claim for claim in chosen if claim is not None]
    return [asked[int(i)] for i in rng.permutation(len(asked))]


def answer_type(answers: tuple[str, ...]) -> str:
    """As VQA v2 sorts its answers."""
    return {YES_NO: "yes/no", NUMBERS: "number"}.get(answers, "other")


def article(noun: NounPhrase) -> str:
    """The noun with its article."""
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _beside(
    things: Sequence[SceneObject], nouns: Sequence[NounPhrase]
) -> Iterator[tuple[NounPhrase, str, NounPhrase, list[SceneObject], list[SceneObject]]]:
    """All that can be said with a place: noun, place, name beside it, what is there, and what the noun may mean."""
    for anchor in things:
        for name in names(anchor, things):
            for noun in nouns:
                found = placed(noun, anchor, things) or {}
                candidates = [thing for there in found.values() for thing in there]
                yield from ((noun, where, name, there, candidates) for where, there in found.items())


def _cue(noun: NounPhrase, where: str, name: NounPhrase) -> str:
    """What is said, and which of its words are equal."""
    return f"{noun.says} {where} {name.says} {noun.kind == name.kind} {noun.colour == name.colour}"


def _kinds(things: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(kind) for kind in sorted({thing.kind for thing in things})]


def _colours(things: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(colour=colour) for colour in sorted({thing.colour for thing in things})]


def colour_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never a colour that the question names, which the other objects of a picture would make likely."""
    for noun, where, name, found, candidates in _beside(things, _kinds(things)):
        colours = {thing.colour for thing in candidates}
        if len(found) == 1 and len(colours) > 1 and found[0].colour != name.colour:
            text = f"What color is the {noun} {where} the {name}?"
            yield ImageStatement("colour", text, found[0].colour, _cue(noun, where, name), tuple(COLOURS))


def material_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, where, name, found, candidates in _beside(things, _kinds(things)):
        if len(found) == 1 and len({thing.material for thing in candidates}) > 1:
            text = f"What is the {noun} {where} the {name} made of?"
            yield ImageStatement("material", text, found[0].material, _cue(noun, where, name), MATERIALS)


def kind_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never the kind that the question names."""
    for noun, where, name, found, candidates in _beside(things, [NounPhrase(), *_colours(things)]):
        kinds = {thing.kind for thing in candidates}
        if len(found) == 1 and len(kinds) > 1 and found[0].kind != name.kind:
            text = f"What is the {noun} {where} the {name}?"
            yield ImageStatement("kind", text, found[0].kind, _cue(noun, where, name), KINDS + SILENT_KINDS)


def count(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    every = [NounPhrase(kind) for kind in KINDS + SILENT_KINDS]
    every += [NounPhrase(colour=colour) for colour in COLOURS] + [
        NounPhrase(material=material) for material in MATERIALS
    ]
    for noun in every:
        number = str(len(fitting(noun, things)))
        if number in NUMBERS:
            yield ImageStatement("count", f"How many {noun}s are there?", number, noun.says, NUMBERS)


def count_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, where, name, found, _ in _beside(things, [NounPhrase()]):
        if str(len(found)) in NUMBERS:
            text = f"How many {noun}s are {where} the {name}?"
            yield ImageStatement("count beside", text, str(len(found)), _cue(noun, where, name), NUMBERS)


def there(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The colour and the kind are there in any case; the question is whether together."""
    for colour in _colours(things):
        for kind in _kinds(things):
            noun = NounPhrase(kind.kind, colour.colour)
            answer = "yes" if fitting(noun, things) else "no"
            yield ImageStatement("there", f"Is there {article(noun)}?", answer, "", YES_NO)


def there_beside(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """What is asked for is there in any case; the question is whether at this place."""
    for noun, where, name, found, _ in _beside(things, [*_kinds(things), *_colours(things)]):
        text = f"Is there {article(noun)} {where} the {name}?"
        yield ImageStatement("there beside", text, "yes" if found else "no", _cue(noun, where, name), YES_NO)


def more(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for nouns in (_kinds(things), _colours(things)):
        for first, second in permutations(nouns, 2):
            difference = len(fitting(first, things)) - len(fitting(second, things))
            if difference:
                text = f"Are there more {first}s than {second}s?"
                yield ImageStatement("more", text, "yes" if difference > 0 else "no", first.says, YES_NO)


def same_colour(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    named = [(NounPhrase(thing.kind), thing) for thing in things if len(fitting(NounPhrase(thing.kind), things)) == 1]
    for (first, one), (second, other) in permutations(named, 2):
        text = f"Is the {first} the same color as the {second}?"
        yield ImageStatement("same colour", text, "yes" if one.colour == other.colour else "no", "", YES_NO)


def larger_than(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """Among objects of one kind, since kinds differ in size."""
    named = [
        (NounPhrase(t.kind, t.colour), t) for t in things if len(fitting(NounPhrase(t.kind, t.colour), things)) == 1
    ]
    for (first, one), (second, other) in permutations(named, 2):
        is_larger = larger(one, other)
        if one.kind == other.kind and is_larger is not None:
            text = f"Is the {first} larger than the {second}?"
            yield ImageStatement("larger", text, "yes" if is_larger else "no", "", YES_NO)


FORMS: tuple[Callable[[Sequence[SceneObject]], Iterator[ImageStatement]], ...] = (
    colour_beside,
    material_beside,
    kind_beside,
    count,
    count_beside,
    there,
    there_beside,
    more,
    same_colour,
    larger_than,
)
