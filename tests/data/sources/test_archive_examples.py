"""Which files of a folder are containers, and which only describe one."""

import pytest

from comodal.data.sources import archive_examples
from comodal.data.sources.archive_examples import drop_side_files, select_containers

PLAIN = ["a/1.jpg", "a/2.txt", ".tar", "b.tar.gz", "notar", "c/state.jsonl"]


def test_side_files_are_left_out_and_all_else_stays_in_its_order():
    names = ["x/a.tar", "x/a.parquet", "x/a_stats.json", "b.parquet", "d/data.arrow", "d/state.json", "d/cache-1.arrow"]
    kept = ["x/a.tar", "b.parquet", "d/data.arrow"]
    assert drop_side_files([*PLAIN[:3], *names, *PLAIN[3:]]) == [*PLAIN[:3], *kept, *PLAIN[3:]]
    assert select_containers([*PLAIN, *names, "E.TAR"]) == [*kept, "E.TAR"]


def test_plain_files_cost_no_path(monkeypatch: pytest.MonkeyPatch):
    """A Path of each of 100,000 files takes half a second."""
    monkeypatch.setattr(archive_examples, "PurePosixPath", None)
    assert drop_side_files(PLAIN[:2]) == PLAIN[:2]
