"""The Dramatiq broker: Redis, with what FACTS.md knows of its corners put right.

A message is only a wake-up ("look at queue X"), so the consumer here never lets Redis hold work up:
acknowledgements that fail are dropped, and while Redis cannot be reached the consumer makes wake-ups of its own,
one poll a second, so that workers go on from Postgres alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import redis
from dramatiq import Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.telemetry import metrics

__all__ = ["NAMESPACE", "WakeBroker", "actor_name", "bell_channel", "make_redis", "wake_message"]

NAMESPACE = "gradeline"
# While Redis is away, each consumer asks Postgres this often.
POLL_SECONDS = 1.0
# Messages that a dead process had prefetched are requeued by one command in a hundred, not one in a thousand:
# they are wake-ups, but a queue of stale ones should not linger.
MAINTENANCE_CHANCE = 10_000
_LOST = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.BusyLoadingError, redis.RedisError)


def actor_name(queue: str) -> str:
    """The one actor of a queue."""
    return f"wake.{queue}"


def bell_channel(queue: str) -> str:
    """The pub/sub channel that says "there is a new wake-up in this queue", so that idle consumers need not poll."""
    return f"{NAMESPACE}:bell:{queue}"


def wake_message(queue: str, job_id: str) -> Message[Any]:
    """A wake-up for ``queue``; the job it names is a hint for people reading the queue, not an order."""
    return Message(
        queue_name=queue,
        actor_name=actor_name(queue),
        args=(job_id,),
        kwargs={},
        options={"redis_message_id": str(uuid4())},
    )


def make_redis(url: str) -> redis.Redis:
    """A client with bounded waits: two seconds to connect, five to answer, one retry on a fresh connection."""
    return redis.Redis.from_url(
        url, socket_connect_timeout=2, socket_timeout=5, health_check_interval=15, retry=Retry(NoBackoff(), 1)
    )


class WakeBroker(RedisBroker):
    """RedisBroker without delay queues (delays are rows in Postgres) and with a consumer that rests on a bell."""

    def __init__(self, client: redis.Redis, middleware: Iterable[Middleware] = ()) -> None:
        super().__init__(
            client=client,
            middleware=list(middleware),
            namespace=NAMESPACE,
            maintenance_chance=MAINTENANCE_CHANCE,
            heartbeat_timeout=15_000,
        )

    @property
    def consumer_class(self) -> type[WakeConsumer]:
        return WakeConsumer

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)


class WakeConsumer(_RedisConsumer):
    """Fetches wake-ups; rests on the bell when there are none, and on a freed slot when it holds enough."""

    def __init__(self, broker: WakeBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self._freed = threading.Event()
        self._bell: redis.client.PubSub | None = None
        self._polled_at = 0.0

    def __next__(self) -> MessageProxy | None:
        try:
            if self.message_cache:
                return self._take(self.message_cache.pop(0))
            if self.outstanding_message_count >= self.prefetch:
                self._freed.wait(self.timeout / 1000)
                self._freed.clear()
                return None
            # Subscribe before the fetch: a bell rung in between is then in the socket, not lost.
            bell = self._listen()
            self.message_cache = self.broker.do_fetch(self.queue_name, self.prefetch - self.outstanding_message_count)
            if self.message_cache:
                return self._take(self.message_cache.pop(0))
            bell.get_message(ignore_subscribe_messages=True, timeout=self.timeout / 1000)
            return None
        except _LOST:
            return self._without_redis()

    def ack(self, message: MessageProxy) -> None:
        self._settle(message, "ack")

    def nack(self, message: MessageProxy) -> None:
        self._settle(message, "nack")

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        ids = [m.options["redis_message_id"] for m in messages if "local" not in m.options]
        if ids:
            try:
                self.broker.do_requeue(self.queue_name, *ids)
            except _LOST:
                metrics.WAKEUPS.labels(self.queue_name, "lost").inc(len(ids))

    def close(self) -> None:
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def _listen(self) -> redis.client.PubSub:
        if self._bell is None:
            bell = self.broker.client.pubsub(ignore_subscribe_messages=True)
            bell.subscribe(bell_channel(self.queue_name))
            self._bell = bell
        return self._bell

    def _take(self, data: bytes | None) -> MessageProxy | None:
        if data is None:
            return None
        try:
            message: Message[Any] = Message.decode(data)
            known = message.options["redis_message_id"] and message.actor_name in self.broker.actors
        except Exception:
            known = False
        if not known:
            self._drop(data)
            return None
        self.queued_message_ids.add(message.message_id)
        return MessageProxy(message)

    def _drop(self, data: bytes) -> None:
        """Acknowledge a message that cannot be read, by its raw id, so that its neighbours are not stranded."""
        metrics.WAKEUPS.labels(self.queue_name, "undecodable").inc()
        stored = self.broker.client.hgetall(f"{NAMESPACE}:{self.queue_name}.msgs")
        for raw_id, body in stored.items():
            if body == data:
                self.broker.do_ack(self.queue_name, raw_id)

    def _settle(self, message: MessageProxy, command: str) -> None:
        try:
            if "local" not in message.options:
                getattr(self.broker, f"do_{command}")(self.queue_name, message.options["redis_message_id"])
        except _LOST:
            # It will be delivered again, and find nothing to claim.
            metrics.WAKEUPS.labels(self.queue_name, "lost").inc()
        finally:
            self.queued_message_ids.discard(message.message_id)
            self._freed.set()

    def _without_redis(self) -> MessageProxy | None:
        self.close()
        wait = self._polled_at + POLL_SECONDS - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, self.timeout / 1000))
            return None
        self._polled_at = time.monotonic()
        metrics.WAKEUPS.labels(self.queue_name, "polled").inc()
        free = self.prefetch - self.outstanding_message_count
        local = [wake_message(self.queue_name, "poll").copy(options={"local": True}) for _ in range(free)]
        self.message_cache = [m.encode() for m in local]
        return None
