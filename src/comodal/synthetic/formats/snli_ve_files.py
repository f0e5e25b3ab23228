"""Statements about images in the file format of SNLI-VE (Xie et al. 2019): entailment, neutral or contradiction.

snli_ve_{train,dev,test}.jsonl

A statement is about a kind of object, such as "the ball". If the only ball of an image matches, the label is
entailment; if it does not match, contradiction; if the image has no ball, neutral. The labels are balanced for each
form, so the text alone is uninformative.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from comodal.files import write_bytes_atomically
from comodal.synthetic.formats.answer_balance import AnswerBalancer, ImageStatement
from comodal.synthetic.formats.karpathy_files import CaptionedImage
from comodal.synthetic.scenes.media_writers import format_json_lines
from comodal.synthetic.scenes.object_scenes import (
    RELATIVE_POSITIONS,
    NounPhrase,
    SceneImage,
    SceneObject,
    compare_positions,
    select_fitting_objects,
)
from comodal.synthetic.scenes.world import OBJECT_COLORS, SILENT_KINDS, SOUNDING_KINDS, RandomStream

ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")
SNLI_VE_SPLITS = {"train": "train", "val": "dev", "test": "test"}


def write_statements(
    folder: Path, captioned_images: Sequence[CaptionedImage], sentences_by_image: Sequence[Sequence[str]]
) -> int:
    """The three files for images with their sentences; returns the number of statements."""
    total = 0
    for split, name in SNLI_VE_SPLITS.items():
        balance = AnswerBalancer()
        records: list[dict[str, Any]] = []
        for (scene_image, image_split, _), sentences in zip(captioned_images, sentences_by_image, strict=True):
            if image_split == split:
                records += generate_statements(scene_image, sentences, balance)
        total += len(records)
        write_bytes_atomically(folder / f"snli_ve_{name}.jsonl", format_json_lines(records).encode())
    return total


def generate_statements(
    scene_image: SceneImage, sentences: Sequence[str], balance: AnswerBalancer
) -> list[dict[str, Any]]:
    """One statement of each form, with one of the image's sentences, in place of SNLI's premise."""
    rng = scene_image.world.make_generator(RandomStream.STATEMENTS)
    records: list[dict[str, Any]] = []
    for form in STATEMENT_FORMS:
        claim = balance.select_statement(list(form(scene_image.objects)), rng)
        if claim is not None:
            premise_index = int(rng.integers(len(sentences)))
            records.append(
                _make_statement_record(
                    PurePosixPath(scene_image.file), premise_index, len(records), sentences[premise_index], claim
                )
            )
    return records


def _make_statement_record(
    file: PurePosixPath, premise_index: int, statement_index: int, premise: str, claim: ImageStatement
) -> dict[str, Any]:
    return {
        "Flickr30K_ID": file.stem,
        "annotator_labels": [claim.answer],
        "captionID": f"{file.name}#{premise_index}",
        "gold_label": claim.answer,
        "pairID": f"{file.name}#{premise_index}r{statement_index}{claim.answer[0]}",
        "sentence1": premise,
        "sentence1_binary_parse": _bracket_words(_split_sentence(premise)),
        "sentence1_parse": f"(ROOT {_bracket_words(_split_sentence(premise))})",
        "sentence2": claim.text,
        "sentence2_binary_parse": _bracket_words(_split_sentence(claim.text)),
        "sentence2_parse": f"(ROOT {_bracket_words(_split_sentence(claim.text))})",
    }


def _split_sentence(sentence: str) -> list[str]:
    return [*sentence.removesuffix(".").split(), "."]


def _bracket_words(words: list[str]) -> str:
    """A right-branching tree, to fill the parse field of the file format."""
    return f"{''.join(f'( {word} ' for word in words[:-1])}{words[-1]}{' )' * (len(words) - 1)}"


def state_color(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball is red."""
    present_colors = {scene_object.color for scene_object in objects}
    for kind in SOUNDING_KINDS + SILENT_KINDS:
        matching = select_fitting_objects(NounPhrase(kind), objects)
        for color in OBJECT_COLORS:
            if len(matching) < 2 and color in present_colors:
                yield _make_statement(
                    "color", f"The {kind} is {color}.", "", bool(matching), [t.color == color for t in matching]
                )


def state_position(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball is left of the drum, which is in the image."""
    for kind, anchor in _list_kind_pairs(objects):
        matching = select_fitting_objects(NounPhrase(kind), objects)
        positions = [compare_positions(scene_object, anchor) for scene_object in matching]
        for position in RELATIVE_POSITIONS:
            if None not in positions:
                text = f"The {kind} is {position} the {anchor.kind}."
                yield _make_statement("position", text, position, bool(matching), [position in positions])


def state_same_color(objects: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball has the same color as the drum, which is in the image."""
    for kind, anchor in _list_kind_pairs(objects):
        matching = select_fitting_objects(NounPhrase(kind), objects)
        text = f"The {kind} has the same color as the {anchor.kind}."
        yield _make_statement(
            "same color", text, "", bool(matching), [scene_object.color == anchor.color for scene_object in matching]
        )


def _list_kind_pairs(objects: Sequence[SceneObject]) -> Iterator[tuple[str, SceneObject]]:
    """A kind with at most one object, and another kind with exactly one."""
    for anchor in objects:
        if len(select_fitting_objects(NounPhrase(anchor.kind), objects)) == 1:
            for kind in SOUNDING_KINDS + SILENT_KINDS:
                if kind != anchor.kind and len(select_fitting_objects(NounPhrase(kind), objects)) < 2:
                    yield kind, anchor


def _make_statement(form: str, text: str, cue: str, is_present: bool, truth_values: Sequence[bool]) -> ImageStatement:
    label = "neutral" if not is_present else "entailment" if all(truth_values) else "contradiction"
    return ImageStatement(form, text, label, cue, ENTAILMENT_LABELS)


STATEMENT_FORMS: tuple[Callable[[Sequence[SceneObject]], Iterator[ImageStatement]], ...] = (
    state_color,
    state_position,
    state_same_color,
)
