"""The job state machine against a model in plain Python: whatever is done in whatever order, on real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared import ids
from shared.contracts import Contract, JobType, Registry
from shared.db import SyncPool
from shared.jobs import TERMINAL, TRANSITIONS, ClaimedJob, Hold, NewJob, Outcome, Priority, Status, store, submit
from shared.jobs.store import MAX_CRASHES, MAX_STALLS, WorkerIdentity

pytestmark = pytest.mark.slow


class Nothing(Contract):
    pass


QUEUE = "model"
TYPE = JobType("model.job", QUEUE, Nothing, Nothing, title="Model")
REGISTRY = Registry()
REGISTRY.declare(TYPE)
_LEASE = 60.0
_LATER = timedelta(hours=1)
_ERROR = {"code": "model.error", "message": "As planned."}
_ALLOWED = {(t.kind.value, source.value): t.target.value for t in TRANSITIONS for source in t.sources}

ENDS: dict[str, tuple[Callable[[ClaimedJob], Outcome], int]] = {  # how, and what it adds to retry_count
    "completed": (lambda job: Outcome.completed(job, {"ok": True}), 0),
    "failed": (lambda job: Outcome.failed(job, _ERROR), 0),
    "retrying": (lambda job: Outcome.retry(job, _ERROR, delay=3600.0), 1),
    "snoozed": (lambda job: Outcome.snoozed(job, "later", delay=3600.0), 0),
    "released": (Outcome.released, 0),
}


@dataclass
class Model:
    """What a job should look like."""

    id: UUID
    due: bool
    status: str = "queued"
    attempt: int = 0
    retries: int = 0
    stalls: int = 0
    crashes: int = 0
    alone: bool = False
    kinds: list[str] = field(default_factory=lambda: ["accepted"])
    claims: list[ClaimedJob] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.status == Status.PROCESSING

    def move(self, kind: str) -> None:
        """By the table of transitions: a KeyError is a move that the table does not have."""
        self.status = _ALLOWED[kind, self.status]
        self.kinds.append(kind)

    def as_row(self) -> tuple[Any, ...]:
        hold = Hold.ALONE.value if self.alone else Hold.NONE.value
        return self.status, self.attempt, self.retries, self.stalls, self.crashes, hold, self.kinds


class Jobs(RuleBasedStateMachine):
    """One organisation's jobs, one worker, and everything that may happen to them."""

    pool: SyncPool  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.worker = WorkerIdentity(uuid4(), QUEUE, "here", 1, 4, (TYPE.name,))
        self.org_id = uuid4()
        self.jobs: dict[UUID, Model] = {}

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        with self.pool.connection() as conn:
            conn.execute("truncate jobs, job_events, workers")
        self.accept(later=False, count=count, priority=Priority.NORMAL)

    # -- what clients do

    @rule(later=st.booleans(), count=st.integers(1, 3), priority=st.sampled_from(Priority))
    def accept(self, later: bool, count: int, priority: Priority) -> None:
        run_at = datetime.now(UTC) + _LATER if later else None
        new = [
            NewJob(id=ids.new_uuid(), type=TYPE.name, payload={}, org_id=self.org_id, run_at=run_at, priority=priority)
            for _ in range(count)
        ]
        with self.pool.connection() as conn, conn.transaction():
            accepted = submit(conn, new, REGISTRY)
        assert [r["id"] for r in accepted.rows] == [j.id for j in new]
        assert len(accepted.wakes) == (0 if later else count)
        self.jobs |= {j.id: Model(j.id, due=not later) for j in new}

    @precondition(lambda self: sum(m.status not in TERMINAL for m in self.jobs.values()) > 3)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.jobs.values())), min_size=1, max_size=2, unique_by=id))
        with self.pool.connection() as conn, conn.transaction():
            moved = store.cancel(conn, [m.id for m in chosen], member_id=None, actor="model", reason=None)
        active = [m for m in chosen if m.status not in TERMINAL]
        assert set(moved.ids) == {m.id for m in active}
        for model in active:
            model.move("cancelled")

    @precondition(lambda self: any(m.status == Status.QUEUED and not m.due for m in self.jobs.values()))
    @rule()
    def an_hour_passes(self) -> None:
        with self.pool.connection() as conn:
            conn.execute("update jobs set run_at = now() where status = 'queued'")
        for model in self.jobs.values():
            model.due = model.due or model.status == Status.QUEUED

    # -- what workers do

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        self._claim(limit, alone=False)

    @precondition(lambda self: any(m.alone for m in self.jobs.values()))
    @rule(limit=st.integers(1, 4))
    def claim_what_runs_alone(self, limit: int) -> None:
        self._claim(limit, alone=True)

    def _claim(self, limit: int, alone: bool) -> None:
        ready = {m.id for m in self.jobs.values() if m.status == Status.QUEUED and m.due and m.alone == alone}
        with self.pool.connection() as conn:
            claims = store.claim(
                conn, queue=QUEUE, worker_id=self.worker.id, lease_seconds=_LEASE, limit=limit, alone=alone
            )
        assert len(claims) == min(1 if alone else limit, len(ready)), "as many as there are, and no more than asked for"
        for claimed in claims:
            assert claimed.id in ready
            model = self.jobs[claimed.id]
            model.move("started")
            model.attempt += 1
            assert claimed.attempt == model.attempt
            model.claims.append(claimed)

    def _claimed(self, data: st.DataObject) -> tuple[Model, ClaimedJob, bool]:
        """A claim that was made at some time, and whether it is still the one that holds the job (as most do)."""
        claimed_once = [m for m in self.jobs.values() if m.claims]
        running = [m for m in claimed_once if m.running]
        model = data.draw(st.sampled_from(running + running + claimed_once))
        claimed = data.draw(st.sampled_from([*model.claims[-2:], model.claims[-1]]))
        return model, claimed, model.running and claimed.attempt == model.attempt

    @precondition(lambda self: any(m.claims for m in self.jobs.values()))
    @rule(data=st.data(), kind=st.sampled_from(list(ENDS)), plain=st.booleans())
    def settle(self, data: st.DataObject, kind: str, plain: bool) -> None:
        model, claimed, current = self._claimed(data)
        make, charge = ENDS[kind]
        write = store.settle_plain if plain else store.settle
        with self.pool.connection() as conn, conn.transaction():
            moved = write(conn, self.worker.id, [make(claimed)])
        assert moved.ids == ((model.id,) if current else ()), "the fence: a stale attempt changes nothing"
        if current:
            model.move(kind)
            model.retries += charge
            model.due = kind == "released"

    @precondition(lambda self: any(m.claims for m in self.jobs.values()))
    @rule(data=st.data(), percent=st.integers(-5, 120), log=st.booleans())
    def report(self, data: st.DataObject, percent: int, log: bool) -> None:
        model, claimed, current = self._claimed(data)
        with self.pool.connection() as conn:
            if log:
                seq = store.log(conn, claimed.id, claimed.attempt, self.worker.id, {"message": "here"})
            else:
                seq = store.progress(conn, claimed.id, claimed.attempt, self.worker.id, percent, "step")
        assert seq == (len(model.kinds) + 1 if current else None)
        if current:
            model.kinds.append("log" if log else "progress")

    @precondition(lambda self: any(m.claims for m in self.jobs.values()))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        model, claimed, current = self._claimed(data)
        with self.pool.connection() as conn:
            lost = store.heartbeat(conn, self.worker, [(claimed.id, claimed.attempt)], _LEASE)
        if current:
            assert lost == []
        else:
            [one] = lost
            assert one.status == (Status(model.status) if claimed.attempt == model.attempt else None)

    @precondition(lambda self: any(m.running for m in self.jobs.values()))
    @rule(data=st.data())
    def give_back_orphans(self, data: st.DataObject) -> None:
        """The worker runs only some of what is in its name, and half of the leases' time is over."""
        running = [m for m in self.jobs.values() if m.running]
        kept = data.draw(st.lists(st.sampled_from(running), unique_by=id))
        with self.pool.connection() as conn, conn.transaction():
            conn.execute("update jobs set lease_until = now() + interval '5 s' where status = 'processing'")
            moved = store.release_orphans(conn, self.worker, [m.id for m in kept], _LEASE)
        orphans = [m for m in running if m not in kept]
        assert set(moved.ids) == {m.id for m in orphans}
        for model in orphans:
            model.move("released")

    # -- what the scheduler does

    @precondition(lambda self: any(m.running for m in self.jobs.values()))
    @rule(data=st.data(), alive=st.booleans())
    def lose_leases(self, data: st.DataObject, alive: bool) -> None:
        """Leases run out, of a worker that was heard of meanwhile (stalled) or was not (crashed)."""
        running = [m for m in self.jobs.values() if m.running]
        self._lose(data.draw(st.lists(st.sampled_from(running), min_size=1, max_size=2, unique_by=id)), alive)

    @rule(alive=st.booleans(), times=st.integers(1, 3))
    def lose_the_lease_again_and_again(self, alive: bool, times: int) -> None:
        """Whatever is claimed is lost at once, what runs alone first: so that some reach the limits."""
        for _ in range(times):
            ready = [m for m in self.jobs.values() if m.status == Status.QUEUED and m.due]
            if not ready:
                return
            self._claim(1, alone=any(m.alone for m in ready))
            self._lose([m for m in self.jobs.values() if m.running][:1], alive)

    def _lose(self, lost: list[Model], alive: bool) -> None:
        with self.pool.connection() as conn, conn.transaction():
            store.leave(conn, self.worker.id)
            if alive:
                store.heartbeat(conn, self.worker, [], _LEASE)
            conn.execute(
                "update jobs set lease_until = now() - interval '1 s' where id = any(%s)", ([m.id for m in lost],)
            )
        with self.pool.connection() as conn, conn.transaction():
            moved = store.rescue(conn, settle_seconds=0)
        assert set(moved.ids) == {m.id for m in lost}, "these, and nothing whose lease holds"
        for model in lost:
            count, most = (model.stalls, MAX_STALLS) if alive else (model.crashes, MAX_CRASHES)
            dead = count >= most
            model.move("failed" if dead else "stalled" if alive else "crashed")
            model.stalls += alive
            model.crashes += not alive
            model.alone = model.alone or (not dead and model.crashes >= MAX_CRASHES)

    # -- what holds at all times

    @invariant()
    def is_as_the_model_says(self) -> None:
        with self.pool.connection() as conn:
            rows = conn.execute(
                """select j.id, j.status, j.attempt, j.retry_count, j.stall_count, j.crash_count, j.hold, j.event_seq,
                          j.finished_at is not null as finished, j.lease_until is not null as leased,
                          array_agg(e.kind order by e.seq) as kinds, array_agg(e.seq order by e.seq) as seqs
                     from jobs j join job_events e on e.job_id = j.id group by j.id"""
            ).fetchall()
        assert {r["id"] for r in rows} == set(self.jobs)
        for r in rows:
            model = self.jobs[r["id"]]
            columns = ("status", "attempt", "retry_count", "stall_count", "crash_count", "hold", "kinds")
            assert tuple(r[c] for c in columns) == model.as_row()
            assert r["seqs"] == list(range(1, r["event_seq"] + 1)), "no gap"
            assert r["finished"] == (r["status"] in TERMINAL)
            assert r["leased"] == model.running
            assert sum(kind in TERMINAL for kind in r["kinds"]) == int(r["finished"]), "ended once at most"


def test_the_job_state_machine(pool: SyncPool) -> None:
    Jobs.pool = pool
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
