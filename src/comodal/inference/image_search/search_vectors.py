"""The image vectors of a first stage, in an append-only file.

first_stage-MARK.vectors   for each row of the store the hash of its id and its vector
first_stage-MARK.json      the number of valid rows, their checksum, and the name of that file; replaced atomically

Rows beyond that number were left by an interrupted process. The next process truncates them.
"""

import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from comodal.errors import DataError
from comodal.files import open_to_write, write_bytes_atomically
from comodal.text_files import read_json_object


class ImageVectors(NamedTuple):
    """Vectors of images, with the hashes of the images' ids."""

    hashes: Int64[Tensor, "rows"]
    vectors: Float32[Tensor, "rows dim"]


def make_row_dtype(dim: int) -> np.dtype:
    return np.dtype([("hash", "<i8"), ("vector", "<f4", (dim,))])


def read_vectors(manifest: Path, dim: int) -> ImageVectors:
    """The valid vectors; none if there is no such file.

    Raises:
        DataError: It is damaged.
    """
    nothing = ImageVectors(torch.zeros(0, dtype=torch.int64), torch.zeros((0, dim)))
    if not manifest.exists():
        return nothing
    about = read_json_object(manifest)
    path = manifest.with_suffix(".vectors")
    if not path.exists():
        return nothing
    try:
        with path.open("rb") as file:
            data = file.read(int(about["rows"]) * make_row_dtype(dim).itemsize)
        if about["dim"] != dim or zlib.crc32(data) != about["crc32"]:
            raise ValueError("checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it; the next search builds it again") from error
    rows = np.frombuffer(data, make_row_dtype(dim))
    return ImageVectors(torch.from_numpy(rows["hash"].copy()), torch.from_numpy(rows["vector"].copy()))


def write_vectors(manifest: Path, image_vectors: ImageVectors, num_stored: int) -> None:
    """Writes vectors, the first `num_stored` of which are already in the file, as returned by `read_vectors`."""
    path, dim = manifest.with_suffix(".vectors"), image_vectors.vectors.shape[1]
    rows = np.empty(len(image_vectors.hashes) - num_stored, make_row_dtype(dim))
    rows["hash"], rows["vector"] = image_vectors.hashes[num_stored:].numpy(), image_vectors.vectors[num_stored:].numpy()
    data = rows.tobytes()
    if num_stored:
        before = read_json_object(manifest)
        if before["rows"] != num_stored:  # another process has written more rows in the meantime
            return
        checksum = zlib.crc32(data, before["crc32"])
        with open_to_write(path, "r+") as file:
            file.truncate(num_stored * make_row_dtype(dim).itemsize)
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    else:
        manifest.unlink(missing_ok=True)  # the manifest is of other rows
        write_bytes_atomically(path, data)
        checksum = zlib.crc32(data)
    about = {"rows": len(image_vectors.hashes), "dim": dim, "crc32": checksum}
    write_bytes_atomically(manifest, (json.dumps(about) + "\n").encode())
