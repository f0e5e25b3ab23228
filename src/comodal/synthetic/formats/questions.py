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
    "color": "what color is the",
    "material": "what is the",
    "kind": "what is the",
    "count": "how many",
    "count at position": "how many",
    "existence": "is there a",
    "existence at position": "is there a",
    "more": "are there",
    "same color": "is the",
    "larger": "is the",
}


def generate_questions(
    objects: Sequence[SceneObject], balance: AnswerBalancer, rng: np.random.Generator
) -> list[ImageStatement]:
    """At most one question of each form, in random order."""
    selected = [balance.select_statement(list(form(objects)), rng) for form in QUESTION_FORMS]
    statements = [claim for claim in selected if claim is not None]
    return [statements[int(i)] for i in rng.permutation(len(statements))]


def classify_answers(answers: tuple[str, ...]) -> str:
    """The answer type, as in VQA v2."""
    return {YES_NO: "yes/no", COUNT_ANSWERS: "number"}.get(answers, "other")


def add_article(noun: NounPhrase) -> str:
    """The noun with its article."""
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _list_position_phrases(
    objects: Sequence[SceneObject], nouns: Sequence[NounPhrase]
) -> Iterator[tuple[NounPhrase, str, NounPhrase, list[SceneObject], list[SceneObject]]]:
    """All phrases with a relative position: noun, position, anchor, the object there, and the objects that the noun
    fits.
    """
    for anchor in objects:
        for name in list_unambiguous_nouns(anchor, objects):
            for noun in nouns:
                objects_by_position = group_by_position(noun, anchor, objects) or {}
                candidates = [scene_object for located in objects_by_position.values() for scene_object in located]
                yield from (
                    (noun, position, name, located, candidates) for position, located in objects_by_position.items()
                )


def _make_cue(noun: NounPhrase, position: str, name: NounPhrase) -> str:
    """The attributes that are mentioned, and which of the words are equal."""
    described = f"{noun.mentioned_attributes} {position} {name.mentioned_attributes}"
    return f"{described} {noun.kind == name.kind} {noun.color == name.color}"


def _list_kind_nouns(objects: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(kind) for kind in sorted({scene_object.kind for scene_object in objects})]


def _list_color_nouns(objects: Sequence[SceneObject]) -> list[NounPhrase]:
    return [NounPhrase(color=color) for color in sorted({scene_object.color for scene_object in objects})]


def ask_color_at_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never a color that the question names, which the other objects of an image would make likely."""
    for noun, position, name, located, candidates in _list_position_phrases(objects, _list_kind_nouns(objects)):
        colors = {scene_object.color for scene_object in candidates}
        if len(located) == 1 and len(colors) > 1 and located[0].color != name.color:
            text = f"What color is the {noun} {position} the {name}?"
            yield ImageStatement("color", text, located[0].color, _make_cue(noun, position, name), tuple(OBJECT_COLORS))


def ask_material_at_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, position, name, located, candidates in _list_position_phrases(objects, _list_kind_nouns(objects)):
        if len(located) == 1 and len({scene_object.material for scene_object in candidates}) > 1:
            text = f"What is the {noun} {position} the {name} made of?"
            yield ImageStatement("material", text, located[0].material, _make_cue(noun, position, name), MATERIALS)


def ask_kind_at_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The answer is never the kind that the question names."""
    for noun, position, name, located, candidates in _list_position_phrases(
        objects, [NounPhrase(), *_list_color_nouns(objects)]
    ):
        kinds = {scene_object.kind for scene_object in candidates}
        if len(located) == 1 and len(kinds) > 1 and located[0].kind != name.kind:
            text = f"What is the {noun} {position} the {name}?"
            yield ImageStatement(
                "kind", text, located[0].kind, _make_cue(noun, position, name), SOUNDING_KINDS + SILENT_KINDS
            )


def ask_count(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    nouns = [NounPhrase(kind) for kind in SOUNDING_KINDS + SILENT_KINDS]
    nouns += [NounPhrase(color=color) for color in OBJECT_COLORS] + [
        NounPhrase(material=material) for material in MATERIALS
    ]
    for noun in nouns:
        count_text = str(len(select_fitting_objects(noun, objects)))
        if count_text in COUNT_ANSWERS:
            yield ImageStatement(
                "count", f"How many {noun}s are there?", count_text, noun.mentioned_attributes, COUNT_ANSWERS
            )


def ask_count_at_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for noun, position, name, located, _ in _list_position_phrases(objects, [NounPhrase()]):
        if str(len(located)) in COUNT_ANSWERS:
            text = f"How many {noun}s are {position} the {name}?"
            yield ImageStatement(
                "count at position", text, str(len(located)), _make_cue(noun, position, name), COUNT_ANSWERS
            )


def ask_existence(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The color and the kind both occur in any case; the question is whether on the same object."""
    for color_noun in _list_color_nouns(objects):
        for kind_noun in _list_kind_nouns(objects):
            noun = NounPhrase(kind_noun.kind, color_noun.color)
            answer = "yes" if select_fitting_objects(noun, objects) else "no"
            yield ImageStatement("existence", f"Is there {add_article(noun)}?", answer, "", YES_NO)


def ask_existence_at_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The object occurs in any case; the question is whether at this position."""
    for noun, position, name, located, _ in _list_position_phrases(
        objects, [*_list_kind_nouns(objects), *_list_color_nouns(objects)]
    ):
        text = f"Is there {add_article(noun)} {position} the {name}?"
        yield ImageStatement(
            "existence at position", text, "yes" if located else "no", _make_cue(noun, position, name), YES_NO
        )


def ask_more(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    for nouns in (_list_kind_nouns(objects), _list_color_nouns(objects)):
        for first, second in permutations(nouns, 2):
            difference = len(select_fitting_objects(first, objects)) - len(select_fitting_objects(second, objects))
            if difference:
                text = f"Are there more {first}s than {second}s?"
                yield ImageStatement(
                    "more", text, "yes" if difference > 0 else "no", first.mentioned_attributes, YES_NO
                )


def ask_same_color(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    unique_objects = [
        (NounPhrase(scene_object.kind), scene_object)
        for scene_object in objects
        if len(select_fitting_objects(NounPhrase(scene_object.kind), objects)) == 1
    ]
    for (first, first_object), (second, second_object) in permutations(unique_objects, 2):
        text = f"Is the {first} the same color as the {second}?"
        yield ImageStatement(
            "same color", text, "yes" if first_object.color == second_object.color else "no", "", YES_NO
        )


def ask_larger(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """Among objects of one kind, since kinds differ in size."""
    unique_objects = [
        (NounPhrase(t.kind, t.color), t)
        for t in objects
        if len(select_fitting_objects(NounPhrase(t.kind, t.color), objects)) == 1
    ]
    for (first, first_object), (second, second_object) in permutations(unique_objects, 2):
        is_larger = compare_sizes(first_object, second_object)
        if first_object.kind == second_object.kind and is_larger is not None:
            text = f"Is the {first} larger than the {second}?"
            yield ImageStatement("larger", text, "yes" if is_larger else "no", "", YES_NO)


QUESTION_FORMS: tuple[Callable[[Sequence[SceneObject]], Iterator[ImageStatement]], ...] = (
    ask_color_at_position,
    ask_material_at_position,
    ask_kind_at_position,
    ask_count,
    ask_count_at_position,
    ask_existence,
    ask_existence_at_position,
    ask_more,
    ask_same_color,
    ask_larger,
)
