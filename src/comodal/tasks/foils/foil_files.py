"""Reads the official files of benchmarks with foils: a caption of an image, and texts that differ from it in a detail.

VALSE (Parcalabescu et al., ACL 2022): existence.json, plurals.json, ...: {id: {image_file, caption, foil, mturk}}.
SugarCrepe (Hsieh et al., NeurIPS 2023): add_att.json, ...: {id: {filename, caption, negative_caption}}.
ARO (Yuksekgonul et al., ICLR 2023): visual_genome_relation.json and visual_genome_attribution.json, a list of
image_path, true_caption, false_caption and the box of the crop; COCO and Flickr30k Order, a list of image and
caption_options, the first of which is the caption (the `test_cases` of the published classes, which shuffle words by
spaCy).
Winoground (Thrush et al., CVPR 2022): examples.jsonl, image_0, image_1, caption_0, caption_1 and collapsed_tag.

The benchmark is detected from the content. Of VALSE only the validated foils are used, as published: at least two of
three annotators chose the caption and not the foil.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from comodal.errors import DataError
from comodal.text_files import describe_type, is_json_lines, parse_json, parse_json_lines, read_text

Benchmark = Literal["valse", "sugar_crepe", "aro_relation", "aro_attribution", "aro_order", "winoground"]
BENCHMARK_TITLES: dict[Benchmark, str] = {
    "valse": "VALSE",
    "sugar_crepe": "SugarCrepe",
    "aro_relation": "ARO, VG-Relation",
    "aro_attribution": "ARO, VG-Attribution",
    "aro_order": "ARO, order",
    "winoground": "Winoground",
}
REQUIRED_FIELDS: dict[Benchmark, tuple[str, ...]] = {
    "valse": ("image_file", "caption", "foil"),
    "sugar_crepe": ("filename", "caption", "negative_caption"),
    "aro_relation": ("image_path", "true_caption", "false_caption", "relation_name"),
    "aro_attribution": ("image_path", "true_caption", "false_caption"),
    "aro_order": ("image",),
    "winoground": ("image_0", "image_1", "caption_0", "caption_1", "collapsed_tag"),
}
CROP_FIELDS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
MIN_VOTES = 2  # of VALSE's three annotators
REASON_NOT_VALIDATED = "fewer than two of three annotators chose the caption"
WINOGROUND_FILE = "examples.jsonl"


class Foil(NamedTuple):
    """An image with its caption and one or more foils; of Winoground two images with a caption each.

    Attributes:
        key: The file and the item in it.
        images: The names of the images.
        texts: The caption of the first image, then its foils. Winoground's second text is the second image's caption.
        subset: The instrument, type, relation, pair of attributes, file or tag.
        crop: The name of the part of the image that the published script crops; "" where it uses the whole image.
    """

    key: str
    images: tuple[str, ...]
    texts: tuple[str, ...]
    subset: str
    crop: str = ""


@dataclass(frozen=True)
class FoilSet:
    """The foils of a benchmark in the order of its files, and what was left out, counted by reason."""

    benchmark: Benchmark
    foils: list[Foil] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)


class FoilEntry(NamedTuple):
    """An item of a file, and where it is."""

    key: str
    location: str
    fields: Mapping[str, Any]


def read_foils(path: Path) -> FoilSet:
    """The foils of a file, or of all files of a benchmark in a folder.

    Raises:
        DataError: There is no such file, it is damaged or of no known benchmark, or a folder has several benchmarks.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.json")) or [path / WINOGROUND_FILE]
        if not files[0].is_file():
            raise DataError(f"{path}: no .json file and no {WINOGROUND_FILE} in it")
    found: FoilSet | None = None
    for file in files:
        entries = list(iterate_entries(file))
        benchmark = detect_benchmark(file, entries)
        if found is None:
            found = FoilSet(benchmark)
        elif benchmark != found.benchmark:
            raise DataError(
                f"{path}: {files[0].name} is {BENCHMARK_TITLES[found.benchmark]} and {file.name} is "
                f"{BENCHMARK_TITLES[benchmark]}; give one benchmark's files"
            )
        for entry in entries:
            if benchmark == "valse" and count_votes(entry) < MIN_VOTES:
                found.excluded[REASON_NOT_VALIDATED] += 1
            else:
                found.foils.append(build_foil(benchmark, entry, file.stem))
    if found is None or not found.foils:
        raise DataError(f"{path}: it has no foils")
    return found


def iterate_entries(file: Path) -> Iterator[FoilEntry]:
    """The items of a JSON object, a JSON array or a JSON Lines file."""
    text = read_text(file)
    if file.suffix == ".jsonl" or is_json_lines(text):
        for line, entry in parse_json_lines(text, file):
            yield FoilEntry(f"{file.stem}.{line}", f"{file}, line {line}", entry)
        return
    content = parse_json(text, file)
    if not isinstance(content, dict | list):
        raise DataError(f"{file}: an object or a list of foils is expected, this is {describe_type(content)}")
    for key, entry in content.items() if isinstance(content, dict) else enumerate(content):
        location = f"{file}, item {key}"
        if not isinstance(entry, dict):
            raise DataError(f"{location}: an object is expected, this is {describe_type(entry)}")
        yield FoilEntry(f"{file.stem}.{key}", location, entry)


def detect_benchmark(file: Path, entries: list[FoilEntry]) -> Benchmark:
    """The benchmark of a file, from the fields of its first item.

    Raises:
        DataError: It has no item, or one of no known benchmark.
    """
    if not entries:
        raise DataError(f"{file}: it has no foils")
    fields = entries[0].fields
    markers: dict[str, Benchmark] = {
        "foil": "valse",
        "negative_caption": "sugar_crepe",
        "relation_name": "aro_relation",
        "attributes": "aro_attribution",
        "caption_options": "aro_order",
        "caption_1": "winoground",
    }
    for marker, benchmark in markers.items():
        if marker in fields:
            return benchmark
    raise DataError(
        f"{file}: no known benchmark; VALSE's items have a foil, SugarCrepe's a negative_caption, ARO's a "
        "relation_name, attributes or caption_options, Winoground's a caption_1"
    )


def build_foil(benchmark: Benchmark, entry: FoilEntry, file_stem: str) -> Foil:
    """The foil of an item.

    Raises:
        DataError: A field is missing or of another type; the message has the file and the item.
    """
    values = [get_text(entry, name) for name in REQUIRED_FIELDS[benchmark]]
    if benchmark in ("valse", "sugar_crepe"):
        image, caption, foil = values
        return Foil(entry.key, (image,), (caption, foil), file_stem)
    if benchmark == "winoground":
        first, second, caption, foil, tag = values
        return Foil(entry.key, (first, second), (caption, foil), tag)
    if benchmark == "aro_order":
        return Foil(entry.key, (values[0],), get_texts(entry, "caption_options"), file_stem)
    image, caption, foil = values[:3]
    crop = "_".join([image.rpartition(".")[0] or image, *(str(get_integer(entry, name)) for name in CROP_FIELDS)])
    is_relation = benchmark == "aro_relation"
    subset = values[3] if is_relation else "_".join(get_texts(entry, "attributes"))
    return Foil(entry.key, (image,), (caption, foil), subset, crop)


def count_votes(entry: FoilEntry) -> int:
    """The number of VALSE's annotators who chose the caption and not the foil."""
    votes = entry.fields.get("mturk")
    count = votes.get("caption") if isinstance(votes, dict) else None
    if not isinstance(count, int):
        raise DataError(f"{entry.location}: 'mturk' with the annotators' votes is missing")
    return count


def get_text(entry: FoilEntry, name: str) -> str:
    """A text of an item; an image may be named without a suffix, so numbers are texts as well."""
    value = entry.fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{entry.location}: {name!r} must be text, it is {describe_type(value)}")
    return " ".join(value.split())


def get_texts(entry: FoilEntry, name: str) -> tuple[str, ...]:
    """A list of at least two texts of an item."""
    values = entry.fields.get(name)
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(one, str) and one for one in values):
        raise DataError(f"{entry.location}: {name!r} must be a list of at least two texts")
    return tuple(values)


def get_integer(entry: FoilEntry, name: str) -> int:
    """A whole number of an item."""
    value = entry.fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{entry.location}: {name!r} must be a whole number, it is {describe_type(value)}")
    return value
