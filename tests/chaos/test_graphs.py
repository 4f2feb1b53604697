"""Dependency graphs against a model in plain Python: random edges, outcomes, cancellations; none waits for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import ids
from shared.contracts import Contract, JobType, Registry
from shared.db import SyncPool
from shared.jobs import TERMINAL, InvalidSubmit, NewJob, OnFailure, Outcome, ParentEdge, Status, store, submit

pytestmark = pytest.mark.slow


class Nothing(Contract):
    pass


QUEUE = "graph"
TYPE = JobType("graph.job", QUEUE, Nothing, Nothing, title="Graph")
REGISTRY = Registry()
REGISTRY.declare(TYPE)
WORKER = uuid4()
_ERROR = {"code": "graph.error", "message": "As planned."}
# What becomes of a node that runs; ``withdraw``: it is cancelled while it runs.
Fate = Literal["complete", "fail", "retry", "withdraw"]


@dataclass(frozen=True)
class Node:
    """``edges``: earlier nodes by number. ``late``: accepted on its own when others have begun to end."""

    fate: Fate
    edges: tuple[tuple[int, OnFailure], ...]
    late: bool
    cancelled_early: bool  # before anything has run


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes = []
    for place in range(draw(st.integers(1, 9))):
        parents = draw(st.lists(st.integers(0, place - 1), max_size=4, unique=True)) if place else []
        edges = tuple((p, draw(st.sampled_from(("fail", "cancel", "run")))) for p in parents)
        fate = draw(st.sampled_from(("complete", "complete", "complete", "fail", "retry", "withdraw")))
        late = any(nodes[p].late for p in parents) or draw(st.integers(0, 4)) == 4
        nodes.append(Node(fate, edges, late, draw(st.integers(0, 9)) == 9))
    return nodes


class Play:
    """One graph, submitted and worked off as the draws say."""

    def __init__(self, pool: SyncPool, nodes: list[Node], data: st.DataObject) -> None:
        self._pool = pool
        self._nodes = nodes
        self._data = data
        self._org_id = uuid4()
        self.ids = [ids.new_uuid() for _ in nodes]
        self._place = {id: place for place, id in enumerate(self.ids)}
        self.refused: set[int] = set()
        self.withdrawn: set[int] = set()

    def play(self) -> None:
        with self._pool.connection() as conn:
            conn.execute("truncate jobs, job_events, job_dependencies")
        first = [place for place, node in enumerate(self._nodes) if not node.late]
        self._accept(first)
        self._cancel([place for place in first if self._nodes[place].cancelled_early])
        late = [place for place, node in enumerate(self._nodes) if node.late]
        while self._work() or late:
            while late and self._data.draw(st.booleans(), label="accept a late one now"):
                self._accept_late(late.pop(0))

    def statuses(self) -> dict[int, str]:
        with self._pool.connection() as conn:
            rows = conn.execute("select id, status from jobs").fetchall()
        return {self._place[r["id"]]: r["status"] for r in rows}

    def started(self) -> dict[int, int]:
        with self._pool.connection() as conn:
            rows = conn.execute("select id, attempt from jobs").fetchall()
        return {self._place[r["id"]]: r["attempt"] for r in rows}

    def _accept(self, places: list[int]) -> None:
        new = [
            NewJob(
                id=self.ids[place],
                type=TYPE.name,
                payload={},
                org_id=self._org_id,
                parents=tuple(ParentEdge(self.ids[p], edge) for p, edge in self._nodes[place].edges),
            )
            for place in places
        ]
        with self._pool.connection() as conn, conn.transaction():
            submit(conn, new, REGISTRY)

    def _accept_late(self, place: int) -> None:
        """Refused when a parent is unknown, or has ended already in a way that the edge does not take."""
        now = self.statuses()
        bad = any(
            p not in now or (edge != "run" and now[p] in (Status.FAILED, Status.CANCELLED))
            for p, edge in self._nodes[place].edges
        )
        if not bad:
            self._accept([place])
            return
        with pytest.raises(InvalidSubmit, match="depends_on"):
            self._accept([place])
        self.refused.add(place)

    def _cancel(self, places: list[int]) -> None:
        if places:
            with self._pool.connection() as conn, conn.transaction():
                moved = store.cancel(conn, [self.ids[p] for p in places], member_id=None, actor="model", reason=None)
            self.withdrawn |= {p for p in places if self.ids[p] in moved.ids}

    def _work(self) -> bool:
        """Claim some, and end them all in one statement or one by one. False when there is nothing to claim."""
        with self._pool.connection() as conn:
            claims = store.claim(
                conn, queue=QUEUE, worker_id=WORKER, lease_seconds=60, limit=self._data.draw(st.integers(1, 4))
            )
        outcomes = []
        for job in claims:
            fate = self._nodes[self._place[job.id]].fate
            if fate == "withdraw":
                self._cancel([self._place[job.id]])
            elif fate == "retry" and job.attempt == 1:
                outcomes.append(Outcome.retry(job, _ERROR, delay=0))
            else:
                outcomes.append(Outcome.failed(job, _ERROR) if fate == "fail" else Outcome.completed(job, {}))
        together = self._data.draw(st.booleans(), label="settle together")
        for part in [outcomes] if together else [[o] for o in outcomes]:
            with self._pool.connection() as conn, conn.transaction():
                store.settle(conn, WORKER, part)
        return bool(claims)


def allowed_ends(node: Node, place: int, statuses: dict[int, str], withdrawn: set[int]) -> set[str]:
    """How a node may end, given how its parents did. Where several parents block it, the first of them decides."""
    blocked = {
        "cancelled" if statuses[p] == Status.CANCELLED or edge == "cancel" else "failed"
        for p, edge in node.edges
        if edge != "run" and statuses[p] in (Status.FAILED, Status.CANCELLED)
    }
    if place in withdrawn:
        return {"cancelled"}
    if blocked:
        return blocked
    return {"failed" if node.fate == "fail" else "cancelled" if node.fate == "withdraw" else "completed"}


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(nodes=graphs(), data=st.data())
def test_every_graph_comes_to_its_end_as_its_edges_say(pool: SyncPool, nodes: list[Node], data: st.DataObject) -> None:
    play = Play(pool, nodes, data)
    play.play()
    statuses, started = play.statuses(), play.started()
    assert set(statuses) == set(range(len(nodes))) - play.refused
    waiting = {place: status for place, status in statuses.items() if status not in TERMINAL}
    assert not waiting, f"these wait for ever: {waiting}"
    for place, status in statuses.items():
        node = nodes[place]
        assert status in allowed_ends(node, place, statuses, play.withdrawn), f"node {place}"
        ran = started[place] > 0
        blocked = any(edge != "run" and statuses[p] != Status.COMPLETED for p, edge in node.edges)
        assert not (ran and blocked), f"node {place} ran although a parent had not completed"
        assert _ends(pool, play.ids[place]) == 1


def _ends(pool: SyncPool, id: UUID) -> int:
    with pool.connection() as conn:
        row = conn.execute(
            "select count(*) as n from job_events where job_id = %s and kind in ('completed', 'failed', 'cancelled')",
            (id,),
        ).fetchone()
    assert row is not None
    return int(row["n"])
