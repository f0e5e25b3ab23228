"""Rows of fixed size in an append-only file, such as the vectors of a search index.

NAME.rows   the rows
NAME.json   the number of valid rows, their size and their checksum; replaced atomically

Rows beyond that number were left by an interrupted process. The next process truncates them.
"""

import errno
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from comodal.data.output_folder import translate_os_errors
from comodal.errors import DataError
from comodal.files import open_to_write, write_bytes_atomically
from comodal.text_files import read_json_object

ROWS_SUFFIX = ".rows"


def read_appended_rows(manifest: Path, dtype: np.dtype) -> np.ndarray:
    """The valid rows, of shape (rows,); none if there is no such file.

    Raises:
        DataError: It is damaged.
    """
    path = manifest.with_suffix(ROWS_SUFFIX)
    if not (manifest.exists() and path.exists()):
        return np.zeros(0, dtype)
    about = read_json_object(manifest)
    try:
        with path.open("rb") as file:
            data = file.read(int(about["rows"]) * dtype.itemsize)
        if about["row_bytes"] != dtype.itemsize or zlib.crc32(data) != about["crc32"]:
            raise ValueError("checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it; the next search builds it again") from error
    return np.frombuffer(data, dtype)


def append_rows(manifest: Path, rows: np.ndarray, num_stored: int) -> None:
    """Writes rows after the `num_stored` rows that `read_appended_rows` returned; with 0 to a new file."""
    path, data = manifest.with_suffix(ROWS_SUFFIX), rows.tobytes()
    if num_stored:
        before = read_json_object(manifest)
        if before["rows"] != num_stored:  # another process has written more rows in the meantime
            return
        checksum = zlib.crc32(data, before["crc32"])
        with open_to_write(path, "r+") as file:
            file.truncate(num_stored * rows.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    else:
        manifest.unlink(missing_ok=True)  # the manifest is of other rows
        write_bytes_atomically(path, data)
        checksum = zlib.crc32(data)
    about = {"rows": num_stored + len(rows), "row_bytes": rows.dtype.itemsize, "crc32": checksum}
    write_bytes_atomically(manifest, (json.dumps(about) + "\n").encode())


@contextmanager
def explain_write_errors(index: Path) -> Iterator[None]:
    """Adds a hint to errors when the folder of an index cannot be written."""
    try:
        index.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file, not a folder" if error.errno == errno.EEXIST else error.strerror
        raise DataError(f"{index}: {reason}; choose another folder for the index with --index FOLDER") from error
    with translate_os_errors(index):
        yield
