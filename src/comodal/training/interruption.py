"""Handling of Ctrl-C and SIGTERM: training stops at the end of the current step."""

import signal
import threading
from types import FrameType, TracebackType

import torch

from comodal import distributed

INTERRUPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptHandler:
    """Context manager in which a signal is only recorded; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, object] = {}

    def wish(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self, device: torch.device) -> int:
        """Returns the signal that any process received, 0 if none did; the same in all processes."""
        return round(distributed.all_reduce_max(float(self.signal), device))

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            self.before = {number: signal.signal(number, self.wish) for number in INTERRUPT_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
