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


def write_statements(folder: Path, pictures: Sequence[CaptionedImage], told: Sequence[Sequence[str]]) -> int:
    """The three files for images with their sentences; returns the number of statements."""
    total = 0
    for split, name in SNLI_VE_SPLITS.items():
        balance = AnswerBalancer()
        records: list[dict[str, Any]] = []
        for (picture, own, _), said in zip(pictures, told, strict=True):
            if own == split:
                records += generate_statements(picture, said, balance)
        total += len(records)
        write_bytes_atomically(folder / f"snli_ve_{name}.jsonl", format_json_lines(records).encode())
    return total


def generate_statements(picture: SceneImage, said: Sequence[str], balance: AnswerBalancer) -> list[dict[str, Any]]:
    """One statement of each form, with one of the image's sentences, in place of SNLI's premise."""
    rng = picture.world.generator(RandomStream.STATEMENTS)
    records: list[dict[str, Any]] = []
    for form in STATEMENT_FORMS:
        claim = balance.choose(list(form(picture.things)), rng)
        if claim is not None:
            number = int(rng.integers(len(said)))
            records.append(
                _make_statement_record(PurePosixPath(picture.file), number, len(records), said[number], claim)
            )
    return records


def _make_statement_record(
    file: PurePosixPath, number: int, place: int, premise: str, claim: ImageStatement
) -> dict[str, Any]:
    return {
        "Flickr30K_ID": file.stem,
        "annotator_labels": [claim.answer],
        "captionID": f"{file.name}#{number}",
        "gold_label": claim.answer,
        "pairID": f"{file.name}#{number}r{place}{claim.answer[0]}",
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


def state_color(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball is red."""
    here = {thing.colour for thing in things}
    for kind in SOUNDING_KINDS + SILENT_KINDS:
        found = select_fitting_objects(NounPhrase(kind), things)
        for colour in OBJECT_COLORS:
            if len(found) < 2 and colour in here:
                yield _make_statement(
                    "coloured", f"The {kind} is {colour}.", "", bool(found), [t.colour == colour for t in found]
                )


def state_position(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball is left of the drum, which is in the image."""
    for kind, anchor in _list_kind_pairs(things):
        found = select_fitting_objects(NounPhrase(kind), things)
        places = [compare_positions(thing, anchor) for thing in found]
        for where in RELATIVE_POSITIONS:
            if None not in places:
                text = f"The {kind} is {where} the {anchor.kind}."
                yield _make_statement("beside", text, where, bool(found), [where in places])


def state_same_color(things: Sequence[SceneObject]) -> Iterator[ImageStatement]:
    """The ball has the same color as the drum, which is in the image."""
    for kind, anchor in _list_kind_pairs(things):
        found = select_fitting_objects(NounPhrase(kind), things)
        text = f"The {kind} has the same color as the {anchor.kind}."
        yield _make_statement("alike", text, "", bool(found), [thing.colour == anchor.colour for thing in found])


def _list_kind_pairs(things: Sequence[SceneObject]) -> Iterator[tuple[str, SceneObject]]:
    """A kind with at most one object, and another kind with exactly one."""
    for anchor in things:
        if len(select_fitting_objects(NounPhrase(anchor.kind), things)) == 1:
            for kind in SOUNDING_KINDS + SILENT_KINDS:
                if kind != anchor.kind and len(select_fitting_objects(NounPhrase(kind), things)) < 2:
                    yield kind, anchor


def _make_statement(form: str, text: str, cue: str, there: bool, true: Sequence[bool]) -> ImageStatement:
    label = "neutral" if not there else "entailment" if all(true) else "contradiction"
    return ImageStatement(form, text, label, cue, ENTAILMENT_LABELS)


STATEMENT_FORMS: tuple[Callable[[Sequence[SceneObject]], Iterator[ImageStatement]], ...] = (
    state_color,
    state_position,
    state_same_color,
)
