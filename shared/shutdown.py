"""Waiting for SIGTERM and SIGINT in a process with threads."""

from __future__ import annotations

import select
import signal
import socket

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """From its making on, SIGTERM and SIGINT end nothing by themselves: ``wait`` returns once for each.

    By the wake-up descriptor, which C writes to in whatever thread the kernel chose. A Python handler runs in the main
    thread only, once that next runs Python: after SIGSTOP, SIGTERM and SIGCONT, as systemd may send them, another
    thread gets the signal and a main thread that waits for a lock would never know.
    """

    def __init__(self) -> None:
        """In the main thread."""
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs  # kept open
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def wait(self) -> int:
        """Block until the next one; its number. From any thread, one at a time."""
        while True:
            select.select([self._ours], [], [])
            number = self._ours.recv(1)[0]
            if number in _SIGNALS:
                return number
