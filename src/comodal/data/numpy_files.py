"""NumPy .npy and .npz files from other sources, read without pickle and with a bound on memory."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from comodal.errors import DataError

MAX_NPY_HEADER_BYTES = 10_000
MAX_ARRAY_BYTES = 1_000_000_000  # of what an .npz file unpacks to, unless the file is large itself
MAX_COMPRESSION_RATIO = 20  # of unpacked and packed bytes
DAMAGED_NUMPY_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, TypeError, AttributeError, KeyError, SyntaxError),
    *(NotImplementedError, RuntimeError, IndexError, OverflowError, struct.error),
)


def read_npy(file: io.BufferedIOBase, max_bytes: int) -> Shaped[np.ndarray, "..."]:
    """Read one array at the current position of a file.

    Args:
        file: An open binary file.
        max_bytes: The maximum number of data bytes.

    Raises:
        ValueError: It holds objects, is larger than the data that follows, or is not an array.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file, max_header_size=MAX_NPY_HEADER_BYTES)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > max_bytes:
        raise ValueError(f"its header declares {size:,} bytes, and at most {max_bytes:,} are available")
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"it ends after {len(data):,} of {size:,} bytes")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of an .npz file by their names.

    Args:
        path: The file.
        names: Names of the arrays to read; by default all.

    Raises:
        DataError: It is damaged, holds objects, or decompresses to far more than its size.
    """
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            total = sum(info.file_size for info in members)
            if total > max(MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO * path.stat().st_size):
                raise ValueError(f"refused, it unpacks to {total:,} bytes")
            arrays = {}
            for info in members:
                name = info.filename.removesuffix(".npy")
                if names is None or name in names:
                    with archive.open(info) as file:
                        arrays[name] = read_npy(file, info.file_size)  # type: ignore[arg-type]
            return arrays
    except DAMAGED_NUMPY_ERRORS as error:
        raise DataError(f"{path}: an incomplete or damaged .npz file: {error}") from error
