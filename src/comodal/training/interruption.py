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
        self.received_signal = 0
        self.previous_handlers: dict[int, object] = {}

    def handle_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        if self.received_signal and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received_signal = signal_number

    def get_agreed_signal(self, device: torch.device) -> int:
        """Returns the signal that any process received, 0 if none did; the same in all processes."""
        return round(distributed.all_reduce_max(float(self.received_signal), device))

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            self.previous_handlers = {
                signal_number: signal.signal(signal_number, self.handle_signal) for signal_number in INTERRUPT_SIGNALS
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signal_number, handler in self.previous_handlers.items():
            signal.signal(signal_number, handler)  # type: ignore[arg-type]
