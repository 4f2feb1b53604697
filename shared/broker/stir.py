"""An event that can be waited for together with a socket."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable

__all__ = ["Stir"]


class Stir:
    """As threading.Event, but ``wait`` also returns when one of some sockets can be read. For one waiter."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._set = False

    def set(self) -> None:
        if not self._set:
            self._set = True
            with contextlib.suppress(BlockingIOError):  # it holds enough to wake anybody
                self._theirs.send(b"\0")

    def clear(self) -> None:
        # Read first: a set in between is seen by its waiter, who looks after this; were its byte read away after the
        # flag is down, no later set would send one. And always: a set's byte may come after the clear that undid it.
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(4096)
        self._set = False

    def wait(self, seconds: float, *others: socket.socket) -> Iterable[socket.socket]:
        """Until set, or for ``seconds``; those of ``others`` that can be read. Raises OSError, ValueError for one that
        was closed."""
        readable, _, _ = select.select([self._ours, *others], [], [], max(0.0, seconds))
        return [s for s in readable if s is not self._ours]
