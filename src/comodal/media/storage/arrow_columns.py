"""Parquet and Arrow files by row group and column, through pyarrow (extra `parquet`).

Only the requested columns are read. Arrow files (`save_to_disk` of `datasets`: the stream or the file format) are
memory-mapped, and each batch is validated before a value of it is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from comodal.errors import DataError

MISSING_PARQUET_EXTRA = "Parquet and Arrow files need the extra: pip install 'comodal[parquet]'"
MAX_GROUP_BYTES = 8 << 30  # of a column in one row group, which is read as a whole
MAX_ROWS = 10_000_000  # of a file; every row gets a name
ROWS_PER_BATCH = 1000  # converted to Python values at a time
ARROW_MAGIC = b"ARROW1"


@runtime_checkable
class ArrowTable(Protocol):
    """A table whose rows are read in groups."""

    schema: Any
    groups: list[int]  # rows in each

    def read(self, group: int, names: Sequence[str]) -> Any:
        """Columns of a group as an Arrow table; `image.path` is a field of a struct."""


class ParquetColumns:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.path = path
        self.file = pyarrow.parquet.ParquetFile(path)
        self.schema = self.file.schema_arrow
        metadata = self.file.metadata
        self.groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def read(self, group: int, names: Sequence[str]) -> Any:
        about = self.file.metadata.row_group(group)
        columns = (about.column(index) for index in range(about.num_columns))
        num_bytes = sum(one.total_uncompressed_size for one in columns if is_part_of_column(one.path_in_schema, names))
        if num_bytes > MAX_GROUP_BYTES:
            raise DataError(
                f"{self.path}: {num_bytes:,} bytes in one group of rows, the limit is {MAX_GROUP_BYTES:,}; write "
                f"smaller "
                "row groups"
            )
        return self.file.read_row_group(group, columns=list(names), use_threads=False)


class ArrowColumns:
    """An Arrow file, as a stream or with an index."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.ipc

        with path.open("rb") as file:
            is_indexed = file.read(len(ARROW_MAGIC)) == ARROW_MAGIC
        source = pyarrow.memory_map(str(path))
        reader = pyarrow.ipc.open_file(source) if is_indexed else pyarrow.ipc.open_stream(source)
        self.schema = reader.schema
        self.batches = [reader.get_batch(n) for n in range(reader.num_record_batches)] if is_indexed else list(reader)
        for batch in self.batches:
            batch.validate(full=True)
        self.groups = [batch.num_rows for batch in self.batches]

    def read(self, group: int, names: Sequence[str]) -> Any:
        import pyarrow

        batch = self.batches[group]
        columns = {}
        for name in names:
            parent, _, field = name.partition(".")
            column = batch.column(parent) if name not in batch.schema.names else batch.column(name)
            columns[parent] = (
                pyarrow.StructArray.from_arrays([column.field(field)], [field]) if parent != name and field else column
            )
        return pyarrow.table(columns)


def is_part_of_column(path: str, names: Sequence[str]) -> bool:
    """Whether a column of Parquet's own schema is one of these, or a part of it."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


@contextmanager
def translate_arrow_errors(path: Path) -> Iterator[None]:
    """Convert what pyarrow raises on a damaged file to a DataError; names and texts in it may be invalid UTF-8."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())[:300]})") from error


def open_columns(path: Path) -> ArrowTable:
    """Open a Parquet or Arrow file, by the suffix of its name.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: {MISSING_PARQUET_EXTRA}") from error
    with translate_arrow_errors(path):
        columns: ArrowTable = ParquetColumns(path) if path.suffix.lower() == ".parquet" else ArrowColumns(path)
    if sum(columns.groups) > MAX_ROWS:
        raise DataError(f"{path} has {sum(columns.groups):,} rows, the limit is {MAX_ROWS:,}; write several files")
    return columns


def read_rows(path: Path, columns: ArrowTable, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of some columns row by row.

    Raises:
        DataError: The file is damaged.
    """
    for group, count in enumerate(columns.groups):
        with translate_arrow_errors(path):
            table = columns.read(group, names) if names else None
        for start in range(0, count, ROWS_PER_BATCH):
            with translate_arrow_errors(path):
                rows = (
                    [{}] * min(ROWS_PER_BATCH, count - start)
                    if table is None
                    else table.slice(start, ROWS_PER_BATCH).to_pylist()
                )
            yield from rows
