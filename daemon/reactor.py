"""One thread, one selector: what the daemon waits on, and whom it calls when something is there.

A callback never blocks. `wake()` may be called from any thread (watchdog, timers) and from signal handlers.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

__all__ = ["Reactor"]


class Reactor:
    """A selector with callbacks and a wake-up line."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.add(self._wake_read, self._drain)
        self.woken = False

    def add(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the descriptor can be read."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor; call before closing it."""
        self._selector.unregister(descriptor)

    def wake(self) -> None:
        """End the current wait."""
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # the line is full of wake-ups already

    def _drain(self) -> None:
        self.woken = True
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            return

    def poll(self, timeout: float) -> int:
        """Wait up to `timeout` seconds and run the callbacks of what is ready; returns how many ran."""
        ready = self._selector.select(timeout)
        for key, _events in ready:
            key.data()
        return len(ready)

    def close(self) -> None:
        """Give the descriptors back."""
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
