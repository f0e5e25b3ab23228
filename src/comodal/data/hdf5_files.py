"""HDF5 files from other sources, opened so that only the file itself is read.

HDF5 can refer to other files: external links, external storage of a dataset, and virtual datasets. Reading them could
copy any file that the user may read, or block on a pipe. All links are checked before anything is opened through them,
and a file that has one of these is refused as a whole.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comodal.errors import DataError

MAX_HDF5_OBJECTS = 100_000  # links in a file
MAX_DATASET_BYTES = 1_000_000_000  # of what is read at once: a chunk, an image's rows, a weight
DAMAGED_HDF5_ERRORS = (
    OSError,
    KeyError,
    RuntimeError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    UnicodeError,
)


@contextmanager
def open_hdf5(path: Path, content: bytes | None = None) -> Iterator[Any]:
    """Open a file for reading.

    Args:
        path: The file.
        content: Its decompressed bytes, if it is compressed.

    Raises:
        DataError: It is damaged, refers to other files, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: HDF5 needs h5py: pip install 'comodal[legacy]'") from error
    try:
        if content is None and not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a regular file")
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            check_hdf5_links(file, path)
            yield file
    except DAMAGED_HDF5_ERRORS as error:
        raise DataError(f"{path}: a damaged or truncated HDF5 file ({summarize_hdf5_error(error)})") from error


def check_hdf5_links(file: Any, path: Path) -> None:
    """Check every link of a file without following those that leave it.

    Raises:
        DataError: One leads to another file, or there are too many.
    """
    import h5py

    visited, groups, count = set(), [file], 0
    while groups:
        group = groups.pop()
        for name in group:
            count += 1
            if count > MAX_HDF5_OBJECTS:
                raise DataError(f"{path}: refused, it has more than {MAX_HDF5_OBJECTS:,} objects")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{path}: refused, {name!r} is a link to another file ({link.filename!r})")
            if not isinstance(link, h5py.HardLink):
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Group) and address not in visited:
                groups.append(item)
            if isinstance(item, h5py.Dataset):
                check_hdf5_dataset(item, name, path)
            visited.add(address)


def check_hdf5_dataset(dataset: Any, name: str, path: Path) -> None:
    """Check where a dataset is stored, and how much of it is decompressed at once.

    Raises:
        DataError: It is stored in other files, or in chunks that are too large.
    """
    if dataset.external:
        raise DataError(f"{path}: refused, {name!r} is stored in another file ({dataset.external[0][0]!r})")
    if dataset.is_virtual:
        raise DataError(f"{path}: refused, {name!r} is a virtual dataset; its values are stored in other files")
    size = dataset.dtype.itemsize
    for length in dataset.chunks or ():
        size *= length
    if size > MAX_DATASET_BYTES:
        raise DataError(f"{path}: refused, a chunk of {name!r} has {size:,} bytes")


def check_hdf5_bytes(dataset: Any, rows: int, name: str) -> None:
    """Check that rows of a dataset fit in memory, regardless of its header.

    Raises:
        ValueError: They do not.
    """
    size = rows * dataset.dtype.itemsize
    for length in dataset.shape[1:]:
        size *= length
    if size > MAX_DATASET_BYTES:
        raise ValueError(f"{name} would take {size:,} bytes")


def summarize_hdf5_error(error: BaseException) -> str:
    """The error message of h5py, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
