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
    NounPhrase(color=color) for color in OBJECT_COLORS
]
NUM_DIRECTORIES = 100
NLVR2_SPLITS = ("train", "dev", "test1")
Pair = tuple[Sequence[SceneObject], Sequence[SceneObject]]
Sentence = tuple[str, Callable[[Pair], bool | None]]  # text, and whether it is true of a pair; None if ambiguous


def assign_nlvr2_split(set_index: int) -> str:
    """Eight of ten sets for training."""
    return {8: "dev", 9: "test1"}.get(set_index % 10, "train")


def list_nlvr2_files(options: SynthesisOptions) -> list[str]:
    """All images, in complete sets."""
    names = []
    for set_index in range(options.scenes // (2 * PAIRS_PER_SET)):
        split = assign_nlvr2_split(set_index)
        folder = f"train/{set_index % NUM_DIRECTORIES}" if split == "train" else split
        names += [
            f"{folder}/{split}-{set_index}-{pair}-img{side}.png" for pair in range(PAIRS_PER_SET) for side in range(2)
        ]
    return names


def list_nlvr2_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the images."""
    return list_image_jobs(folder / "images", options.seed, Purpose.NLVR2, list_nlvr2_files(options), options.side)


def write_nlvr2_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write the sentences; returns the counts."""
    scene_images = list_scene_images(options.seed, Purpose.NLVR2, list_nlvr2_files(options), options.side)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in NLVR2_SPLITS}
    for set_index in range(len(scene_images) // (2 * PAIRS_PER_SET)):
        records[assign_nlvr2_split(set_index)] += generate_nlvr2_examples(
            set_index, scene_images[2 * PAIRS_PER_SET * set_index : 2 * PAIRS_PER_SET * (set_index + 1)]
        )
    for split, lines in records.items():
        write_bytes_atomically(folder / f"{split}.json", format_json_lines(lines).encode())
    write_scene_boxes(folder / "boxes.jsonl", scene_images, options.side)
    return {"images": len(scene_images), "sentences": sum(map(len, records.values()))}


def generate_nlvr2_examples(set_index: int, scene_images: Sequence[SceneImage]) -> list[dict[str, Any]]:
    """All pairs of a set with all its sentences: at most one of each form."""
    rng = scene_images[0].world.make_generator(RandomStream.STATEMENTS)
    pairs = [(left.objects, right.objects) for left, right in zip(scene_images[::2], scene_images[1::2], strict=True)]
    split, examples = assign_nlvr2_split(set_index), []
    for form_index, form in enumerate(SENTENCE_FORMS):
        balanced = []
        for text, is_true in form(pairs):
            labels = [is_true(pair) for pair in pairs]
            if None not in labels and sum(map(bool, labels)) == PAIRS_PER_SET // 2:
                balanced.append((text, labels))
        if balanced:
            text, labels = balanced[int(rng.integers(len(balanced)))]
            for pair, label in enumerate(labels):
                record = {
                    "sentence": text,
                    "label": str(label),
                    "identifier": f"{split}-{set_index}-{pair}-{form_index}",
                }
                examples.append(
                    {
                        **record,
                        **_make_example_info(split, set_index, scene_images[2 * pair : 2 * pair + 2], str(label)),
                    }
                )
    return examples


def _make_example_info(split: str, set_index: int, scene_images: Sequence[SceneImage], label: str) -> dict[str, Any]:
    """The remaining fields of the official files."""
    left, right = (Path(scene_image.file).name for scene_image in scene_images)
    about: dict[str, Any] = {"left_url": left, "right_url": right, "writer": "0", "validation": {"1": label}}
    about |= {"synset": "synthetic", "query": "synthetic"}
    return about | (
        {"directory": set_index % NUM_DIRECTORIES} if split == "train" else {"extra_validations": {"2": label}}
    )


def claim_more(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        for first_side, second_side, first, second in (("left", "right", 0, 1), ("right", "left", 1, 0)):
            text = f"There are more {noun}s in the {first_side} image than in the {second_side} image."
            yield text, partial(_has_more, noun, first, second)


def claim_total(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        for count, number_word in enumerate(("two", "three", "four"), start=2):
            yield (
                f"There are exactly {number_word} {noun}s in the two images together.",
                partial(_has_total, noun, count),
            )


def claim_each(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        yield f"Each image contains {add_article(noun)}.", partial(_has_holding_images, noun, 2)


def claim_only_one(_: Sequence[Pair]) -> Iterator[Sentence]:
    for noun in SENTENCE_NOUNS:
        yield f"Only one of the images contains {add_article(noun)}.", partial(_has_holding_images, noun, 1)


def claim_pair_position(pairs: Sequence[Pair]) -> Iterator[Sentence]:
    """The attributes are taken from objects of the left images, so that the text can be true."""
    attributes = sorted({(a.color, b.kind) for left, _ in pairs for a in left for b in left if a is not b})
    for color, kind in attributes:
        for position in RELATIVE_POSITIONS:
            first, second = NounPhrase(color=color), NounPhrase(kind)
            text = f"In one of the images {add_article(first)} is {position} {add_article(second)}."
            yield text, partial(_has_position, first, position, second)


def _has_more(noun: NounPhrase, first: int, second: int, pair: Pair) -> bool:
    return len(select_fitting_objects(noun, pair[first])) > len(select_fitting_objects(noun, pair[second]))


def _has_total(noun: NounPhrase, count: int, pair: Pair) -> bool:
    return sum(len(select_fitting_objects(noun, objects)) for objects in pair) == count


def _has_holding_images(noun: NounPhrase, num_images: int, pair: Pair) -> bool:
    return sum(bool(select_fitting_objects(noun, objects)) for objects in pair) == num_images


def _has_position(first: NounPhrase, position: str, second: NounPhrase, pair: Pair) -> bool | None:
    """True if it is clearly true of some two objects, false if it is clearly true of none."""
    positions = [
        compare_positions(first_object, second_object)
        for objects in pair
        for first_object in select_fitting_objects(first, objects)
        for second_object in select_fitting_objects(second, objects)
        if first_object is not second_object
    ]
    return True if position in positions else None if None in positions else False


SENTENCE_FORMS: tuple[Callable[[Sequence[Pair]], Iterator[Sentence]], ...] = (
    claim_more,
    claim_total,
    claim_each,
    claim_only_one,
    claim_pair_position,
)
