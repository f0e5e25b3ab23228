"""Questions with a choice of answers and of reasons as the files of VCR (Zellers et al. 2019).

{train,val,test}.jsonl                    the test without the right answers
vcr1images/MOVIE/NAME.jpg, NAME.json      a picture, and the boxes, outlines and names of what is in it

The four choices are all combinations of two statements, each right or wrong, or all four places; the wrong word is
drawn as the right one is. So each word stands in two of the four choices, and the choices alone tell nothing. Objects
are named by tags, which ViLBERT reads as the names of their kinds: only those that are alone of their kind are tagged.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comodal.files import write_whole
from comodal.synthetic.scenes.media_writers import json_lines, json_text
from comodal.synthetic.scenes.object_scenes import (
    OPPOSITE,
    PLACES,
    NounPhrase,
    SceneImage,
    SceneObject,
    fitting,
    hull,
    picture_jobs,
    pictures_of,
    place,
    placed,
    see,
    write_boxes,
)
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import COLOURS, KINDS, MATERIALS, SILENT_KINDS, Purpose, RandomStream, make_crowd

SPLITS = ("train", "val", "test")
OF_A_FORM = 2  # questions of a picture, at most
Words = list[str | list[int]]


class AnswerChoice(NamedTuple):
    """Four sentences and which of them is right."""

    sentences: list[Words]
    label: int


class VCRQuestion(NamedTuple):
    question: Words
    answers: AnswerChoice
    rationales: AnswerChoice


def split_of(index: int) -> str:
    """Eight of ten movies for training."""
    return {8: "val", 9: "test"}.get(index % 10, "train")


def files(options: SynthesisOptions) -> list[str]:
    """Pictures of a movie are all in one split."""
    names = []
    for index in range(options.scenes):
        movie, second = f"{1000 + index // 600 * 10 + index % 10}_PLAYGROUND", index // 10 % 60
        names.append(f"lsmdc_{movie}/{movie}_00.00.{second:02d}.000-00.00.{second + 1:02d}.000@0.jpg")
    return names


def jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """What makes the pictures and their metadata."""
    every = files(options)
    described = [partial(_write_metadata, folder / "vcr1images" / file, options, i) for i, file in enumerate(every)]
    return [*picture_jobs(folder / "vcr1images", options.seed, Purpose.VCR, every, options.side), *described]


def write_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """The questions; returns what there is how often."""
    pictures = pictures_of(options.seed, Purpose.VCR, files(options), options.side)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    images = dict.fromkeys(SPLITS, 0)
    for picture in pictures:
        split = split_of(picture.index)
        for number, riddle in enumerate(riddles(picture)):
            identity = {"img_id": f"{split}-{images[split]}", "annot_id": f"{split}-{len(rows[split])}"}
            identity |= {"match_fold": f"{split}-0"}
            row = _row(picture, riddle, split == "test")
            rows[split].append({**row, **identity, "question_number": number, "match_index": len(rows[split])})
        images[split] += 1
    for split, records in rows.items():
        write_whole(folder / f"{split}.jsonl", json_lines(records).encode())
    write_boxes(folder / "boxes.jsonl", pictures, options.side)
    return {"pictures": len(pictures), "questions": sum(map(len, rows.values()))}


def riddles(picture: SceneImage) -> list[VCRQuestion]:
    """Some questions of each form that the picture allows, in random order."""
    rng = picture.world.generator(RandomStream.QUESTIONS)
    found: list[VCRQuestion] = []
    for form in FORMS:
        possible = list(form(picture.things, rng))
        found += [possible[int(i)] for i in rng.permutation(len(possible))[:OF_A_FORM]]
    return [found[int(i)] for i in rng.permutation(len(found))]


def where(things: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """Where one thing is beside another, and, so that one may be sure, the colours of both."""
    for first, second in _pairs(things):
        right = place(things[first], things[second])
        if right is not None:
            answers = [_sentence([first], "is", beside, [second]) for beside in sorted(PLACES, key=right.__ne__)]
            colours = _colours(things, first, second, rng)
            yield VCRQuestion(["Where", "is", [first], "?"], _shuffled(answers, rng), _shuffled(colours, rng))


def looks(things: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """The colours of two things; then where the first is and what it is made of."""
    for first, second in _pairs(things):
        right = place(things[first], things[second])
        if right is not None:
            materials = _and_another(things[first].material, MATERIALS, rng)
            rationales = [
                _sentence([first], "is", beside, [second], "and made of", material)
                for beside in (right, OPPOSITE[right])
                for material in materials
            ]
            question: Words = ["What", "do", [first], "and", [second], "look", "like", "?"]
            answers = _colours(things, first, second, rng)
            yield VCRQuestion(question, _shuffled(answers, rng), _shuffled(rationales, rng))


def what(things: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """What is beside a thing; then what that thing looks like."""
    for number in _alone(things):
        anchor = things[number]
        for beside, found in (placed(NounPhrase(), anchor, things) or {}).items():
            if len(found) == 1 and found[0].colour != anchor.colour:
                one, other, wrong_one, wrong_other = _with_two_others(found[0].colour, anchor.colour, rng)
                here = {thing.kind for thing in things} - {anchor.kind}
                kinds = _and_another(found[0].kind, sorted(here) if len(here) > 1 else KINDS + SILENT_KINDS, rng)
                materials = _and_another(anchor.material, MATERIALS, rng)
                answers = [_sentence("One", colour, kind) for colour in (one, wrong_one) for kind in kinds]
                rationales = [
                    _sentence([number], "is", colour, "and made of", material)
                    for colour in (other, wrong_other)
                    for material in materials
                ]
                question: Words = ["What", "is", *beside.split(), [number], "?"]
                yield VCRQuestion(question, _shuffled(answers, rng), _shuffled(rationales, rng))


FORMS: tuple[Callable[[Sequence[SceneObject], np.random.Generator], Iterator[VCRQuestion]], ...] = (where, looks, what)


def _alone(things: Sequence[SceneObject]) -> list[int]:
    """The places of the things that are alone of their kinds."""
    return [number for number, thing in enumerate(things) if len(fitting(NounPhrase(thing.kind), things)) == 1]


def _pairs(things: Sequence[SceneObject]) -> Iterator[tuple[int, int]]:
    """Any two of them of different colours, in both orders: objects of one picture tend to share their colours, so two
    equal words among the choices would give themselves away."""
    for first, second in permutations(_alone(things), 2):
        if things[first].colour != things[second].colour:
            yield first, second


def _colours(things: Sequence[SceneObject], first: int, second: int, rng: np.random.Generator) -> list[Words]:
    """The colours of two things in words, and the same with one or both of them wrong: four different colours."""
    one, other, wrong_one, wrong_other = _with_two_others(things[first].colour, things[second].colour, rng)
    return [
        _sentence([first], "is", first_colour, "and", [second], "is", second_colour)
        for first_colour in (one, wrong_one)
        for second_colour in (other, wrong_other)
    ]


def _with_two_others(one: str, other: str, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Two colours, and two that are neither."""
    third, fourth = rng.choice([colour for colour in COLOURS if colour not in (one, other)], 2, replace=False)
    return one, other, str(third), str(fourth)


def _and_another(word: str, words: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """The right word and a wrong one."""
    return word, str(rng.choice([other for other in words if other != word]))


def _sentence(*parts: str | list[int]) -> Words:
    """Words and tags in order, with a full stop."""
    words: Words = []
    for part in parts:
        words += part.split() if isinstance(part, str) else [part]
    return [*words, "."]


def _shuffled(sentences: list[Words], rng: np.random.Generator) -> AnswerChoice:
    """The sentences, of which the first is right, in random order."""
    order = [int(i) for i in rng.permutation(len(sentences))]
    return AnswerChoice([sentences[i] for i in order], order.index(0))


def _row(picture: SceneImage, riddle: VCRQuestion, is_test: bool) -> dict[str, Any]:
    """A line of the file, without what numbers it."""
    question, answers, rationales = riddle
    row: dict[str, Any] = {
        "movie": picture.file.split("/")[0].removeprefix("lsmdc_"),
        "objects": [thing.kind for thing in picture.things],
        "interesting_scores": [0],
        "answer_likelihood": "likely",
        "img_fn": picture.file,
        "metadata_fn": f"{picture.file.removesuffix('.jpg')}.json",
        "question": question,
        "question_orig": _written(question),
        "answer_choices": answers.sentences,
        "rationale_choices": rationales.sentences,
    }
    if not is_test:
        row |= {"answer_label": answers.label, "answer_orig": _written(answers.sentences[answers.label])}
        row |= {
            "rationale_label": rationales.label,
            "rationale_orig": _written(rationales.sentences[rationales.label]),
        }
    return row


def _written(words: Words) -> str:
    """As the annotators typed it, who counted objects from 1."""
    text = " ".join(word if isinstance(word, str) else str(word[0] + 1) for word in words)
    return text.replace(" .", ".").replace(" ?", "?")


def _write_metadata(image: Path, options: SynthesisOptions, index: int) -> None:
    """Boxes with a detector's score, outlines, names and the picture's size, in the file beside a picture."""
    path = image.with_suffix(".json")
    if not path.exists():
        world = make_crowd(options.seed, Purpose.VCR, index)
        metadata = {
            "boxes": [[*map(float, thing.box), 1.0] for thing in see(world, options.side)],
            "segms": [[[list(point) for point in hull(thing, options.side)]] for thing in world.things],
            "names": [thing.kind for thing in world.things],
            "width": options.side,
            "height": options.side,
        }
        write_whole(path, json_text(metadata))
