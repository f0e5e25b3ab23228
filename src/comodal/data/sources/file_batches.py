"""Applies one function to many files: plans the jobs, runs them in parallel, and reports the files that cannot be read.

OpenL3 lost the pending results of other files when the last one existed already (its `process_audio_file`). Here each
result is written separately, under a temporary name that is renamed when it is complete.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from comodal.console import Table, print_line
from comodal.data.sources.archive_examples import read_archive_examples, select_containers
from comodal.errors import DataError, MediaError, collect_media_warnings, wrap_item_errors
from comodal.files import fingerprint_file, name_written_file, shorten_file_name, write_atomically
from comodal.media.storage.archive_samples import detect_media_kind
from comodal.media.storage.open_media import find_container, is_container
from comodal.progress import track_progress
from comodal.workers import CRASH_REASON, run_in_parallel

COPY_BYTES = 1 << 20
DAMAGED_ZIP_ERRORS = (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError)


class FileJob(NamedTuple):
    """A file and its results."""

    source: Path
    results: tuple[Path, ...]


class FileOutcome(NamedTuple):
    """The outcome of a job: rows written, or the error; and notes, for example that a file is truncated."""

    job: FileJob
    rows: int
    error_message: str
    notes: tuple[str, ...] = ()


class FileJobs(NamedTuple):
    """The jobs; the suffixes of the files in the folders that are of another kind; what cannot be opened there, with
    the reason.
    """

    jobs: list[FileJob]
    other_suffixes: Counter[str]
    damaged: tuple[FileOutcome, ...] = ()  # of containers
    skipped: tuple[tuple[Path, str], ...] = ()


def plan_file_jobs(files: list[Path], suffixes: Set[str], out: Path | None, endings: tuple[str, ...]) -> FileJobs:
    """One job for each file. A folder stands for all files in it with one of the suffixes. A tar, Parquet or Arrow
    file, given or in a folder, stands for all members of the kind.

    Results are written next to the file, or to `out` (subfolders are kept). Those of a container are written to a
    folder of its name without the suffix. `assign_result_paths` chooses the names.

    Raises:
        DataError: there is nothing to do, or two files would have the same result.
    """
    targets: dict[tuple[Path, Path], None] = {}  # a file may be given twice, directly and by its folder
    other_suffixes, damaged, skipped = Counter[str](), list[FileOutcome](), list[tuple[Path, str]]()
    for path in files:
        entries = sorted(path.rglob("*"))
        all_files = [file for file in entries if file.is_file() and file.suffix != ".npz"]
        reasons = [(entry, describe_special_entry(entry)) for entry in entries]
        skipped += [(entry, reason) for entry, reason in reasons if reason is not None]
        containers = [Path(name) for name in select_containers(map(str, all_files if path.is_dir() else [path]))]
        for container in containers:
            folder = container.parent
            if out is not None:
                folder = out / container.parent.relative_to(path if path.is_dir() else path.parent)
            members, broken = list_container_members(container, suffixes)
            targets |= dict.fromkeys((file, folder / container.stem / inner) for file, inner in members)
            damaged += broken
        plain_files = [file for file in all_files if not is_container(file.name)]
        matching = sorted(file for file in plain_files if file.suffix.lower() in suffixes)
        other_suffixes.update(file.suffix.lower() for file in plain_files if file.suffix.lower() not in suffixes)
        for file in matching if path.is_dir() else [] if containers else [path]:
            folder = file.parent if out is None else out / (file.parent.relative_to(path) if path.is_dir() else "")
            targets[file, folder] = None
    if not targets and not damaged:
        more = f"; {skipped[0][0]} is {skipped[0][1]}" if skipped else ""
        raise DataError(
            f"no {', '.join(sorted(suffixes))} file in {', '.join(map(str, files)) or 'an empty list'}{more}"
        )
    return FileJobs(assign_result_paths(list(targets), endings), other_suffixes, tuple(damaged), tuple(skipped))


def describe_special_entry(entry: Path) -> str | None:
    """What an entry of a folder is if it is neither a file nor a folder that can be searched; else None."""
    if entry.is_file():
        return None
    if entry.is_dir():
        if entry.is_symlink():
            return "a link to a folder"
        return None if os.access(entry, os.R_OK | os.X_OK) else "a folder without permission to read it"
    return "not a regular file" if entry.exists() else "a link to nothing"


def list_container_members(
    container: Path, suffixes: Set[str]
) -> tuple[list[tuple[Path, PurePosixPath]], list[FileOutcome]]:
    """The members of a container that have the media kind of the suffixes, each with its folder in the container; and
    the damaged members.
    """
    kind = detect_media_kind(next(iter(suffixes)))
    members, damaged = [], []
    for stored in read_archive_examples(container.parent, container.name):
        if stored.example.fault is not None:
            damaged.append(FileOutcome(FileJob(container.parent / stored.path, ()), 0, ": ".join(stored.example.fault)))
        elif kind in stored.example.members:
            name = PurePosixPath(stored.example.members[kind][0])
            members.append((container / name, name.parent))
    return members, damaged


def assign_result_paths(targets: Sequence[tuple[Path, Path]], endings: tuple[str, ...]) -> list[FileJob]:
    """Jobs for files and the folders of their results: results are named NAME + ending + .npz.

    Results keep the suffixes of their files (a.wav.npz, a.mp3.npz) if several files would have the same result, or if
    it exists and was made from a file of another name. An existing result with such a name is kept.

    Raises:
        DataError: files of the same name would have the same result.
    """

    def make_job(source: Path, folder: Path, name: str) -> FileJob:
        return FileJob(source, tuple(folder / shorten_file_name(f"{name}{ending}.npz") for ending in endings))

    def keeps_suffix(source: Path, folder: Path) -> bool:
        other_sources = list_result_sources(make_job(source, folder, source.stem)) - {"", source.name}
        return bool(other_sources) or source.name in list_result_sources(make_job(source, folder, source.name))

    with_suffix = {pair for pair in targets if keeps_suffix(*pair)}
    while True:
        jobs = {pair: make_job(*pair, pair[0].name if pair in with_suffix else pair[0].stem) for pair in targets}
        times = Counter(planned.results[0] for planned in jobs.values())
        conflicting = {pair for pair, planned in jobs.items() if times[planned.results[0]] > 1}
        if conflicting <= with_suffix:
            break
        with_suffix |= conflicting
    if conflicting:
        first = min(conflicting)
        second = min(pair for pair in conflicting if pair != first and jobs[pair].results == jobs[first].results)
        raise DataError(f"{first[0]} and {second[0]} would both be written to {jobs[first].results[0]}")
    return list(jobs.values())


def attempt_jobs(jobs: Sequence[FileJob], work: Callable[[FileJob], int]) -> list[FileOutcome]:
    """Run jobs in this process."""
    return [attempt_job(job, work) for job in jobs]


def attempt_job(job: FileJob, work: Callable[[FileJob], int]) -> FileOutcome:
    """Run one job; an error with its file becomes an outcome."""
    with collect_media_warnings() as notes:
        try:
            with wrap_item_errors(job.source):
                rows, problem = work(job), ""
        except MediaError as error:
            rows, problem = 0, f"{error.reason}: {error.detail}"
    return FileOutcome(job, rows, problem, tuple(dict.fromkeys(notes)))


class BatchedWork(NamedTuple):
    """A function that processes several files at once in this process, for a GPU, and how many."""

    work: Callable[[Sequence[FileJob]], list[FileOutcome]]
    size: int


@dataclass(frozen=True)
class EmbeddingSummary:
    """What a command that embeds files has written.

    Args:
        written: Number of files that were embedded.
        skipped: Number of files whose results existed already.
        windows: Number of embeddings that were computed.
        noted: Number of embedded files with a note, for example truncated ones.
        other_files: Number of files in the folders with suffixes of another kind.
        special_files: Number of pipes, links to nothing and the like in the folders.
    """

    written: int
    skipped: int
    windows: int
    noted: int
    other_files: int
    special_files: int


def run_file_jobs(
    planned: FileJobs,
    work: Callable[[FileJob], int],
    workers: int,
    overwrite: bool,
    batched_work: BatchedWork | None = None,
) -> EmbeddingSummary:
    """Run the jobs whose results are missing, and report.

    Args:
        planned: the jobs.
        work: writes the results of a job and returns the number of rows.
        workers: processes; 0 uses one per core.
        overwrite: replace existing results.
        batched_work: does the same for several jobs at once, in this process. Else worker processes run the jobs if
            there is more than one, so that a file that crashes its decoder loses only its own result.

    Returns:
        The numbers of written and skipped files.

    Raises:
        DataError: some files could not be read; all the others are written by then.
        ValueError: workers is negative.
    """
    jobs, other_suffixes, damaged, skipped = planned
    if workers < 0:
        raise ValueError(f"workers ({workers}) is a number of processes, or 0 for one per core")
    todo = [job for job in jobs if overwrite or not is_job_done(job)]
    outcomes = iterate_outcomes(todo, work, workers, batched_work)
    done = list(track_progress(outcomes, "embedding", total=len(todo), is_shown=bool(todo)))
    refused = sorted((one for one in (*done, *damaged) if one.error_message), key=lambda outcome: outcome.job.source)
    noted = sorted((outcome for outcome in done if outcome.notes), key=lambda outcome: outcome.job.source)
    report_outcomes(
        refused, noted, sum(not outcome.error_message for outcome in done), len(jobs) - len(todo), other_suffixes
    )
    if skipped:
        print_line(f"{len(skipped)} entries of the folders were skipped")
        table = Table("entry", "reason")
        for entry, reason in skipped:
            table.add_row(str(entry), reason)
        table.show()
    if refused:
        first = f"{refused[0].job.source}: {refused[0].error_message}"
        raise DataError(
            f"{len(refused)} of {len(jobs) + len(damaged)} files could not be embedded (all others are), first {first}"
        )
    return EmbeddingSummary(
        len(done),
        len(jobs) - len(todo),
        sum(outcome.rows for outcome in done),
        len(noted),
        other_suffixes.total(),
        len(skipped),
    )


def iterate_outcomes(
    jobs: Sequence[FileJob], work: Callable[[FileJob], int], workers: int, batched_work: BatchedWork | None
) -> Iterable[FileOutcome]:
    """Runs jobs in batches, alone, or in worker processes, as `run_file_jobs` describes."""
    if batched_work is not None:
        starts = range(0, len(jobs), batched_work.size)
        return chain.from_iterable(batched_work.work(jobs[start : start + batched_work.size]) for start in starts)
    if len(jobs) == 1:
        return attempt_jobs(jobs, work)
    processes = min(len(jobs), workers or os.cpu_count() or 1)
    return (
        outcome or FileOutcome(job, 0, ": ".join(CRASH_REASON))
        for job, outcome in run_in_parallel(partial(attempt_job, work=work), jobs, processes)
    )


def report_outcomes(
    refused: list[FileOutcome], noted: list[FileOutcome], written: int, skipped: int, other_suffixes: Counter[str]
) -> None:
    """One line of counts, and tables of the unreadable files and of the incomplete ones."""
    print_line(f"{written} written, {skipped} existed already, {len(refused)} could not be read")
    if other_suffixes:
        endings = ", ".join(
            f"{count} {ending or 'without an ending'}" for ending, count in other_suffixes.most_common()
        )
        print_line(
            f"{other_suffixes.total()} files of other kinds were skipped: {endings}; pass them by name to process them"
        )
    if refused:
        table = Table("file", "reason")
        for outcome in refused:
            table.add_row(str(outcome.job.source), outcome.error_message)
        table.show()
    if noted:
        table = Table("file", "note")
        for outcome in noted:
            table.add_row(str(outcome.job.source), "; ".join(outcome.notes))
        table.show()


class EmbeddingRows(NamedTuple):
    """A batch of vectors, their timestamps, and which of them are of silence; None for fields that are not stored."""

    vectors: Float32[np.ndarray, "rows features"]
    seconds: Float[np.ndarray, " rows"] | None
    silent: Bool[np.ndarray, " rows"] | None = None


def is_job_done(job: FileJob) -> bool:
    """Whether all results exist and were made from the current version of the file."""
    if not all(result.is_file() for result in job.results):
        return False
    stamps = [read_result_source(result)[0] for result in job.results]
    return all(stamp in ("", compute_source_stamp(job.source)) for stamp in stamps)


def compute_source_stamp(source: Path) -> str:
    """The stamp of a file, or of the container that holds a member."""
    return fingerprint_file(find_container(source) or source)


def list_result_sources(job: FileJob) -> set[str]:
    """The names of the files that the existing results were made from."""
    return {read_result_source(result)[1] for result in job.results if result.is_file()}


def read_result_source(result: Path) -> tuple[str, str]:
    """The stamp and the name of the file that a result was made from; "" where they are not recorded."""
    try:
        with zipfile.ZipFile(result) as archive:
            stamp, _, name = archive.comment.partition(b" ")
    except DAMAGED_ZIP_ERRORS:
        return "", ""
    return stamp.decode("ascii", "replace"), os.fsdecode(name)


def write_embedding_rows(
    result: Path,
    batches: Iterable[EmbeddingRows],
    about: Mapping[str, object] | None = None,
    source: Path | None = None,
) -> int:
    """Write vectors as `embedding`, with `timestamps`, `silent` and `about` (JSON) if given; returns the number of
    rows.

    The rows are written to a temporary file next to the result, not kept in memory: an hour of audio at a hop of 0.1 s
    is 880 MB. Nothing is written without rows. The archive's comment is the stamp and the name of the source, if given.
    """
    columns: dict[str, list[np.ndarray]] = {"timestamps": [], "silent": []}
    count, features, stamp = 0, 0, "" if source is None else compute_source_stamp(source)  # before it is read
    result.parent.mkdir(parents=True, exist_ok=True)
    with name_written_file(result), tempfile.TemporaryFile(dir=result.parent) as scratch:
        for rows in batches:
            count, features = count + len(rows.vectors), rows.vectors.shape[1]
            scratch.write(np.ascontiguousarray(rows.vectors, dtype="<f4").tobytes())
            for name, column in (("timestamps", rows.seconds), ("silent", rows.silent)):
                columns[name] += [] if column is None else [column]
        if not count:
            return 0
        with write_atomically(result) as part, zipfile.ZipFile(part, "w") as archive:
            with archive.open("embedding.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, features)}
                np.lib.format.write_array_header_1_0(entry, header)
                scratch.seek(0)
                shutil.copyfileobj(scratch, entry, COPY_BYTES)
            for name, parts in columns.items():
                if parts:
                    with archive.open(f"{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, np.concatenate(parts), allow_pickle=False)
            archive.comment = b"" if source is None else stamp.encode() + b" " + os.fsencode(source.name)
            if about is not None:
                with archive.open("about.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.array(json.dumps(about)), allow_pickle=False)
    return count
