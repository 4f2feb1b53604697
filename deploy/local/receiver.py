"""A webhook consumer, as small as one can be: takes deliveries on loopback and checks their signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Delivery", "Receiver"]

# Older deliveries are refused: somebody may replay one he has overheard.
_TOLERANCE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came: header names in lower case, the body as it was signed."""

    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> bool:
        """Is it ours, whole and fresh? All that a consumer has to do (standardwebhooks.com): HMAC-SHA256 over
        ``id.timestamp.body`` with the shared secret."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        fresh = abs(time.time() - int(self.headers["webhook-timestamp"])) <= _TOLERANCE_SECONDS
        return fresh and any(
            hmac.compare_digest(expected, given) for given in self.headers["webhook-signature"].split()
        )


class Receiver:
    """Listens while the block runs, keeps what it is sent, and answers with ``statuses`` in turn, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.deliveries: list[Delivery] = []
        self._statuses = list(statuses)
        self._came = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                delivery = Delivery({k.lower(): v for k, v in self.headers.items()}, body)
                with outer._came:
                    outer.deliveries.append(delivery)
                    outer._came.notify_all()
                self.send_response(outer._statuses.pop(0) if outer._statuses else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet: a consumer's log is no place for what it is sent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks/gradeline"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, text: str, within: float = 30) -> Delivery | None:
        """The first delivery that contains ``text``, however many came before it; None when none came in time."""

        def found() -> Delivery | None:
            return next((d for d in self.deliveries if text.encode() in d.body), None)

        with self._came:
            self._came.wait_for(found, within)
            return found()
