"""Receiving wake-ups: the consumer of one queue, with what FACTS.md knows of Dramatiq's own put right.

A wake-up says "look", so it is acknowledged as soon as it is here; what the consumer hands to the worker threads are
the jobs that it then claims. No thread that runs jobs ever talks to Redis. While that cannot be reached, the consumer
looks by itself, so that work goes on from Postgres alone.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import _RedisConsumer

from shared.telemetry import metrics

from .claimer import Claimer
from .factory import NAMESPACE, URGENT, bell_channel, run_actor_name
from .run import Run

if TYPE_CHECKING:
    from .factory import WakeBroker

__all__ = ["IDLE_POLL_SECONDS", "POLL_SECONDS", "RunMessage", "WakeConsumer"]

# While Redis is away, an idle consumer asks Postgres this often; one that found work asks again at once.
POLL_SECONDS = 1.0
# With Redis well and no wake-up, it asks this often all the same: what bounds a wake-up lost while no scheduler runs.
IDLE_POLL_SECONDS = 15.0
# Wake-ups taken at a time. One is as good as many, and what is not needed here must not cost a claim each.
_FETCH = 64
_ID = "redis_message_id"


class RunMessage(MessageProxy):
    """What worker threads are handed: a claimed job. Unknown to Redis."""

    def __init__(self, queue_name: str, run: Run) -> None:
        # By its lifted priority: one that waited long is not overtaken in here either.
        actor = run_actor_name(queue_name, run.level)
        super().__init__(Message(queue_name, actor, (), {}, {}, message_id="", message_timestamp=0))
        self.run = run


class WakeConsumer(_RedisConsumer):
    """Claims when woken, when a thread has come free and there may be more, and once in a while; else rests on the
    bell."""

    def __init__(self, broker: WakeBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]
        if broker.claimer is None:
            raise RuntimeError("a broker that consumes needs a claimer")
        self._claimer: Claimer = broker.claimer
        self._freed = broker.claimer.freed
        self._bell: redis.client.PubSub | None = None
        self._urgent = False  # a high-priority job came while there was no room
        self._owed: list[str] = []  # raw ids of wake-ups to acknowledge
        self._claimed: deque[Run] = deque()
        self._asked_at = time.monotonic()  # when work was last looked for in Postgres

    # -- called by Dramatiq's consumer thread

    def __next__(self) -> MessageProxy | None:
        if self._claimed:
            return RunMessage(self.queue_name, self._claimed.popleft())
        self._freed.clear()  # before looking for room, so that what comes free meanwhile is not slept over
        if self.broker.draining.is_set():
            self._freed.wait(float(self.timeout) / 1000)
            return None
        self._claimer.tend()
        room = self._claimer.room()
        if room and self._claimer.hungry and self._claim(room):
            return RunMessage(self.queue_name, self._claimed.popleft())
        try:
            if room:
                self._listen_for_wakeups()
            elif self._urgent and self._claim(self._claimer.urgent_room()):
                return RunMessage(self.queue_name, self._claimed.popleft())
            else:  # with an ear for the bell, where it was heard before: nothing here waits for Redis
                self._rest(self._idle_seconds(room))
        except redis.RedisError:
            self._without_redis()
        return None

    def close(self) -> None:
        """Acknowledge what is owed, as far as Redis can be reached. Raises nothing."""
        with contextlib.suppress(Exception):
            self._fetch(0)
        self._hang_up()

    def _claim(self, room: int) -> bool:
        self._urgent = False
        if not room:
            return False
        self._asked_at = time.monotonic()
        self._claimed.extend(self._claimer.claim(room))
        return bool(self._claimed)

    def _idle_seconds(self, room: int = 1) -> float:
        """How long to rest when nothing calls."""
        wait = self._claimer.pause_seconds(room)
        idle = float(self.timeout) / 1000
        return idle if wait is None else min(idle, wait)

    def _rest(self, seconds: float) -> None:
        """Until a worker thread wants a job, the bell rings, or for ``seconds``. Raises redis.RedisError."""
        bell = self._bell
        # redis-py has no public way to wait for a subscription and something else.
        ear = getattr(bell.connection, "_sock", None) if bell is not None else None
        try:
            heard = self._freed.wait(seconds, *([ear] if ear is not None else []))
        except (OSError, ValueError):
            raise redis.ConnectionError("the bell's connection is gone") from None
        while heard and bell is not None:
            message = bell.get_message(timeout=0)
            if message is None:
                return
            self._urgent = self._urgent or message["data"] == URGENT

    # -- called by worker threads; none of these talks to Redis

    def ack(self, message: MessageProxy) -> None: ...

    def nack(self, message: MessageProxy) -> None: ...

    def requeue(self, messages: Iterable[MessageProxy]) -> None: ...

    # -- with Redis

    def _listen_for_wakeups(self) -> None:
        """Take the wake-ups there are; wait for one when there are none."""
        # Subscribe before the fetch: a bell rung in between is then in the socket, not lost. (The answer to the
        # subscription itself ends the first rest, so that there is one more fetch once it surely holds.)
        self._listen()
        wakes = sum(self._take(data) for data in self._fetch(_FETCH))
        if wakes:
            self._claimer.wake()
            return
        if time.monotonic() - self._asked_at >= IDLE_POLL_SECONDS:
            metrics.WAKEUPS.labels(self.queue_name, "idle").inc()
            self._claimer.wake()
            if self._claimer.hungry:  # else a claim has just failed
                return
        self._rest(self._idle_seconds())

    def _listen(self) -> None:
        if self._bell is None:
            bell = self.broker.client.pubsub(ignore_subscribe_messages=True)
            bell.subscribe(bell_channel(self.queue_name))
            self._bell = bell

    def _fetch(self, count: int) -> list[bytes | None]:
        """Acknowledge what is owed and take up to ``count`` wake-ups, in one round trip.

        Acknowledgements that Redis does not take are lost: their messages come again some day.
        """
        owed, self._owed = self._owed, []
        commands = [("ack", raw_id) for raw_id in owed]
        if count:
            commands.append(("fetch", str(count)))
        if not commands:
            return []
        try:
            answers = self.broker.run_all(self.queue_name, commands)
        except redis.RedisError:
            if owed:
                metrics.WAKEUPS.labels(self.queue_name, "lost").inc(len(owed))
            raise
        return list(answers[-1]) if count else []

    def _take(self, data: bytes | None) -> bool:
        """Whether this is a wake-up for this queue. It, and anything else, is owed an acknowledgement."""
        message = _read(data)
        if message is None:
            self._drop(data)
            return False
        self._owed.append(message.options[_ID])
        known = message.actor_name in self.broker.actors and message.queue_name == self.queue_name
        metrics.WAKEUPS.labels(self.queue_name, "received" if known else "unknown").inc()
        return known

    def _drop(self, data: bytes | None) -> None:
        """Acknowledge what cannot be read by its raw id, so that it does not linger among the messages in work."""
        metrics.WAKEUPS.labels(self.queue_name, "undecodable").inc()
        mine = f"{NAMESPACE}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        ids = [raw if isinstance(raw, str) else raw.decode() for raw in self.broker.client.smembers(mine)]
        if not ids:
            return
        bodies = self.broker.client.hmget(f"{NAMESPACE}:{self.queue_name}.msgs", ids)
        self._owed.extend(raw_id for raw_id, body in zip(ids, bodies, strict=True) if body == data)

    def _hang_up(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            with contextlib.suppress(Exception):
                bell.close()

    # -- without Redis

    def _without_redis(self) -> None:
        """Look once in a while; a thread that comes free may know of more work."""
        self._hang_up()
        wait = self._asked_at + POLL_SECONDS - time.monotonic()
        if wait > 0:
            self._rest(min(wait, self._idle_seconds()))
            return
        metrics.WAKEUPS.labels(self.queue_name, "polled").inc()
        self._claimer.wake()
        if not self._claimer.hungry:  # a claim has just failed
            self._rest(self._idle_seconds())


def _read(data: bytes | None) -> Message[Any] | None:
    """The message, or None if it is none that Dramatiq could have written."""
    try:
        message: Message[Any] = Message.decode(data)  # type: ignore[arg-type]
        good = isinstance(message.options[_ID], str) and isinstance(message.message_id, str)
        return message if good else None
    except Exception:
        return None
