"""The kit for people who write job types; and that its inline runs end as the real runner's do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from kit_jobs import (
    REGISTRY,
    SECRET,
    Act,
    Payload,
    Result,
    Unstorable,
    fine,
    handler,
    job,
    leaning,
    logging,
    raising,
    returning,
    swallowing,
)
from pydantic import BaseModel

from shared import ids
from shared.broker.middleware.retries import decide
from shared.broker.run import Run
from shared.db import SyncPool
from shared.jobs import (
    Done,
    JobCancelled,
    JobContext,
    JobTimeout,
    LeaseLost,
    Outcome,
    PermanentError,
    RetryableError,
    Snooze,
    WorkerStopping,
)
from shared.jobs.testing import (
    InterruptAfter,
    ManualClock,
    MemoryStore,
    PostgresStore,
    TestingKitMisuse,
    run_inline,
)


class TestRunInline:
    def test_a_completed_run_has_its_result_progress_and_logs(self) -> None:
        def act(ctx: JobContext, payload: Payload) -> Result:
            ctx.progress(40, "half")
            ctx.progress(20, "back")
            ctx.progress(200, "more")
            ctx.log("counted", n=payload.n, owner=payload.owner)
            return Result(n=payload.n)

        owner = uuid4()
        run = run_inline(handler(act), Payload(n=3, owner=owner))
        assert (run.ended, run.result, run.error) == ("completed", Result(n=3), None)
        assert [(p.percent, p.step) for p in run.progress] == [(40, "half"), (40, "back"), (100, "more")]
        assert run.logs == [{"message": "counted", "n": 3, "owner": str(owner)}]

    def test_the_handler_sees_the_job_that_it_was_told_of(self) -> None:
        seen: list[Any] = []
        org, member, batch = uuid4(), uuid4(), uuid4()
        run_inline(
            handler(lambda ctx, payload: seen.append(ctx.job) or Result()),
            {"n": 1},
            attempt=3,
            org_id=org,
            created_by=member,
            batch_id=batch,
        )
        [info] = seen
        assert (info.org_id, info.created_by, info.batch_id, info.type) == (org, member, batch, "kit.job")
        assert (info.attempt, info.retry_count) == (3, 2)

    def test_a_retry_waits_as_the_policy_says(self) -> None:
        act = handler(raising(RetryableError("kit.busy", "Busy.")))
        assert [run_inline(act, {}, attempt=n).delay for n in (1, 2)] == [8.0, 16.0]
        assert run_inline(act, {}, jitter=1).delay == 12.0
        last = run_inline(act, {}, attempt=3)
        assert (last.ended, last.delay, (last.error or {})["code"]) == ("failed", None, "kit.busy")

    def test_a_surprise_is_told_to_the_test_and_not_stored(self) -> None:
        run = run_inline(handler(raising(ValueError(SECRET))), {})
        assert isinstance(run.exception, ValueError)
        assert (run.ended, (run.error or {})["details"]["exception"]) == ("retrying", "ValueError")
        assert SECRET not in str(run.error)

    def test_what_on_interrupt_registered_is_called_from_another_thread(self) -> None:
        called: list[bool] = []

        def act(ctx: JobContext, payload: Payload) -> Result:
            with ctx.on_interrupt(lambda: called.append(threading.current_thread() is threading.main_thread())):
                ctx.progress(1, "one")
                ctx.progress(2, "two")
            return Result()

        run = run_inline(handler(act), {}, interrupt=InterruptAfter(2))
        assert (run.ended, called, len(run.progress)) == ("cancelled", [False], 2)
        assert (run.outcome, run.result, run.effects) == (None, None, ())

    def test_an_interrupt_before_it_begins_runs_nothing(self) -> None:
        ran: list[int] = []
        run = run_inline(handler(lambda c, p: ran.append(1) or Result()), {}, interrupt=InterruptAfter(0))
        assert (run.ended, ran) == ("cancelled", [])

    def test_a_handler_that_reads_needs_a_connection(self) -> None:
        def act(ctx: JobContext, payload: Payload) -> Result:
            try:
                with ctx.connection() as conn:
                    conn.execute("select 1")
            except Exception:
                return Result(n=-1)  # a handler that takes any error for an absent row
            return Result()

        with pytest.raises(TestingKitMisuse, match="connection="):
            run_inline(handler(act), {})

    def test_effects_are_written_when_asked_and_as_one(self, pool: SyncPool) -> None:
        def act(ctx: JobContext, payload: Payload) -> Done[Result]:
            with ctx.connection() as conn:
                row = conn.execute("select 1 as one").fetchone()
            assert row is not None

            def write(conn: Any) -> None:
                conn.execute("insert into organisations (id, name) values (%s, 'effect')", (ids.new_uuid(),))

            def refuse(conn: Any) -> None:
                if payload.n:
                    raise RetryableError("kit.refused", "No.")

            return Done(Result(), effects=(write, refuse))

        def written(conn: Any) -> int:
            return conn.execute("select count(*) as n from organisations").fetchone()["n"]

        with pool.connection() as conn:
            run = run_inline(handler(act), {}, connection=conn)
            assert (run.ended, written(conn)) == ("completed", 0)
            run.apply_effects(conn)
            assert written(conn) == 1
            with pytest.raises(RetryableError):
                run_inline(handler(act), {"n": 1}, connection=conn).apply_effects(conn)
            assert written(conn) == 1

    def test_effects_of_a_run_that_did_not_complete_are_nobodys(self, pool: SyncPool) -> None:
        run = run_inline(handler(raising(PermanentError("kit.never", "Never."))), {})
        with pool.connection() as conn, pytest.raises(TestingKitMisuse, match="failed"):
            run.apply_effects(conn)


PARITY: dict[str, tuple[Act, dict[str, Any]]] = {
    "completes": (fine, {"n": 1}),
    "done": (returning(Done(Result(n=2))), {}),
    "retries": (raising(RetryableError("kit.busy", "Busy.", pages=3)), {}),
    "retry after": (raising(RetryableError("kit.busy", "Busy.", retry_after=99)), {}),
    "retry after too long": (raising(RetryableError("kit.busy", "Busy.", retry_after=1e9)), {}),
    "retry after nonsense": (raising(RetryableError("kit.busy", "Busy.", retry_after=float("nan"))), {}),
    "permanent": (raising(PermanentError("kit.never", "Never.", pages=3)), {}),
    "snoozes": (raising(Snooze(30, "not yet")), {}),
    "snoozes too long": (raising(Snooze(1e9, "not yet")), {}),
    "surprise": (raising(ValueError(SECRET)), {}),
    "database away": (raising(psycopg.OperationalError(SECRET)), {}),
    "database refuses": (raising(psycopg.errors.UniqueViolation(SECRET)), {}),
    "base exception": (raising(GeneratorExit()), {}),
    "exits": (raising(SystemExit(3)), {}),
    "stopping": (raising(WorkerStopping()), {}),
    "timeout": (raising(JobTimeout()), {}),
    "cancelled": (raising(JobCancelled()), {}),
    "lost": (raising(LeaseLost()), {}),
    "wrong result": (returning({"n": 1}), {}),
    "no result": (returning(None), {}),
    "another model": (returning(Payload()), {}),
    "unstorable result": (returning(Unstorable()), {}),
    "invalid payload": (fine, {"n": SECRET, "x": 1}),
}


class TestAgreement:
    """run_inline and the runner, on the same handlers: shared/jobs may not import shared/broker, so this holds them."""

    @pytest.fixture
    def real(self) -> Callable[..., Run]:
        def run(act: Act, claimed: Any, pool: Any = None, publisher: Any = None) -> Run:
            run = Run(
                claimed,
                handler(act),
                worker_id=uuid4(),
                pool=pool,
                publisher=publisher,
                lease_seconds=30,
                asked_at=time.monotonic(),
                on_stuck=lambda run: None,
            )
            run.execute()
            run.outcome = decide(run)
            return run

        return run

    @pytest.mark.parametrize("attempt", [1, 3])
    @pytest.mark.parametrize("name", PARITY)
    def test_the_outcome_is_the_runners(
        self, name: str, attempt: int, real: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.broker.middleware.retries.spread", lambda: 0.0)
        act, payload = PARITY[name]
        inline = run_inline(handler(act), payload, attempt=attempt)
        theirs = real(act, inline.job)
        assert self._plain(inline.outcome) == self._plain(theirs.outcome)
        if inline.outcome is None:
            assert inline.ended == ("cancelled" if isinstance(theirs.exception, JobCancelled) else "lost")
        else:
            assert inline.ended == inline.outcome.kind.value
        if inline.ended == "completed":
            assert theirs.result is not None
            assert (inline.result, inline.effects) == (theirs.result.result, theirs.result.effects)
        assert SECRET not in str(inline.outcome)

    @pytest.mark.parametrize("act", [leaning, swallowing])
    @pytest.mark.parametrize("reason", ["cancelled", "time limit", "lease lost", "worker stopping"])
    def test_an_interrupted_run_ends_as_the_runners(
        self, act: Act, reason: Any, real: Callable[..., Run], pool: SyncPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.broker.middleware.retries.spread", lambda: 0.0)
        their_store = PostgresStore(pool, REGISTRY)
        their_store.submit([job()])
        [claimed] = their_store.claim(queue="kit", worker_id=uuid4(), lease_seconds=30)

        class Interrupting:
            """Stands for whoever interrupts, between the second step's being recorded and the handler's going on."""

            def look(self, _: Any) -> None:
                steps = [e for e in their_store.events(claimed.id) if e["kind"] == "progress"]
                if len(steps) == 2 and current[0].interrupted is None:
                    current[0].interrupt(
                        {
                            "cancelled": JobCancelled,
                            "time limit": JobTimeout,
                            "lease lost": LeaseLost,
                            "worker stopping": WorkerStopping,
                        }[reason]()
                    )

        current: list[Run] = []
        run = Run(
            claimed,
            handler(act),
            worker_id=uuid4(),
            pool=pool,
            publisher=Interrupting(),  # type: ignore[arg-type]
            lease_seconds=30,
            asked_at=time.monotonic(),
            on_stuck=lambda run: None,
        )
        current.append(run)
        run.execute()
        theirs = decide(run)
        inline = run_inline(handler(act), {}, interrupt=InterruptAfter(2, reason))
        if reason in ("cancelled", "lease lost"):
            # The fence drops whatever the handler made of it.
            assert inline.outcome is None
            assert inline.ended == ("cancelled" if reason == "cancelled" else "lost")
        else:
            assert self._plain(inline.outcome) == self._plain(theirs)
        steps = [e["data"] for e in their_store.events(claimed.id) if e["kind"] == "progress"]
        assert [{"percent": p.percent, "step": p.step} for p in inline.progress] == steps

    def test_a_log_line_is_kept_as_the_runner_keeps_it(self, real: Callable[..., Run], pool: SyncPool) -> None:
        their_store = PostgresStore(pool, REGISTRY)
        their_store.submit([job(payload={"owner": uuid4()})])
        [claimed] = their_store.claim(queue="kit", worker_id=uuid4(), lease_seconds=30)

        class Quiet:
            def look(self, _: Any) -> None: ...

        real(logging, claimed, pool, Quiet())
        [line] = [e["data"] for e in their_store.events(claimed.id) if e["kind"] == "log"]
        assert run_inline(handler(logging), claimed.payload).logs == [line]

    def _plain(self, outcome: Outcome | None) -> Any:
        """Without what names the job and the frames of whoever called the handler."""
        if outcome is None:
            return None
        error = None if outcome.error is None else {**outcome.error, "details": dict(outcome.error.get("details", {}))}
        if error is not None:
            traceback = error["details"].pop("traceback", None)
            assert traceback is None or SECRET not in str(traceback)
        result = outcome.result.model_dump() if isinstance(outcome.result, BaseModel) else outcome.result
        return outcome.status, outcome.kind, result, error, outcome.delay, outcome.charge


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back"):
        ManualClock().move_on(-1)


def test_threads_share_a_memory_store_without_overlap() -> None:
    kept = MemoryStore(REGISTRY)
    kept.submit([job(n) for n in range(200)])
    claimed: list[UUID] = []

    def work() -> None:
        while jobs := kept.claim(queue="kit", worker_id=uuid4(), lease_seconds=30, limit=3):
            claimed.extend(j.id for j in jobs)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(claimed), len(set(claimed))) == (200, 200)


def test_answers_are_copies() -> None:
    kept = MemoryStore(REGISTRY)
    wanted = job(1)
    kept.submit([wanted])
    (kept.get(wanted.id) or {})["payload"]["n"] = 99
    kept.jobs()[0]["status"] = "x"
    kept.claim(queue="kit", worker_id=uuid4(), lease_seconds=30)[0].payload["n"] = 99
    assert (kept.get(wanted.id) or {})["payload"]["n"] == 1


def test_the_kit_needs_neither_pytest_nor_the_broker() -> None:
    code = "import shared.jobs.testing, sys; print({'pytest', 'dramatiq', 'redis'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_example_of_the_documentation_is_true() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "testing.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) >= 4
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/testing.md", "exec"), space)
    tests = [name for name in space if name.startswith("test_")]
    assert tests
    for name in tests:
        space[name]()
