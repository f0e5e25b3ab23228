"""Reads the files of a data set in threads, in batches, and collects the errors of those that cannot be read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import joblib

from comodal.errors import MediaError
from comodal.progress import track_progress
from comodal.tasks.evaluation.unreadable_files import FileType, try_read

T = TypeVar("T")


class FileBatch(NamedTuple, Generic[T]):
    """Files that were read, by their indices, and the errors of others by index."""

    indices: list[int]
    contents: list[T]
    problems: dict[int, MediaError]


def read_batches(
    read_file: Callable[[FileType], T], files: Sequence[FileType], size: int, workers: int, label: str
) -> Iterator[FileBatch[T]]:
    """Reads files in threads, a few ahead.

    Args:
        read_file: Reads one file.
        files: The files.
        size: Number of files in a batch.
        workers: Number of threads.
        label: What is done with the files, for the progress.

    Yields:
        Batches, with the errors of the files between them.
    """
    parallel = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")
    contents = parallel(joblib.delayed(try_read)(read_file, file) for file in files)
    indices: list[int] = []
    batch: list[T] = []
    problems: dict[int, MediaError] = {}
    for index, content in enumerate(track_progress(contents, label, total=len(files))):
        if isinstance(content, MediaError):
            problems[index] = content
        else:
            indices.append(index)
            batch.append(content)
        if len(batch) == size or index + 1 == len(files):
            yield FileBatch(indices, batch, problems)
            indices, batch, problems = [], [], {}
