"""Everything at once, at random: short and long jobs, cancels, and processes that drain and start again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest
from broker_harness import Client, Payload, Stage, worker

from shared.broker import WorkerProcess
from shared.jobs import JobContext, store
from shared.settings import Settings

Eventually = Callable[..., Any]
SECONDS = 8.0


class Side:
    """What the jobs did, as they saw it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.finished: Counter[UUID] = Counter()
        self.suspect_beside: list[int] = []
        self._lock = threading.Lock()
        self._running: Counter[Any] = Counter()

    def act(self, ctx: JobContext, payload: Payload) -> None:
        process = ctx._pool  # type: ignore[attr-defined]  # one of its own for each process
        with self._lock:
            self._running[id(process)] += 1
        try:
            if payload.data.get("alone"):
                self.suspect_beside.append(self._running[id(process)] - 1)
            deadline = time.monotonic() + payload.seconds
            while time.monotonic() < deadline:
                time.sleep(0.002)
            if payload.data.get("report"):
                ctx.progress(50, "half")
            if payload.data.get("alone"):
                self.suspect_beside.append(self._running[id(process)] - 1)
        finally:
            with self._lock:
                self._running[id(process)] -= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(10**6)])
def test_every_job_ends_once_charged_to_nobody_and_all_is_accounted_for(
    seed: int, settings: Settings, client: Client, stage: Stage, eventually: Eventually, org_id: UUID
) -> None:
    rng = random.Random(seed)
    settings = settings.model_copy(update={"lease_seconds": 4.0})
    side = Side(rng)
    stage.acts["act"] = side.act
    processes: list[WorkerProcess] = []
    orgs = [org_id, uuid4(), uuid4()]
    with client.pool.connection() as conn:
        for org in orgs[1:]:
            conn.execute("insert into organisations (id, name) values (%s, 'Other')", (org,))

    def job() -> dict[str, Any]:
        kind = rng.random()
        seconds = 0.0 if kind < 0.8 else rng.uniform(0.005, 0.05) if kind < 0.98 else rng.uniform(0.7, 1.5)
        return {"do": "act", "seconds": seconds, "data": {"report": rng.random() < 0.1}}

    ids: list[UUID] = []
    cancelled: set[UUID] = set()
    suspects: list[UUID] = []
    done = threading.Event()
    wrong: list[BaseException] = []

    def restart(n: int) -> None:
        """One process after another, each drained with some grace or none."""
        mine = random.Random(seed + n)
        try:
            while not done.is_set():
                with ExitStack() as stack:
                    grace = mine.choice([0.0, 0.2, 3.0])
                    process = stack.enter_context(
                        worker(settings, stage, concurrency=mine.choice([1, 2, 4]), grace=grace)
                    )
                    processes.append(process)
                    done.wait(mine.uniform(0.5, 3.0) if n else SECONDS)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=restart, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        client.org_id = rng.choice(orgs)
        extra: dict[str, Any] = {"concurrency_key": "k"} if rng.random() < 0.1 else {}
        new = client.submit_all(
            [job() for _ in range(rng.randrange(1, 60))], priority=rng.randrange(3), wake=rng.random() < 0.9, **extra
        )
        ids += new
        if rng.random() < 0.5:
            some = rng.sample(ids[-80:], min(5, len(ids[-80:])))
            with client.pool.connection() as conn, conn.transaction():
                moved = store.cancel(conn, some, member_id=None, actor="test", reason=None)
            cancelled |= set(moved.ids)
        if rng.random() < 0.06 and len(suspects) < 4:
            id = client.submit("act", wake=False, seconds=0.05, data={"alone": True})
            with client.pool.connection() as conn:
                conn.execute(
                    "update jobs set crash_count = 2, hold = 2 where id = %s and status = 'queued' and attempt = 0",
                    (id,),
                )
                row = conn.execute("select hold from jobs where id = %s", (id,)).fetchone()
            if row is not None and row["hold"] == 2:
                suspects.append(id)
            ids.append(id)
        time.sleep(rng.uniform(0.0, 0.1))
    done.set()
    for thread in threads:
        thread.join(20)
    assert wrong == [], seed
    assert not any(t.is_alive() for t in threads), seed
    with worker(settings, stage, concurrency=4) as last:
        eventually(lambda: not client.undone(), within=80)
        eventually(lambda: not last.runs.all())
    processes.append(last)

    with client.pool.connection() as conn:
        jobs = conn.execute("select * from jobs").fetchall()
        ends = conn.execute(
            "select job_id, count(*) as n from job_events where kind in ('completed', 'failed', 'cancelled') group by 1"
        ).fetchall()
        kinds = {r["kind"] for r in conn.execute("select distinct kind from job_events").fetchall()}
        gaps = conn.execute(
            "select job_id from job_events group by 1 having max(seq) <> count(*) or min(seq) <> 1"
        ).fetchall()
    assert {j["id"] for j in jobs} == set(ids)
    assert {r["job_id"]: r["n"] for r in ends} == dict.fromkeys(ids, 1), f"each ends once ({seed})"
    assert gaps == []
    assert {j["id"] for j in jobs if j["status"] == "cancelled"} == cancelled
    assert {j["status"] for j in jobs} <= {"completed", "cancelled"}
    for j in jobs:
        expected = 2 if j["id"] in suspects else 0
        assert (j["retry_count"], j["stall_count"], j["crash_count"]) == (0, 0, expected), f"charged: {j} ({seed})"
    assert kinds <= {"accepted", "started", "progress", "released", "completed", "cancelled"}, seed
    assert set(side.suspect_beside) <= {0}, f"suspects run alone ({seed})"
    for process in processes:
        assert (process.runs.open, process.runs.all(), process.runs.stuck) == (0, [], 0), seed
    print(
        "seed",
        seed,
        "jobs",
        len(jobs),
        "cancelled",
        len(cancelled),
        "suspects",
        len(suspects),
        "processes",
        len(processes),
        "starts",
        sum(j["attempt"] for j in jobs),
    )
