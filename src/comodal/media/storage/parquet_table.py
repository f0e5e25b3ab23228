"""Parquet and Arrow files of Hugging Face's `datasets`: a row is an example.

Media are in a column of `{"bytes", "path"}` (Image, Audio and Video of `datasets`), or of bytes. Columns of text,
numbers and lists of text are metadata; ids of a ClassLabel become class names. A row is named after its media file if
those names are unique, else by its row index.
"""

import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from comodal.errors import DataError
from comodal.media.storage.archive_samples import (
    ArchiveSample,
    Kind,
    MemberLocation,
    OpenFile,
    detect_media_kind,
    sanitize_member_name,
)
from comodal.media.storage.arrow_columns import open_columns, read_rows, translate_arrow_errors
from comodal.text_files import parse_json

MEDIA_FEATURES: dict[str, Kind] = {"Image": "image", "Audio": "audio", "Video": "video"}  # of `datasets`
MEDIA_COLUMN_NAMES: dict[str, Kind] = {
    "image": "image", "img": "image", "jpg": "image", "jpeg": "image", "png": "image", "picture": "image",
    "audio": "audio", "wav": "audio", "flac": "audio", "speech": "audio", "video": "video", "mp4": "video",
}  # fmt: skip
MAX_NAME_LENGTH = 200


class TableFile:
    """One Parquet or Arrow file.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = open_columns(path)
        with translate_arrow_errors(path):
            self.features = read_datasets_features(self.columns.schema)
            self.media = find_media_columns(self.columns.schema, self.features)
            self.metadata = [field.name for field in self.columns.schema if is_metadata_type(field.type)]
        self._last: tuple[tuple[int, int], list[Any]] | None = None

    def iterate_examples(self) -> Iterator[ArchiveSample]:
        """The rows in their order, without the bytes of their media."""
        for row, values in enumerate(read_rows(self.path, self.columns, self.metadata)):
            metadata = {
                name: self._resolve_class_name(name, value) for name, value in values.items() if value is not None
            }
            example = ArchiveSample(self._keys[row], metadata=metadata)
            for kind, column in self.media.items():
                example.members[kind] = (self._make_member_name(row, kind), MemberLocation(row, column))
            yield example

    def find(self, name: str) -> MemberLocation:
        """The row and the column of a member."""
        path = PurePosixPath(name)
        ending = path.suffix[1:]
        kind = cast(Kind, ending) if ending in get_args(Kind) else detect_media_kind(name)
        if kind not in self.media:
            raise KeyError(name)
        return MemberLocation(self._rows[path.with_suffix("").name], self.media[kind])

    def open_member(self, location: MemberLocation) -> OpenFile:
        """The bytes of a member.

        Raises:
            DataError: The row has none, or the file is damaged.
        """
        row, column = location
        group = 0
        while row >= self.columns.groups[group]:
            row -= self.columns.groups[group]
            group += 1
        with translate_arrow_errors(self.path):
            if self._last is None or self._last[0] != (group, column):
                name = self.columns.schema.field(column).name
                self._last = ((group, column), self.columns.read(group, [name]).column(0))
            value = self._last[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            stored_path = value.get("path") if isinstance(value, dict) else None
            detail = f"no bytes but the path {stored_path!r}; embed the files (datasets: `embed_table_storage`)"
            raise DataError(f"{self.path}, row {location.start}: {detail if stored_path else 'no value'}")
        return io.BytesIO(data)

    @cached_property
    def _paths(self) -> dict[Kind, list[str]]:
        """The names of the media files of each row, "" where there is none."""
        paths_by_kind: dict[Kind, list[str]] = {}
        for kind, column in self.media.items():
            field = self.columns.schema.field(column)
            if is_media_struct_type(field.type):
                rows = read_rows(self.path, self.columns, [f"{field.name}.path"])
                paths_by_kind[kind] = [
                    sanitize_member_name((row[field.name] or {}).get("path") or "").rpartition("/")[2] for row in rows
                ]
        return paths_by_kind

    @cached_property
    def _keys(self) -> list[str]:
        """The key of each row."""
        for paths in self._paths.values():
            stems = [PurePosixPath(path).stem for path in paths]
            if all(stems) and len({*stems}) == len(stems) and max(map(len, stems)) <= MAX_NAME_LENGTH:
                return stems
        return [f"{row:06d}" for row in range(sum(self.columns.groups))]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self._keys)}

    def _make_member_name(self, row: int, kind: Kind) -> str:
        """The key with the suffix of the row's file if that suffix shows the kind, else with the kind."""
        path = self._paths[kind][row] if kind in self._paths else ""
        return f"{self._keys[row]}{PurePosixPath(path).suffix if detect_media_kind(path) == kind else f'.{kind}'}"

    def _resolve_class_name(self, column: str, value: Any) -> Any:
        """The class name for a value that is an id of a ClassLabel of `datasets`."""
        names = self.features.get(column, {}).get("names")
        if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
            return names[value]
        return value


def read_datasets_features(schema: Any) -> dict[str, dict[str, Any]]:
    """The `datasets` features stored in the file, if any."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"].decode(), "huggingface")["info"]["features"]
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (DataError, KeyError, ValueError, TypeError, AttributeError):
        return {}


def find_media_columns(schema: Any, features: dict[str, dict[str, Any]]) -> dict[Kind, int]:
    """The column of each kind of media: the first with that `datasets` feature, or with a matching name and type."""
    columns_by_kind: dict[Kind, int] = {}
    for column_index, field in enumerate(schema):
        kind = MEDIA_FEATURES.get(str(features.get(field.name, {}).get("_type"))) or MEDIA_COLUMN_NAMES.get(
            field.name.lower()
        )
        if kind and (is_media_struct_type(field.type) or is_binary_type(field.type)):
            columns_by_kind.setdefault(kind, column_index)
    return columns_by_kind


def is_binary_type(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def is_media_struct_type(kind: Any) -> bool:
    """`{"bytes": binary, "path": string}`."""
    import pyarrow.types

    return pyarrow.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}


def is_metadata_type(kind: Any) -> bool:
    """Text, a number, a boolean, or a list of them."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
