"""Watching jobs: one Redis subscription a process says "look", each stream then reads Postgres.

Pub/sub carries no content and no authority. Without Redis, streams look by themselves once a second; a lost note
delays a stream by ``LOOK_SECONDS`` at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.broker import LOOK_CHANNEL

__all__ = ["Watcher"]

_log = structlog.get_logger(__name__)
# How long a stream trusts the bell before it looks all the same.
LOOK_SECONDS = 5.0
POLL_SECONDS = 1.0


class Watcher:
    """Wakes the streams of a job when something about it was committed."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            redis_url,
            socket_connect_timeout=2,
            socket_timeout=None,
            health_check_interval=15,
            # By itself it would retry in silence, and streams would go on trusting a bell that cannot ring.
            retry=Retry(NoBackoff(), 0),
        )
        self._watching: dict[UUID, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen(), name="watcher")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.ring_all()
        await self._redis.aclose()

    def ring_all(self) -> None:
        for events in self._watching.values():
            for event in events:
                event.set()

    @contextlib.asynccontextmanager
    async def watching(self, job_id: UUID) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the job should be looked at again. Clear it before looking."""
        event = asyncio.Event()
        self._watching.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._watching[job_id]
            events.discard(event)
            if not events:
                del self._watching[job_id]

    async def wait(self, event: asyncio.Event) -> None:
        """Return when rung, or after a bounded time in which a ring may have been lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS if self.connected else POLL_SECONDS):
                await event.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(LOOK_CHANNEL)
                    self.connected = True
                    self.ring_all()  # what happened while we did not listen
                    async for message in pubsub.listen():
                        self._ring(message["data"])
            except Exception as e:  # whatever it was, the bell must ring again
                known = isinstance(e, redis.RedisError | OSError)
                if self.connected or not known:
                    (_log.warning if known else _log.error)("watch.lost", error=type(e).__name__)
                self.connected = False
                self.ring_all()  # so that each stream turns to looking by itself
                await asyncio.sleep(POLL_SECONDS)

    def _ring(self, data: bytes) -> None:
        for text in data.split(b","):
            try:
                job_id = UUID(text.decode())
            except ValueError:
                continue
            for event in self._watching.get(job_id, ()):
                event.set()
