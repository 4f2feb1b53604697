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
_RESCUE_BATCH = 500
# What a rescue moved by itself (their children follow with the actor of a parent), for the metric.
_BY_OUTCOME = """
select j.queue, case when j.status = %(dead)s then 'dead' else 'requeued' end as outcome,
       count(*)::int as jobs
  from jobs j join job_events e on e.job_id = j.id and e.seq = j.event_seq and e.actor = 'scheduler'
 where j.id = any(%(ids)s) group by 1, 2
"""


def rescue(pool: SyncPool, publisher: Publisher, settle_seconds: float = store.SETTLE_SECONDS) -> int:
    """Give back jobs whose lease ran out, and end those that stalled too often. Returns how many were found."""
    found = 0
    while True:
        with pool.connection() as conn, conn.transaction():
            moved = store.rescue(conn, limit=_RESCUE_BATCH, settle_seconds=settle_seconds)
            # In the same transaction: a job given back may be claimed as soon as it has committed.
            rows = (
                conn.execute(_BY_OUTCOME, {"ids": list(moved.ids), "dead": Status.FAILED}).fetchall()
                if moved.jobs
                else []
            )
        publisher.moved(moved)
        for row in rows:
            metrics.JOBS_RESCUED.labels(row["queue"], row["outcome"]).inc(row["jobs"])
            _log.warning("rescue.found", **row)
        stalled = sum(int(row["jobs"]) for row in rows)
        found += stalled
        if stalled < _RESCUE_BATCH:
            return found


def rewake(pool: SyncPool, publisher: Publisher, client: redis.Redis) -> int:
    """Ring for due jobs that have no wake-up in Redis: lost ones, those whose time has come, and those whose
    concurrency key came free unseen. Returns how many."""
    with pool.connection() as conn:
        publisher.wake(store.unhold(conn))
        due = store.due_queues(conn)
    sent = 0
    for queue, jobs, job_id in due:
        try:
            waiting = client.llen(f"{NAMESPACE}:{queue}")
        except (redis.ConnectionError, redis.TimeoutError):
            return sent  # workers poll by themselves while Redis is away
        missing = min(jobs, MAX_WAKES) - int(waiting)
        if missing > 0:
            publisher.wake([Wake(queue, job_id, 1)] * missing)
            sent += missing
    return sent
