"""How a process takes jobs: at its pace, under the limits, not too far ahead, and suspects alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from broker_harness import Client, Payload, Stage, worker

from shared.broker import WorkerProcess
from shared.jobs import JobContext, limits, store
from shared.jobs.limits import Limit, LimitTarget
from shared.settings import Settings

Eventually = Callable[..., Any]
QUEUE = LimitTarget("test")


class Meter:
    """A handler that notes when it began and how many run at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.began: list[float] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, ctx: JobContext, payload: Payload) -> None:
        with self._lock:
            self.began.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1


@pytest.fixture
def meter(stage: Stage) -> Meter:
    stage.acts["meter"] = meter = Meter()
    return meter


def limit(client: Client, **numbers: Any) -> None:
    with client.pool.connection() as conn:
        limits.set_limit(conn, Limit(QUEUE, **numbers))


class TestStartRate:
    def test_a_process_starts_no_more_jobs_a_second_than_it_is_told(
        self, settings: Settings, client: Client, stage: Stage, meter: Meter, eventually: Eventually
    ) -> None:
        client.submit_all([{"do": "meter"}] * 16)
        with worker(settings.model_copy(update={"worker_start_rate": 10.0}), stage, concurrency=4):
            eventually(lambda: not client.undone())
        assert meter.began[9] - meter.began[0] < 0.5, "ten at once after a rest"
        assert 0.5 <= meter.began[15] - meter.began[0] <= 3, "then ten a second"


class TestLimits:
    def test_jobs_of_a_limited_queue_follow_each_other_without_a_scheduler(
        self, settings: Settings, client: Client, stage: Stage, meter: Meter, eventually: Eventually
    ) -> None:
        limit(client, max_running=1)
        client.submit_all([{"do": "meter"}] * 20)
        began = time.monotonic()
        with worker(settings, stage, concurrency=4), worker(settings, stage, concurrency=4):
            eventually(lambda: not client.undone())
        assert meter.most == 1
        assert time.monotonic() - began < 5, "an end wakes the next"

    def test_a_start_limit_wakes_its_waiters_by_itself(
        self, settings: Settings, client: Client, stage: Stage, meter: Meter, eventually: Eventually
    ) -> None:
        limit(client, start_limit=1, start_period=0.3)
        client.submit_all([{"do": "meter"}] * 4)
        with worker(settings, stage):
            eventually(lambda: not client.undone())
        gaps = [b - a for a, b in zip(meter.began, meter.began[1:], strict=False)]
        assert all(0.2 < gap < 0.9 for gap in gaps)

    def test_jobs_of_one_key_follow_each_other_and_hold_nobody_up(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        stage.acts["keyed"] = keyed = Meter(0.02)
        stage.acts["free"] = free = Meter(0.02)
        client.submit_all([{"do": "keyed"}] * 10, concurrency_key="k")
        client.submit_all([{"do": "free"}] * 10)
        with worker(settings, stage, concurrency=4):
            eventually(lambda: not client.undone(), within=20)
        assert keyed.most == 1
        assert free.most > 1
        assert max(free.began) < max(keyed.began)


class TestAhead:
    def test_long_jobs_are_not_claimed_before_a_thread_is_free(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        stage.acts["meter"] = Meter(0.1)
        with worker(settings, stage, concurrency=2) as process:
            client.submit_all([{"do": "meter"}] * 4)
            eventually(lambda: not client.undone())
            client.submit_all([{"do": "nap"}] * 6)
            eventually(lambda: len(stage.ran) == 6)
            assert process.runs.open == 2
            with client.pool.connection() as conn:
                row = conn.execute("select count(*) as n from jobs where status = 'processing'").fetchone()
            assert row == {"n": 2}

    def test_what_was_claimed_ahead_is_given_back_by_a_stopping_process(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        stage.acts["meter"] = Meter()
        with worker(settings, stage, concurrency=1, grace=0.0) as process:
            client.submit_all([{"do": "meter"}] * 50)
            eventually(lambda: not client.undone())
            napping = client.submit("sleep", seconds=3)
            eventually(lambda: (napping, 1) in stage.ran)
            ahead = client.submit_all([{"do": "nap"}] * 5)
            process.runs.mean_seconds = 0.0001  # as if they were short
            process.runs.freed.set()
            eventually(lambda: client.status(ahead[0]) == "processing")
        for id in (napping, ahead[0]):
            assert client.kinds(id)[-1] == "released"
            row = client.row(id)
            assert (row["status"], row["retry_count"], row["stall_count"], row["crash_count"]) == ("queued", 0, 0, 0)
        assert ahead[0] not in [id for id, _ in stage.ran], "it never began"


class TestSuspects:
    def suspect(self, client: Client, do: str, **fields: Any) -> Any:
        id = client.submit(do, wake=False, **fields)
        with client.pool.connection() as conn:
            conn.execute("update jobs set crash_count = 2, hold = 2 where id = %s", (id,))
        return id

    @pytest.fixture
    def alone(self, stage: Stage) -> list[int]:
        """How many ran beside each suspect."""
        beside: list[int] = []
        lock = threading.Lock()
        running = 0

        def suspect(ctx: JobContext, payload: Payload) -> None:
            beside.append(running)
            time.sleep(0.05)
            beside.append(running)

        def other(ctx: JobContext, payload: Payload) -> None:
            nonlocal running
            with lock:
                running += 1
            time.sleep(0.02)
            with lock:
                running -= 1

        stage.acts["suspect"], stage.acts["other"] = suspect, other
        return beside

    def test_runs_alone_in_a_process_that_makes_room_while_work_keeps_coming(
        self, settings: Settings, client: Client, stage: Stage, alone: list[int], eventually: Eventually
    ) -> None:
        others = client.submit_all([{"do": "other"}] * 120)
        suspects = [self.suspect(client, "suspect") for _ in range(2)]
        with worker(settings, stage, concurrency=4):
            eventually(lambda: all(client.status(id) == "completed" for id in suspects))
            assert client.undone() > 0, "it did not have to wait for the queue to be empty"
            eventually(lambda: not client.undone())
        assert alone == [0, 0, 0, 0]
        assert all(client.ended_once(id) for id in others)

    def test_what_a_stopped_process_had_reserved_is_free_for_others(
        self, settings: Settings, client: Client, stage: Stage, alone: list[int], eventually: Eventually
    ) -> None:
        id, gone = self.suspect(client, "suspect"), uuid4()
        with client.pool.connection() as conn:
            assert store.reserve(conn, queue="test", worker_id=gone)
            store.leave(conn, gone)
        with worker(settings, stage):
            eventually(lambda: client.status(id) == "completed", within=5)

    def test_an_idle_process_takes_it_at_once(
        self, settings: Settings, client: Client, stage: Stage, alone: list[int], eventually: Eventually
    ) -> None:
        id = self.suspect(client, "suspect")
        with worker(settings, stage):
            eventually(lambda: client.status(id) == "completed", within=3)
        assert alone == [0, 0]


class TestLostAnswers:
    def test_a_job_claimed_in_a_worker_s_name_that_it_never_heard_of_is_given_back_by_it(
        self, settings: Settings, client: Client, stage: Stage, eventually: Eventually
    ) -> None:
        stage.acts["meter"] = Meter()
        with worker(settings, stage) as process:
            client.submit("meter")
            eventually(lambda: not client.undone())
            id = client.submit("meter", wake=False)
            with client.pool.connection() as conn:
                claims = store.claim(
                    conn, queue="test", worker_id=process.identity.id, lease_seconds=settings.lease_seconds
                )
                assert [job.id for job in claims] == [id]
            eventually(lambda: client.status(id) == "completed")
        assert client.kinds(id) == ["accepted", "started", "released", "started", "completed"]
        row = client.row(id)
        assert (row["retry_count"], row["stall_count"], row["crash_count"]) == (0, 0, 0)

    def test_a_stopped_worker_is_not_missed(self, settings: Settings, client: Client, stage: Stage) -> None:
        def seen(process: WorkerProcess) -> bool:
            with client.pool.connection() as conn:
                return (
                    conn.execute("select 1 from workers where id = %s", (process.identity.id,)).fetchone() is not None
                )

        with worker(settings, stage) as process:
            process.heartbeat.beat()
            assert seen(process)
        assert not seen(process)
