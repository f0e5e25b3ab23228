"""Ctrl-C and SIGTERM as a wish, which the loop fulfils when a step is whole."""

import signal
import threading
from types import FrameType, TracebackType

import torch

from comodal import distributed

INTERRUPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptHandler:
    """While this is entered, a signal only leaves a note; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, object] = {}

    def wish(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, device: torch.device) -> int:
        """The signal that any process got, 0 if none did; the same in all processes."""
        return round(distributed.all_reduce_max(float(self.signal), device))

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            self.before = {number: signal.signal(number, self.wish) for number in INTERRUPT_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
