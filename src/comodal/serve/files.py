"""Many files through one piece of work: what is to be done, in parallel, and a report of what could not be read.

OpenL3 lost the pending results of other files when the last one was already there (its `process_audio_file`); here
every file is written by itself, under a temporary name that is renamed when whole.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from jaxtyping import Float, Float32
from rich.console import Console
from rich.progress import track
from rich.table import Table

from comodal.errors import DataError, MediaError
from comodal.files import whole


class Job(NamedTuple):
    """A file and what is made of it."""

    source: Path
    results: tuple[Path, ...]


class Outcome(NamedTuple):
    """How a job went: rows written, or why not."""

    job: Job
    rows: int
    problem: str


def plan(files: list[Path], suffixes: set[str], out: Path | None, endings: tuple[str, ...]) -> list[Job]:
    """One job for each file; a folder stands for all files in it with one of the suffixes.

    Results are named NAME + ending + .npz: beside the file, or in `out` (the inner folders of a folder are kept).

    Raises:
        DataError: nothing is to be done, or two files would have the same result.
    """
    jobs: list[Job] = []
    taken: dict[Path, Path] = {}
    for given in files:
        inside = sorted(path for path in given.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        for path in inside if given.is_dir() else [given]:
            folder = path.parent if out is None else out / (path.parent.relative_to(given) if given.is_dir() else "")
            job = Job(path, tuple(folder / f"{path.stem}{ending}.npz" for ending in endings))
            other = taken.setdefault(job.results[0], path)
            if other != path:
                raise DataError(f"{other} and {path} would both be written to {job.results[0]}")
            jobs.append(job)
    if not jobs:
        raise DataError(f"no {', '.join(sorted(suffixes))} file in {', '.join(map(str, files)) or 'an empty list'}")
    return jobs


def attempt(job: Job, work: Callable[[Job], int]) -> Outcome:
    """Runs one job; media that cannot be read are an outcome, all other errors are raised."""
    try:
        return Outcome(job, work(job), "")
    except MediaError as error:
        return Outcome(job, 0, f"{error.reason}: {error.detail}")


def run_files(jobs: list[Job], work: Callable[[Job], int], workers: int, overwrite: bool) -> dict[str, float]:
    """Runs the jobs whose results are not all there, and reports.

    Args:
        jobs: what to do.
        work: writes the results of a job and returns how many rows there are.
        workers: processes; 0 takes one per core.
        overwrite: make results again that exist.

    Returns:
        embed.written, embed.skipped and embed.windows.

    Raises:
        DataError: some files could not be read; all the others are written by then.
    """
    todo = [job for job in jobs if overwrite or not all(result.is_file() for result in job.results)]
    processes = min(len(todo), workers or os.cpu_count() or 1)
    calls: Iterable[Outcome] = (attempt(job, work) for job in todo)
    if processes > 1:
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
        calls = parallel(joblib.delayed(attempt)(job, work) for job in todo)
    done = list(track(calls, "embedding", total=len(todo), disable=not todo))
    refused = sorted((outcome for outcome in done if outcome.problem), key=lambda outcome: outcome.job.source)
    report(refused, len(done) - len(refused), len(jobs) - len(todo))
    if refused:
        first = f"{refused[0].job.source}: {refused[0].problem}"
        raise DataError(f"{len(refused)} of {len(jobs)} files could not be embedded (all others are), first {first}")
    return {
        "embed.written": float(len(done)),
        "embed.skipped": float(len(jobs) - len(todo)),
        "embed.windows": float(sum(outcome.rows for outcome in done)),
    }


def report(refused: list[Outcome], written: int, skipped: int) -> None:
    """One line of counts, and a table of the files that could not be read."""
    console = Console()
    console.print(f"{written} written, {skipped} were there already, {len(refused)} could not be read")
    if refused:
        table = Table("file", "reason")
        for outcome in refused:
            table.add_row(str(outcome.job.source).replace("[", "\\["), outcome.problem.replace("[", "\\["))
        console.print(table)


def write_rows(
    result: Path, batches: Iterable[tuple[Float32[np.ndarray, "rows features"], Float[np.ndarray, " rows"]]]
) -> int:
    """Writes batches of vectors and their times as `embedding` and `timestamps`; returns how many there are.

    The rows pass through a scratch file beside the result and not through memory: an hour of sound at 0.1 s is 880 MB.
    Nothing is written if no row comes.
    """
    times: list[Float[np.ndarray, " rows"]] = []
    features = 0
    result.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=result.parent) as scratch:
        for rows, seconds in batches:
            features = rows.shape[1]
            scratch.write(np.ascontiguousarray(rows).tobytes())
            times.append(seconds)
        if not times:
            return 0
        scratch.flush()
        timestamps = np.concatenate(times)
        embedding = np.memmap(scratch, dtype=np.float32, mode="r", shape=(len(timestamps), features))
        with whole(result) as part, part.open("wb") as file:
            np.savez(file, embedding=embedding, timestamps=timestamps)
    return len(timestamps)
