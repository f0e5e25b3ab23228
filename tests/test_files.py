"""A file is whole or not there, whatever happens while it is written."""

import errno
from pathlib import Path

import pytest

from comodal.files import whole, write_whole


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path):
    write_whole(tmp_path / "new" / "a.bin", b"12")
    write_whole(tmp_path / "new" / "a.bin", b"3")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"3"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path):
    write_whole(tmp_path / "a.bin", b"before")
    with pytest.raises(OSError, match="full"), whole(tmp_path / "a.bin") as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "the disk is full")
    assert (tmp_path / "a.bin").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
