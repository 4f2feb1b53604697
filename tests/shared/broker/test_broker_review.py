"""What a review of the look-ahead claimer and the combined settling found: each of these failed once."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from broker_harness import Client, Stage, worker
from psycopg_pool import PoolTimeout

from shared.broker import WorkerProcess
from shared.broker.claimer import Claimer
from shared.broker.consumer import WakeConsumer
from shared.broker.settlement import Settlement
from shared.broker.stir import Stir
from shared.jobs import limits, store
from shared.jobs.limits import Limit, LimitTarget
from shared.settings import Settings

Eventually = Callable[..., Any]
QUEUE = LimitTarget("test")


def cancel(client: Client, id: UUID) -> None:
    with client.pool.connection() as conn, conn.transaction():
        store.cancel(conn, [id], member_id=None, actor="test", reason=None)


def make_suspect(client: Client, id: UUID) -> None:
    with client.pool.connection() as conn:
        conn.execute("update jobs set crash_count = 2, hold = 2 where id = %s", (id,))


def uncharged(client: Client, id: UUID) -> bool:
    row = client.row(id)
    return (row["retry_count"], row["stall_count"], row["crash_count"]) == (0, 0, 0)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the consumer's thread went round."""
    seen: list[float] = []
    real = WakeConsumer.__next__

    def count(self: WakeConsumer) -> Any:
        seen.append(time.monotonic())
        return real(self)

    monkeypatch.setattr(WakeConsumer, "__next__", count)
    return seen


def buffer(client: Client, stage: Stage, process: WorkerProcess, eventually: Eventually, ids: list[UUID]) -> None:
    """Have ``ids`` claimed by ``process``, whose threads are busy."""
    process.runs.mean_seconds = 0.0001
    process.runs.freed.set()
    process.claimer.wake()
    eventually(lambda: client.status(ids[-1]) == "processing", within=3)


class TestTheConsumerRests:
    def test_while_it_drains(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, turns: list[float]
    ) -> None:
        with worker(settings, stage, concurrency=1, grace=1.0):
            client.submit("nap", seconds=0.6)
            assert stage.began.wait(5)
            turns.clear()
            stage.go.clear()
            began = time.monotonic()
            # leaving the block drains
        assert len([t for t in turns if t - began < 0.6]) < 30

    def test_while_its_threads_are_busy_and_a_start_limit_would_allow_more(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, turns: list[float]
    ) -> None:
        with client.pool.connection() as conn:
            limits.set_limit(conn, Limit(QUEUE, start_limit=1, start_period=0.1))
        client.submit_all([{"do": "nap", "seconds": 5.0}] * 3)
        with worker(settings, stage, concurrency=2):
            eventually(lambda: len(stage.ran) == 2)
            time.sleep(0.3)
            turns.clear()
            time.sleep(0.5)
            assert len(turns) < 30
            stage.go.set()

    def test_after_a_failed_claim_of_a_queue_with_a_start_limit(
        self,
        settings: Settings,
        client: Client,
        stage: Stage,
        eventually: Eventually,
        turns: list[float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with client.pool.connection() as conn:
            limits.set_limit(conn, Limit(QUEUE, start_limit=1, start_period=0.2))

        def away(*_: Any, **__: Any) -> Any:
            raise PoolTimeout("away")

        with worker(settings, stage, concurrency=2):
            client.submit_all([{"do": "nothing"}] * 3)
            assert stage.began.wait(5)
            monkeypatch.setattr(store, "claim", away)
            time.sleep(0.5)
            turns.clear()
            time.sleep(1)
            assert len(turns) < 50
            monkeypatch.undo()
            eventually(lambda: not client.undone())


class TestStir:
    def test_no_set_is_slept_over_and_none_echoes_for_ever(self) -> None:
        """Against the windows inside ``set`` and ``clear``: many threads, one waiter, threads that switch often."""
        stir, made, stop = Stir(), [0, 0, 0], threading.Event()

        def make(n: int) -> None:
            while not stop.is_set():
                made[n] += 1
                stir.set()
                time.sleep(0)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=make, args=(n,)) for n in range(3)]
        try:
            for thread in threads:
                thread.start()
            until = time.monotonic() + 2
            while time.monotonic() < until:
                stir.clear()
                began = time.monotonic()
                stir.wait(0.5)
                assert time.monotonic() - began < 0.4, "they set it all the time"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)
        stir.clear()
        began = time.monotonic()
        stir.wait(0.1)
        assert time.monotonic() - began > 0.08, "nobody sets it any more"


class TestClaimedAhead:
    def test_nothing_waits_behind_a_long_job_while_another_process_is_free(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        with worker(settings, stage, concurrency=1) as busy:
            client.submit("nap", seconds=6)
            assert stage.began.wait(5)
            ids = client.submit_all([{"do": "nothing"}] * 10)
            buffer(client, stage, busy, eventually, ids)
            with worker(settings, stage, concurrency=1):
                eventually(lambda: all(client.status(id) == "completed" for id in ids), within=3)
                assert busy.runs.open == 1
            assert all(uncharged(client, id) for id in ids)

    def test_cancelling_one_ends_it_and_starts_no_thread(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.broker.claimer._LATE_SECONDS", 60.0, raising=False)
        with worker(settings, stage, concurrency=1) as process:
            client.submit("nap", seconds=8)
            assert stage.began.wait(5)
            ids = client.submit_all([{"do": "nap", "seconds": 8}] * 3)
            buffer(client, stage, process, eventually, ids)
            cancel(client, ids[2])
            eventually(lambda: process.runs.open == 3, within=1.5)
            time.sleep(2.5)
            assert len(stage.ran) == 1, "no more at once than there are threads"
            assert process.runs.stuck == 0
        assert client.kinds(ids[2]) == ["accepted", "started", "cancelled"]

    def test_one_that_waited_long_is_not_overtaken_in_the_process(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.broker.claimer._LATE_SECONDS", 60.0, raising=False)
        with worker(settings, stage, concurrency=1) as process:
            client.submit("nap", seconds=8)
            assert stage.began.wait(5)
            old = client.submit("nothing", priority=2, wake=False)
            with client.pool.connection() as conn:
                conn.execute("update jobs set run_at = now() - interval '30 minutes' where id = %s", (old,))
            new = client.submit_all([{"do": "nothing"}] * 5, priority=1)
            buffer(client, stage, process, eventually, [old, *new])
            eventually(lambda: client.status(old) == "processing")
            stage.go.set()
            eventually(lambda: not client.undone())
            order = [id for id, _ in stage.ran]
            assert order.index(old) < min(order.index(id) for id in new)


class TestDraining:
    def test_what_a_claim_under_way_brings_does_not_begin(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, answer = threading.Event(), threading.Event()
        real = store.claim

        def slow(*args: Any, **kw: Any) -> Any:
            claims = real(*args, **kw)
            if claims:
                asked.set()
                answer.wait(5)
            return claims

        monkeypatch.setattr(store, "claim", slow)
        process = WorkerProcessContext(settings, stage)
        id = client.submit("nap", seconds=5)
        assert asked.wait(5)
        stopping = process.stop_soon(grace=4.0)
        time.sleep(0.3)
        answer.set()
        stopping.join(3.5)
        assert not stopping.is_alive(), "it waited for nothing"
        assert stage.ran == []
        assert client.kinds(id) == ["accepted", "started", "released"]
        assert uncharged(client, id)

    def test_ends_in_time_and_charges_nobody_when_nothing_can_be_written(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.broker.claimer._LATE_SECONDS", 60.0, raising=False)
        process = WorkerProcessContext(settings, stage)
        client.submit("nap", seconds=20)
        assert stage.began.wait(5)
        ids = client.submit_all([{"do": "nothing"}] * 5)
        buffer(client, stage, process.process, eventually, ids)

        def away(*_: Any, **__: Any) -> Any:
            time.sleep(0.5)
            raise PoolTimeout("away")

        monkeypatch.setattr(store, "settle", away)
        monkeypatch.setattr(store, "settle_plain", away)
        stopping = process.stop_soon(grace=0.5)
        stopping.join(15)
        assert not stopping.is_alive()
        assert [client.status(id) for id in ids] == ["queued"] * 5, "given back all the same"
        assert all(uncharged(client, id) for id in ids)


class WorkerProcessContext:
    def __init__(self, settings: Settings, stage: Stage) -> None:
        self._entered = worker(settings, stage, concurrency=1)
        self.process = self._entered.__enter__()

    def stop_soon(self, grace: float) -> threading.Thread:
        thread = threading.Thread(target=self.process.stop, args=(grace,), daemon=True)
        thread.start()
        return thread


class TestSettling:
    def test_a_leader_that_fails_leaves_nobody_behind(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Settlement._settle_together
        failures: list[BaseException] = [SystemExit(), RuntimeError()]

        def fail(self: Settlement, runs: Any) -> Any:
            if failures:
                raise failures.pop()
            return real(self, runs)

        monkeypatch.setattr(Settlement, "_settle_together", fail)
        ids = client.submit_all([{"do": "nothing"}] * 20)
        with worker(settings, stage, concurrency=2) as process:
            eventually(lambda: all(client.ended_once(id) for id in ids))
            eventually(lambda: process.runs.all() == [])
            assert process.runs.open == 0

    def test_an_end_that_cannot_be_told_is_an_end(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> Any:
            raise ValueError("I/O operation on closed file")

        monkeypatch.setattr("shared.broker.settlement.metrics.JOBS_FINISHED.labels", broken)
        ids = client.submit_all([{"do": "nothing"}] * 20)
        with worker(settings, stage, concurrency=2) as process:
            eventually(lambda: all(client.ended_once(id) for id in ids))
            eventually(lambda: process.runs.all() == [])
        assert all(uncharged(client, id) for id in ids)

    def test_one_that_must_wait_holds_up_no_other(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job whose combined write leaves it over, and whose own write blocks."""
        blocked, go = client.submit("nothing", wake=False), threading.Event()
        plain, single = store.settle_plain, store.settle

        def without(conn: Any, worker_id: Any, outcomes: Any) -> Any:
            return plain(conn, worker_id, [o for o in outcomes if o.id != blocked])

        def wait(conn: Any, worker_id: Any, outcomes: Any) -> Any:
            if outcomes[0].id == blocked:
                go.wait(8)
            return single(conn, worker_id, outcomes)

        monkeypatch.setattr(store, "settle_plain", without)
        monkeypatch.setattr(store, "settle", wait)
        others = client.submit_all([{"do": "nothing"}] * 20)
        with worker(settings, stage, concurrency=2):
            eventually(lambda: all(client.status(id) == "completed" for id in others), within=4)
            assert client.status(blocked) == "processing"
            go.set()
            eventually(lambda: client.ended_once(blocked))


class TestSuspects:
    def test_what_was_claimed_is_run_although_the_reservation_fails(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(*_: Any, **__: Any) -> Any:
            raise psycopg.OperationalError("lost")

        make_suspect(client, client.submit("nothing", wake=False))
        ids = client.submit_all([{"do": "nap", "seconds": 0.05}] * 4)
        monkeypatch.setattr(store, "reserve", lost)
        with worker(settings, stage, concurrency=2):
            eventually(lambda: all(client.status(id) == "completed" for id in ids))
        assert all(client.kinds(id) == ["accepted", "started", "completed"] for id in ids)

    def test_runs_among_jobs_longer_than_a_reservation(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "RESERVE_SECONDS", 0.5)
        monkeypatch.setattr("shared.broker.claimer._LATE_SECONDS", 0.1, raising=False)
        first = client.submit("nap", seconds=0.4)
        client.submit_all([{"do": "nap", "seconds": 1.2}] * 12)
        with worker(settings, stage, concurrency=2):
            eventually(lambda: client.status(first) == "completed")
            suspect = client.submit("nothing", wake=False)
            make_suspect(client, suspect)
            eventually(lambda: client.status(suspect) == "completed", within=6)
            assert client.undone() > 4

    def test_one_that_may_not_start_costs_the_others_no_room(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reserved: list[float] = []
        real = store.reserve

        def count(*args: Any, **kw: Any) -> bool:
            reserved.append(time.monotonic())
            return real(*args, **kw)

        monkeypatch.setattr(store, "reserve", count)
        for n in range(6):
            id = client.submit("nothing", concurrency_key=f"k{n}", wake=False)
            with client.pool.connection() as conn:
                limits.set_limit(conn, Limit(LimitTarget("test", client.org_id, f"k{n}"), max_running=0))
            make_suspect(client, id)
        ids = client.submit_all([{"do": "nap", "seconds": 0.05}] * 40)
        with worker(settings, stage, concurrency=2):
            eventually(lambda: all(client.status(id) == "completed" for id in ids))
        assert len(reserved) == 1

    def test_nobody_keeps_asking_for_one_that_is_gone(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "RESERVE_SECONDS", 0.5)
        asked: list[float] = []
        real = Claimer._claim

        def count(self: Claimer, room: int) -> Any:
            asked.append(time.monotonic())
            return real(self, room)

        monkeypatch.setattr(Claimer, "_claim", count)
        suspect = client.submit("nothing", wake=False)
        make_suspect(client, suspect)
        client.submit("nap", seconds=1.5)
        with worker(settings, stage, concurrency=2):
            assert stage.began.wait(5)
            cancel(client, suspect)
            eventually(lambda: not client.undone())
            time.sleep(0.7)
            asked.clear()
            time.sleep(1)
            assert len(asked) <= 1
