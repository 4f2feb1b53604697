"""Receiving wake-ups: the consumer of one queue, with what FACTS.md knows of Dramatiq's own put right.

No thread that runs jobs ever talks to Redis: acknowledgements are owed, and paid by the consumer's thread at its next
fetch. While Redis cannot be reached the consumer makes wake-ups of its own, so that work goes on from Postgres alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import _RedisConsumer

from shared.telemetry import metrics

from .factory import NAMESPACE, bell_channel, wake_message

if TYPE_CHECKING:
    from .factory import WakeBroker

__all__ = ["CLAIMED", "IDLE_POLL_SECONDS", "POLL_SECONDS", "REQUEUE", "WakeConsumer"]

# While Redis is away, an idle consumer asks Postgres this often; one that found work asks again at once.
POLL_SECONDS = 1.0
# With Redis well and no wake-up, it asks this often all the same: what bounds a wake-up lost while no scheduler runs.
IDLE_POLL_SECONDS = 15.0
# Options that Claim sets on a message, for its consumer: it led to a job; it goes back to the queue.
CLAIMED = "claimed"
REQUEUE = "requeue"
_LOCAL = "local"  # made here, unknown to Redis
_ID = "redis_message_id"
_OURS = {_ID, _LOCAL}


class WakeConsumer(_RedisConsumer):
    """Fetches wake-ups; rests on the bell when there are none, and on a freed slot when it holds enough."""

    def __init__(self, broker: WakeBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]
        self._freed = threading.Event()
        self._bell: redis.client.PubSub | None = None
        self._owed: deque[tuple[str, str]] = deque()  # (command, raw id)
        self._asked_at = time.monotonic()  # when work was last looked for in Postgres by a wake-up from here

    # -- called by Dramatiq's consumer thread

    def __next__(self) -> MessageProxy | None:
        try:
            if self.broker.draining.is_set():
                self._give_back()
                self._rest()
                return None
            if self.message_cache:
                return self._take(self.message_cache.pop(0))
            if self.outstanding_message_count >= self.prefetch:
                self._rest()
                return None
            # Subscribe before the fetch: a bell rung in between is then in the socket, not lost. (The answer to the
            # subscription itself ends the first rest, so that there is one more fetch once it surely holds.)
            bell = self._listen()
            self._pay()
            self.message_cache = self.broker.do_fetch(self.queue_name, self.prefetch - self.outstanding_message_count)
            if self.message_cache:
                return self._take(self.message_cache.pop(0))
            if time.monotonic() - self._asked_at >= IDLE_POLL_SECONDS:
                self._ask("idle")
                return None
            bell.get_message(ignore_subscribe_messages=True, timeout=self.timeout / 1000)
            return None
        except redis.RedisError:
            return self._without_redis()

    def close(self) -> None:
        """Give back what is held, as far as Redis can be reached. Raises nothing."""
        with contextlib.suppress(Exception):
            self._give_back()
        self._hang_up()

    # -- called by worker threads; none of these talks to Redis

    def ack(self, message: MessageProxy) -> None:
        self._settle(message, REQUEUE if message.options.get(REQUEUE) else "ack")

    def nack(self, message: MessageProxy) -> None:
        self._settle(message, "nack")

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        for message in messages:
            self._settle(message, REQUEUE)

    def _settle(self, message: MessageProxy, command: str) -> None:
        if _LOCAL not in message.options:
            self._owed.append((command, message.options[_ID]))
        elif message.options.get(CLAIMED):
            self._asked_at = float("-inf")  # there was work, so there may be more
        self.queued_message_ids.discard(message.message_id)
        self._freed.set()

    # -- with Redis

    def _listen(self) -> redis.client.PubSub:
        if self._bell is None:
            bell = self.broker.client.pubsub(ignore_subscribe_messages=True)
            bell.subscribe(bell_channel(self.queue_name))
            self._bell = bell
        return self._bell

    def _pay(self) -> None:
        """Send the acknowledgements that are owed. Those that Redis does not take are lost: their messages come again
        some day, and find nothing to claim."""
        owed = []
        with contextlib.suppress(IndexError):
            while True:
                owed.append(self._owed.popleft())
        if not owed:
            return
        try:
            with self.broker.client.pipeline(transaction=False) as pipe:
                for command, raw_id in owed:
                    self.broker.add_to(pipe, command, self.queue_name, raw_id)
                if any(command == REQUEUE for command, _ in owed):
                    pipe.publish(bell_channel(self.queue_name), b"")
                pipe.execute()
        except redis.RedisError:
            metrics.WAKEUPS.labels(self.queue_name, "lost").inc(len(owed))
            raise

    def _give_back(self) -> None:
        held, self.message_cache = self.message_cache, []
        for data in held:
            message = self._read(data)
            if message is not None and _LOCAL not in message.options:
                self._owed.append((REQUEUE, message.options[_ID]))
        self._pay()

    def _rest(self) -> None:
        """Until a worker thread has done with a message, or for the idle time-out."""
        self._freed.wait(self.timeout / 1000)
        self._freed.clear()

    def _take(self, data: bytes | None) -> MessageProxy | None:
        message = self._read(data)
        if message is None:
            self._drop(data)
            return None
        if message.actor_name not in self.broker.actors or message.queue_name != self.queue_name:
            # Dramatiq would put it among the dead letters, and a foreign queue's name would end the worker thread.
            metrics.WAKEUPS.labels(self.queue_name, "unknown").inc()
            self._owed.append(("ack", message.options[_ID]))
            return None
        self.queued_message_ids.add(message.message_id)
        return MessageProxy(message)

    def _read(self, data: bytes | None) -> Message[Any] | None:
        """The message, or None if it is none. Only what says "look" is kept of it: arguments of the wrong shape or an
        ``eta`` would otherwise reach Dramatiq, after the claim."""
        try:
            message: Message[Any] = Message.decode(data)  # type: ignore[arg-type]
            options = {k: v for k, v in message.options.items() if k in _OURS}
            good = isinstance(options[_ID], str) and isinstance(message.message_id, str)
            if not good:
                return None
            return Message(message.queue_name, message.actor_name, (), {}, options, message.message_id)
        except Exception:
            return None

    def _drop(self, data: bytes | None) -> None:
        """Acknowledge what cannot be read by its raw id, so that it does not linger among the messages in work."""
        metrics.WAKEUPS.labels(self.queue_name, "undecodable").inc()
        mine = f"{NAMESPACE}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        ids = [raw if isinstance(raw, str) else raw.decode() for raw in self.broker.client.smembers(mine)]
        if not ids:
            return
        bodies = self.broker.client.hmget(f"{NAMESPACE}:{self.queue_name}.msgs", ids)
        self._owed.extend(("ack", raw_id) for raw_id, body in zip(ids, bodies, strict=True) if body == data)

    def _hang_up(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            with contextlib.suppress(Exception):
                bell.close()

    # -- without Redis

    def _without_redis(self) -> MessageProxy | None:
        self._hang_up()
        if self.broker.draining.is_set() or self.outstanding_message_count >= self.prefetch:
            self._rest()
            return None
        wait = self._asked_at + POLL_SECONDS - time.monotonic()
        if wait > 0:
            # A thread that becomes free may know of more work.
            self._freed.wait(min(wait, self.timeout / 1000))
            self._freed.clear()
            return None
        self._ask("polled")
        return None

    def _ask(self, outcome: str) -> None:
        """Wake every free thread, with messages of our own."""
        self._asked_at = time.monotonic()
        metrics.WAKEUPS.labels(self.queue_name, outcome).inc()
        for _ in range(self.prefetch - self.outstanding_message_count):
            message = wake_message(self.queue_name, "poll").copy(options={_LOCAL: True})
            self.message_cache.append(message.encode())
