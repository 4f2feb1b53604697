"""What resources share, made once a process when the event loop starts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg_pool import PoolClosed

from shared.broker import Publisher, WakeBroker, make_redis
from shared.db import AsyncPool, open_async_pool
from shared.settings import Settings
from shared.storage import Storage, from_settings

from . import multipart
from .watch import Watcher

__all__ = ["Deps"]


@dataclass(slots=True)
class Deps:
    """Opened by ``process_startup`` (Falcon's lifespan hook) inside each gunicorn worker, after the fork."""

    settings: Settings
    storage: Storage
    # Does the server process want to go on? Gunicorn ends the lifespan only after the last connection, so streams
    # that never end by themselves must ask.
    alive: Callable[[], bool] = lambda: True
    _pool: AsyncPool | None = None
    _publisher: Publisher | None = None
    _watcher: Watcher | None = None
    _bell: asyncio.Task[None] | None = None
    _healing: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Deps:
        return cls(settings, from_settings(settings))

    @property
    def pool(self) -> AsyncPool:
        assert self._pool is not None, "the gateway has not started"
        return self._pool

    @property
    def publisher(self) -> Publisher:
        assert self._publisher is not None, "the gateway has not started"
        return self._publisher

    @property
    def watcher(self) -> Watcher:
        assert self._watcher is not None, "the gateway has not started"
        return self._watcher

    def heal(self) -> None:
        """Drop the pool's dead connections, all at once: after a restart of PostgreSQL each would cost a request."""
        if self._healing is None or self._healing.done():
            self._healing = asyncio.create_task(self._heal(), name="heal-pool")

    async def _heal(self) -> None:
        with contextlib.suppress(psycopg.Error, PoolClosed):
            await self.pool.check()

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        url = self.settings.redis_url.get_secret_value()
        self._pool = await open_async_pool(
            self.settings.database_url.get_secret_value(),
            size=self.settings.db_pool_size,
            application_name="gradeline-api",
        )
        await asyncio.to_thread(multipart.sweep, self.settings)
        self._publisher = Publisher(WakeBroker(make_redis(url))).start()
        self._watcher = Watcher(url)
        self._watcher.start()
        self._bell = asyncio.create_task(self._ring_at_shutdown(), name="shutdown-bell")

    async def process_shutdown(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        if self._bell is not None:
            self._bell.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._bell
        if self._watcher is not None:
            await self._watcher.close()
        if self._publisher is not None:
            await asyncio.to_thread(self._publisher.close)
        if self._pool is not None:
            await self._pool.close(timeout=2)

    async def _ring_at_shutdown(self) -> None:
        while self.alive():
            await asyncio.sleep(0.2)
        self.watcher.ring_all()
