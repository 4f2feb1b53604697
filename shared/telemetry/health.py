"""A process's own port: is it alive, is it ready, its metrics and its figures. Standard library only at import."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

__all__ = ["Check", "HealthServer"]

# None: well. Otherwise the reason, in the operator's words; an exception counts as a failure named by its type.
Check = Callable[[], str | None]

_REQUEST_SECONDS = 5.0  # a probe that dawdles longer with its request is dropped


class HealthServer:
    """Serves ``/healthz`` (the ``live`` checks), ``/readyz`` (``live`` and ``checks``), ``/metrics`` and ``/stats``.

    Liveness fails when only a restart helps, readiness when no work should come now. A failing check gives 503
    and ``{"status": "failing", "failing": {name: reason}}``. Each check gets ``check_seconds``; one that hangs
    is reported as hanging, and not started again until it returns.

    Runs on daemon threads from ``start`` to ``close``. Raises OSError when the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        checks: Mapping[str, Check],
        *,
        live: Mapping[str, Check] | None = None,
        stats: Callable[[], Mapping[str, Any]] | None = None,
        metrics: Callable[[], bytes] | None = None,
        check_seconds: float = 2.0,
    ) -> None:
        self._live = [_Guarded(n, c, check_seconds) for n, c in (live or {}).items()]
        self._ready = [*self._live, *(_Guarded(n, c, check_seconds) for n, c in checks.items())]
        self._stats = stats
        self._metrics = metrics
        outer = self

        class Handler(_Handler):
            def answer(self, path: str) -> tuple[int, str, bytes]:
                return outer._answer(path)

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port listened on: the one chosen when 0 was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> HealthServer:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening and free the port. May be called twice, and without ``start``."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> HealthServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        match path:
            case "/healthz":
                return _verdict(self._live)
            case "/readyz":
                return _verdict(self._ready)
            case "/metrics":
                # Late, so that a process that is never scraped does not pay for prometheus_client.
                from . import metrics

                return 200, metrics.CONTENT_TYPE, (self._metrics or metrics.render)()
            case "/stats":
                return 200, "application/json", orjson.dumps(dict(self._stats()) if self._stats else {}, default=str)
            case _:
                return 404, "application/json", b'{"status":"not found"}'


def _verdict(checks: list[_Guarded]) -> tuple[int, str, bytes]:
    for check in checks:
        check.begin()
    began = time.monotonic()  # all wait together: ten checks that hang cost a probe no more than one
    failing = {c.name: reason for c in checks if (reason := c.outcome(time.monotonic() - began)) is not None}
    body = {"status": "failing", "failing": failing} if failing else {"status": "ok"}
    return (503 if failing else 200), "application/json", orjson.dumps(body)


class _Guarded:
    """A check on a thread of its own, so that one that hangs neither holds a probe nor piles up threads."""

    def __init__(self, name: str, check: Check, seconds: float) -> None:
        self.name = name
        self._check = check
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running: threading.Thread | None = None
        self._reason: str | None = "not yet run"

    def begin(self) -> None:
        with self._lock:
            if self._running is None or not self._running.is_alive():
                self._running = threading.Thread(target=self._run, name=f"check-{self.name}", daemon=True)
                self._running.start()

    def outcome(self, waited: float) -> str | None:
        with self._lock:
            running = self._running
        if running is not None:
            running.join(max(0.0, self._seconds - waited))
            if running.is_alive():
                return f"no answer within {self._seconds:g} s"
        return self._reason

    def _run(self) -> None:
        try:
            self._reason = self._check()
        except Exception as e:
            self._reason = f"failed with {type(e).__name__}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: the stock one prints a traceback to stderr when a prober hangs up."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS
    server_version = "gradeline"
    sys_version = ""

    def answer(self, path: str) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def do_GET(self) -> None:
        try:
            status, media_type, body = self.answer(self.path.partition("?")[0])
        except Exception as e:
            status, media_type = 500, "application/json"
            body = orjson.dumps({"status": "failing", "failing": {"self": f"failed with {type(e).__name__}"}})
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a probe a second is noise."""
