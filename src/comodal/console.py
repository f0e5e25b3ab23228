"""Terminal output: lines and tables, with control characters escaped.

Names of files, classes and columns are untrusted. They are never interpreted as markup, and control characters, which
could move the cursor or rewrite lines, are printed as `\\u001b`. No other file imports rich or calls `print`, except
the command line.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import rich.progress
import rich.table
from rich.console import Console
from rich.text import Text

Bar = rich.progress.Progress
PIPE_WIDTH = 10_000
# C0, DEL and C1 controls, line separators, bidirectional controls, and surrogates
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control_characters(text: object) -> str:
    """Returns a text as one line, with each control character as its JSON escape."""
    return CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def escape_plot_text(text: str) -> str:
    """Returns a text that matplotlib draws literally: `$` begins no formula, and control characters are escaped."""
    return "\n".join(map(escape_control_characters, text.split("\n"))).replace("$", "\\$")


def print_line(sentence: object, stderr: bool = False) -> None:
    """Print one line, never wrapped and never highlighted."""
    console = Console(stderr=stderr)
    console.print(Text(escape_control_characters(sentence)), highlight=False, soft_wrap=True)


def print_heading(sentence: object) -> None:
    """Print a horizontal rule with a title."""
    Console().rule(Text(escape_control_characters(sentence)))


def print_text(text: str) -> None:
    """Print text that this module has formatted in another process."""
    print(text, end="", flush=True)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(escape_control_characters(json.dumps(value, ensure_ascii=False)), flush=True)


class Table:
    """A table whose cells, headings and title are printed literally.

    Args:
        headings: Headings of the columns.
        title: Title above the table.
        caption: Caption below the table.
        right: Indices of the right-aligned columns.
        header: Whether the headings are shown.
    """

    def __init__(
        self, *headings: str, title: str = "", caption: str = "", right: Iterable[int] = (), header: bool = True
    ) -> None:
        self.table = rich.table.Table(
            show_header=header,
            title=Text(escape_control_characters(title), style="table.title") if title else None,
            caption=Text(escape_control_characters(caption), style="table.caption") if caption else None,
        )
        right_columns = set(right)
        for index, heading in enumerate(headings):
            self.add_column(heading, right=index in right_columns)

    def add_column(self, heading: str, right: bool = False) -> None:
        self.table.add_column(Text(escape_control_characters(heading)), justify="right" if right else "left")

    def add_row(self, *cells: object) -> None:
        self.table.add_row(*(Text(escape_control_characters(cell)) for cell in cells))

    def show(self) -> None:
        console = Console()
        if not console.is_terminal:  # nothing is cut in a pipe or a file
            console = Console(width=PIPE_WIDTH)
        console.print(self.table)


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return Console(stderr=True).is_terminal


def create_progress_bar(is_percent: bool = False, is_shown: bool = True) -> Bar:
    """A progress bar on standard error, with the items done, the fraction and the remaining time.

    Args:
        is_percent: Show a percentage, not a count.
        is_shown: Show nothing if false.
    """
    return Bar(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn() if is_percent else rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not is_shown,
    )
