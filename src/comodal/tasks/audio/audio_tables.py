"""Tables of labelled sounds: ESC-50's and UrbanSound8K's commas, DCASE's tabs, with a line of names or without.

Whatever a table lacks is said with its file and line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from comodal.errors import DataError
from comodal.text_files import parse_csv, read_text


class TableRow(NamedTuple):
    """A row by the names of its columns; where it stands, for errors."""

    where: str
    cells: dict[str, str]

    def number(self, column: str, least: int) -> int:
        """A whole number of at least `least`.

        Raises:
            DataError: It is none, or less.
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
    """The names of the columns, and the rows."""

    columns: tuple[str, ...]
    rows: list[TableRow]


def read_table(path: Path, unnamed: Sequence[str] = ()) -> AudioTable:
    """A table of text, separated by tabs if its first line has one, by commas if not; empty lines are passed over.

    Args:
        path: The file.
        unnamed: What the columns are called where the first line is not one of names; it is one if it begins with
            `unnamed[0]`, and always where `unnamed` is empty. A row may end early.

    Raises:
        DataError: There is no such file, it is no text, or a row has another length than the line of names.
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
    """These columns are there, and full.

    Raises:
        DataError: One is missing, or empty in a row.
    """
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path}: column {column!r} is missing; there are {', '.join(table.columns)}")
    for row in table.rows:
        empty = next((column for column in columns if not row.cells.get(column)), None)
        if empty is not None:
            raise DataError(f"{row.where}: {empty} is empty")


def check_unique_rows(rows: Sequence[TableRow], column: str) -> None:
    """No two rows are about one file.

    Raises:
        DataError: Two are.
    """
    first: dict[str, TableRow] = {}
    for row in rows:
        earlier = first.setdefault(row.cells[column], row)
        if earlier is not row:
            line = earlier.where.rsplit(" ", 1)[1]
            raise DataError(f"{row.where}: {row.cells[column]} stands in line {line} already")


def check_class_names(path: Path, sounds: Sequence[tuple[str, int, str]]) -> None:
    """Of each sound its file, the number and the name of its class: a number has one name, and a name one number.

    Raises:
        DataError: It is not so.
    """
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for file, number, name in sounds:
        known = names.setdefault(number, name), numbers.setdefault(name, number)
        if known != (name, number):
            other = f"{number} is {known[0]!r}" if known[0] != name else f"{name!r} is {known[1]}"
            raise DataError(f"{path}: {file} is of class {number}, {name!r}, but in rows before it {other}")


def check_audio_files(source: Path, paths: Sequence[Path]) -> None:
    """Every sound is there.

    Raises:
        DataError: One is not; how many, and the first.
    """
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{source}: {len(absent)} of {len(paths)} sounds are missing, the first is {absent[0]}")
