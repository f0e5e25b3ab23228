"""The files of a folder, a file or a pattern: `cc3m/{00000..00331}.tar`, `train-*.parquet`.

Braces work as in the shell and in webdataset: a range of numbers with its zero padding, or a list.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from comodal.errors import DataError

WILDCARD_PATTERN = re.compile(r"[*?\[{]")
BRACES_PATTERN = re.compile(r"\{([^{}]*)\}")
RANGE_PATTERN = re.compile(r"(\d+)\.\.(\d+)")
MAX_MATCHED_FILES = 1_000_000


class MatchedPaths(NamedTuple):
    """Files by their paths below a folder."""

    root: Path
    names: list[str]


def is_path_pattern(path: Path) -> bool:
    """Whether a path names several files; an existing file of that exact name is not a pattern."""
    return WILDCARD_PATTERN.search(str(path)) is not None and not path.exists()


def expand_pattern(pattern: Path) -> MatchedPaths:
    """The files that a pattern names. Those of a range or a list are returned whether they exist or not.

    Raises:
        DataError: There are none, or too many.
    """
    fixed = []
    for part in pattern.parts[:-1]:
        if WILDCARD_PATTERN.search(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    names: dict[str, None] = {}
    for count, one in enumerate(expand_braces(str(pattern.relative_to(root)))):
        if count >= MAX_MATCHED_FILES:
            raise DataError(f"{pattern} names more than {MAX_MATCHED_FILES:,} files")
        wild = WILDCARD_PATTERN.search(one) is not None
        names |= dict.fromkeys(sorted(path.relative_to(root).as_posix() for path in root.glob(one)) if wild else [one])
    if not any((root / name).is_file() for name in names):
        raise DataError(f"{pattern}: there is no such file")
    return MatchedPaths(root, [*names])


def expand_braces(text: str) -> Iterator[str]:
    """All texts that the braces stand for, in order."""
    match = BRACES_PATTERN.search(text)
    if match is None:
        yield text
        return
    range_match = RANGE_PATTERN.fullmatch(match[1])
    if range_match:
        first, last = range_match.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices: Iterator[str] = (f"{value:0{width}d}" for value in range(int(first), int(last) + 1))
    else:
        choices = iter(match[1].split(","))
    for choice in choices:
        yield from expand_braces(text[: match.start()] + choice + text[match.end() :])
