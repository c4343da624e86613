"""Ctrl-C as a request: the loop finishes its step, writes a checkpoint and says how to resume."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

INTERRUPTED = 130  # exit status of a command that Ctrl-C has ended: 128 + SIGINT, as shells report it


class Interrupt:
    """Context manager: the first SIGINT or SIGTERM sets `.requested`, a second raises KeyboardInterrupt.

    Outside the main thread Python allows no signal handlers; there it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
