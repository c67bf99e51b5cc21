"""Signals that ask a run to stop: Ctrl-C, and SIGTERM of a scheduler that wants its machine back."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Inside, the first signal is only noted, so that the loop can end its step and save; a second Ctrl-C stops at once.

    A context manager. In a thread other than the main one, where Python lets nobody handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


def raise_for_signal(signal_name: str | None) -> None:
    """Do what a signal would have done at once; nothing if there was none.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was another one; with the exit code that a shell expects.
    """
    if signal_name == "SIGINT":
        raise KeyboardInterrupt
    if signal_name is not None:
        raise SystemExit(128 + signal.Signals[signal_name])
