"""A file is whole or not there, whatever happens while it is written."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comodal import files
from comodal.files import (
    MAX_NAME_BYTES,
    describe_os_error,
    encode_json_line,
    make_temporary_path,
    shorten_file_name,
    write_atomically,
    write_bytes_atomically,
)
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path):
    write_bytes_atomically(tmp_path / "new" / "a.bin", b"12")
    write_bytes_atomically(tmp_path / "new" / "a.bin", b"3")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"3"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path):
    write_bytes_atomically(tmp_path / "a.bin", b"before")
    with pytest.raises(OSError, match="full"), write_atomically(tmp_path / "a.bin") as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "the disk is full")
    assert (tmp_path / "a.bin").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a disk that is full: the system lets no file grow beyond 10,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_an_error_names_the_file_that_could_not_be_written(tmp_path: Path):
    for write in (
        lambda path: write_bytes_atomically(path, bytes(20_000)),
        lambda path: save_model(L3Net(L3NetConfig(width=2, image_size=32)), path.parent, {}),
    ):
        with pytest.raises(OSError) as caught:
            write(tmp_path / "model.safetensors")
        assert str(tmp_path / "model.safetensors") in describe_os_error(caught.value)
        assert caught.value.errno == errno.EFBIG
        assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path):
    """A process that has ended is one of another that was waited for."""
    code = "import sys; from comodal.files import *; print(make_temporary_path(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.bin"], capture_output=True, text=True, check=True)
    left, running = Path(done.stdout.strip()), tmp_path / f".b.bin.{os.getppid()}-{files.hash_host_name()}.part"
    elsewhere, theirs = tmp_path / f".c.bin.1-{'0' * 4}.part", tmp_path / ".download.part"
    for path in (left, running, elsewhere, theirs):
        path.write_bytes(b"half")
    write_bytes_atomically(tmp_path / "d.bin", b"1")
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, theirs, tmp_path / "d.bin"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int):
    """safetensors makes files for their owner alone."""
    before = os.umask(umask)
    try:
        write_bytes_atomically(tmp_path / "a", b"1")
        with write_atomically(tmp_path / "b") as part:
            save_file({"x": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(
    "name", ["a" * 255, "a" * 251 + ".wav", "\u00e4" * 127, "\u20ac" * 83 + ".npz", "a." + "b" * 253]
)
def test_temporary_names_of_long_names_fit(tmp_path: Path, name: str):
    write_bytes_atomically(tmp_path / name, b"1")
    assert len(os.fsencode(make_temporary_path(tmp_path / name).name)) <= MAX_NAME_BYTES
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_shortened_names_differ_and_keep_their_suffix():
    long = ["a" * 300 + ".npz", "a" * 301 + ".npz"]
    names = [shorten_file_name(name) for name in long]
    assert len(set(names)) == 2
    assert all(len(name) == MAX_NAME_BYTES and name.endswith(".npz") for name in names)
    assert shorten_file_name("a.npz") == "a.npz"


def test_names_that_are_not_utf8_are_kept_in_json():
    name = os.fsdecode(b"caf\xe9\n\xe2\x80\xa8.wav")
    assert json.loads(encode_json_line({"path": name})) == {"path": name}
    assert encode_json_line(name).count(b"\n") == 1
