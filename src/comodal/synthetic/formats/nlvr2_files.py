"""Sentences about two images in the file format of NLVR2 (Suhr et al. 2019): true or false.

{train,dev,test1}.json                             JSON Lines, despite the suffix
images/train/DIRECTORY/train-SET-PAIR-img{0,1}.png, images/dev/dev-SET-PAIR-img{0,1}.png, ...

Every sentence is written for a set of four image pairs and is true of exactly two of them, so a text-only model scores
50 %. It refers to both images, or to the relative position of two objects.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comodal.files import write_bytes_atomically
from comodal.synthetic.formats.questions import add_article
from comodal.synthetic.scenes.media_writers import format_json_lines
from comodal.synthetic.scenes.object_scenes import (
    RELATIVE_POSITIONS,
    NounPhrase,
    SceneImage,
    SceneObject,
    compare_positions,
    list_image_jobs,
    list_scene_images,
    select_fitting_objects,
    write_scene_boxes,
)
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import OBJECT_COLORS, SILENT_KINDS, SOUNDING_KINDS, Purpose, RandomStream

PAIRS_PER_SET = 4
SENTENCE_NOUNS = [NounPhrase(kind) for kind in SOUNDING_KINDS + SILENT_KINDS] + [
    NounPhrase(colour=colour) for colour in OBJECT_COLORS
]
NUM_DIRECTORIES = 100
NLVR2_SPLITS = ("train", "dev", "test1")
Pair = tuple[Sequence[SceneObject], Sequence[SceneObject]]
Sentence = tuple[str, Callable[[Pair], bool | None]]  # text, and whether it is true of a pair; None if ambiguous


def assign_nlvr2_split(number: int) -> str:
    """Eight of ten sets for training."""
    return {8: "dev", 9: "test1"}.get(number % 10, "train")


def list_nlvr2_files(options: SynthesisOptions) -> list[str]:
    """All images, in complete sets."""
    names = []
    for number in range(options.scenes // (2 * PAIRS_PER_SET)):
        split = assign_nlvr2_split(number)
        folder = f"train/{number % NUM_DIRECTORIES}" if split == "train" else split
        names += [
            f"{folder}/{split}-{number}-{pair}-img{side}.png" for pair in range(PAIRS_PER_SET) for side in range(2)
        ]
    return names


def list_nlvr2_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the images."""
    return list_image_jobs(folder / "images", options.seed, Purpose.NLVR2, list_nlvr2_files(options), options.side)


def write_nlvr2_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write the sentences; returns the counts."""
    pictures = list_scene_images(options.seed, Purpose.NLVR2, list_nlvr2_files(options), options.side)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in NLVR2_SPLITS}
    for number in range(len(pictures) // (2 * PAIRS_PER_SET)):
        records[assign_nlvr2_split(number)] += generate_nlvr2_examples(
            number, pictures[2 * PAIRS_PER_SET * number : 2 * PAIRS_PER_SET * (number + 1)]
        )
    for split, lines in records.items():
        write_bytes_atomically(folder / f"{split}.json", format_json_lines(lines).encode())
    write_scene_boxes(folder / "boxes.jsonl", pictures, options.side)
    return {"pictures": len(pictures), "sentences": sum(map(len, records.values()))}


def generate_nlvr2_examples(number: int, pictures: Sequence[SceneImage]) -> list[dict[str, Any]]:
    """All pairs of a set with all its sentences: at most one of each form."""
    rng = pictures[0].world.generator(RandomStream.STATEMENTS)
    pairs = [(left.things, right.things) for left, right in zip(pictures[::2], pictures[1::2], strict=True)]
    split, found = assign_nlvr2_split(number), []
    for place_of, form in enumerate(SENTENCE_FORMS):
        telling = []
        for text, true in form(pairs):
            labels = [true(pair) for pair in pairs]
            if None not in labels and sum(map(bool, labels)) == PAIRS_PER_SET // 2:
                telling.append((text, labels))
        if telling:
            text, labels = telling[int(rng.integers(len(telling)))]
            for pair, label in enumerate(labels):
                record = {"sentence": text, "label": str(label), "identifier": f"{split}-{number}-{pair}-{place_of}"}
                found.append(
                    {**record, **_make_example_info(split, number, pictures[2 * pair : 2 * pair + 2], str(label))}
                )
    return found


def _make_example_info(split: str, number: int, pictures: Sequence[SceneImage], label: str) -> dict[str, Any]:
    """The remaining fields of the official files."""
    left, right = (Path(picture.file).name for picture in pictures)
    about: dict[str, Any] = {"left_url": left, "right_url": right, "writer": "0", "validation": {"1": label}}
    about |= {"synset": "playground", "query": "playground"}
    return about | (
        {"directory": number % NUM_DIRECTORIES} if split == "train" else {"extra_validations": {"2": label}}
    )


def claim_more(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        for one, other, first, second in (("left", "right", 0, 1), ("right", "left", 1, 0)):
            text = f"There are more {noun}s in the {one} image than in the {other} image."
            yield text, partial(_has_more, noun, first, second)


def claim_total(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        for number, word in enumerate(("two", "three", "four"), start=2):
            yield f"There are exactly {word} {noun}s in the two images together.", partial(_has_total, noun, number)


def claim_each(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        yield f"Each image contains {add_article(noun)}.", partial(_has_holding_images, noun, 2)


def claim_only_one(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        yield f"Only one of the images contains {add_article(noun)}.", partial(_has_holding_images, noun, 1)


def claim_pair_position(pairs: Sequence[Pair]) -> Iterator[Sentence]:
    """The attributes are taken from objects of the left images, so that the text can be true."""
    said = sorted({(a.colour, b.kind) for left, _ in pairs for a in left for b in left if a is not b})
    for colour, kind in said:
        for where in RELATIVE_POSITIONS:
            first, second = NounPhrase(colour=colour), NounPhrase(kind)
            text = f"In one of the images {add_article(first)} is {where} {add_article(second)}."
            yield text, partial(_has_position, first, where, second)


def _has_more(noun: NounPhrase, first: int, second: int, pair: Pair) -> bool:
    return len(select_fitting_objects(noun, pair[first])) > len(select_fitting_objects(noun, pair[second]))


def _has_total(noun: NounPhrase, number: int, pair: Pair) -> bool:
    return sum(len(select_fitting_objects(noun, things)) for things in pair) == number


def _has_holding_images(noun: NounPhrase, images: int, pair: Pair) -> bool:
    return sum(bool(select_fitting_objects(noun, things)) for things in pair) == images


def _has_position(first: NounPhrase, where: str, second: NounPhrase, pair: Pair) -> bool | None:
    """True if it is clearly true of some two objects, false if it is clearly true of none."""
    places = [
        compare_positions(one, other)
        for things in pair
        for one in select_fitting_objects(first, things)
        for other in select_fitting_objects(second, things)
        if one is not other
    ]
    return True if where in places else None if None in places else False


SENTENCE_FORMS: tuple[Callable[[Sequence[Pair]], Iterator[Sentence]], ...] = (
    claim_more,
    claim_total,
    claim_each,
    claim_only_one,
    claim_pair_position,
)
