"""Sending wake-ups, and "look" notes for those who watch a job. Best effort by design: what is lost here is late,
never lost (the scheduler's re-waker finds it)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from uuid import UUID

import redis
import structlog

from shared.jobs import Moved, Priority, Wake
from shared.telemetry import metrics

from .factory import NAMESPACE, URGENT, WakeBroker, bell_channel, wake_message

__all__ = ["LOOK_CHANNEL", "Publisher"]

# One channel for all looks; a body is the UUIDs of jobs, with commas between them. Watchers filter.
LOOK_CHANNEL = "gradeline:look"
_LOOKS = 100
# Wake-ups waiting in a queue that wake every process there may be.
ENOUGH = 256
_MAX_BATCH = 1000
# Under load what comes is sent together, this many seconds after what went before; a single wake-up, and one of high
# priority, never waits.
_LINGER_SECONDS = 0.002
# And this many while a queue has wake-ups enough: the next few only find that so.
_FULL_LINGER_SECONDS = 0.005
# While Redis hangs, no more than this is kept for it: the rest is left to the re-waker at once.
_MAX_QUEUED = 10_000
_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes from a thread of its own, in pipelined batches, so that no caller ever waits for Redis."""

    def __init__(self, broker: WakeBroker) -> None:
        self._broker = broker
        self._queue: queue.SimpleQueue[Wake | UUID | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting: dict[str, int] = {}  # wake-ups in each queue when last looked

    def start(self) -> Publisher:
        """Start the thread: after any fork. Returns itself."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()
        return self

    def wake(self, wakes: Iterable[Wake]) -> None:
        """Ring for these jobs. Call it after the commit that made them due."""
        for wake in wakes:
            if self._queue.qsize() < _MAX_QUEUED:
                self._queue.put(wake)
            else:
                metrics.PUBLISH_FAILURES.labels(wake.queue).inc()

    def look(self, job_ids: Iterable[UUID]) -> None:
        """Tell watchers that these jobs have new events."""
        for job_id in job_ids:
            if self._queue.qsize() < _MAX_QUEUED:
                self._queue.put(job_id)

    def moved(self, moved: Moved) -> None:
        """Both, for what a write changed."""
        self.wake(moved.wakes)
        self.look({*moved.ids, *(w.job_id for w in moved.wakes)})

    @property
    def alive(self) -> bool:
        """False when the thread has died, or has not been started."""
        return self._thread is not None and self._thread.is_alive()

    def close(self, timeout: float = 2.0) -> None:
        """Send what is queued, within ``timeout`` seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        sent_at = 0.0
        while True:
            item = self._queue.get()
            full = any(waiting >= ENOUGH for waiting in self._waiting.values())
            linger = sent_at + (_FULL_LINGER_SECONDS if full else _LINGER_SECONDS) - time.monotonic()
            if linger > 0 and item is not None and not (isinstance(item, Wake) and item.priority == Priority.HIGH):
                time.sleep(linger)
            batch = [item]
            while len(batch) < _MAX_BATCH and batch[-1] is not None:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            wakes = [i for i in batch if isinstance(i, Wake)]
            looks = {i for i in batch if isinstance(i, UUID)}
            try:
                self.send(wakes, looks)
            except Exception as e:  # the thread must outlive any surprise
                for wake in wakes:
                    metrics.PUBLISH_FAILURES.labels(wake.queue).inc()
                known = isinstance(e, redis.RedisError)
                (_log.warning if known else _log.error)("publish.failed", wakes=len(wakes), error=type(e).__name__)
            sent_at = time.monotonic()
            if batch[-1] is None:
                return

    def send(self, wakes: Iterable[Wake], looks: Iterable[UUID] = ()) -> None:
        """Send now, in one pipeline. Raises redis.RedisError.

        Workers that were woken look until they find nothing, so a queue that has ENOUGH wake-ups gets no more.
        """
        broker = self._broker
        by_queue: dict[str, list[Wake]] = {}
        for wake in wakes:
            by_queue.setdefault(wake.queue, []).append(wake)
        urgent = {w.queue for wakes in by_queue.values() for w in wakes if w.priority == Priority.HIGH}
        for name in [n for n in by_queue if self._waiting.get(n, 0) >= ENOUGH]:
            waiting = self._waiting[name] = int(broker.client.llen(f"{NAMESPACE}:{name}"))
            if waiting >= ENOUGH:
                by_queue[name] = []
                if name not in urgent:
                    del by_queue[name]
        with broker.client.pipeline(transaction=False) as pipe:
            for name, some in by_queue.items():
                for wake in some[:ENOUGH]:
                    raw_id, body = wake_message(name, str(wake.job_id))
                    broker.add_to(pipe, "enqueue", name, raw_id, body)
                pipe.publish(bell_channel(name), URGENT if name in urgent else b"")
            ids = [str(job_id) for job_id in looks]
            for start in range(0, len(ids), _LOOKS):
                pipe.publish(LOOK_CHANNEL, ",".join(ids[start : start + _LOOKS]))
            for name in by_queue:
                pipe.llen(f"{NAMESPACE}:{name}")
            answers = broker.execute(pipe)
        self._waiting.update(zip(by_queue, answers[len(answers) - len(by_queue) :], strict=True))
