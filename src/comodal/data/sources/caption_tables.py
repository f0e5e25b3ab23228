"""Captions in tables: CSV and TSV files with a header line, and the same fields in JSON Lines.

Supported are Flickr8k's `image,caption`, Flickr30k's `image_name| comment_number| comment` and
`raw,sentids,split,filename`, Hugging Face's metadata.csv and metadata.jsonl (`file_name,text`), open_clip's
`filepath <tab> title`, and similar tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comodal.errors import DataError
from comodal.media.storage.archive_samples import Archive
from comodal.text_files import parse_csv, parse_json, split_lines

IMAGE_COLUMNS = (
    "image", "img_path", "file_name", "filename", "image_name", "image_path", "filepath", "file_path", "path", "file",
    "url", "image_url",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "sentences", "sentence", "text", "comment", "raw", "title", "description")
SPLIT_COLUMN = "split"
TABLE_DELIMITERS = ("\t", "|", ",", ";")


class CaptionRow(NamedTuple):
    """An image with its caption or captions; None where the row is truncated."""

    image: str | None
    captions: Any
    split: str | None


class CaptionColumns(NamedTuple):
    """The columns of the image and the caption, and the delimiter."""

    delimiter: str
    image: int
    caption: int
    split: int | None
    width: int


def get_first_field(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these fields that an entry has, or None."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def detect_caption_columns(text: str) -> CaptionColumns | None:
    """The columns that the first line of a text names, or None if it is not a header.

    Raises:
        ValueError: Two columns have the name of the image's or the caption's column.
    """
    first = next((line for line in split_lines(text[: 1 << 16]) if line.strip()), "")
    for delimiter in TABLE_DELIMITERS:
        names = [cell.strip().strip('"').lower() for cell in first.split(delimiter)]
        image, caption = (next((name for name in column_names if name in names), None)
                          for column_names in (IMAGE_COLUMNS, CAPTION_COLUMNS))  # fmt: skip
        if image is not None and caption is not None:
            if twice := next((name for name in (image, caption) if names.count(name) > 1), None):
                raise ValueError(f"two columns named {twice!r}")
            split = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
            return CaptionColumns(delimiter, names.index(image), names.index(caption), split, len(names))
    return None


def iterate_table_rows(path: Path, text: str, columns: CaptionColumns) -> Iterator[CaptionRow]:
    """The rows below the header; unquoted commas are kept in a caption in the last column.

    Raises:
        DataError: It is not a table.
    """
    if columns.delimiter in "|\t":  # these files have no quoting
        rows = (line.split(columns.delimiter) for line in split_lines(text) if line.strip())
    else:
        rows = (row for _, row in parse_csv(text, path, columns.delimiter))
    next(rows, None)
    for row in rows:
        if len(row) > columns.width and columns.caption == columns.width - 1:
            row = [*row[: columns.caption], columns.delimiter.join(row[columns.caption :])]
        if len(row) < columns.width:
            yield CaptionRow(None, None, None)
            continue
        split = row[columns.split].strip() if columns.split is not None else ""
        yield CaptionRow(row[columns.image].strip(), parse_caption_cell(row[columns.caption]), split or None)


def iterate_container_rows(path: Path, container: Archive) -> Iterator[CaptionRow]:
    """The rows of a Parquet or Arrow file without media. With the columns `url` and `key` (img2dataset), an image is
    named by its `key`. Rows with a failed download have no image.

    Raises:
        DataError: It has no columns of images and captions.
    """
    has_any = False
    for example in container.iterate_examples():
        entry = {name.lower(): value for name, value in example.metadata.items()}
        image = get_first_field(entry, IMAGE_COLUMNS)
        if "url" in entry and entry.get("key") is not None:
            image = entry["key"]
        has_any = has_any or (image is not None and get_first_field(entry, CAPTION_COLUMNS) is not None)
        if entry.get("status", "success") != "success":
            image = None
        captions, split = get_first_field(entry, CAPTION_COLUMNS), entry.get(SPLIT_COLUMN)
        yield CaptionRow(str(image) if image is not None else "", captions, str(split) if split else None)
    if not has_any:
        raise DataError(
            f"{path}: no row has an image ({', '.join(IMAGE_COLUMNS)}) and a caption ({', '.join(CAPTION_COLUMNS)})"
        )


def parse_caption_cell(cell: str) -> Any:
    """A cell with a JSON list of captions as a list; any other unchanged."""
    text = cell.strip()
    if not (text.startswith('["') and text.endswith('"]')):
        return cell
    try:
        return parse_json(text, "a list of captions")
    except DataError:
        return cell
