"""Sentences about two pictures as the files of NLVR2 (Suhr et al. 2019): true or false.

{train,dev,test1}.json                             JSON Lines, though the name says otherwise
images/train/DIRECTORY/train-SET-PAIR-img{0,1}.png, images/dev/dev-SET-PAIR-img{0,1}.png, ...

Every sentence is written for a set of four pairs of pictures and is true of exactly two of them, so whoever reads it
alone is right half of the time. It speaks of both pictures, or of two objects beside each other.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comodal.files import write_whole
from comodal.synthetic.formats.questions import article
from comodal.synthetic.scenes.media_writers import json_lines
from comodal.synthetic.scenes.object_scenes import (
    PLACES,
    NounPhrase,
    SceneImage,
    SceneObject,
    fitting,
    picture_jobs,
    pictures_of,
    place,
    write_boxes,
)
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import COLOURS, KINDS, SILENT_KINDS, Purpose, RandomStream

PAIRS = 4
NOUNS = [NounPhrase(kind) for kind in KINDS + SILENT_KINDS] + [NounPhrase(colour=colour) for colour in COLOURS]
DIRECTORIES = 100
SPLITS = ("train", "dev", "test1")
Pair = tuple[Sequence[SceneObject], Sequence[SceneObject]]
Sentence = tuple[str, Callable[[Pair], bool | None]]  # words, and whether they are true of a pair, if that is clear


def split_of(number: int) -> str:
    """Eight of ten sets for training."""
    return {8: "dev", 9: "test1"}.get(number % 10, "train")


def files(options: SynthesisOptions) -> list[str]:
    """All pictures, in whole sets."""
    names = []
    for number in range(options.scenes // (2 * PAIRS)):
        split = split_of(number)
        folder = f"train/{number % DIRECTORIES}" if split == "train" else split
        names += [f"{folder}/{split}-{number}-{pair}-img{side}.png" for pair in range(PAIRS) for side in range(2)]
    return names


def jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """What makes the pictures."""
    return picture_jobs(folder / "images", options.seed, Purpose.NLVR2, files(options), options.side)


def write_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """The sentences; returns what there is how often."""
    pictures = pictures_of(options.seed, Purpose.NLVR2, files(options), options.side)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for number in range(len(pictures) // (2 * PAIRS)):
        records[split_of(number)] += examples(number, pictures[2 * PAIRS * number : 2 * PAIRS * (number + 1)])
    for split, lines in records.items():
        write_whole(folder / f"{split}.json", json_lines(lines).encode())
    write_boxes(folder / "boxes.jsonl", pictures, options.side)
    return {"pictures": len(pictures), "sentences": sum(map(len, records.values()))}


def examples(number: int, pictures: Sequence[SceneImage]) -> list[dict[str, Any]]:
    """All pairs of a set with all its sentences: at most one of each form."""
    rng = pictures[0].world.generator(RandomStream.STATEMENTS)
    pairs = [(left.things, right.things) for left, right in zip(pictures[::2], pictures[1::2], strict=True)]
    split, found = split_of(number), []
    for place_of, form in enumerate(FORMS):
        telling = []
        for text, true in form(pairs):
            labels = [true(pair) for pair in pairs]
            if None not in labels and sum(map(bool, labels)) == PAIRS // 2:
                telling.append((text, labels))
        if telling:
            text, labels = telling[int(rng.integers(len(telling)))]
            for pair, label in enumerate(labels):
                record = {"sentence": text, "label": str(label), "identifier": f"{split}-{number}-{pair}-{place_of}"}
                found.append({**record, **_about(split, number, pictures[2 * pair : 2 * pair + 2], str(label))})
    return found


def _about(split: str, number: int, pictures: Sequence[SceneImage], label: str) -> dict[str, Any]:
    """What the official files tell besides."""
    left, right = (Path(picture.file).name for picture in pictures)
    about: dict[str, Any] = {"left_url": left, "right_url": right, "writer": "0", "validation": {"1": label}}
    about |= {"synset": "playground", "query": "playground"}
    return about | ({"directory": number % DIRECTORIES} if split == "train" else {"extra_validations": {"2": label}})


def more(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in NOUNS:
        for one, other, first, second in (("left", "right", 0, 1), ("right", "left", 1, 0)):
            text = f"There are more {noun}s in the {one} image than in the {other} image."
            yield text, partial(_more, noun, first, second)


def together(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in NOUNS:
        for number, word in enumerate(("two", "three", "four"), start=2):
            yield f"There are exactly {word} {noun}s in the two images together.", partial(_together, noun, number)


def each(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in NOUNS:
        yield f"Each image contains {article(noun)}.", partial(_holding, noun, 2)


def only_one(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in NOUNS:
        yield f"Only one of the images contains {article(noun)}.", partial(_holding, noun, 1)


def beside(pairs: Sequence[Pair]) -> Iterator[Sentence]:
    """The words are about what the left pictures hold, so that they are true of some."""
    said = sorted({(a.colour, b.kind) for left, _ in pairs for a in left for b in left if a is not b})
    for colour, kind in said:
        for where in PLACES:
            first, second = NounPhrase(colour=colour), NounPhrase(kind)
            text = f"In one of the images {article(first)} is {where} {article(second)}."
            yield text, partial(_beside, first, where, second)


def _more(noun: NounPhrase, first: int, second: int, pair: Pair) -> bool:
    return len(fitting(noun, pair[first])) > len(fitting(noun, pair[second]))


def _together(noun: NounPhrase, number: int, pair: Pair) -> bool:
    return sum(len(fitting(noun, things)) for things in pair) == number


def _holding(noun: NounPhrase, images: int, pair: Pair) -> bool:
    return sum(bool(fitting(noun, things)) for things in pair) == images


def _beside(first: NounPhrase, where: str, second: NounPhrase, pair: Pair) -> bool | None:
    """True where it is clear of some two objects, false where it is clearly not so of any."""
    places = [
        place(one, other)
        for things in pair
        for one in fitting(first, things)
        for other in fitting(second, things)
        if one is not other
    ]
    return True if where in places else None if None in places else False


FORMS: tuple[Callable[[Sequence[Pair]], Iterator[Sentence]], ...] = (more, together, each, only_one, beside)
