"""Ctrl-C during a fit."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interruption:
    """Whether Ctrl-C was pressed."""

    def __init__(self):
        self.requested: bool = False
        self._at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While the user's own code runs, Ctrl-C raises as always."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def handle(self, *_: Any) -> None:
        """Take a signal."""
        if self._at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take Ctrl-C as a request to end the fit after the current chunk; a second one raises.

    Only in the main thread, and only where Ctrl-C has its usual meaning.
    """
    interruption = Interruption()
    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if main else None
    if previous is not signal.default_int_handler:
        yield interruption
        return
    signal.signal(signal.SIGINT, interruption.handle)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
