"""Multiple-choice questions with answers and rationales in the file format of VCR (Zellers et al. 2019).

{train,val,test}.jsonl                    the test split without the correct answers
vcr1images/MOVIE/NAME.jpg, NAME.json      an image, and the boxes, outlines and names of its objects

The four choices are all combinations of two statements, each correct or incorrect, or all four positions; incorrect
words are drawn from the same distribution as correct ones. So each word occurs in two of the four choices, and the
choices alone are uninformative. Objects are named by tags, which ViLBERT reads as the names of their kinds: only
objects that are the only one of their kind are tagged.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.media_writers import encode_json, format_json_lines
from comodal.synthetic.scenes.object_scenes import (
    OPPOSITE_POSITIONS,
    RELATIVE_POSITIONS,
    NounPhrase,
    SceneImage,
    SceneObject,
    compare_positions,
    compute_hull,
    group_by_position,
    list_image_jobs,
    list_scene_images,
    list_scene_objects,
    select_fitting_objects,
    write_scene_boxes,
)
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import (
    MATERIALS,
    OBJECT_COLORS,
    SILENT_KINDS,
    SOUNDING_KINDS,
    Purpose,
    RandomStream,
    make_crowd,
)

VCR_SPLITS = ("train", "val", "test")
MAX_QUESTIONS_PER_FORM = 2  # maximum number of questions of an image
TaggedTokens = list[str | list[int]]


class AnswerChoice(NamedTuple):
    """Four sentences and the index of the correct one."""

    sentences: list[TaggedTokens]
    label: int


class VCRQuestion(NamedTuple):
    question: TaggedTokens
    answers: AnswerChoice
    rationales: AnswerChoice


def assign_vcr_split(index: int) -> str:
    """Eight of ten movies for training."""
    return {8: "val", 9: "test"}.get(index % 10, "train")


def list_vcr_files(options: SynthesisOptions) -> list[str]:
    """All images; those of a movie are in one split."""
    names = []
    for index in range(options.scenes):
        movie, second = f"{1000 + index // 600 * 10 + index % 10}_PLAYGROUND", index // 10 % 60
        names.append(f"lsmdc_{movie}/{movie}_00.00.{second:02d}.000-00.00.{second + 1:02d}.000@0.jpg")
    return names


def list_vcr_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the images and write their metadata."""
    files = list_vcr_files(options)
    metadata_jobs = [partial(_write_metadata, folder / "vcr1images" / file, options, i) for i, file in enumerate(files)]
    return [*list_image_jobs(folder / "vcr1images", options.seed, Purpose.VCR, files, options.side), *metadata_jobs]


def write_vcr_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write the questions; returns the counts."""
    scene_images = list_scene_images(options.seed, Purpose.VCR, list_vcr_files(options), options.side)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in VCR_SPLITS}
    images = dict.fromkeys(VCR_SPLITS, 0)
    for scene_image in scene_images:
        split = assign_vcr_split(scene_image.index)
        for question_index, vcr_question in enumerate(generate_vcr_questions(scene_image)):
            identity = {"img_id": f"{split}-{images[split]}", "annot_id": f"{split}-{len(rows[split])}"}
            identity |= {"match_fold": f"{split}-0"}
            row = _make_vcr_row(scene_image, vcr_question, split == "test")
            rows[split].append({**row, **identity, "question_number": question_index, "match_index": len(rows[split])})
        images[split] += 1
    for split, records in rows.items():
        write_bytes_atomically(folder / f"{split}.jsonl", format_json_lines(records).encode())
    write_scene_boxes(folder / "boxes.jsonl", scene_images, options.side)
    return {"images": len(scene_images), "questions": sum(map(len, rows.values()))}


def generate_vcr_questions(scene_image: SceneImage) -> list[VCRQuestion]:
    """Some questions of each form that the image allows, in random order."""
    rng = scene_image.world.make_generator(RandomStream.QUESTIONS)
    questions: list[VCRQuestion] = []
    for form in VCR_FORMS:
        possible = list(form(scene_image.objects, rng))
        questions += [possible[int(i)] for i in rng.permutation(len(possible))[:MAX_QUESTIONS_PER_FORM]]
    return [questions[int(i)] for i in rng.permutation(len(questions))]


def ask_position(objects: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """The position of one object relative to another; the rationale names the colors of both."""
    for first, second in _list_color_pairs(objects):
        position = compare_positions(objects[first], objects[second])
        if position is not None:
            answers = [
                _join_sentence([first], "is", relation, [second])
                for relation in sorted(RELATIVE_POSITIONS, key=position.__ne__)
            ]
            color_choices = _describe_colors(objects, first, second, rng)
            yield VCRQuestion(
                ["Where", "is", [first], "?"], _shuffle_choices(answers, rng), _shuffle_choices(color_choices, rng)
            )


def ask_appearance(objects: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """The colors of two objects; the rationale names the position and the material of the first."""
    for first, second in _list_color_pairs(objects):
        position = compare_positions(objects[first], objects[second])
        if position is not None:
            materials = _add_incorrect_word(objects[first].material, MATERIALS, rng)
            rationales = [
                _join_sentence([first], "is", relation, [second], "and made of", material)
                for relation in (position, OPPOSITE_POSITIONS[position])
                for material in materials
            ]
            question: TaggedTokens = ["What", "do", [first], "and", [second], "look", "like", "?"]
            answers = _describe_colors(objects, first, second, rng)
            yield VCRQuestion(question, _shuffle_choices(answers, rng), _shuffle_choices(rationales, rng))


def ask_neighbor(objects: Sequence[SceneObject], rng: np.random.Generator) -> Iterator[VCRQuestion]:
    """The object next to another; the rationale describes it."""
    for index in _list_unique_objects(objects):
        anchor = objects[index]
        for position, neighbors in (group_by_position(NounPhrase(), anchor, objects) or {}).items():
            if len(neighbors) == 1 and neighbors[0].color != anchor.color:
                neighbor_color, anchor_color, incorrect_neighbor_color, incorrect_anchor_color = _add_two_colors(
                    neighbors[0].color, anchor.color, rng
                )
                present_kinds = {scene_object.kind for scene_object in objects} - {anchor.kind}
                kinds = _add_incorrect_word(
                    neighbors[0].kind,
                    sorted(present_kinds) if len(present_kinds) > 1 else SOUNDING_KINDS + SILENT_KINDS,
                    rng,
                )
                materials = _add_incorrect_word(anchor.material, MATERIALS, rng)
                answers = [
                    _join_sentence("One", color, kind)
                    for color in (neighbor_color, incorrect_neighbor_color)
                    for kind in kinds
                ]
                rationales = [
                    _join_sentence([index], "is", color, "and made of", material)
                    for color in (anchor_color, incorrect_anchor_color)
                    for material in materials
                ]
                question: TaggedTokens = ["What", "is", *position.split(), [index], "?"]
                yield VCRQuestion(question, _shuffle_choices(answers, rng), _shuffle_choices(rationales, rng))


VCR_FORMS: tuple[Callable[[Sequence[SceneObject], np.random.Generator], Iterator[VCRQuestion]], ...] = (
    ask_position,
    ask_appearance,
    ask_neighbor,
)


def _list_unique_objects(objects: Sequence[SceneObject]) -> list[int]:
    """The indices of the objects that are the only one of their kind."""
    return [
        index
        for index, scene_object in enumerate(objects)
        if len(select_fitting_objects(NounPhrase(scene_object.kind), objects)) == 1
    ]


def _list_color_pairs(objects: Sequence[SceneObject]) -> Iterator[tuple[int, int]]:
    """All ordered pairs of objects of different colors. Objects of one image often share their colors, so two equal
    words among the choices would reveal the answer.
    """
    for first, second in permutations(_list_unique_objects(objects), 2):
        if objects[first].color != objects[second].color:
            yield first, second


def _describe_colors(
    objects: Sequence[SceneObject], first: int, second: int, rng: np.random.Generator
) -> list[TaggedTokens]:
    """The colors of two objects in words, and the same with one or both of them incorrect: four different colors."""
    correct_first, correct_second, incorrect_first, incorrect_second = _add_two_colors(
        objects[first].color, objects[second].color, rng
    )
    return [
        _join_sentence([first], "is", first_color, "and", [second], "is", second_color)
        for first_color in (correct_first, incorrect_first)
        for second_color in (correct_second, incorrect_second)
    ]


def _add_two_colors(first: str, second: str, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Two colors, and two others."""
    third, fourth = rng.choice([color for color in OBJECT_COLORS if color not in (first, second)], 2, replace=False)
    return first, second, str(third), str(fourth)


def _add_incorrect_word(word: str, words: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """The correct word and an incorrect one."""
    return word, str(rng.choice([alternative for alternative in words if alternative != word]))


def _join_sentence(*parts: str | list[int]) -> TaggedTokens:
    """Words and tags in order, with a full stop."""
    words: TaggedTokens = []
    for part in parts:
        words += part.split() if isinstance(part, str) else [part]
    return [*words, "."]


def _shuffle_choices(sentences: list[TaggedTokens], rng: np.random.Generator) -> AnswerChoice:
    """The sentences, of which the first is correct, in random order."""
    order = [int(i) for i in rng.permutation(len(sentences))]
    return AnswerChoice([sentences[i] for i in order], order.index(0))


def _make_vcr_row(scene_image: SceneImage, vcr_question: VCRQuestion, is_test: bool) -> dict[str, Any]:
    """A line of the file, without its ids."""
    question, answers, rationales = vcr_question
    row: dict[str, Any] = {
        "movie": scene_image.file.split("/")[0].removeprefix("lsmdc_"),
        "objects": [scene_object.kind for scene_object in scene_image.objects],
        "interesting_scores": [0],
        "answer_likelihood": "likely",
        "img_fn": scene_image.file,
        "metadata_fn": f"{scene_image.file.removesuffix('.jpg')}.json",
        "question": question,
        "question_orig": _format_annotation(question),
        "answer_choices": answers.sentences,
        "rationale_choices": rationales.sentences,
    }
    if not is_test:
        row |= {"answer_label": answers.label, "answer_orig": _format_annotation(answers.sentences[answers.label])}
        row |= {
            "rationale_label": rationales.label,
            "rationale_orig": _format_annotation(rationales.sentences[rationales.label]),
        }
    return row


def _format_annotation(words: TaggedTokens) -> str:
    """In the style of the annotators, who counted objects from 1."""
    text = " ".join(word if isinstance(word, str) else str(word[0] + 1) for word in words)
    return text.replace(" .", ".").replace(" ?", "?")


def _write_metadata(image: Path, options: SynthesisOptions, index: int) -> None:
    """Write boxes with a detector's score, outlines, names and the image's size, in the file next to an image."""
    path = image.with_suffix(".json")
    if not path.exists():
        world = make_crowd(options.seed, Purpose.VCR, index)
        metadata = {
            "boxes": [[*map(float, scene_object.box), 1.0] for scene_object in list_scene_objects(world, options.side)],
            "segms": [
                [[list(point) for point in compute_hull(scene_object, options.side)]] for scene_object in world.objects
            ],
            "names": [scene_object.kind for scene_object in world.objects],
            "width": options.side,
            "height": options.side,
        }
        write_bytes_atomically(path, encode_json(metadata))
