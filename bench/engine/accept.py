"""Accept: jobs a second that one thread submits, beside the floor of one INSERT+COMMIT and one Redis push.

Both run in this process, in alternating rounds. The floor writes one row of the job table's own columns with the same
values in them, by a prepared statement in autocommit, to a table with a primary key only, and pushes the id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import psycopg
import redis
from psycopg.types.json import Jsonb

from bench.engine.ground import Ground, Place
from bench.engine.processes import CpuMeter
from bench.engine.report import Finding, progress
from bench.engine.systems.ours import OurClient, Ours
from shared.jobs import NewJob

__all__ = ["measure"]

_BATCH = 1000
_WARM_UP = 50
_TURN = 250
# What a new job's row has beyond its defaults.
_COLUMNS = (
    "id, org_id, type, queue, status, priority, max_retries, time_limit, created_at, run_at, payload, metadata, "
    "pending_parents, has_children, attempt, retry_count, stall_count, progress, event_seq"
)
_INSERT = f"""
insert into floor ({_COLUMNS})
values (%s, %s, 'bench.job', 'bench', 'queued', 1, 2, 600, now(), now(), %s, %s, 0, false, 0, 0, 0, 0, 1)
"""


def measure(ground: Ground, *, single: int, bulk: int, rounds: int) -> list[Finding]:
    """``single`` submits one by one, ``bulk`` jobs in batches of 1,000, each ``rounds`` times.

    Singles and floor take turns of 250, so that other work on the machine meets both alike.
    """
    floor, ours, many = _Tally(), _Tally(), _Tally()
    meter = CpuMeter(ground.servers)
    system = Ours(3)
    for number in range(rounds):
        with ground.fresh(system) as place, system.client(place) as client, _Floor(place) as least:
            least.run([client.job() for _ in range(_WARM_UP)])
            _submit(client, [[client.job()] for _ in range(_WARM_UP)])
            for turn in range(max(1, single // _TURN)):
                jobs = [client.job() for _ in range(_TURN)]
                others = [[client.job()] for _ in range(_TURN)]
                if turn % 2:
                    floor.add(meter, partial(least.run, jobs), _TURN)
                    ours.add(meter, partial(_submit, client, others), _TURN)
                else:
                    ours.add(meter, partial(_submit, client, others), _TURN)
                    floor.add(meter, partial(least.run, jobs), _TURN)
            batches = [[client.job() for _ in range(_BATCH)] for _ in range(max(1, bulk // _BATCH))]
            many.add(meter, partial(_submit, client, batches), len(batches) * _BATCH)
        for name, tally in (("floor", floor), ("single", ours), ("bulk", many)):
            progress(f"{number + 1} {name:<7} {tally.rate:7.0f}/s   {tally.cpu}")
    ratio = median(o / f for o, f in zip(ours.rates, floor.rates, strict=True))
    cpu_ratio = ours.microseconds / floor.microseconds
    return [
        Finding("accept", "floor: INSERT+COMMIT, Redis push", floor.rate, "/s", detail=floor.cpu),
        Finding("accept", "single submits", ours.rate, "/s", detail=ours.cpu),
        Finding.at_least("accept", "single submits / floor", ratio, "×", 0.8),
        Finding("accept", "the same in CPU a job, all processes", cpu_ratio, "×"),
        Finding("accept", "bulk, batches of 1,000", many.rate, "jobs/s", "≥ 20000", many.rate >= 20000, many.cpu),
    ]


class _Tally:
    """The turns of one way to accept: the rate of each, and the CPU of all."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self._jobs = 0
        self._used = [0.0, 0.0, 0.0]  # seconds of this process, Postgres, Redis

    def add(self, meter: CpuMeter, run: Callable[[], None], jobs: int) -> None:
        servers = meter.read([])
        own, began = time.process_time(), time.perf_counter()
        run()
        self.rates.append(jobs / (time.perf_counter() - began))
        own = time.process_time() - own
        used = meter.read([]) - servers
        self._jobs += jobs
        self._used = [a + b for a, b in zip(self._used, (own, used.postgres, used.redis), strict=True)]

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def microseconds(self) -> float:
        """CPU a job, all processes."""
        return 1e6 * sum(self._used) / self._jobs

    @property
    def cpu(self) -> str:
        client, postgres, redis_server = (1e6 * seconds / self._jobs for seconds in self._used)
        return f"CPU µs a job, client/Postgres/Redis: {client:.0f}/{postgres:.0f}/{redis_server:.0f}"


def _submit(client: OurClient, batches: Sequence[Sequence[NewJob]]) -> None:
    """Until the last wake-up is in Redis."""
    publisher = client.new_publisher()
    for batch in batches:
        client.submit(batch, publisher)
    publisher.close(30)


class _Floor:
    """The least that accepts a job durably and wakes a worker."""

    def __init__(self, place: Place) -> None:
        self._conn: psycopg.Connection[Any] = psycopg.connect(place.database_url, autocommit=True)
        self._redis = redis.Redis.from_url(place.redis_url)

    def __enter__(self) -> _Floor:
        self._conn.execute("create table floor as select * from jobs limit 0")
        self._conn.execute("alter table floor add primary key (id)")
        return self

    def __exit__(self, *_: object) -> None:
        self._conn.close()
        self._redis.close()

    def run(self, jobs: Sequence[NewJob]) -> None:
        for job in jobs:
            values = (job.id, job.org_id, Jsonb(job.payload), Jsonb({}))
            self._conn.execute(_INSERT, values, prepare=True)
            self._redis.rpush("floor", str(job.id))
