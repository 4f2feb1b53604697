"""What keeps the promises when something died: the rescuer and the re-waker. Any number of replicas may run them."""

from __future__ import annotations

import redis
import structlog

from shared.broker import NAMESPACE, Publisher
from shared.db import SyncPool
from shared.jobs import Status, Wake, store
from shared.telemetry import metrics

__all__ = ["rescue", "rewake"]

_log = structlog.get_logger(__name__)
# Wake-ups kept in a queue at most by the re-waker: enough to keep every worker busy until its next round.
MAX_WAKES = 256


def rescue(pool: SyncPool, publisher: Publisher) -> int:
    """Give back jobs whose lease ran out. Returns how many were found."""
    with pool.connection() as conn, conn.transaction():
        moved = store.rescue(conn)
    publisher.moved(moved)
    if moved.jobs:
        dead = sum(status is Status.FAILED for _, status in moved.jobs)
        _log.warning("rescue.found", jobs=len(moved.jobs), set_aside=dead)
        for queue in {w.queue for w in moved.wakes}:
            metrics.JOBS_RESCUED.labels(queue, "requeued").inc(sum(w.queue == queue for w in moved.wakes))
    return len(moved.jobs)


def rewake(pool: SyncPool, publisher: Publisher, client: redis.Redis) -> int:
    """Ring for due jobs that have no wake-up in Redis: lost ones, and those whose time has come. Returns how many."""
    with pool.connection() as conn:
        due = store.due_queues(conn)
    sent = 0
    for queue, jobs, job_id in due:
        try:
            waiting = client.llen(f"{NAMESPACE}:{queue}")
        except redis.RedisError:
            return sent  # workers poll by themselves while Redis is away
        missing = min(jobs, MAX_WAKES) - int(waiting)
        if missing > 0:
            publisher.wake([Wake(queue, job_id, 1)] * missing)
            sent += missing
    return sent
