"""Unreadable files of a data set: an evaluation skips them, lists them, and counts them on its card.

The evaluation is refused where a class would lose all its files on one side of a split, since the score would no longer
be comparable.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool

from comodal.errors import DataError, MediaError, wrap_item_errors
from comodal.training.run_log import REASON_UNREADABLE

A = TypeVar("A")
T = TypeVar("T")


@runtime_checkable
class FileItem(Protocol):
    """An item of a data set that is a file."""

    @property
    def path(self) -> Path: ...


FileType = TypeVar("FileType", bound=FileItem)


def try_read(read_file: Callable[[FileType], T], item: FileType) -> T | MediaError:
    """Reads a file; returns the error if it cannot be read, whatever reading it raises."""
    try:
        with wrap_item_errors(item.path):
            return read_file(item)
    except MediaError as error:
        return error


def exclude_unreadable(items: Sequence[A], problems: Collection[int]) -> list[A]:
    """The items without a problem."""
    return [item for index, item in enumerate(items) if index not in problems]


def mask_readable(num_items: int, problems: Collection[int]) -> Bool[np.ndarray, " items"]:
    """A mask of the items without a problem."""
    return np.isin(np.arange(num_items), list(problems), invert=True)


def count_exclusions(excluded: Mapping[str, int], problems: Collection[object]) -> dict[str, int]:
    """The number of excluded items by reason, unreadable ones included."""
    return {**excluded, **({REASON_UNREADABLE: len(problems)} if problems else {})}


def check_readable_classes(
    source: object, part: str, classes: Sequence[str | None], problems: Mapping[int, MediaError]
) -> None:
    """Checks that every class has a file that can be read.

    Args:
        source: Where the files come from, for the error.
        part: Side of the split, as "to test".
        classes: Class of each file; None where it is unknown.
        problems: Errors of the files that cannot be read.

    Raises:
        DataError: A class has none.
    """
    lost = set(classes) - set(exclude_unreadable(classes, problems))
    if lost:
        name = min(lost, key=str)
        class_problems = [problems[index] for index, category in enumerate(classes) if category == name]
        of_class = "" if name is None else f" of class {name!r}"
        raise DataError(
            f"{source}: none of the {len(class_problems)} files{of_class} {part} can be read; the first: "
            f"{class_problems[0]}"
        )
