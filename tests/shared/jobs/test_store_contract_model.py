"""One random sequence of commands to both stores: they answer the same, and hold the same afterwards.

Every duration is a multiple of ten seconds, so that the moments that pass meanwhile on Postgres decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from contract_harness import ERROR, Harness, MemoryHarness, PostgresHarness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import ids
from shared.db import SyncPool
from shared.jobs import InvalidSubmit, Moved, NewBatch, Outcome, ParentEdge, Priority, Unique
from shared.jobs.limits import EVERY, Limit, LimitTarget
from shared.jobs.store import WorkerIdentity

ORGS = (uuid4(), uuid4())
WORKERS = (uuid4(), uuid4())
KEYS: tuple[str | None, ...] = (None, None, "a", "b")

DELAYS = st.sampled_from([0, 40, 610])
PICK = st.integers(0, 30)  # one of the things there are, modulo their number
JOB = st.fixed_dictionaries(
    {
        "org": st.integers(0, 1),
        "priority": st.sampled_from(Priority),
        "later": st.sampled_from([None] * 6 + [50, 700]),
        # Seldom: a parent drawn at random is often one that cannot be, which refuses the whole submit.
        "parents": st.one_of(
            *[st.just([])] * 3, st.lists(st.tuples(PICK, st.sampled_from(["fail", "cancel", "run"])), max_size=2)
        ),
        "unique": st.sampled_from([None] * 8 + ["reject", "return"]),
        "key": st.sampled_from(KEYS),
        "hook": st.booleans(),
    }
)
TARGETS = st.sampled_from([LimitTarget("ocr"), LimitTarget("ocr", EVERY), LimitTarget("ocr", ORGS[0])])
COMMANDS = st.one_of(
    # Twice: what is claimed, of several organisations' jobs, is what matters most.
    st.tuples(st.just("submit"), st.lists(JOB, min_size=3, max_size=6)),
    st.tuples(st.just("claim"), st.integers(1, 3), st.integers(0, 1), st.just(False)),
    st.tuples(st.just("submit"), st.lists(JOB, min_size=1, max_size=5)),
    st.tuples(st.just("submit_batch"), st.lists(JOB, min_size=1, max_size=3), st.booleans()),
    st.tuples(st.just("claim"), st.integers(1, 4), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("claim"), st.integers(1, 4), st.integers(0, 1), st.just(False)),
    st.tuples(st.just("settle"), PICK, st.sampled_from(["complete", "fail", "retry", "snooze", "release"]), DELAYS),
    st.tuples(st.just("settle"), PICK, st.sampled_from(["complete", "fail"]), st.just(0)),
    st.tuples(st.just("progress"), PICK, st.integers(0, 100)),
    st.tuples(st.just("cancel"), PICK),
    st.tuples(st.just("cancel_batch"), PICK),
    st.tuples(st.just("advance"), st.sampled_from([10, 40, 610])),
    st.tuples(st.just("beat"), st.integers(0, 1)),
    st.tuples(st.just("rescue")),
    st.tuples(st.just("orphans"), st.integers(0, 1)),
    st.tuples(
        st.just("limit"), TARGETS, st.sampled_from([None, None, None, 1, 3]), st.sampled_from([False, False, True])
    ),
    st.tuples(st.just("pause"), TARGETS, st.sampled_from([False, False, False, True])),
)


class Both:
    """The two stores, and what is known of both: job ids in the order of their making, claims, batches."""

    def __init__(self, memory: Harness, postgres: Harness) -> None:
        self.stores = (memory, postgres)
        self.jobs: list[UUID] = []
        self.batches: list[UUID] = []
        self.claims: list[Any] = []  # ended ones stay: their writes must be fenced off

    def ask(self, call: Callable[[Harness], Any]) -> Any:
        """The answer of both, which is one."""
        memory, postgres = (self._answer(call, h) for h in self.stores)
        assert memory == postgres
        return memory

    def _answer(self, call: Callable[[Harness], Any], h: Harness) -> Any:
        try:
            return self._plain(call(h))
        except InvalidSubmit as e:
            return e.code, e.param, e.existing
        except psycopg.errors.UniqueViolation:
            return "unique violation"  # known: test_a_child_may_name_two_parents_that_turn_out_to_be_one

    def _plain(self, answer: Any) -> Any:
        """Without order where none is promised, and without ids that each store makes for itself."""
        if isinstance(answer, Moved):
            wakes = sorted((w.queue, w.job_id if w.job_id in self.jobs else None, w.priority) for w in answer.wakes)
            return sorted(answer.jobs), wakes
        return answer

    # -- commands

    def submit(self, wanted: list[dict[str, Any]], batch: UUID | None = None, completion: bool = False) -> None:
        new = [ids.new_uuid() for _ in wanted]
        known = self.jobs + new
        after = ids.new_uuid() if completion else None
        payload = {"document_id": str(uuid4())}

        def call(h: Harness) -> Any:
            jobs = [self._job(h, id, job, known, payload, batch) for id, job in zip(new, wanted, strict=True)]
            if after is not None:
                jobs.append(h.make(id=after, org_id=ORGS[0], after_batch=batch, payload=payload))
            with h.store.transaction():
                if batch is not None:
                    h.store.insert_batch(
                        NewBatch(batch, ORGS[0], None, "x", len(jobs) - completion, webhook_url="https://x")
                    )
                accepted = h.accept(*jobs)
            return [row["id"] for row in accepted.rows], sorted(w.job_id for w in accepted.wakes), accepted.existing

        answer = self.ask(call)
        if isinstance(answer[0], list):
            self.jobs += [*new, *([after] if after else [])]
            if batch is not None:
                self.batches.append(batch)

    def _job(
        self, h: Harness, id: UUID, wanted: dict[str, Any], known: list[UUID], payload: Any, batch: UUID | None
    ) -> Any:
        parents = {known[pick % len(known)]: on_failure for pick, on_failure in wanted["parents"]}
        unique = wanted["unique"] if batch is None else None
        return h.make(
            id=id,
            org_id=ORGS[wanted["org"] if batch is None else 0],
            payload=payload,
            priority=wanted["priority"],
            run_at=None if wanted["later"] is None else h.now() + timedelta(seconds=wanted["later"]),
            parents=tuple(ParentEdge(parent, on_failure) for parent, on_failure in parents.items()),
            unique=None if unique is None else Unique("u", on_conflict=unique),
            concurrency_key=wanted["key"],
            webhook_url="https://app.example/hook" if wanted["hook"] else None,
            batch_id=batch,
        )

    def submit_batch(self, wanted: list[dict[str, Any]], completion: bool) -> None:
        self.submit(wanted, ids.new_uuid(), completion)

    def claim(self, limit: int, worker: int, alone: bool) -> None:
        found: dict[UUID, Any] = {}

        def call(h: Harness) -> Any:
            claims = h.claim(limit, worker=WORKERS[worker], alone=alone)
            found.update({job.id: job for job in claims})
            started = sorted((job.id, job.attempt, job.retry_count, job.crash_count, job.event_seq) for job in claims)
            wait = None if claims.wait is None else round(claims.wait / 5)
            return started, claims.alone, claims.limited, wait

        self.ask(call)
        self.claims += found.values()

    def settle(self, pick: int, how: str, delay: int) -> None:
        if not self.claims:
            return
        job = self.claims[pick % len(self.claims)]
        outcome = {
            "complete": lambda: Outcome.completed(job, {"n": pick}),
            "fail": lambda: Outcome.failed(job, ERROR),
            "retry": lambda: Outcome.retry(job, ERROR, delay),
            "snooze": lambda: Outcome.snoozed(job, "later", delay),
            "release": lambda: Outcome.released(job),
        }[how]()
        self.ask(lambda h: h.settle(outcome))

    def progress(self, pick: int, percent: int) -> None:
        if self.claims:
            job = self.claims[pick % len(self.claims)]
            self.ask(lambda h: h.store.progress(job.id, job.attempt, WORKERS[0], percent, "step"))

    def cancel(self, pick: int) -> None:
        if self.jobs:
            self.ask(lambda h: h.cancel(self.jobs[pick % len(self.jobs)]))

    def cancel_batch(self, pick: int) -> None:
        if self.batches:
            id = self.batches[pick % len(self.batches)]
            self.ask(lambda h: h.store.cancel_batch(id, member_id=None, actor="x", reason=None))

    def advance(self, seconds: int) -> None:
        self.ask(lambda h: h.advance(seconds))

    def beat(self, worker: int) -> None:
        def call(h: Harness) -> Any:
            lost = h.beat(*self.claims, worker=WORKERS[worker], lease=30)
            return sorted((item.id, item.attempt, item.status or "") for item in lost)

        self.ask(call)

    def rescue(self) -> None:
        self.ask(lambda h: h.rescue())

    def orphans(self, worker: int) -> None:
        identity = WorkerIdentity(WORKERS[worker], "ocr", "here", 1, 3)
        self.ask(lambda h: h.store.release_orphans(identity, [job.id for job in self.claims[::2]], 30))

    def limit(self, target: LimitTarget, running: int | None, paced: bool) -> None:
        pace: dict[str, Any] = {"start_limit": 2, "start_period": 60} if paced else {}
        self.ask(lambda h: h.limit(Limit(target, max_running=running, **pace)))

    def pause(self, target: LimitTarget, on: bool) -> None:
        self.ask(lambda h: h.store.pause(target, actor="x") if on else h.store.resume(target))

    # -- what they hold

    def compare(self) -> None:
        self.ask(self._rows)
        self.ask(lambda h: [h.counters(id) for id in self.batches])
        self.ask(lambda h: sorted((queue, due) for queue, due, _ in h.store.due_queues()))

    def _rows(self, h: Harness) -> Any:
        columns = (
            "status priority attempt retry_count stall_count crash_count hold pending_parents has_children progress "
            "event_seq result worker_id queue payload"
        )
        rows = h.store.jobs()
        mine = [
            (row["id"], *(row[name] for name in columns.split()), row["error"])
            for row in rows
            if row["id"] in self.jobs
        ]
        owed = sorted((row["type"], row["payload"]["event"]) for row in rows if row["id"] not in self.jobs)
        return mine, owed

    def histories(self) -> None:
        self.ask(lambda h: [[(e["kind"], e["attempt"], e["actor"]) for e in h.store.events(id)] for id in self.jobs])


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=st.lists(JOB, min_size=4, max_size=8), commands=st.lists(COMMANDS, min_size=10, max_size=40))
def test_both_stores_answer_the_same_to_the_same_commands(
    contract_pool: SyncPool, first: list[dict[str, Any]], commands: list[tuple[Any, ...]]
) -> None:
    postgres = PostgresHarness(contract_pool)
    postgres.clear()
    both = Both(MemoryHarness(), postgres)
    # Else most claims would find nothing.
    both.submit([{**job, "parents": [], "unique": None, "later": None} for job in first])
    for name, *arguments in commands:
        getattr(both, name)(*arguments)
        both.compare()
    both.histories()
