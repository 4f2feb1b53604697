"""Bare Dramatiq on Redis with its default middleware: nothing is tracked. Started by Dramatiq's own command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.engine.ground import Place
from bench.engine.systems.base import Client, System

__all__ = ["Dramatiq", "declare"]

_QUEUE = "dramatiq:default"


def declare(redis_url: str | None = None, results: bool | None = None) -> Any:
    """The broker with its one actor; the worker's command calls it without arguments."""
    url = redis_url or os.environ["REDIS_URL"]
    broker = RedisBroker(client=redis.Redis.from_url(url))  # by ``url=`` its client would never retry
    results = bool(os.environ.get("BENCH_RESULTS")) if results is None else results
    if results:
        broker.add_middleware(Results(backend=RedisBackend(client=redis.Redis.from_url(url)), store_results=True))
    dramatiq.set_broker(broker)
    marks = redis.Redis.from_url(url)

    def run(seconds: float, mark: str = "") -> dict[str, Any] | None:
        if mark:
            marks.rpush(mark, time.time())
        if seconds:
            time.sleep(seconds)
        return {} if results else None  # a value that nobody stores is warned of, each time

    return dramatiq.actor(actor_name="bench", broker=broker)(run)


class DramatiqClient(Client):
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._redis = actor.broker.client

    def load(self, jobs: int, seconds: float = 0.0) -> None:
        for _ in range(jobs):
            self._actor.send(seconds)

    def unfinished(self) -> bool:
        # A message's body goes when it has been acknowledged.
        return bool(self._redis.hlen(f"{_QUEUE}.msgs"))

    def ended_at(self) -> float:
        return time.time()  # it records nothing

    def verify(self, jobs: int) -> None:
        if dead := self._redis.zcard(f"{_QUEUE}.XQ"):
            raise RuntimeError(f"Dramatiq: {dead} dead messages")

    def one(self) -> None:
        self._actor.send(0.0).get_result(block=True, timeout=10_000)

    def hold(self, key: str) -> None:
        self._actor.send(300, key)


class Dramatiq(System):
    schema = "dramatiq"

    def __init__(self, *, threads: int = 8, results: bool = False) -> None:
        self.name = "Dramatiq + Redis results" if results else "Dramatiq"
        self._threads = threads
        self._results = results
        self.setting = f"2 processes × {threads} threads, default middleware, {'' if results else 'no '}results"

    def install(self, database_url: str) -> None:
        """It has none."""

    def commands(self, processes: int) -> list[list[str]]:
        module = "bench.engine.systems.dramatiq_peer:declare"
        command = [sys.executable, "-m", "dramatiq", module, "-p", str(processes), "-t", str(self._threads)]
        return [command]

    def environment(self) -> dict[str, str]:
        return {"BENCH_RESULTS": "1"} if self._results else {}

    @contextmanager
    def client(self, place: Place) -> Iterator[DramatiqClient]:
        actor = declare(place.redis_url, self._results)
        try:
            yield DramatiqClient(actor)
        finally:
            actor.broker.close()
            actor.broker.client.close()
