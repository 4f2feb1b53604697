"""gunicorn's asgi worker, with one thing mended: at shutdown it waits for requests, not for idle connections.

gunicorn 27 counts every open connection as one in flight, so a client that merely keeps its connection alive holds
SIGTERM up for the whole graceful timeout. Ours closes connections that are between requests at once.
"""

from __future__ import annotations

import weakref
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

__all__ = ["GatewayWorker"]


class _Connection(ASGIProtocol):  # type: ignore[misc]
    """A connection that its worker can find again."""

    def __init__(self, worker: GatewayWorker) -> None:
        super().__init__(worker)
        worker.connections.add(self)

    def close_if_idle(self) -> None:
        if self._awaiting_request:
            self._keepalive_timeout()  # what gunicorn itself does with a connection that was idle for too long


class GatewayWorker(gasgi.ASGIWorker):  # type: ignore[misc]
    """Named in gunicorn's ``worker_class``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: weakref.WeakSet[_Connection] = weakref.WeakSet()

    def init_process(self) -> None:
        # The worker makes its connections by this module-level name; it offers no other place to say which.
        gasgi.ASGIProtocol = _Connection
        super().init_process()

    async def _shutdown(self) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        await super()._shutdown()
