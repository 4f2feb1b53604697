"""The Dramatiq broker: Redis, with what FACTS.md knows of its corners put right.

A message is only a wake-up ("look at queue X"), so nothing here lets Redis hold work up. How wake-ups are received
is in ``consumer``; how they are sent, in ``publisher``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import redis
import uuid_utils
from dramatiq import Middleware
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from .claimer import Claimer
    from .consumer import WakeConsumer

__all__ = [
    "NAMESPACE",
    "URGENT",
    "WakeBroker",
    "actor_name",
    "bell_channel",
    "make_redis",
    "run_actor_name",
    "wake_message",
]

NAMESPACE = "gradeline"
# Messages that a dead process had prefetched are requeued by one command in a hundred, not one in a thousand:
# they are wake-ups, but a queue of stale ones should not linger.
MAINTENANCE_CHANCE = 10_000


def actor_name(queue: str) -> str:
    """The one actor of a queue."""
    return f"wake.{queue}"


def run_actor_name(queue: str, priority: int) -> str:
    """The actor that a worker thread runs for a claimed job of this priority (0 is the highest)."""
    return f"run.{queue}.{priority}"


def bell_channel(queue: str) -> str:
    """The pub/sub channel that says "there is a new wake-up in this queue", so that idle consumers need not poll."""
    return f"{NAMESPACE}:bell:{queue}"


def wake_message(queue: str, job_id: str) -> tuple[str, bytes]:
    """A wake-up for ``queue``: its Redis id, and the Dramatiq message as bytes.

    The job that it names is a hint for people reading the queue, not an order. Written as Dramatiq would, at a fifth of
    the cost.
    """
    id = str(uuid_utils.uuid4())
    message = {
        "queue_name": queue,
        "actor_name": actor_name(queue),
        "args": (job_id,),
        "kwargs": {},
        "options": {"redis_message_id": id},
        "message_id": id,
        "message_timestamp": current_millis(),
    }
    return id, orjson.dumps(message)


def make_redis(url: str) -> redis.Redis:
    """A client with bounded waits: two seconds to connect, five to answer, one retry on a fresh connection."""
    return redis.Redis.from_url(
        url, socket_connect_timeout=2, socket_timeout=5, health_check_interval=15, retry=Retry(NoBackoff(), 1)
    )


# What the bell says when a job of high priority is among those that it rings for.
URGENT = b"!"


class WakeBroker(RedisBroker):
    """RedisBroker without delay queues (delays are rows in Postgres) and with a consumer that rests on a bell.

    Once ``draining`` is set its consumers claim nothing more.
    """

    def __init__(self, client: redis.Redis, middleware: Iterable[Middleware] = ()) -> None:
        super().__init__(
            client=client,
            middleware=list(middleware),
            namespace=NAMESPACE,
            maintenance_chance=MAINTENANCE_CHANCE,
            heartbeat_timeout=15_000,
        )
        self.draining = threading.Event()
        self.claimer: Claimer | None = None  # of a broker that consumes

    @property
    def consumer_class(self) -> type[WakeConsumer]:
        from .consumer import WakeConsumer

        return WakeConsumer

    def declare_queue(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def run_all(self, queue: str, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """Run commands of Dramatiq's script (enqueue, fetch, ack) in one round trip. Raises redis.RedisError."""
        with self.client.pipeline(transaction=False) as pipe:
            for command, *args in commands:
                self.add_to(pipe, command, queue, *args)
            return self.execute(pipe)

    def add_to(self, pipe: redis.client.Pipeline, command: str, queue: str, *args: str | bytes) -> None:
        """Put a command of Dramatiq's script on a pipeline, for ``execute``.

        The same call as RedisBroker makes one by one; its arguments are those of dramatiq/brokers/redis.py, _dispatch.
        By its hash, because redis-py asks whether the script is there before each pipeline that names it otherwise.
        """
        pipe.evalsha(
            self.scripts["dispatch"].sha,
            1,
            self.namespace,
            command,
            current_millis(),
            queue,
            self.broker_id,
            self.heartbeat_timeout,
            self.dead_message_ttl,
            self._should_do_maintenance(command),
            self._max_unpack_size(),
            *args,
        )

    def execute(self, pipe: redis.client.Pipeline) -> list[Any]:
        """Execute a pipeline of ``add_to``; once more with the script loaded, after a restart of Redis."""
        stack = list(pipe.command_stack)
        try:
            return list(pipe.execute())
        except redis.exceptions.NoScriptError:
            self.client.script_load(self.scripts["dispatch"].script)
            pipe.reset()
            pipe.command_stack = stack
            return list(pipe.execute())
