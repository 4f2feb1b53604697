"""Queue figures for Grafana, from Postgres: the broker's list length misses what workers have prefetched.

One scheduler replica counts at a time, and every one exports what was counted last; take ``max by (queue)``.
"""

from __future__ import annotations

from shared.contracts import JOB_TYPES
from shared.db import SyncPool
from shared.jobs import queries, sample
from shared.telemetry import metrics

__all__ = ["QueueFigures"]


class QueueFigures:
    """Collects the figures of every declared queue, those with nothing in them included (as 0)."""

    def __init__(self, pool: SyncPool) -> None:
        self._pool = pool

    def collect(self) -> None:
        with self._pool.connection() as conn:
            sample(conn)
            rows = {r["queue"]: r for r in conn.execute(queries.QUEUE_FIGURES).fetchall()}
        for queue in JOB_TYPES.queues():
            row = rows.get(queue, {})
            for state in ("due", "later", "processing"):
                metrics.QUEUE_DEPTH.labels(queue, state).set(row.get(state, 0))
            metrics.QUEUE_OLDEST.labels(queue).set(row.get("oldest_seconds") or 0)
