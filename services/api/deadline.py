"""How long a request's body may take, and reading on after a refusal so that the refusal arrives.

Beneath Falcon, because it waits for the first piece of a body before any of our code runs, and because gunicorn
closes neither silent connections nor those that send a byte a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import Problem, problem_body

__all__ = ["BodyWatch", "refuse"]

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

# A client that is still sending when it is refused reads the answer only afterwards; closing at once would reset the
# connection and lose the answer. nginx calls this lingering_close.
LINGER_SECONDS = 5.0


class BodyWatch:
    """``receive`` of one request. Raises Problem 408 when the body is not whole ``seconds`` after the request's head,
    or when the server gave up waiting for it; after the whole body it is the server's own ``receive``."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._whole = False
        self._given_up = False

    async def receive(self) -> Any:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await self._receive()
        except TimeoutError:
            raise self._late() from None
        if event["type"] == "http.disconnect":
            raise self._late()
        self._whole = not event.get("more_body", False)
        return event

    async def linger(self) -> None:
        """Throw away what a refused client still sends, for a few seconds. Returns at once after a whole body."""
        if self._whole or self._given_up:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._whole:
                    event = await self._receive()
                    self._whole = event["type"] == "http.disconnect" or not event.get("more_body", False)

    def _late(self) -> Problem:
        self._given_up = True
        return Problem(
            408,
            "request.timeout",
            f"The request did not arrive whole within {self._seconds:g} seconds. "
            "Check the connection and send it again.",
            headers={"Connection": "close"},
        )


async def refuse(send: Send, problem: Problem, request_id: str) -> None:
    """Answer with ``problem`` where no request object was made yet."""
    body = problem_body(problem.problem, request_id)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
