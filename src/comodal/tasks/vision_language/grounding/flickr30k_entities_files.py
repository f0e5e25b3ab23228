"""The files of Flickr30k Entities: phrases of captions, and the boxes that they refer to (Plummer et al., ICCV 2015).

Sentences/IMAGE.txt      one caption per line, in which [/EN#ENTITY/TYPE/... word word] marks a phrase
Annotations/IMAGE.xml    objects, each with the names of its entities and a box or a flag (no box, whole scene)
train.txt, val.txt, test.txt    the images of each split, one id per line

Coordinates start at 1, so 1 is subtracted, as in the authors' reader (flickr30k_entities_utils.py of
BryanPlummer/flickr30k_entities). The box of an entity with several boxes encloses them, as in their evaluation.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from comodal.errors import DataError
from comodal.files import open_regular_file
from comodal.tasks.vision_language.grounding.refcoco_files import ReferringExpression
from comodal.text_files import read_lines

PHRASE_PATTERN = re.compile(r"\[/EN#(\d+)/(\S+) ([^\[]*?)\](?=\s|$)")
PHRASE_START = "[/EN#"
NO_ENTITY = "0"  # the entity of phrases without annotation
REASON_NOT_VISUAL = "phrase of no entity (not visual)"
REASON_WHOLE_SCENE = "entity is the scene as a whole"
REASON_ENTITY_NO_BOX = "entity has no box"
BOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
MAX_XML_BYTES = 1 << 20  # bytes; official annotations have a few thousand per image
MAX_COORDINATE = 1 << 20  # pixels

EntityBox = tuple[float, float, float, float]


class EntityPhrase(NamedTuple):
    """A phrase of a caption, the entity that it refers to, and its types (people, clothing, ...)."""

    entity: str
    kinds: tuple[str, ...]
    text: str


class EntityBoxes(NamedTuple):
    """The boxes of an image by entity, and the entities that are the whole scene."""

    boxes: dict[str, EntityBox]
    scenes: set[str]


class EntityPhrases(NamedTuple):
    """Phrases as expressions, the types of each by its index, and excluded phrases by reason."""

    expressions: list[ReferringExpression]
    kinds: dict[str, tuple[str, ...]]
    excluded: Counter[str]


def read_entity_phrases(images: Path, sentences: Path, annotations: Path | None) -> EntityPhrases:
    """The phrases of a list of images; without annotations their boxes are unknown.

    The id of a phrase is IMAGE#CAPTION.PHRASE, with both indices counted from 0 in the file of the image.

    Raises:
        DataError: A file is missing, or is not Flickr30k Entities'.
    """
    if annotations is not None and not annotations.is_dir():
        raise DataError(f"{annotations}: not a folder of annotations; omit it to predict boxes without scores")
    entity_phrases = EntityPhrases([], {}, Counter())
    for image in read_flickr30k_image_ids(images):
        entity_boxes = None if annotations is None else read_entity_boxes(annotations / f"{image}.xml")
        for caption_index, phrases in enumerate(read_caption_phrases(sentences / f"{image}.txt")):
            for phrase_index, phrase in enumerate(phrases):
                reason = find_exclusion_reason(phrase, entity_boxes)
                if reason:
                    entity_phrases.excluded[reason] += 1
                    continue
                key, box = (
                    f"{image}#{caption_index}.{phrase_index}",
                    None if entity_boxes is None else entity_boxes.boxes[phrase.entity],
                )
                entity_phrases.expressions.append(
                    ReferringExpression(key, phrase.entity, image, images.stem, phrase.text, box)
                )
                entity_phrases.kinds[key] = phrase.kinds
    if not entity_phrases.expressions:
        raise DataError(
            f"{images}: no phrase to ground in {sentences}{format_excluded_phrases(entity_phrases.excluded)}"
        )
    return entity_phrases


def format_excluded_phrases(excluded: Counter[str]) -> str:
    """The numbers of excluded phrases, as the end of a sentence."""
    return "".join(f", {count:,}: {reason}" for reason, count in excluded.items())


def find_exclusion_reason(phrase: EntityPhrase, entity_boxes: EntityBoxes | None) -> str | None:
    """The reason why a phrase is excluded, if any; an entity that has a box is included."""
    if phrase.entity == NO_ENTITY:
        return REASON_NOT_VISUAL
    if entity_boxes is None or phrase.entity in entity_boxes.boxes:
        return None
    return REASON_WHOLE_SCENE if phrase.entity in entity_boxes.scenes else REASON_ENTITY_NO_BOX


def read_flickr30k_image_ids(path: Path) -> list[str]:
    """The image ids of a split.

    Raises:
        DataError: The list cannot be read, is empty, or has a duplicate or invalid id.
    """
    images = [line.strip() for line in read_lines(path) if line.strip()]
    if not images:
        raise DataError(f"{path}: the list of images is empty; it must have one image id per line")
    for image_id, count in Counter(images).items():
        if count > 1 or not re.fullmatch(r"[\w.-]+", image_id):
            raise DataError(f"{path}: {image_id!r} is {'a duplicate' if count > 1 else 'not an image id'}")
    return images


def read_caption_phrases(path: Path) -> list[list[EntityPhrase]]:
    """The phrases of each caption of an image.

    Raises:
        DataError: The file cannot be read, or the markup of a phrase is invalid.
    """
    captions = []
    for line_number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        phrases = [
            EntityPhrase(entity, tuple(kinds.split("/")), " ".join(words.split()))
            for entity, kinds, words in PHRASE_PATTERN.findall(line)
        ]
        if len(phrases) != line.count(PHRASE_START) or not all(phrase.text for phrase in phrases):
            raise DataError(
                f"{path}, line {line_number}: a phrase is not marked like [/EN#12/people a man]: {line:.80}"
            )
        captions.append(phrases)
    return captions


def read_entity_boxes(path: Path) -> EntityBoxes:
    """The boxes of an image; an entity's box encloses all of its boxes.

    Raises:
        DataError: The file cannot be read, or is not Flickr30k Entities'.
    """
    entity_boxes = EntityBoxes({}, set())
    for index, element in enumerate(read_xml(path).findall("object")):
        names = [name.text.strip() for name in element.findall("name") if name.text and name.text.strip()]
        if not names:
            raise DataError(f"{path}, object {index}: it has no entity name")
        box_element = element.find("bndbox")
        if box_element is not None:
            box = parse_entity_box(path, index, box_element)
            entity_boxes.boxes.update({name: enclose_boxes(entity_boxes.boxes.get(name, box), box) for name in names})
        elif (element.findtext("scene") or "").strip() == "1":
            entity_boxes.scenes.update(names)
        elif (element.findtext("nobndbox") or "").strip() != "1":
            raise DataError(f"{path}, object {index}: neither a bndbox, nor nobndbox or scene with a 1")
    return entity_boxes


def parse_entity_box(path: Path, index: int, box_element: Element) -> EntityBox:
    """A box with coordinates from 0."""
    values = {side: (box_element.findtext(side) or "").strip() for side in BOX_FIELDS}
    if not all(re.fullmatch(r"-?\d{1,9}", value) for value in values.values()):
        raise DataError(
            f"{path}, object {index}: {', '.join(f'{s} {v!r}' for s, v in values.items())} are not integers"
        )
    left, top, right, bottom = (float(int(values[side]) - 1) for side in BOX_FIELDS)
    if left > right or top > bottom or max(map(abs, (left, top, right, bottom))) > MAX_COORDINATE:
        raise DataError(
            f"{path}, object {index}: {', '.join(f'{s} {v}' for s, v in values.items())} is not a valid box"
        )
    return left, top, right, bottom


def enclose_boxes(first: EntityBox, second: EntityBox) -> EntityBox:
    """The smallest box that encloses two boxes."""
    return min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])


def read_xml(path: Path) -> Element:
    """The root of an XML file. A document type declaration is refused, since entities can expand or load files.

    Raises:
        DataError: The file cannot be read, is too large, is damaged, or declares a document type.
    """

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: rejected: it declares a document type, which Flickr30k Entities' annotations do not")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        with open_regular_file(path) as file:
            content = file.read(MAX_XML_BYTES + 1)
        if len(content) > MAX_XML_BYTES:
            raise DataError(
                f"{path}: more than {MAX_XML_BYTES:,} bytes; official annotations of an image have a few thousand"
            )
        parser.Parse(content, True)
        root = builder.close()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path}: damaged XML ({error})") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: its root is {root.tag:.40}; expected annotation")
    return root
