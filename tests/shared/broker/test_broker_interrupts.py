"""Handlers are stopped in time, whatever they do; nothing else is ever hit."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from broker_harness import Client, Stage, worker

from shared.broker import interrupt
from shared.broker.interrupt import Interruptible
from shared.jobs import JobCancelled, JobContext, JobTimeout, store
from shared.settings import Settings

Eventually = Callable[..., Any]


def cancel(client: Client, id: Any) -> None:
    with client.pool.connection() as conn, conn.transaction():
        store.cancel(conn, [id], member_id=None, actor="member:test", reason="changed my mind")


class TestTimeLimit:
    @pytest.mark.parametrize(("do", "slack"), [("spin", 1.0), ("nap", 0.5), ("child", 0.5), ("sleep", 1.2)])
    def test_stops_a_handler_and_charges_it(
        self,
        settings: Settings,
        client: Client,
        stage: Stage,
        eventually: Eventually,
        monkeypatch: pytest.MonkeyPatch,
        do: str,
        slack: float,
    ) -> None:
        monkeypatch.setattr(interrupt, "STUCK_SECONDS", 0.4)
        with worker(settings, stage):
            id = client.submit(do, time_limit=0.3, max_retries=1)
            eventually(lambda: client.row(id)["retry_count"] == 1)
            row = client.row(id)
            events = {e["kind"]: e["at"] for e in client.events(id)}
            assert 0.3 <= (events["retrying"] - events["started"]).total_seconds() < 0.3 + slack
            assert row["error"]["code"] == "job.time_limit"
            time.sleep(0.07)
            with client.pool.connection() as conn:  # the last try; a moment is enough
                conn.execute("update jobs set time_limit = 0.05 where id = %s", (id,))
            client.submit()
            eventually(lambda: client.status(id) == "failed")
        assert client.kinds(id) == ["accepted", "started", "retrying", "started", "failed"]
        if do == "child":
            assert [child.wait(1) for child in stage.notes] == [-9, -9], "the children were killed"

    def test_a_thread_that_cannot_be_stopped_is_replaced_and_retires(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interrupt, "STUCK_SECONDS", 0.5)
        with worker(settings, stage, concurrency=1) as process:
            stuck = client.submit("sleep", seconds=1.5, time_limit=0.1, max_retries=0)
            eventually(lambda: client.status(stuck) == "failed")
            assert process.stats()["stuck"] == 1
            client_ran = client.submit()
            eventually(lambda: client.status(client_ran) == "completed")
            eventually(lambda: process.stats()["stuck"] == 0)
            eventually(lambda: sum(t.is_alive() for t in process._worker.workers) == 1)
            assert process._thread_problem() is None
        assert client.kinds(stuck) == ["accepted", "started", "failed"], "its late end changed nothing"


class TestCancel:
    def test_interrupts_a_running_job_and_drops_its_result(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        stopped: list[float] = []
        settings = settings.model_copy(update={"heartbeat_seconds": 1.0, "lease_seconds": 15.0})

        def act(ctx: JobContext, payload: Any) -> Any:
            with ctx.on_interrupt(lambda: stopped.append(time.monotonic())):
                try:
                    stage.do_nap(ctx, payload)
                finally:
                    stage.notes.append(time.monotonic())

        stage.acts["act"] = act
        with worker(settings, stage, concurrency=1) as process:
            id = client.submit("act")
            assert stage.began.wait(5)
            asked = time.monotonic()
            cancel(client, id)
            eventually(lambda: process.stats()["running"] == 0)
            assert stage.notes[0] - asked < 2
            assert len(stopped) == 1
            assert process.runs.counts == {"cancelled": 1}
            after = client.submit()
            eventually(lambda: client.status(after) == "completed")
        assert client.kinds(id) == ["accepted", "started", "cancelled"]
        assert client.row(id)["result"] is None

    def test_a_report_tells_the_handler_before_the_heartbeat_does(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def act(ctx: JobContext, payload: Any) -> None:
            try:
                assert stage.go.wait(5)
                ctx.progress(50, "half")
            except BaseException as e:
                stage.notes.append(type(e))
                raise

        stage.acts["act"] = act
        with worker(settings.model_copy(update={"heartbeat_seconds": 30.0, "lease_seconds": 60.0}), stage) as process:
            id = client.submit("act")
            assert stage.began.wait(5)
            cancel(client, id)
            stage.go.set()
            eventually(lambda: process.stats()["running"] == 0)
        assert stage.notes == [JobCancelled]


class TestReports:
    def test_sequence_numbers_have_no_gap_under_concurrent_reports_and_a_cancel(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        def act(ctx: JobContext, payload: Any) -> None:
            def report() -> None:
                for n in range(100):
                    ctx.progress(n, "counting")
                    ctx.log("counted", n=n)

            threads = [threading.Thread(target=_quietly, args=(report,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            report()

        stage.acts["act"] = act
        with worker(settings, stage) as process:
            ids = [client.submit("act") for _ in range(2)]
            eventually(lambda: all(len(client.events(id)) > 40 for id in ids))
            cancel(client, ids[0])
            eventually(lambda: process.stats()["running"] == 0)
            time.sleep(0.1)
        assert [client.events(id)[-1]["kind"] for id in ids] == ["cancelled", "completed"]

    def test_interrupts_in_the_middle_of_reports_cost_the_pool_no_connection(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def act(ctx: JobContext, payload: Any) -> None:
            while True:
                ctx.progress(1, "on and on")
                with ctx.connection() as conn:
                    conn.execute("select 1")

        stage.acts["act"] = act
        with worker(settings.model_copy(update={"heartbeat_seconds": 30.0, "lease_seconds": 60.0}), stage) as process:
            take = process._pool.getconn

            def slowly(timeout: float | None = None) -> Any:
                conn = take(timeout)
                for _ in range(20):  # a connection taken and not yet handed over: the moment that matters
                    time.sleep(0.0001)
                return conn

            monkeypatch.setattr(process._pool, "getconn", slowly)
            for _ in range(60):
                stage.began.clear()
                client.submit("act", max_retries=0)
                assert stage.began.wait(5)
                time.sleep(random.uniform(0, 0.01))
                for run in process.runs.all():
                    run.interrupt(JobTimeout())
                eventually(lambda: process.stats()["running"] == 0)
            monkeypatch.undo()
            pool = process._pool
            conns = [pool.getconn(timeout=5) for _ in range(pool.max_size)]
            assert [c.execute("select 1 as one").fetchone() for c in conns] == [{"one": 1}] * pool.max_size
            for conn in conns:
                pool.putconn(conn)
        assert process.runs.counts == {"failed": 60}


def _spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        time.sleep(0)  # the others' turn


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException:
        return


class TestNothingLeaks:
    def test_out_of_the_handler_however_close_to_its_end_the_interrupt_comes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Short handlers back to back, each hit by another thread at a random moment before, at or after its end."""
        monkeypatch.setattr(Interruptible, "_stop_handler", Interruptible._tell)  # at once, without threads
        rounds, over = 5000, threading.Event()
        current: Interruptible | None = None
        outcomes = {"ended": 0, "interrupted": 0, "torn": 0, "late": 0}

        def hammer() -> None:
            last = None
            while not over.is_set():
                guard = current
                if guard is None or guard is last:
                    continue
                last = guard
                _spin(random.uniform(0, 150e-6))
                guard.interrupt(JobCancelled())

        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        gunner = threading.Thread(target=hammer, daemon=True)
        gunner.start()
        try:
            for n in range(rounds):
                guard = current = Interruptible(lambda: None)
                how = "ended"
                try:
                    guard.enter()
                    try:
                        _spin(random.uniform(0, 100e-6))
                        if n % 3 == 0:
                            with guard.shielded():
                                _spin(10e-6)
                    finally:
                        guard.leave()
                except JobCancelled:
                    how = "interrupted"
                try:  # what follows is the settling, and must never be hit
                    before = guard.reason
                    assert guard.end()
                    _spin(50e-6)
                    if how == "ended" and before is not None:
                        how = "late"  # it came as the handler ended, and was taken back
                except BaseException:
                    how = "torn"
                outcomes[how] += 1
        finally:
            over.set()
            sys.setswitchinterval(switch)
            gunner.join()
        print(outcomes)
        assert outcomes["torn"] == 0
        assert sum(outcomes.values()) == rounds
        assert outcomes["interrupted"] > 50 < outcomes["late"] + outcomes["ended"], f"hits and misses: {outcomes}"

    def test_when_it_is_sent_while_the_handler_leaves(self) -> None:
        """Sent as the handler's thread waits for the lock in ``leave``, it must be taken back there."""
        guard = Interruptible(lambda: None)
        ready, go = threading.Event(), threading.Event()
        after: list[str] = []

        def work() -> None:
            guard.enter()
            ready.set()
            while not go.is_set():
                pass
            guard.leave()
            try:
                _spin(0.01)
                after.append("unharmed")
            except BaseException as e:
                after.append(type(e).__name__)

        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(5)
        with guard._lock:
            go.set()
            time.sleep(0.1)  # until it waits for this lock: that cannot be observed
            guard.reason = JobCancelled()
            interrupt._raise_in_thread(guard._thread_id, JobCancelled)
        thread.join(5)
        assert after == ["unharmed"]

    def test_of_a_whole_worker_under_fire(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        """Every job ends as completed or, when it was hit, as failed; the threads live on."""
        fire = threading.Event()
        with worker(settings, stage, concurrency=3) as process:

            def hammer() -> None:
                while not fire.is_set():
                    for run in process.runs.all():
                        if random.random() < 0.4:
                            run.interrupt(JobTimeout())
                    time.sleep(random.uniform(0, 0.002))

            ids = client.submit_all([{"do": "nap", "seconds": 0.004}] * 400, max_retries=0)
            gunner = threading.Thread(target=hammer, daemon=True)
            gunner.start()
            eventually(lambda: not client.undone(), within=30)
            fire.set()
            gunner.join()
            after = client.submit_all([{}] * 20)
            eventually(lambda: not client.undone())
            assert process._thread_problem() is None
            assert process.runs.counts.get("lost", 0) == 0
        assert {client.status(id) for id in after} == {"completed"}
        with client.pool.connection() as conn:
            rows = conn.execute(
                "select kind, count(*) as n, count(distinct job_id) as jobs from job_events"
                " where kind in ('completed', 'failed') and job_id = any(%s) group by kind",
                (ids,),
            ).fetchall()
        assert sum(r["n"] for r in rows) == sum(r["jobs"] for r in rows) == len(ids)
        assert {r["kind"] for r in rows} == {"completed", "failed"}, "some were hit, some were not"

    def test_a_stop_that_hangs_delays_no_one_but_its_own_job(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interrupt, "STUCK_SECONDS", 0.2)
        hang = threading.Event()

        def act(ctx: JobContext, payload: Any) -> None:
            with ctx.on_interrupt(lambda: hang.wait(10)):  # type: ignore[arg-type,return-value]
                stage.do_nap(ctx, payload)

        stage.acts["act"] = act
        with worker(settings, stage) as process:
            id = client.submit("act")
            other = client.submit("nap", seconds=2.5)
            eventually(lambda: len(stage.ran) == 2)
            cancel(client, id)
            eventually(lambda: process.stats()["running"] == 1, within=3)
            eventually(lambda: client.status(other) == "completed")
            assert process.heartbeat.age < 1
            hang.set()
        assert client.kinds(other) == ["accepted", "started", "completed"]
