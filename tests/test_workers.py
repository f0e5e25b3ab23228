"""Worker processes: one that dies costs the item that it worked on, and nothing else."""

import os
import signal
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest

from comodal import workers
from comodal.data.sources.file_batches import FileJob, FileJobs, run_file_jobs
from comodal.errors import DataError
from comodal.files import is_process_running, write_atomically
from comodal.workers import run_in_parallel, run_one_by_one


def negate(number: int) -> int:
    if number in (4, 8):
        os.kill(os.getpid(), signal.SIGSEGV)
    return -number


@pytest.mark.parametrize("processes", [1, 2])
def test_an_item_that_ends_its_process_costs_itself_alone(processes: int):
    found = dict(run_in_parallel(negate, range(12), processes))
    assert found == {number: None if number in (4, 8) else -number for number in range(12)}


def test_what_is_raised_in_a_process_beside_is_raised_here():
    (future,) = run_one_by_one(int, ["x"])
    assert isinstance(future.exception(), ValueError)


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_workers_that_keep_dying_for_no_item_s_fault_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    """As where memory suffices for one process and not for two."""

    def alone(_, items: list[int]) -> list[Future]:
        futures = [Future() for _ in items]
        for future, item in zip(futures, items, strict=True):
            future.set_result(item)
        return futures

    monkeypatch.setattr(workers, "run_one_by_one", alone)
    with pytest.raises(DataError, match="workers keep crashing, possibly for lack of memory"):
        list(run_in_parallel(die, range(100), 2))


def write_or_die(job: FileJob) -> int:
    if job.source.stem == "kills":
        os.kill(os.getpid(), signal.SIGSEGV)
    job.results[0].write_bytes(b"")
    return 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_crashes_its_decoder_is_a_line_of_the_report(
    tmp_path: Path, processes: int, capsys: pytest.CaptureFixture[str]
):
    names = ("a", "b", "kills", "d", "e")
    planned = FileJobs([FileJob(tmp_path / f"{name}.wav", (tmp_path / f"{name}.npz",)) for name in names], Counter())
    with pytest.raises(DataError, match=r"1 of 5 files could not be embedded .*kills\.wav: crashed the decoder"):
        run_file_jobs(planned, write_or_die, processes, overwrite=False)
    assert "4 written, 0 existed already, 1 could not be read" in capsys.readouterr().out
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == ["a", "b", "d", "e"]


def write_or_be_killed_once(job: FileJob) -> int:
    """Files take half a second. The first worker that comes to `kills` is killed while another writes."""
    folder = job.source.parent
    (folder / f"{os.getpid()}.pid").touch()
    with write_atomically(job.results[0]) as part:
        part.write_bytes(b"half")
        time.sleep(0.5)
        if job.source.stem == "kills" and not (folder / "killed").exists():
            (folder / "killed").write_text(" ".join(path.stem for path in folder.glob("*.pid")))
            os.kill(os.getpid(), signal.SIGKILL)
        part.write_bytes(b"whole")
    return 1


def test_a_worker_that_the_system_kills_costs_no_file_and_leaves_none_of_its_siblings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As Linux does where memory is used up: the file itself can be embedded."""
    names = ("a", "b", "kills", "d", "e", "f")
    (tmp_path / "out").mkdir()
    jobs = [FileJob(tmp_path / f"{name}.wav", (tmp_path / "out" / f"{name}.npz",)) for name in names]
    run_file_jobs(FileJobs(jobs, Counter()), write_or_be_killed_once, 2, overwrite=False)
    assert "6 written, 0 existed already, 0 could not be read" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == dict.fromkeys(
        [f"{name}.npz" for name in names], b"whole"
    )
    siblings, until = [int(pid) for pid in (tmp_path / "killed").read_text().split()], time.monotonic() + 20
    assert len(siblings) == 2
    while any(map(is_process_running, siblings)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in siblings if is_process_running(pid)]
