"""Tar shards and Hugging Face tables as their writers write them: by the standard library's tarfile and by pyarrow."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_tar(
    path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT
) -> Path:
    """A tar of members in their order; a name may occur twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def jpeg(seed: int, side: int = 40) -> bytes:
    """A picture of noise."""
    memory = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + seed % 7, 3), np.uint8)
    Image.fromarray(pixels).save(memory, "JPEG")
    return memory.getvalue()


def img2dataset(path: Path, count: int, first: int = 0) -> Path:
    """What img2dataset writes: `KEY.jpg`, `KEY.txt` and `KEY.json`."""
    members = {}
    for number in range(first, first + count):
        key, caption = f"{path.stem}{number:04d}", f"picture number {number}"
        about = {
            "caption": caption,
            "key": key,
            "url": f"http://example.org/{number}",
            "status": "success",
            "exif": "{}",
        }
        members |= {
            f"{key}.jpg": jpeg(number), f"{key}.txt": caption.encode(), f"{key}.json": json.dumps(about).encode(),
        }  # fmt: skip
    return write_tar(path, members)


def image_table(rows: list[dict[str, Any]], features: dict[str, Any] | None = None, **columns: Any) -> Any:
    """A table of `datasets` with an image column of `{"bytes", "path"}` and further columns of given types."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = {"info": {"features": {"image": {"_type": "Image"}} | (features or {})}}
    schema = pa.schema([("image", image), *columns.items()], metadata={"huggingface": json.dumps(about)})
    return pa.Table.from_pylist(rows, schema=schema)


def write_parquet(path: Path, table: Any, rows_in_a_group: int = 3) -> Path:
    """As `push_to_hub` writes it."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_in_a_group)
    return path


def save_to_disk(folder: Path, table: Any, rows_in_a_batch: int = 3) -> Path:
    """As `Dataset.save_to_disk` writes it: a stream of Arrow, with descriptions and perhaps a cache beside it."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_in_a_batch)
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("{}")
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"what `map` left")
    return folder
