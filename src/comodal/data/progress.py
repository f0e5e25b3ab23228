"""A bar on a terminal, a line now and then elsewhere: how many, how fast, how long yet."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from comodal.console import is_terminal, new_bar, say

LOOK_SECONDS = 0.5
LINE_SECONDS = 15.0


class Progress:
    """Counts what finished tasks report and what unfinished ones have come to.

    Args:
        total: Items in all.
        done: Items that were done before.
        unfinished: Items, and seconds of media, in tasks that have not finished.
    """

    def __init__(self, total: int, done: int, unfinished: Callable[[], tuple[int, float]]) -> None:
        self.total, self.before, self.unfinished = total, done, unfinished
        self.items, self.seconds = 0, 0.0
        self.seen = 0
        self.start = self.last_line = time.monotonic()
        self.stop = threading.Event()
        self.bar = new_bar(disable=not is_terminal())
        self.task = self.bar.add_task("", total=total, completed=done)
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def add(self, items: int, seconds: float) -> None:
        """A task has finished."""
        self.items += items
        self.seconds += seconds

    def __enter__(self) -> "Progress":
        self.bar.start()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.thread.join()
        if kind is None and self.items:
            self._show(self.items, self.seconds)
            self._line(self.items, self.seconds)
        self.bar.stop()

    def _watch(self) -> None:
        while not self.stop.wait(LOOK_SECONDS):
            items, seconds = self.unfinished()
            items, seconds = self.items + items, self.seconds + seconds
            self._show(items, seconds)
            if time.monotonic() - self.last_line > LINE_SECONDS:
                self.last_line = time.monotonic()
                self._line(items, seconds)

    def _show(self, items: int, seconds: float) -> None:
        self.seen = max(self.seen, items)
        self.bar.update(self.task, completed=self.before + self.seen, description=self._rate(items, seconds))

    def _rate(self, items: int, seconds: float) -> str:
        elapsed = max(time.monotonic() - self.start, 1e-9)
        return f"{items / elapsed:.1f} a second, {seconds / elapsed:.0f}x real time"

    def _line(self, items: int, seconds: float) -> None:
        if is_terminal():
            return
        left = (self.total - self.before - items) * (time.monotonic() - self.start) / max(items, 1)
        done = f"{self.before + items:,} of {self.total:,}"
        line = f"{done}, {self._rate(items, seconds)}, {timedelta(seconds=round(left))} left"
        say(line, stderr=True)
