"""Who was promised what: the harness's own book of submits and cancellations, and the threads that write it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx2
import psycopg

from shared import ids
from shared.broker import Publisher, WakeBroker
from shared.ids import IdKind
from shared.jobs import NewBatch, insert_batch, store, submit
from tests.chaos import kinds
from tests.chaos.stack import ChaosStack, Connection
from tests.chaos.workload import Group, JobPlan, Workload

__all__ = ["Ledger", "Load"]

_STANDARD = {
    "name": "Chaos",
    "key": {"questions": [{"id": "1", "kind": "numeric", "answer": 9.81, "unit": "m/s^2", "points": 2}]},
}
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)


@dataclass
class Ledger:
    """``accepted``: the commit returned. ``doubtful``: the answer was lost, so the job may exist or not."""

    accepted: dict[UUID, JobPlan] = field(default_factory=dict)
    doubtful: dict[UUID, JobPlan] = field(default_factory=dict)
    batches: dict[UUID, tuple[UUID, ...]] = field(default_factory=dict)
    cancelled: set[UUID] = field(default_factory=set)  # the answer said so
    maybe_cancelled: set[UUID] = field(default_factory=set)  # asked for, whatever the answer
    gradings: dict[str, UUID] = field(default_factory=dict)  # idempotency key → job
    refused: list[str] = field(default_factory=list)  # what the gateway should have accepted

    @property
    def plans(self) -> dict[UUID, JobPlan]:
        return {**self.accepted, **self.doubtful}


class Load:
    """Submits a workload, cancels what is to be cancelled, and asks the gateway for gradings. ``join`` waits for it."""

    def __init__(self, stack: ChaosStack, workload: Workload) -> None:
        self.ledger = Ledger()
        self._stack = stack
        self._workload = workload
        self._began = time.monotonic()
        self._cancels: list[tuple[float, UUID]] = []
        self._submitted = threading.Event()
        self._publisher = Publisher(WakeBroker(stack.redis))
        self._failures: list[BaseException] = []
        duties = (self._submit_all, self._cancel_all, self._grade_all)
        self._threads = [threading.Thread(target=self._safely, args=(duty,), daemon=True) for duty in duties]

    def start(self) -> Load:
        self._began = time.monotonic()
        self._publisher.start()
        for thread in self._threads:
            thread.start()
        return self

    def join(self, within: float = 60.0) -> Ledger:
        """Raises what a thread of it raised."""
        deadline = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError("the load could not be submitted: gateway or Postgres did not come back")
        self._publisher.close()
        if self._failures:
            raise self._failures[0]
        return self.ledger

    def _safely(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except BaseException as e:
            self._failures.append(e)

    def _until(self, at: float) -> None:
        time.sleep(max(0.0, self._began + at - time.monotonic()))

    # -- submits and cancellations, through shared.jobs

    def _submit_all(self) -> None:
        conn: Connection | None = None
        try:
            for group in self._workload.groups:
                self._until(group.at)
                conn = self._reach(conn)
                self._submit(conn, group)
        finally:
            self._submitted.set()
            if conn is not None:
                conn.close()

    def _submit(self, conn: Connection, group: Group) -> None:
        plans = {p.id: p for p in group.jobs}
        members = tuple(p.id for p in group.jobs if p.job.batch_id is not None)
        if group.batch_id is not None:
            self.ledger.batches[group.batch_id] = members
        try:
            with conn.transaction():
                if group.batch_id is not None:
                    insert_batch(conn, NewBatch(group.batch_id, group.org_id, None, "chaos", len(members)))
                accepted = submit(conn, [p.job for p in group.jobs], kinds.REGISTRY)
        except _AWAY:
            self.ledger.doubtful |= plans
            conn.close()
            return
        self.ledger.accepted |= plans
        now = time.monotonic()
        self._cancels += [(now + p.cancel_after, p.id) for p in group.jobs if p.cancel_after is not None]
        for _ in range(5 if self._stack.duplicating.is_set() else 1):
            self._publisher.wake(accepted.wakes)

    def _cancel_all(self) -> None:
        conn: Connection | None = None
        while self._cancels or not self._submitted.is_set():
            due = sorted(c for c in self._cancels if c[0] <= time.monotonic())
            for item in due:
                self._cancels.remove(item)
                conn = self._reach(conn)
                self.ledger.maybe_cancelled.add(item[1])
                with suppress(*_AWAY):
                    with conn.transaction():
                        moved = store.cancel(conn, [item[1]], member_id=None, actor="chaos", reason="chaos")
                    if item[1] in moved.ids:
                        self.ledger.cancelled.add(item[1])
                    self._publisher.moved(moved)
            time.sleep(0.02)
        if conn is not None:
            conn.close()

    def _reach(self, conn: Connection | None) -> Connection:
        """A connection that answers, waiting for Postgres if need be."""
        deadline = time.monotonic() + 40
        while True:
            try:
                if conn is None or conn.closed:
                    conn = self._stack.connect("chaos-load")
                conn.execute("select 1")
                return conn
            except _AWAY:
                if conn is not None:
                    conn.close()
                conn = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    # -- gradings, through the gateway

    def _grade_all(self) -> None:
        if not self._workload.gradings:
            return
        headers = {"Authorization": f"Bearer {self._stack.key.text}"}
        with httpx2.Client(base_url=self._stack.gateway_url, headers=headers, timeout=10, trust_env=False) as http:
            standard = self._insist(http, "/standards", _STANDARD, None, 201)["id"]
            for at in self._workload.gradings:
                self._until(at)
                key = str(ids.new_uuid())
                body = {"standard_id": standard, "answers": {"1": "9.8 m/s^2"}, "student_id": key[:32]}
                answer = self._insist(http, "/gradings", body, key, 202)
                self.ledger.gradings[key] = ids.decode(IdKind.JOB, answer["id"])

    def _insist(self, http: httpx2.Client, path: str, body: object, key: str | None, good: int) -> dict[str, str]:
        """Asks again with the same Idempotency-Key until the gateway answers, as a client should."""
        headers = {"Idempotency-Key": key} if key else {}
        deadline = time.monotonic() + 40
        while True:
            try:
                answer = http.post(path, json=body, headers=headers)
                if answer.status_code == good:
                    parsed: dict[str, str] = answer.json()
                    return parsed
                if answer.status_code < 500:
                    self.ledger.refused.append(f"POST {path}: {answer.status_code} {answer.text[:200]}")
                    raise AssertionError(self.ledger.refused[-1])
                last = f"{answer.status_code} {answer.text[:200]}"
            except httpx2.TransportError as e:
                last = type(e).__name__
            if time.monotonic() > deadline:
                raise TimeoutError(f"POST {path} was not answered for 40 s; the last answer: {last}")
            time.sleep(0.1)
