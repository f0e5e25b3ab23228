"""Text, JSON, JSON Lines, CSV and YAML from files: one reader for each, used by the whole package.

Text is UTF-8, with or without a byte order mark. A line ends at LF, CRLF or CR and nowhere else: `str.splitlines` also
ends lines at U+2028, U+0085 and others, which occur inside captions and vocabularies. JSON and YAML are bounded in size
and depth, YAML without aliases, whose expansion has no bound. What cannot be read is one sentence with the file's name.
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
MAX_CHECKED_CHARACTERS = 1 << 24  # characters of JSON; beyond them Python's own limit of some thousand levels has to do
MAX_FIELD_CHARACTERS = 1 << 20  # characters of a cell of a CSV file

ErrorType = type[ComodalError]
PairsHook = Callable[[list[tuple[str, Any]]], Any]


def read_text(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_TEXT_FILE_BYTES) -> str:
    """The text of a file; all line ends become LF.

    Args:
        path: The file.
        error: What is raised.
        max_bytes: Larger files are refused unread.

    Raises:
        ComodalError: It is no regular file, too large, cannot be read, or is not UTF-8.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # a FIFO would wait for its writer, a device never ends
            raise error(f"{path} is not a regular file")
        if status.st_size > max_bytes:
            raise error(f"{path} has {status.st_size:,} bytes, more than the {max_bytes:,} that such a file may have")
        return path.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"{path}: {reason.strerror or reason}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not text: byte {reason.start:,} is not UTF-8") from reason
    except ValueError as reason:  # a null character in the path
        raise error(f"{str(path)!a}: {reason}") from reason


def read_lines(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_TEXT_FILE_BYTES) -> list[str]:
    """The lines of a text file without their ends; empty lines are kept, the one behind the last line end is not.

    Raises:
        ComodalError: As `read_text`.
    """
    return split_lines(read_text(path, error, max_bytes))


def split_lines(text: str) -> list[str]:
    """The lines of a text as `read_text` returns it."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, where: object, error: ErrorType = DataError, hook: PairsHook | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        where: Its file, and the line in it if any.
        error: What is raised.
        hook: Makes the value of an object from its pairs.

    Raises:
        ComodalError: It is not JSON, or nested deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except RecursionError as reason:
        raise error(f"{where}: JSON nested deeper than {MAX_NESTING_DEPTH} levels") from reason
    except ValueError as reason:
        raise error(f"{where}: not JSON ({reason}); is the file whole?") from reason
    if len(text) < MAX_CHECKED_CHARACTERS and is_deeply_nested(value):
        raise error(f"{where}: JSON nested deeper than {MAX_NESTING_DEPTH} levels")
    return value


def is_deeply_nested(value: Any) -> bool:
    """Whether lists and dictionaries are nested deeper than MAX_DEPTH."""
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
    """The value of a JSON file.

    Raises:
        ComodalError: As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, error, max_bytes), path, error, hook)


def read_json_object(path: Path, error: ErrorType = DataError, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a small JSON file: a configuration or a description.

    Raises:
        ComodalError: As `read_json`, or it is not an object.
    """
    value = read_json(path, error, max_bytes)
    if not isinstance(value, dict):
        raise error(f"{path}: a JSON object is expected, this is {describe_type(value)}")
    return value


def is_json_lines(text: str) -> bool:
    """Whether a text that begins with a JSON object is several lines of them, and not one object."""
    first, _, rest = text.lstrip().partition("\n")
    return first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def read_json_lines(
    path: Path, error: ErrorType = DataError, hook: PairsHook | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON Lines with the numbers of their lines, from 1; empty lines are skipped.

    Raises:
        ComodalError: As `read_text` and `parse_json`, or a line is not an object.
    """
    yield from parse_json_lines(read_text(path, error), path, error, hook)


def parse_json_lines(
    text: str, path: Path, error: ErrorType = DataError, hook: PairsHook | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of a text that was read already."""
    for number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            value = parse_json(line, f"{path}, line {number}", error, hook)
            if not isinstance(value, dict):
                raise error(f"{path}, line {number}: a JSON object is expected, this is {describe_type(value)}")
            yield number, value


def read_log(path: Path, error: ErrorType = DataError) -> list[dict[str, Any]]:
    """The whole lines of a log of JSON Lines, of which a killed process may have cut the last; none without a file.

    Raises:
        ComodalError: As `read_json_lines`.
    """
    whole, _, _ = (read_text(path, error) if path.exists() else "").rpartition("\n")
    return [line for _, line in parse_json_lines(whole, path, error)]


def parse_csv(text: str, path: Path, delimiter: str = ",", skip_space: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with the numbers of their lines, from 1; rows without a filled cell are skipped.

    Raises:
        DataError: It is not a table: a quote is open at the end, or a cell has more than MAX_FIELD characters.
    """
    previous = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=skip_space, strict=True)
        found = [(rows.line_num, row) for row in rows]
    except csv.Error as reason:
        raise DataError(f"{path}: not a table ({reason})") from reason
    finally:
        csv.field_size_limit(previous)
    yield from ((line, row) for line, row in found if any(cell.strip() for cell in row))


def read_yaml(path: Path, error: ErrorType = DataError) -> dict[str, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        ComodalError: As `read_text`; it is not YAML, nested deeper than MAX_DEPTH, has aliases, or is no mapping.
    """
    text = read_text(path, error, MAX_CONFIG_BYTES)
    try:
        check_yaml(text, path, error)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as reason:
        raise error(f"{path}: not YAML ({' '.join(str(reason).split())})") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: settings are names with values, this is {describe_type(value)}")
    return value


def check_yaml(text: str, path: Path, error: ErrorType) -> None:
    """Refuses what could take all time or memory, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING_DEPTH:
            raise error(f"{path}: YAML nested deeper than {MAX_NESTING_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise error(f"{path}: YAML with an alias (*{event.anchor}); write the value itself")


def describe_type(value: Any) -> str:
    """What a value of JSON or YAML is, for messages."""
    kinds: dict[type, str] = {list: "a list", dict: "an object", str: "text", type(None): "nothing"}
    return kinds.get(type(value), f"{value!r:.40}")
