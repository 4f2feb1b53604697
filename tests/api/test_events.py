"""Server-sent events of a job: replayed, resumed, live, and gone when the job or the gateway ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest

from deploy.local.servers import EmbeddedServers
from services.api.auth import Caller
from services.api.resources import job_events
from services.api.resources.job_events import JobEvents
from services.api.watch import Watcher
from shared.broker import Publisher, WakeBroker, make_redis
from shared.db import SyncPool, open_async_pool
from shared.ids import IdKind
from shared.jobs import Outcome
from tests.api.gateway import V1, Gateway, Person, School, accepted, claim, problem, progress, settle, upload, uuid_of


@pytest.fixture(scope="module")
def publisher(servers: EmbeddedServers) -> Iterator[Publisher]:
    publisher = Publisher(WakeBroker(make_redis(servers.redis_url))).start()
    yield publisher
    publisher.close()


def a_job(who: Person) -> str:
    return str(accepted(upload(who))["jobs"][0]["id"])


def parse(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            events.append({**json.loads(fields["data"]), "id": fields["id"], "event": fields["event"]})
    return events


class Stream:
    """Events with the moment each arrived, read on a thread."""

    def __init__(self, who: Person, job_id: str, **headers: str) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.ended = threading.Event()
        self.opened = threading.Event()
        self._who, self._url, self._headers = who, f"{V1}/jobs/{job_id}/events", headers
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._who.http.stream("GET", self._url, headers=self._headers, timeout=30) as answer:
                self.opened.set()
                self.headers = answer.headers
                block = ""
                for line in answer.iter_lines():
                    block += line + "\n"
                    if line == "":
                        self.events += [(time.monotonic(), e) for e in parse(block)]
                        block = ""
        except httpx2.TransportError:
            pass
        self.ended.set()

    def await_event(self, kind: str, within: float = 5) -> float:
        """When it arrived."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for at, event in self.events:
                if event["event"] == kind:
                    return at
            time.sleep(0.005)
        raise AssertionError(f"no {kind} within {within} s: {[e['event'] for _, e in self.events]}")


def ended(db: SyncPool, who: Person) -> str:
    job_id = a_job(who)
    job = claim(db, job_id)
    for n in (10, 60):
        progress(db, job, n, f"Page {n}")
    settle(db, Outcome.completed(job, {}))
    return job_id


def test_all_events_are_replayed_in_order_and_the_stream_ends(teacher: Person, db: SyncPool) -> None:
    job_id = ended(db, teacher)
    answer = teacher.http.get(f"{V1}/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"]
    events = parse(answer.text)
    assert [e["id"] for e in events] == ["1", "2", "3", "4", "5"]
    assert [e["event"] for e in events] == ["accepted", "started", "progress", "progress", "completed"]
    assert [e["seq"] for e in events] == [1, 2, 3, 4, 5]
    assert {e["job_id"] for e in events} == {job_id}
    # The status each led to, where it changed.
    assert [e.get("status") for e in events] == [None, "processing", None, None, "completed"]
    assert events[2]["progress"] == {"percent": 10, "step": "Page 10"}
    assert "retry: 2000" in answer.text


def test_it_resumes_after_the_last_event_seen_and_stops_after_the_end(teacher: Person, db: SyncPool) -> None:
    url = f"{V1}/jobs/{ended(db, teacher)}/events"
    resumed = parse(teacher.http.get(url, headers={"Last-Event-ID": "3"}).text)
    assert [e["id"] for e in resumed] == ["4", "5"]
    assert [e["id"] for e in parse(teacher.http.get(url, params={"last_event_id": "4"}).text)] == ["5"]
    for after in ("5", "6", "999999999"):
        answer = teacher.http.get(url, headers={"Last-Event-ID": after})
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 10, "²"])
def test_a_wrong_last_event_id_is_refused(teacher: Person, given: str) -> None:
    url = f"{V1}/jobs/{a_job(teacher)}/events"
    problem(
        teacher.http.get(url, headers={"Last-Event-ID": given.encode("latin-1")}),
        422, "request.invalid", "Last-Event-ID",
    )  # fmt: skip


def test_a_job_of_long_history_is_replayed_whole(teacher: Person, db: SyncPool) -> None:
    job_id = a_job(teacher)
    job = claim(db, job_id)
    with db.connection() as conn:
        conn.execute(
            """insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
               select %(id)s, n, %(org)s, 'log', 1, 'worker:x', '{"message": "m"}' from generate_series(3, 1300) n""",
            {"id": job.id, "org": job.org_id},
        )
        conn.execute("update jobs set event_seq = 1300 where id = %s", (job.id,))
    settle(db, Outcome.completed(job, {}))
    assert [e["seq"] for e in parse(teacher.http.get(f"{V1}/jobs/{job_id}/events").text)] == list(range(1, 1302))


def test_what_another_process_commits_arrives_at_once(teacher: Person, db: SyncPool, publisher: Publisher) -> None:
    job_id = a_job(teacher)
    stream = Stream(teacher, job_id)
    stream.await_event("accepted")
    time.sleep(0.3)  # nothing is under way; the stream sleeps
    job = claim(db, job_id)
    for n in range(1, 4):
        progress(db, job, n * 10, f"Page {n}")
        committed = time.monotonic()
        publisher.look([job.id])
        deadline = committed + 1
        while len(stream.events) < 2 + n and time.monotonic() < deadline:
            time.sleep(0.002)
        assert stream.events[-1][1]["progress"]["percent"] == n * 10
        assert stream.events[-1][0] - committed < 0.5
    settle(db, Outcome.completed(job, {}))
    publisher.look([job.id])
    stream.await_event("completed", 1)
    assert stream.ended.wait(1)
    assert [e["seq"] for _, e in stream.events] == [1, 2, 3, 4, 5, 6]


def test_a_cancel_by_the_gateway_is_seen_by_all_its_processes(teacher: Person) -> None:
    job_id = a_job(teacher)
    streams = [Stream(teacher, job_id) for _ in range(6)]
    for stream in streams:
        stream.await_event("accepted")
    at = time.monotonic()
    teacher.http.post(f"{V1}/jobs/{job_id}/cancel")
    assert max(s.await_event("cancelled", 2) for s in streams) - at < 1
    assert all(s.ended.wait(1) for s in streams)


def test_an_id_beyond_the_last_event_does_not_wait_for_ever(
    teacher: Person, db: SyncPool, publisher: Publisher
) -> None:
    job_id = a_job(teacher)
    stream = Stream(teacher, job_id, **{"Last-Event-ID": "999999"})
    assert stream.opened.wait(2)
    settle(db, Outcome.completed(claim(db, job_id), {}))
    publisher.look([uuid_of(IdKind.JOB, job_id)])
    stream.await_event("completed", 2)
    assert stream.ended.wait(1)


@contextmanager
def without(servers: EmbeddedServers, what: str) -> Iterator[None]:
    getattr(servers, f"stop_{what}")()
    try:
        yield
    finally:
        getattr(servers, f"start_{what}")()


def test_without_redis_streams_look_by_themselves(teacher: Person, db: SyncPool, servers: EmbeddedServers) -> None:
    job_id = a_job(teacher)
    before = Stream(teacher, job_id)
    before.await_event("accepted")
    with without(servers, "valkey"):
        after = Stream(teacher, job_id)
        after.await_event("accepted")
        job = claim(db, job_id)
        progress(db, job, 50, "Half")
        at = time.monotonic()
        assert max(s.await_event("progress", 3) for s in (before, after)) - at < 1.5
    settle(db, Outcome.completed(job, {}))
    assert before.ended.wait(8)
    assert after.ended.wait(8)


def test_when_redis_is_back_so_is_the_bell(
    teacher: Person, db: SyncPool, publisher: Publisher, eventually: Any
) -> None:
    eventually(lambda: teacher.http.get("/readyz").json()["checks"]["redis"] == "ok")
    test_what_another_process_commits_arrives_at_once(teacher, db, publisher)


def test_when_postgres_goes_the_stream_ends_and_can_be_resumed(
    teacher: Person, db: SyncPool, servers: EmbeddedServers, eventually: Any
) -> None:
    job_id = a_job(teacher)
    stream = Stream(teacher, job_id)
    stream.await_event("accepted")
    with without(servers, "postgres"):
        assert stream.ended.wait(16)

    def resume() -> bool:
        with teacher.http.stream("GET", f"{V1}/jobs/{job_id}/events") as answer:
            return answer.status_code == 200

    eventually(resume)
    eventually(lambda: all(resume() for _ in range(10)))  # each process has got over it


def test_a_quiet_stream_pings(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "PING_SECONDS", 0.0)
    monkeypatch.setattr("services.api.watch.POLL_SECONDS", 0.05)

    class Parts:
        alive = staticmethod(lambda: True)

    async def first(count: int) -> list[Any]:
        parts: Any = Parts()
        parts.pool = await open_async_pool(database_url, size=1, application_name="test")
        parts.watcher = Watcher(redis_url)
        stream = JobEvents(parts)._stream(cast(Caller, None), uuid4(), 0)  # too short for its key to be asked for again
        got = [await anext(stream) for _ in range(count)]
        await stream.aclose()
        assert parts.watcher._watching == {}
        await parts.watcher.close()
        await parts.pool.close()
        return got

    # Falcon writes None as a comment line.
    assert asyncio.run(first(3)) == [None, None, None]


def test_a_stream_ends_within_seconds_of_its_key_being_revoked(school: School, db: SyncPool) -> None:
    watcher = school.person()
    job_id = a_job(watcher)
    stream = Stream(watcher, job_id)
    stream.await_event("accepted")
    with db.connection() as conn:
        conn.execute("update api_keys set revoked_at = now() where member_id = %s", (watcher.member_id,))
    assert stream.ended.wait(12)
    settle(db, Outcome.completed(claim(db, job_id), {}))
    assert [e["event"] for _, e in stream.events] == ["accepted"]


def test_streams_end_within_a_second_of_sigterm(gateway: Gateway, teacher: Person) -> None:
    job_id = a_job(teacher)
    streams = [Stream(teacher, job_id) for _ in range(6)]
    for stream in streams:
        stream.await_event("accepted")
    began = time.monotonic()
    gateway.terminate()
    assert all(s.ended.wait(1) for s in streams)
    gateway.process.wait(5)
    assert time.monotonic() - began < 2.5
    assert gateway.process.returncode == 0
