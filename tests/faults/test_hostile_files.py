"""Files that were made to harm: nothing is started, no other file is read, and memory and time are bounded."""

import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from comodal.data import numpy_files
from comodal.data.hdf5_files import open_hdf5
from comodal.data.numpy_files import read_npz
from comodal.data.regions.feature_files import read_records
from comodal.data.regions.safe_unpickler import load_npy
from comodal.errors import CheckpointError, DataError, MediaError
from comodal.inference.openl3_files import read_openl3_weights
from comodal.media.image import read_image
from comodal.models.convert import caffemodel
from comodal.models.convert.caffemodel import read_caffemodel

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%\xe9\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow runs the first `gs` of PATH on a file that is PostScript, whatever its name."""
    (tmp_path / "bin").mkdir()
    called = tmp_path / "called"
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho called >> {called}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "cat.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(MediaError, match=r"cat.jpg"):
        read_image(tmp_path / "cat.jpg")
    assert not called.exists()


def lists(file: h5py.File) -> None:
    """The columns beside the features."""
    file["image_bb"] = np.float32([[[0, 0, 5, 5], [1, 1, 9, 9]]])
    file["spatial_features"] = np.float32([[[0, 0, 0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9, 0.8, 0.8]]])


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("image_features", (1, 2, 8), "f4", external=[(str(other), 0, 64)])


def external_link(file: h5py.File, other: Path) -> None:
    file["image_features"] = h5py.ExternalLink(str(other), "/features")


def external_link_to_a_group(file: h5py.File, other: Path) -> None:
    file["inner/outer"] = h5py.ExternalLink(str(other), "/")
    file["image_features"] = h5py.SoftLink("/inner/outer/features")


def virtual_dataset(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((1, 2, 8), "f4")
    layout[:] = h5py.VirtualSource(str(other), "features", (1, 2, 8))
    file.create_virtual_dataset("image_features", layout)


def huge_chunk(file: h5py.File, _other: Path) -> None:
    file.create_dataset("image_features", (1, 2, 2**29), "f4", chunks=(1, 1, 2**29))


@pytest.mark.parametrize("is_pipe", [False, True])
@pytest.mark.parametrize(
    "make", [external_storage, external_link, external_link_to_a_group, virtual_dataset, huge_chunk]
)
def test_hdf5_that_names_other_files_is_refused_at_once(tmp_path: Path, make: Callable, is_pipe: bool):
    """A pipe would be waited for without end."""
    other = tmp_path / "private.h5"
    if is_pipe:
        os.mkfifo(other)
    else:
        with h5py.File(other, "w") as file:
            file["features"] = np.ones((1, 2, 8), np.float32)
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        make(file, other)
        lists(file)
    (tmp_path / "features_imgid2idx.json").write_text('{"1": 0}')
    with pytest.raises(DataError, match=r"features.h5: refused"):
        list(read_records(path, "hdf5"))
    with pytest.raises(CheckpointError, match=r"features.h5: refused"):
        read_openl3_weights(path)


def test_hdf5_without_other_files_is_read(tmp_path: Path):
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("kept/features", data=np.ones((1, 2, 8), np.float32), compression="gzip")
        file["image_features"] = file["kept/features"]
        file["loop"] = file["/"]
        lists(file)
    (tmp_path / "features_imgid2idx.json").write_text('{"1": 0}')
    (record,) = read_records(path, "hdf5")
    assert np.array_equal(record.features, np.ones((2, 8)))


def test_hdf5_that_is_a_pipe_or_declares_more_than_memory(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(DataError, match=r"pipe.h5"), open_hdf5(tmp_path / "pipe.h5"):
        pass
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image_features", (1, 10**7, 10**7), "f4", chunks=(1, 100, 100))
        lists(file)
    (tmp_path / "features_imgid2idx.json").write_text('{"1": 0}')
    (skipped,) = read_records(path, "hdf5")
    assert "would take" in skipped.detail


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_arrays_take_no_more_memory_than_their_file(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(npy_header((10**6, 10**6)) + bytes(100))
    with pytest.raises(DataError, match=r"a.npy"):
        load_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", npy_header((10**12,)) + bytes(10**6))
    with pytest.raises(DataError, match=r"a.npz"):
        read_npz(tmp_path / "a.npz")


def test_an_npz_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numpy_files, "MAX_ARRAY_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", npy_header((2 * 10**6,), "|u1") + bytes(2 * 10**6))
    with pytest.raises(DataError, match=r"a.npz.*unpacks to"):
        read_npz(tmp_path / "a.npz")


def test_npz_files_are_read_as_numpy_reads_them(tmp_path: Path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.eye(3)),
        "c": np.array("text"),
        "d": np.zeros(0),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) and found[name].dtype == arrays[name].dtype for name in arrays)


def field(number: int, data: bytes) -> bytes:
    key, length = number << 3 | 2, len(data)
    text = b""
    for value in (key, length):
        while value > 127:
            text += bytes([value & 127 | 128])
            value >>= 7
        text += bytes([value])
    return text + data


@pytest.mark.parametrize(
    "layer",
    [
        field(1, b"a") + field(7, b"\x08\x00" * 3_000),  # numbers without end
        field(1, b"a") + field(7, field(7, field(1, b"\xff" * 9 + b"\x01")) + field(5, b"")),  # 2^64 numbers
        field(1, b"a") + field(7, field(7, b"\x08\x01" * 1_000) + field(5, bytes(4))),  # as many axes
    ],
)
def test_a_caffemodel_is_bounded(tmp_path: Path, layer: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caffemodel, "MAX_CAFFE_FIELDS", 2_000)
    (tmp_path / "a.caffemodel").write_bytes(field(100, layer))
    with pytest.raises(CheckpointError, match=r"a.caffemodel"):
        read_caffemodel(tmp_path / "a.caffemodel")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *others: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * width + 1) * min(height, 4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(others) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000),
        png(2**31 - 1, 1),
        png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))),
        png(8, 8, *[chunk(b"tEXt", b"a\0" + bytes(10**6))] * 80),
    ],
)
def test_a_png_is_bounded(tmp_path: Path, data: bytes):
    (tmp_path / "a.png").write_bytes(data)
    try:
        assert read_image(tmp_path / "a.png").nbytes < 10**6
    except MediaError as error:
        assert "a.png" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are always text")
def test_a_name_that_is_not_text_is_told_in_ascii(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"\xe9t\xe9.jpg")
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(MediaError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()
