"""Progress of long tasks: a bar on a terminal, elsewhere a line every 15 seconds and one at the end."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from comodal.console import create_progress_bar, escape_control_characters, is_terminal, print_line

T = TypeVar("T")
REFRESH_SECONDS = 0.5
LOG_LINE_SECONDS = 15.0


class Progress:
    """Items done, remaining time, and a note.

    A thread prints it, so that lines appear on time even if a single item takes minutes.

    Args:
        label: What is counted or done, such as "step" or "embedding".
        total: Total number of items; a float stands for a fraction, which is shown in percent.
        completed: Number of items that were done before.
        poll: Called for the number of items done and a note, instead of calls of `show`.
        is_shown: Show nothing if false, as in all processes but the main one.
    """

    def __init__(
        self,
        label: str,
        total: int | float,
        completed: int | float = 0,
        poll: Callable[[], tuple[int | float, str]] | None = None,
        is_shown: bool = True,
    ) -> None:
        self.label = label
        self.total = total
        self.completed_before = self.completed = completed
        self.poll = poll
        self.note = ""
        self.start = time.monotonic()
        self.next_line = self.start + LOG_LINE_SECONDS
        self.has_begun = False  # the first line appears with the first item, since it estimates the total time
        self.has_lines = is_shown and not is_terminal()
        self.is_shown = is_shown
        self.bar = create_progress_bar(is_percent=isinstance(total, float), is_shown=is_shown and not self.has_lines)
        self.task = self.bar.add_task(escape_control_characters(label), total=total)
        self.bar.update(self.task, completed=completed)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def advance(self, items: int | float = 1) -> None:
        """Adds items that are done."""
        self.completed += items

    def show(self, completed: int | float, note: str | None = None) -> None:
        """Sets the number of items done; the note stays until the next one."""
        self.completed = completed
        if note is not None:
            self.note = note

    def print_message(self, message: str) -> None:
        """Prints a sentence above the bar."""
        if self.is_shown:
            print_line(message, stderr=True)

    def __enter__(self) -> "Progress":
        self.bar.start()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.thread.join()
        self._update_bar()
        self.bar.stop()
        if self.has_lines and kind is None and self.completed > self.completed_before:
            print_line(self.format_line(), stderr=True)

    def format_line(self) -> str:
        """Formats items done, total, note and time."""
        if isinstance(self.total, float):
            count = f"{self.label} {self.completed / self.total:.0%}"
        else:
            count = f"{self.label} {self.completed:,} of {self.total:,}"
        return ", ".join(filter(None, [count, self.note, self._format_time()]))

    def _format_time(self) -> str:
        elapsed = time.monotonic() - self.start
        if self.completed >= self.total:
            return f"in {timedelta(seconds=round(elapsed))}"
        if self.completed <= self.completed_before:
            return f"after {timedelta(seconds=round(elapsed))}"
        remaining = (self.total - self.completed) * elapsed / (self.completed - self.completed_before)
        return f"{timedelta(seconds=round(remaining))} left"

    def _watch(self) -> None:
        while not self.stopped.wait(REFRESH_SECONDS):
            self._update_bar()
            is_first = not self.has_begun and self.completed > self.completed_before
            if self.has_lines and (is_first or time.monotonic() >= self.next_line):
                self.has_begun = self.completed > self.completed_before
                self.next_line = time.monotonic() + LOG_LINE_SECONDS
                print_line(self.format_line(), stderr=True)

    def _update_bar(self) -> None:
        if self.poll is not None:
            self.show(*self.poll())
        description = ", ".join(filter(None, [self.label, self.note]))
        self.bar.update(self.task, completed=self.completed, description=escape_control_characters(description))


def track_progress(
    items: Iterable[T], label: str, total: int | None = None, completed: int = 0, is_shown: bool = True
) -> Iterator[T]:
    """Yields the items and shows their progress.

    Args:
        items: Items to iterate over.
        label: What is done with them.
        total: Number of items; by default their length.
        completed: Number of items that were done before.
        is_shown: Show nothing if false.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    with Progress(label, total, completed, is_shown=is_shown) as progress:
        for item in items:
            yield item
            progress.advance()
