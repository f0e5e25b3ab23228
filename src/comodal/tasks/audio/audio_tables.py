"""Readers for tables of labeled audio: ESC-50 and UrbanSound8K (commas), DCASE (tabs, header optional).

Errors name the file and the line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comodal.errors import DataError
from comodal.text_files import parse_csv, read_text


class TableRow(NamedTuple):
    """The cells of a row by column name, and its location for error messages."""

    where: str
    cells: dict[str, str]

    def number(self, column: str, least: int) -> int:
        """Parses an integer of at least `least`.

        Raises:
            DataError: It is not an integer, or too small.
        """
        text = self.cells[column]
        try:
            value = int(text)
        except ValueError:
            raise DataError(f"{self.where}: {column} {text!r} is not a number") from None
        if value < least:
            raise DataError(f"{self.where}: {column} {value} must be at least {least}")
        return value


class AudioTable(NamedTuple):
    """Column names and rows."""

    columns: tuple[str, ...]
    rows: list[TableRow]


def read_table(path: Path, unnamed: Sequence[str] = ()) -> AudioTable:
    """Reads a text table, tab-separated if its first line has a tab, else comma-separated; empty lines are skipped.

    Args:
        path: The file.
        unnamed: Column names of a file without a header. The first line is a header if it begins with `unnamed[0]`, and
            always where `unnamed` is empty. Without a header, rows may have fewer cells.

    Raises:
        DataError: The file is missing or is not text, or the length of a row differs from that of the header.
    """
    text = read_text(path)
    cells = list(parse_csv(text, path, "\t" if "\t" in text.partition("\n")[0] else ","))
    if not cells:
        raise DataError(f"{path}: it is empty")
    first = [name.strip() for name in cells[0][1]]
    named = not unnamed or first[0] == unnamed[0]
    columns = first if named else list(unnamed)
    rows = []
    for line, row in cells[1:] if named else cells:
        where = f"{path}, line {line}"
        if len(row) > len(columns) or (named and len(row) < len(columns)):
            raise DataError(f"{where}: {len(row)} columns, where {len(columns)} are expected ({', '.join(columns)})")
        rows.append(TableRow(where, {name: value.strip() for name, value in zip(columns, row, strict=False)}))
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
            raise DataError(f"{row.where}: {empty} is empty")


def check_unique_rows(rows: Sequence[TableRow], column: str) -> None:
    """Checks that no two rows name the same file.

    Raises:
        DataError: Two rows do.
    """
    first: dict[str, TableRow] = {}
    for row in rows:
        earlier = first.setdefault(row.cells[column], row)
        if earlier is not row:
            line = earlier.where.rsplit(" ", 1)[1]
            raise DataError(f"{row.where}: {row.cells[column]} stands in line {line} already")


def check_class_names(path: Path, sounds: Sequence[tuple[str, int, str]]) -> None:
    """Checks that class ids and class names correspond one to one; each clip has a file, a class id and a name.

    Raises:
        DataError: They do not.
    """
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for file, number, name in sounds:
        known = names.setdefault(number, name), numbers.setdefault(name, number)
        if known != (name, number):
            other = f"{number} is {known[0]!r}" if known[0] != name else f"{name!r} is {known[1]}"
            raise DataError(f"{path}: {file} is of class {number}, {name!r}, but in rows before it {other}")


def check_audio_files(source: Path, paths: Sequence[Path]) -> None:
    """Checks that every audio file exists.

    Raises:
        DataError: Files are missing; the message has their count and the first.
    """
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(paths)} sounds are missing, the first is {absent[0]}")
