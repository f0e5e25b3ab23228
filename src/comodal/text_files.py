"""Readers of text, JSON, JSON Lines, CSV and YAML files, used by the whole package.

Text is UTF-8, with or without a byte order mark. Lines end at LF, CRLF or CR only: `str.splitlines` also splits at
U+2028, U+0085 and others, which occur inside captions and vocabularies. JSON and YAML are limited in size and depth.
YAML aliases are rejected, since their expansion is unbounded. Errors are one sentence with the file's name.
"""

import csv
import io
import json
import stat
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from comodal.errors import ComodalError, DataError

MAX_TEXT_FILE_BYTES = 4 << 30  # the captions of Conceptual 12M are 2.7 GB
MAX_JSON_BYTES = 2 << 30  # the largest official annotations (Visual Genome) have 1.2 GB
MAX_CONFIG_BYTES = 1 << 20  # settings, descriptions of models and stores
MAX_NESTING_DEPTH = 64  # of JSON and YAML; official annotations have up to 8 levels
MAX_CHECKED_CHARACTERS = 1 << 24  # characters of JSON; longer texts only have Python's own limit of levels
MAX_FIELD_CHARACTERS = 1 << 20  # characters of a cell of a CSV file

ErrorType = type[ComodalError]
PairsHook = Callable[[list[tuple[str, Any]]], Any]


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
        return path.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"{path}: {reason.strerror or reason}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not text: byte {reason.start:,} is not UTF-8") from reason
    except ValueError as reason:  # a null character in the path
        raise error(f"{str(path)!a}: {reason}") from reason


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


def parse_json(text: str, location: object, error: ErrorType = DataError, hook: PairsHook | None = None) -> Any:
    """Parses a JSON text.

    Args:
        text: The text.
        location: File of the text, and its line if any, for messages.
        error: Exception class to raise.
        hook: Converts the pairs of an object to a value.

    Raises:
        ComodalError: It is not JSON, or nested deeper than MAX_NESTING_DEPTH.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except RecursionError as reason:
        raise error(f"{location}: JSON nested deeper than {MAX_NESTING_DEPTH} levels") from reason
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
    path: Path, error: ErrorType = DataError, max_bytes: int = MAX_JSON_BYTES, hook: PairsHook | None = None
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
    path: Path, error: ErrorType = DataError, hook: PairsHook | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the objects of a JSON Lines file with their line numbers, from 1; empty lines are skipped.

    Raises:
        ComodalError: As `read_text` and `parse_json`, or a line is not an object.
    """
    yield from parse_json_lines(read_text(path, error), path, error, hook)


def parse_json_lines(
    text: str, path: Path, error: ErrorType = DataError, hook: PairsHook | None = None
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
        ComodalError: As `read_text`; or it is not YAML, too deeply nested, has aliases, or is not a mapping.
    """
    text = read_text(path, error, MAX_CONFIG_BYTES)
    try:
        check_yaml(text, path, error)
        value = yaml.safe_load(text)
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
