"""Readers of text, JSON, JSON Lines, CSV, YAML and XML files, used by the whole package.

Text is UTF-8, with or without a byte order mark; UTF-16 and UTF-32 are rejected. Lines end at LF, CRLF or CR only:
`str.splitlines` also splits at U+2028, U+0085 and others, which occur inside captions and vocabularies. JSON and YAML
are limited in size and depth. YAML aliases are rejected, since their expansion is unbounded, and so are keys that are
twice in an object or mapping: no official file has them, except image ids of captions (captions/caption_json.py).
Errors are one sentence with the file's name.
"""

import csv
import io
import json
import stat
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import yaml

from comodal.errors import ComodalError, DataError
from comodal.files import open_regular_file

MAX_TEXT_FILE_BYTES = 4 << 30  # the captions of Conceptual 12M are 2.7 GB
MAX_JSON_BYTES = 2 << 30  # the largest official annotations (Visual Genome) have 1.2 GB
ENCODING_SAMPLE_BYTES = 1 << 12
MAX_CONFIG_BYTES = 1 << 20  # settings, descriptions of models and stores
MAX_NESTING_DEPTH = 64  # of JSON and YAML; official annotations have up to 8 levels
MAX_CHECKED_CHARACTERS = 1 << 24  # characters of JSON; longer texts only have Python's own limit of levels
MAX_LINE_SHOWN = 80  # characters of a wrong line, in a message
MAX_FIELD_CHARACTERS = 1 << 20  # characters of a cell of a CSV file
MAX_XML_BYTES = 1 << 20  # official annotations of an image have a few thousand

ErrorType = type[ComodalError]
PairsHook = Callable[[list[tuple[str, Any]]], Any]


class DuplicateKeyError(ValueError):
    """A key that is twice in one object: the last value would silently replace the others."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Builds simple values from YAML; keys of a mapping are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ValueError("a merge key (<<); write the values themselves")
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise DuplicateKeyError(f"the key {key!r:.80} is twice in one mapping")
            keys.append(key)
        return super().construct_mapping(node, deep)


def build_unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are unique.

    Raises:
        DuplicateKeyError: They are not.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"the key {next(name for name in names if names.count(name) > 1)!r:.80} is twice")
    return value


def read_text(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_TEXT_FILE_BYTES) -> str:
    """Reads a text file; all line ends become LF.

    Args:
        path: The file.
        error: Exception class to raise.
        max_bytes: Larger files are rejected without reading them.

    Raises:
        ComodalError: It is not a regular file, is too large, cannot be read, or is not UTF-8.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # reading a FIFO would block, a device never ends
            raise error(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise error(f"{path} has {status.st_size:,} bytes, the limit for this kind of file is {max_bytes:,}")
        return decode_text(path.read_bytes(), path, error)
    except OSError as reason:
        raise error(f"{path}: {reason.strerror or reason}") from reason
    except ValueError as reason:  # a null character in the path
        raise error(f"{str(path)!a}: {reason}") from reason


def decode_text(data: bytes, location: object, error: ErrorType = DataError) -> str:
    """Decodes the bytes of a text file; all line ends become LF.

    UTF-16 and UTF-32 without a byte order mark are valid UTF-8 where all characters are ASCII: with a null byte in
    each, which text never has.

    Raises:
        ComodalError: They are not UTF-8, or have a null byte.
    """
    position = data.find(0)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        fault = describe_wide_encoding(data) or f"byte {reason.start:,} is not UTF-8"
        raise error(f"{location} is not text: {fault}") from reason
    if position >= 0:
        raise error(f"{location} is not text: {describe_wide_encoding(data) or f'byte {position:,} is 0'}")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def describe_wide_encoding(data: bytes) -> str | None:
    """Says that bytes are UTF-16 or UTF-32, if they are: by their byte order mark, or by the place of null bytes."""
    sample = data[: ENCODING_SAMPLE_BYTES - ENCODING_SAMPLE_BYTES % 4]
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    name = next((name for mark, name in marks.items() if data.startswith(mark)), None)
    if name is None and 2 * sample.count(0) > len(sample) and not len(data) % 4:
        name = "UTF-32"
    if name is None and not len(data) % 2:
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        is_wide = max(even, odd) > max(1, len(sample) // 16, 4 * min(even, odd))
        name = "UTF-16" if is_wide else None
    return name and f"it is {name}; save it as UTF-8 (`iconv -f {name} -t UTF-8`)"


def read_lines(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_TEXT_FILE_BYTES) -> list[str]:
    """Reads the lines of a text file without their ends. Empty lines are kept, except after the last line end.

    Raises:
        ComodalError: As `read_text`.
    """
    return split_lines(read_text(path, error, max_bytes))


def split_lines(text: str) -> list[str]:
    """Splits a text, as returned by `read_text`, into lines."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, location: object, error: ErrorType = DataError, hook: PairsHook = build_unique_object) -> Any:
    """Parses a JSON text.

    Args:
        text: The text.
        location: File of the text, and its line if any, for messages.
        error: Exception class to raise.
        hook: Converts the pairs of an object to a value; by default keys are unique.

    Raises:
        ComodalError: It is not JSON, nested deeper than MAX_NESTING_DEPTH, or has a key twice in one object.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except RecursionError as reason:
        raise error(f"{location}: JSON nested deeper than {MAX_NESTING_DEPTH} levels") from reason
    except DuplicateKeyError as reason:
        raise error(f"{location}: {reason} in one JSON object; which value is meant is unknown") from reason
    except ValueError as reason:
        raise error(f"{location}: not JSON ({reason}); the file may be truncated") from reason
    if len(text) < MAX_CHECKED_CHARACTERS and is_deeply_nested(value):
        raise error(f"{location}: JSON nested deeper than {MAX_NESTING_DEPTH} levels")
    return value


def is_deeply_nested(value: Any) -> bool:
    """Whether lists and dictionaries are nested deeper than MAX_NESTING_DEPTH."""
    level = [value]
    for _ in range(MAX_NESTING_DEPTH + 1):
        lists, objects = [one for one in level if type(one) is list], [one for one in level if type(one) is dict]
        if not lists and not objects:
            return False
        level = [*chain.from_iterable(lists), *chain.from_iterable(one.values() for one in objects)]
    return True


def read_json(
    path: Path, error: ErrorType = DataError, max_bytes: int = MAX_JSON_BYTES, hook: PairsHook = build_unique_object
) -> Any:
    """Reads a JSON file.

    Raises:
        ComodalError: As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, error, max_bytes), path, error, hook)


def read_json_object(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a small JSON file that holds an object: a configuration or a description.

    Raises:
        ComodalError: As `read_json`, or it is not an object.
    """
    value = read_json(path, error, max_bytes)
    if not isinstance(value, dict):
        raise error(f"{path}: a JSON object is expected, this is {describe_type(value)}")
    return value


def is_json_lines(text: str) -> bool:
    """Whether a text that begins with a JSON object is JSON Lines, not a single object."""
    first, _, rest = text.lstrip().partition("\n")
    return first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def read_json_lines(
    path: Path, error: ErrorType = DataError, hook: PairsHook = build_unique_object
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the objects of a JSON Lines file with their line numbers, from 1; empty lines are skipped.

    Raises:
        ComodalError: As `read_text` and `parse_json`, or a line is not an object.
    """
    yield from parse_json_lines(read_text(path, error), path, error, hook)


def parse_json_lines(
    text: str, path: Path, error: ErrorType = DataError, hook: PairsHook = build_unique_object
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parses JSON Lines, as `read_json_lines`."""
    for line_number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            value = parse_json(line, f"{path}, line {line_number}", error, hook)
            if not isinstance(value, dict):
                raise error(f"{path}, line {line_number}: a JSON object is expected, this is {describe_type(value)}")
            yield line_number, value


def read_log(path: Path, error: ErrorType = DataError) -> list[dict[str, Any]]:
    """Reads the complete lines of a JSON Lines log; the last may be truncated. Empty if there is no file.

    Raises:
        ComodalError: As `read_json_lines`.
    """
    complete_lines, _, _ = (read_text(path, error) if path.exists() else "").rpartition("\n")
    return [line for _, line in parse_json_lines(complete_lines, path, error)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the complete lines of a run's `metrics.jsonl`; none if there is no file.

    Raises:
        DataError: It is damaged, or a line is not `step`, `split`, `loss` and other numbers.
    """
    lines = read_log(path)
    for line in lines:
        numbers = [value for name, value in line.items() if name != "split"]
        is_complete = {"step", "split", "loss"} <= line.keys() and isinstance(line["split"], str)
        if not is_complete or not all(isinstance(value, int | float) for value in numbers):
            raise DataError(f"{path}: {str(line)[:MAX_LINE_SHOWN]!r} is not a line of metrics")
    return lines


def parse_csv(text: str, path: Path, delimiter: str = ",", skip_space: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Parses the rows of a table with their line numbers, from 1; rows without a filled cell are skipped.

    Raises:
        DataError: A quote is not closed, or a cell has more than MAX_FIELD_CHARACTERS characters.
    """
    previous = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=skip_space, strict=True)
        numbered_rows = [(rows.line_num, row) for row in rows]
    except csv.Error as reason:
        raise DataError(f"{path}: not a table ({reason})") from reason
    finally:
        csv.field_size_limit(previous)
    yield from ((line, row) for line, row in numbered_rows if any(cell.strip() for cell in row))


def read_yaml(path: Path, error: ErrorType = DataError) -> dict[str, Any]:
    """Reads the mapping in a YAML file of settings.

    Raises:
        ComodalError: As `read_text`; or it is not YAML, too deeply nested, has aliases or a duplicate key, or is not a
            mapping.
    """
    text = read_text(path, error, MAX_CONFIG_BYTES)
    try:
        check_yaml(text, path, error)
        value = yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as reason:
        raise error(f"{path}: not YAML ({' '.join(str(reason).split())})") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: a mapping of names to values is expected, this is {describe_type(value)}")
    return value


def check_yaml(text: str, path: Path, error: ErrorType) -> None:
    """Rejects YAML that could exhaust time or memory, before any object is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING_DEPTH:
            raise error(f"{path}: YAML nested deeper than {MAX_NESTING_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise error(f"{path}: YAML with an alias (*{event.anchor}); write the value itself")


def describe_type(value: Any) -> str:
    """The type of a JSON or YAML value, for messages."""
    kinds: dict[type, str] = {list: "a list", dict: "an object", str: "text", type(None): "nothing"}
    return kinds.get(type(value), f"{value!r:.40}")


def is_valid_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; half of a surrogate pair, which JSON permits as an escape, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_xml(path: Path, max_bytes: int = MAX_XML_BYTES) -> Element:
    """The root of an XML file. A document type declaration is refused, since entities can expand or load files.

    Raises:
        DataError: The file cannot be read, is too large, is damaged, or declares a document type.
    """

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: rejected: it declares a document type, which annotations of images do not")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        with open_regular_file(path) as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise DataError(f"{path}: more than {max_bytes:,} bytes; annotations of an image have a few thousand")
        parser.Parse(content, True)
        return builder.close()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path}: damaged XML ({error})") from error
