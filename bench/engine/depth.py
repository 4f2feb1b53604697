"""Depth: what the claim, the list and the figures cost at 10,000 and at 1,000,000 queued rows.

Rows are copies of one job that was accepted the real way, so that new columns need nothing here. Statistics
and the visibility map are renewed after each load, as autovacuum would within a minute or two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import psycopg

from bench.engine.ground import Ground
from bench.engine.report import Finding, percentile, progress
from bench.engine.systems.our_worker import JOB
from bench.engine.systems.ours import OurClient, Ours
from shared.db.pools import connect
from shared.jobs import Status, figures, queries, store
from shared.jobs.queries import JobFilter, Viewer

__all__ = ["measure"]

_MEMBERS = 50
_PAGE = 50
_ORGANISATIONS = (1, 100, 1000)

# Copies of the job %(template)s with new ids, oldest first, dealt out to the organisations and members given.
_COPY = """
insert into jobs ({columns})
select {values}
  from jobs t cross join generate_series(1, %(rows)s) as n
 where t.id = %(template)s
"""


def measure(ground: Ground, *, shallow: int, deep: int, claims: int) -> list[Finding]:
    """Claims one by one, each committed; ``claims`` of them at every depth."""
    system = Ours(3)
    findings = []
    with (
        ground.fresh(system) as place,
        system.client(place) as client,
        connect(place.database_url, "bench") as conn,
    ):
        rows = _Rows(conn, client)
        rows.add("depth", shallow, [client.org_id])
        first = _claim_times(conn, "depth", claims)
        progress(f"claim at {shallow:,} rows: {_ms(first)}")
        began = time.monotonic()
        rows.add("depth", deep - shallow, [client.org_id])
        # Older than all others: what a list from the newest backwards finds last.
        rows.add("depth", 500, [client.org_id], Status.FAILED, age=3600)
        progress(f"{deep:,} rows after {time.monotonic() - began:.0f} s")
        second = _claim_times(conn, "depth", claims)
        progress(f"claim at {deep:,} rows: {_ms(second)}")
        ratio = median(second) / median(first)
        detail = f"p50 {_p50(first):.2f} → {_p50(second):.2f} ms, p99 {_p99(first):.2f} → {_p99(second):.2f} ms"
        findings.append(Finding.below("depth", f"claim at {deep:,} / {shallow:,} rows", ratio, "×", 1.5, detail))
        findings += _reads(conn, client, rows.members[0], deep)
        for organisations in _ORGANISATIONS:
            queue = f"orgs{organisations}"
            rows.add(queue, shallow, [client.org_id, *(uuid4() for _ in range(organisations - 1))])
            times = _claim_times(conn, queue, claims)
            progress(f"claim with {organisations} organisations at work: {_ms(times)}")
            what = f"claim with {organisations:,} organisations at work, p50"
            findings.append(Finding("depth", what, _p50(times), "ms", detail=f"p99 {_p99(times):.2f} ms"))
    return findings


class _Rows:
    """Makes many jobs out of one."""

    def __init__(self, conn: psycopg.Connection[Any], client: OurClient) -> None:
        self._conn = conn
        job = client.job()
        client.submit([job])
        self._template = job.id
        self.members = [uuid4() for _ in range(_MEMBERS)]
        found = conn.execute(
            "select column_name from information_schema.columns"
            " where table_schema = 'public' and table_name = 'jobs' and is_generated = 'NEVER'"
        ).fetchall()
        self._columns = [row["column_name"] for row in found]

    def add(
        self, queue: str, rows: int, organisations: list[UUID], status: Status = Status.QUEUED, age: float = 0.0
    ) -> None:
        """``rows`` jobs, accepted one millisecond after the other until ``age`` seconds ago."""
        ago = "make_interval(secs => (n - %(rows)s) / 1000.0 - %(age)s)"
        own = {
            "id": f"uuidv7({ago})",
            "org_id": "(%(organisations)s::uuid[])[1 + n %% %(many)s]",
            "created_by": f"(%(members)s::uuid[])[1 + n %% {_MEMBERS}]",
            "queue": "%(queue)s",
            "status": "%(status)s",
            "created_at": f"now() + {ago}",
            "run_at": f"now() + {ago}",
        }
        self._conn.execute(
            _COPY.format(
                columns=", ".join(self._columns), values=", ".join(own.get(c, f"t.{c}") for c in self._columns)
            ),
            {
                "template": self._template,
                "rows": rows,
                "organisations": organisations,
                "many": len(organisations),
                "members": self.members,
                "queue": queue,
                "status": status.value,
                "age": age,
            },
        )
        self._conn.execute("vacuum (analyze) jobs")


def _claim_times(conn: psycopg.Connection[Any], queue: str, claims: int) -> list[float]:
    worker = uuid4()

    def claim() -> None:
        if not store.claim(conn, queue=queue, worker_id=worker, lease_seconds=60.0):
            raise RuntimeError(f"nothing to claim in {queue}")

    for _ in range(10):
        claim()  # prepared, and its pages in memory
    return _times(claim, claims)


def _reads(conn: psycopg.Connection[Any], client: OurClient, member: UUID, deep: int) -> list[Finding]:
    admin = Viewer(client.org_id, uuid4(), "admin")
    mine = Viewer(client.org_id, member, "member")
    failed = JobFilter(statuses=[Status.FAILED])
    began = time.perf_counter()
    figures.sample(conn)
    sampled = time.perf_counter() - began
    progress(f"counting all jobs, as the scheduler does now and then: {sampled:.2f} s")
    lists: list[tuple[str, queries.Query]] = [
        ("list, admin", queries.list_jobs(admin, JobFilter(), before=None, limit=_PAGE)),
        ("list, member", queries.list_jobs(mine, JobFilter(), before=None, limit=_PAGE)),
        ("list, admin, failed only", queries.list_jobs(admin, failed, before=None, limit=_PAGE)),
        ("list, member, failed only", queries.list_jobs(mine, failed, before=None, limit=_PAGE)),
        (
            f"list, admin, type {JOB.name}",
            queries.list_jobs(admin, JobFilter(types=[JOB.name]), before=None, limit=_PAGE),
        ),
    ]
    asked: list[tuple[str, Callable[[], object]]] = [
        *((what, lambda q=query: conn.execute(q.sql, q.parameters).fetchall()) for what, query in lists),
        ("stats, admin", lambda: figures.job_stats(conn, admin)),
        ("stats, member", lambda: figures.job_stats(conn, mine)),
        ("queue figures", lambda: figures.queue_figures(conn, [JOB.queue])),
    ]
    findings = [Finding("depth", f"counting for the figures at {deep:,} rows, by the scheduler", sampled, "s")]
    for what, call in asked:
        times = _times(call, 15)
        progress(f"{what} at {deep:,} rows: {_ms(times)}")
        findings.append(Finding.below("depth", f"{what}, p50 at {deep:,} rows", _p50(times), "ms", 50))
    return findings


def _times(call: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def _p50(times: list[float]) -> float:
    return 1000 * median(times)


def _p99(times: list[float]) -> float:
    return 1000 * percentile(times, 0.99)


def _ms(times: list[float]) -> str:
    return f"p50 {_p50(times):.2f} ms, p99 {_p99(times):.2f} ms"
