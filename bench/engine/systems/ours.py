"""This project's engine, through its public surface only. Its worker process is ``our_worker``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg

from bench.engine.ground import Place
from bench.engine.systems.base import Client, System, module_command, spin_until
from bench.engine.systems.our_worker import JOB, REGISTRY
from shared import ids
from shared.broker import Publisher, WakeBroker, make_redis
from shared.db import SyncPool, open_pool
from shared.db.migrate import migrate
from shared.jobs import NewJob, Priority, submit
from shared.settings import Settings

__all__ = ["OurClient", "Ours"]

_BATCH = 1000


class OurClient(Client):
    def __init__(self, pool: SyncPool, watch: psycopg.Connection[Any], place: Place, broker: WakeBroker) -> None:
        self.pool = pool
        self.watch = watch
        self._broker = broker
        self.publisher = self.new_publisher()
        self.org_id = self.organisation()

    def organisation(self) -> UUID:
        id = uuid4()
        self.watch.execute("insert into organisations (id, name) values (%s, 'Bench School')", (id,))
        return id

    def new_publisher(self) -> Publisher:
        """One more, started. Closing it waits until what was given to it is in Redis."""
        return Publisher(self._broker).start()

    def job(self, seconds: float = 0.0, priority: Priority = Priority.NORMAL, mark: str = "") -> NewJob:
        return NewJob(ids.new_uuid(), JOB.name, {"seconds": seconds, "mark": mark}, self.org_id, priority=priority)

    def submit(self, jobs: Sequence[NewJob], publisher: Publisher | None = None) -> None:
        """As the gateway does: accept in one commit, then ring."""
        with self.pool.connection() as conn:
            accepted = submit(conn, jobs, REGISTRY)
        (publisher or self.publisher).wake(accepted.wakes)

    def load(self, jobs: int, seconds: float = 0.0) -> None:
        for first in range(0, jobs, _BATCH):
            publisher = self.new_publisher()  # one a batch, so that no wake-up is given up for want of room
            self.submit([self.job(seconds) for _ in range(min(_BATCH, jobs - first))], publisher)
            publisher.close(30)
        self.watch.execute("analyze")

    def unfinished(self) -> bool:
        return _any(self.watch, "select 1 from jobs where status = 'queued' limit 1") or _any(
            self.watch, "select 1 from jobs where status = 'processing' limit 1"
        )

    def ended_at(self) -> float:
        return _float(self.watch, "select extract(epoch from max(finished_at)) from jobs")

    def verify(self, jobs: int) -> None:
        kept = self.watch.execute(
            "select count(*), count(*) filter (where status = 'completed' and attempt = 1) from jobs"
        ).fetchone()
        # accepted, started and completed, without a gap
        events = self.watch.execute(
            "select count(*) from (select from job_events group by job_id"
            " having count(*) >= 3 and max(seq) = count(*)) e"
        ).fetchone()
        if kept != (jobs, jobs) or events != (jobs,):
            raise RuntimeError(f"ours: of {jobs} jobs {kept} are completed and {events} have their events")

    def one(self, seconds: float = 0.0, priority: Priority = Priority.NORMAL, *, pause: float = 0.0) -> None:
        job = self.job(seconds, priority)
        self.submit([job])
        query = "select status from jobs where id = %s"
        spin_until(lambda: self.watch.execute(query, (job.id,)).fetchone() == ("completed",), pause=pause)

    def hold(self, key: str) -> None:
        self.submit([self.job(300, mark=key)])


class Ours(System):
    schema = "ours"

    def __init__(self, threads: int) -> None:
        self.name = f"ours {threads} threads"
        self.threads = threads
        self.setting = f"2 processes × {threads} threads, no start rate"

    def install(self, database_url: str) -> None:
        migrate(database_url)

    def commands(self, processes: int) -> list[list[str]]:
        return [module_command("bench.engine.systems.our_worker")] * processes

    def environment(self) -> dict[str, str]:
        rate = {"WORKER_START_RATE": "0"} if "worker_start_rate" in Settings.model_fields else {}
        return {"WORKER_CONCURRENCY": str(self.threads), **rate}

    @contextmanager
    def client(self, place: Place) -> Iterator[OurClient]:
        pool = open_pool(place.database_url, size=2, application_name="bench")
        client = make_redis(place.redis_url)
        with psycopg.connect(place.database_url, autocommit=True, prepare_threshold=1) as watch:
            watch.execute("set enable_seqscan = off")  # asking for what is left must not scan what is done
            ours = OurClient(pool, watch, place, WakeBroker(client))
            try:
                yield ours
            finally:
                ours.publisher.close()
                pool.close()
                client.close()


def _any(conn: psycopg.Connection[Any], query: str) -> bool:
    return conn.execute(query).fetchone() is not None


def _float(conn: psycopg.Connection[Any], query: str) -> float:
    row = conn.execute(query).fetchone()
    assert row is not None
    return float(row[0])
