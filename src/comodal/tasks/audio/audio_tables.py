"""Readers for tables of labeled audio: ESC-50 and UrbanSound8K (commas), DCASE (tabs, header optional).

Errors name the file and the line.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comodal.errors import DataError
from comodal.text_files import parse_csv, read_text


class TableRow(NamedTuple):
    """The cells of a row by column name, and its location for error messages."""

    location: str
    cells: dict[str, str]

    def parse_integer(self, column: str, min_value: int) -> int:
        """Parses an integer of at least `min_value`.

        Raises:
            DataError: It is not an integer, or too small.
        """
        text = self.cells[column]
        try:
            value = int(text)
        except ValueError:
            raise DataError(f"{self.location}: {column} {text!r} is not an integer") from None
        if value < min_value:
            raise DataError(f"{self.location}: {column} {value} must be at least {min_value}")
        return value


class AudioTable(NamedTuple):
    """Column names and rows."""

    columns: tuple[str, ...]
    rows: list[TableRow]


def read_table(path: Path, default_columns: Sequence[str] = ()) -> AudioTable:
    """Reads a text table, tab-separated if its first line has a tab, else comma-separated; empty lines are skipped.

    Args:
        path: The file.
        default_columns: Column names of a file without a header. The first line is a header if it begins with
            `default_columns[0]`, and always where `default_columns` is empty. Without a header, rows may have fewer
            cells.

    Raises:
        DataError: The file is missing or is not text, or the length of a row differs from that of the header.
    """
    text = read_text(path)
    cells = list(parse_csv(text, path, "\t" if "\t" in text.partition("\n")[0] else ","))
    if not cells:
        raise DataError(f"{path}: it is empty")
    first_row = [name.strip() for name in cells[0][1]]
    has_header = not default_columns or first_row[0] == default_columns[0]
    columns = first_row if has_header else list(default_columns)
    rows = []
    for line, row in cells[1:] if has_header else cells:
        location = f"{path}, line {line}"
        if len(row) > len(columns) or (has_header and len(row) < len(columns)):
            raise DataError(f"{location}: {len(row)} columns, where {len(columns)} are expected ({', '.join(columns)})")
        rows.append(TableRow(location, {name: value.strip() for name, value in zip(columns, row, strict=False)}))
    return AudioTable(tuple(columns), rows)


def check_columns(path: Path, table: AudioTable, columns: Sequence[str]) -> None:
    """Checks that these columns exist and have no empty cells.

    Raises:
        DataError: A column is missing, or empty in a row.
    """
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path}: column {column!r} is missing; there are {', '.join(table.columns)}")
    for row in table.rows:
        empty = next((column for column in columns if not row.cells.get(column)), None)
        if empty is not None:
            raise DataError(f"{row.location}: {empty} is empty")


def check_unique_rows(rows: Sequence[TableRow], column: str) -> None:
    """Checks that no two rows name the same file.

    Raises:
        DataError: Two rows do.
    """
    first: dict[str, TableRow] = {}
    for row in rows:
        earlier = first.setdefault(row.cells[column], row)
        if earlier is not row:
            line = earlier.location.rsplit(" ", 1)[1]
            raise DataError(f"{row.location}: {row.cells[column]} is already in line {line}")


def check_class_names(path: Path, clips: Sequence[tuple[str, int, str]]) -> None:
    """Checks that class ids and class names correspond one to one; each clip has a file, a class id and a name.

    Raises:
        DataError: They do not.
    """
    names_by_id: dict[int, str] = {}
    ids_by_name: dict[str, int] = {}
    for file, class_id, name in clips:
        expected = names_by_id.setdefault(class_id, name), ids_by_name.setdefault(name, class_id)
        if expected != (name, class_id):
            conflict = f"{class_id} is {expected[0]!r}" if expected[0] != name else f"{name!r} is {expected[1]}"
            raise DataError(f"{path}: {file} is of class {class_id}, {name!r}, but in earlier rows {conflict}")


def check_audio_files(source: Path, paths: Sequence[Path]) -> None:
    """Checks that every audio file exists; one that exists and cannot be read costs only itself.

    Raises:
        DataError: Files are missing; the message has their count and the first.
    """
    absent = [path for path in paths if not os.path.lexists(path)]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(paths)} audio files are missing, the first is {absent[0]}")
