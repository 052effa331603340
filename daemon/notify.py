"""Telling systemd how we are (sd_notify): READY, STATUS, WATCHDOG, STOPPING. Silent where no systemd listens.

WATCHDOG is sent by the engine only on real progress of its loop, never by a timer of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Notifier"]


@dataclass
class Notifier:
    """A one-way line to the service manager; failures to reach it are counted and change nothing."""

    address: str = ""
    missed: int = field(default=0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        return cls((os.environ if environment is None else environment).get("NOTIFY_SOCKET", ""))

    def send(self, *lines: str) -> None:
        """Send `READY=1`, `STATUS=...` and the like in one datagram."""
        if not self.address:
            return
        target = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.sendto("\n".join(lines).encode(), target)
        except OSError:
            self.missed += 1
