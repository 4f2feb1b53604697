"""Running ended jobs once more from the start: by hand, or many at once (``dead_letters``).

What a redriven job's failure had ended (children that failed or were cancelled because of it) waits for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from ._sql import redrive as sql
from ._sql.accept import LOCK_UNIQUE
from ._steps import AsyncConnection, Connection, Steps, run, run_async
from .models import Moved, Wake
from .queries import Query
from .states import ACTIVE, EventKind, Status, allowed

__all__ = ["InvalidPayload", "Redriven", "Rework", "Skipped", "changed_fields", "redrive", "redrive_async", "redriving"]

# A job's new payload, with the names of the fields that changed. Raises InvalidPayload.
Rework = Callable[[UUID, str, Any], tuple[dict[str, Any], list[str]]]

MOVABLE = allowed(EventKind.REDRIVEN).sources
_ENDED_BADLY = frozenset({Status.FAILED, Status.CANCELLED})
_BY_PARENT = "parent:"

_REASONS = {
    "job.not_found": "There is no such job.",
    "job.not_ended": "The job has not ended.",
    "job.not_failed": "The job has not failed.",
    "job.parent_ended": "A step that this one waits for has not succeeded. Retry that step; this one follows it.",
    "job.parent_gone": "The step that this one waited for failed, and is no longer kept. Start both anew.",
    "job.duplicate": "Another job with the same unique key is under way.",
    "job.invalid_payload": "The changed payload does not fit the job type.",
}


class InvalidPayload(Exception):
    """The payload does not fit its type. ``field`` says where (dotted); no value is repeated."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


@dataclass(frozen=True, slots=True)
class Skipped:
    """A job that stays as it was, and why. ``field`` names what is wrong in its payload, if that is the reason."""

    id: UUID
    code: str
    field: str | None = None

    @property
    def message(self) -> str:
        return _REASONS[self.code]


@dataclass(frozen=True, slots=True)
class Redriven(Moved):
    """What moved (children that wait again included), and which of the ids asked for did not."""

    redriven: tuple[UUID, ...] = ()  # of the ids asked for
    skipped: tuple[Skipped, ...] = ()


def redrive(
    conn: Connection,
    ids: Sequence[UUID],
    *,
    actor: str,
    delays: Mapping[UUID, float] | None = None,
    payloads: Mapping[UUID, Mapping[str, Any]] | None = None,
) -> Redriven:
    """Run failed or cancelled jobs once more, each ``delays`` seconds from now, with its counts of tries at 0.

    Inside a transaction. Rights are the caller's to check, and so is that ``payloads`` fit their types. A job whose
    parents have not all ended waits for them; one whose parent failed for good is skipped.
    """
    return run(conn, redriving(ids, actor=actor, delays=delays, rework=_replacing(payloads)))


async def redrive_async(
    conn: AsyncConnection,
    ids: Sequence[UUID],
    *,
    actor: str,
    delays: Mapping[UUID, float] | None = None,
    payloads: Mapping[UUID, Mapping[str, Any]] | None = None,
) -> Redriven:
    """As ``redrive``, on an event loop."""
    return await run_async(conn, redriving(ids, actor=actor, delays=delays, rework=_replacing(payloads)))


@dataclass(slots=True)
class _Edge:
    parent: UUID
    on_failure: str
    status: Status | None  # None: the parent is no longer kept


@dataclass(slots=True)
class _Node:
    """A job of the family, and what was decided of it."""

    id: UUID
    row: dict[str, Any]
    edges: list[_Edge]
    status: Status
    moves: bool = False
    pending: int = 0
    actor: str | None = None  # of a child that follows its parent
    payload: dict[str, Any] | None = None
    changed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> _Node:
        edges = [
            _Edge(UUID(p["id"]), p["on_failure"], None if p["status"] is None else Status(p["status"]))
            for p in row["parents"]
        ]
        return cls(row["id"], row, edges, Status(row["status"]))

    @property
    def ended_by_parent(self) -> UUID | None:
        by = self.row["ended_by"] or ""
        if self.status not in _ENDED_BADLY or not by.startswith(_BY_PARENT):
            return None
        return UUID(by.removeprefix(_BY_PARENT))

    @property
    def unique(self) -> tuple[UUID, str] | None:
        key = self.row["unique_key"]
        return None if key is None else (self.row["org_id"], key)


def _replacing(payloads: Mapping[UUID, Mapping[str, Any]] | None) -> Rework | None:
    if payloads is None:
        return None

    def rework(id: UUID, _type: str, payload: Any) -> tuple[dict[str, Any], list[str]]:
        new = dict(payloads.get(id, payload))
        return new, changed_fields(payload, new)

    return rework


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the top-level fields that differ."""
    missing = object()
    return sorted(k for k in {*old, *new} if old.get(k, missing) != new.get(k, missing))


def redriving(
    ids: Sequence[UUID],
    *,
    actor: str,
    delays: Mapping[UUID, float] | None = None,
    pace: Callable[[int], float] | None = None,
    rework: Rework | None = None,
    movable: frozenset[Status] = MOVABLE,
) -> Steps[Redriven]:
    """The statements of a redrive. ``pace`` gives the delay of the n-th job that moves, in place of ``delays``."""
    wanted = list(dict.fromkeys(ids))
    family = yield from _lock_family(wanted, with_payload=rework is not None)
    keys = {node.unique for node in family.values()} - {None}
    living: set[tuple[UUID, str]] = set()
    if keys:
        rows = yield Query(sql.LIVING, _keys(keys))
        living = {(row["org_id"], row["key"]) for row in rows}
    skipped = _decide(family, wanted, living, rework, movable)
    redriven = [id for id in wanted if id in family and family[id].moves]
    if not redriven:
        return Redriven(skipped=tuple(skipped))
    wait = {id: pace(n) if pace else (delays or {}).get(id, 0.0) for n, id in enumerate(redriven)}
    rows = yield Query(sql.MOVE, _move([n for n in family.values() if n.moves], actor, wait))
    if more := _waiting_more(family):
        yield Query(sql.WAIT_MORE, {"ids": list(more), "more": list(more.values())})
    return Redriven(
        jobs=tuple((row["id"], Status(row["status"])) for row in rows),
        wakes=tuple(Wake(row["queue"], row["id"], row["priority"]) for row in rows if row["due"]),
        redriven=tuple(redriven),
        skipped=tuple(skipped),
    )


def _lock_family(ids: list[UUID], *, with_payload: bool) -> Steps[dict[UUID, _Node]]:
    """The family, and all that its fate depends on, locked: asked again after each lock until nothing new is in it.

    Unique keys before rows, as a submit does it.
    """
    locked: set[UUID] = set()
    locked_keys: set[Any] = {None}
    locked_batches: set[UUID] = set()
    while True:
        rows = yield Query(sql.FAMILY, {"ids": ids, "with_payload": with_payload})
        family = {row["id"]: _Node.of(row) for row in rows}
        open_ = [n for n in family.values() if n.status in _ENDED_BADLY or n.status is Status.WAITING]
        needed = {n.id for n in open_}
        needed |= {e.parent for n in open_ for e in n.edges if e.status not in (None, Status.COMPLETED)}
        keys = {n.unique for n in open_} - locked_keys
        batches = {UUID(n.row["after_batch"]["id"]) for n in open_ if n.row["after_batch"]} - locked_batches
        if needed <= locked and not keys and not batches:
            return family
        if keys:
            yield Query(LOCK_UNIQUE, _keys(keys))
            locked_keys |= keys
        if needed - locked:
            yield Query(sql.LOCK, {"ids": sorted(needed - locked)})
            locked |= needed
        if batches:
            yield Query(sql.LOCK_BATCHES, {"ids": sorted(batches)})
            locked_batches |= batches


def _keys(keys: set[Any]) -> dict[str, Any]:
    ordered = sorted(keys)
    return {"org_ids": [org_id for org_id, _ in ordered], "keys": [key for _, key in ordered]}


def _decide(
    family: dict[UUID, _Node],
    wanted: list[UUID],
    living: set[tuple[UUID, str]],
    rework: Rework | None,
    movable: frozenset[Status],
) -> list[Skipped]:
    """Mark what moves, parents before their children, and say why the rest of ``wanted`` does not."""
    asked = set(wanted)
    skipped = [Skipped(id, "job.not_found") for id in wanted if id not in family]
    graph = {node.id: [e.parent for e in node.edges if e.parent in family] for node in family.values()}
    for id in TopologicalSorter(graph).static_order():
        node = family[id]
        if id in asked:
            reason = _refusal(node, family, movable)
        elif _follows(node, family):
            reason = None
        else:
            continue
        if reason is None and node.unique is not None and node.unique in living:
            reason = Skipped(id, "job.duplicate")
        if reason is None and rework is not None and id in asked:
            try:
                node.payload, node.changed = rework(id, node.row["type"], node.row["payload"])
            except InvalidPayload as e:
                reason = Skipped(id, "job.invalid_payload", e.field)
        if reason is not None:
            if id in asked:
                skipped.append(reason)
            continue
        node.moves = True
        if node.unique is not None:
            living.add(node.unique)
    moving = [node for node in family.values() if node.moves]
    batches = {str(node.row["batch_id"]) for node in moving}
    for node in moving:
        node.pending = sum(_status(e, family) in ACTIVE for e in node.edges)
        if batch := node.row["after_batch"]:
            node.pending += not batch["finished"] or batch["id"] in batches
    return skipped


def _status(edge: _Edge, family: dict[UUID, _Node]) -> Status | None:
    """What the parent is once this redrive has committed."""
    parent = family.get(edge.parent)
    return Status.QUEUED if parent is not None and parent.moves else edge.status


def _blocked(node: _Node, family: dict[UUID, _Node]) -> bool:
    return any(e.on_failure != "run" and _status(e, family) in _ENDED_BADLY for e in node.edges)


def _refusal(node: _Node, family: dict[UUID, _Node], movable: frozenset[Status]) -> Skipped | None:
    if node.status not in movable:
        return Skipped(node.id, "job.not_ended" if node.status in ACTIVE else "job.not_failed")
    if _blocked(node, family):
        return Skipped(node.id, "job.parent_ended")
    by = node.ended_by_parent
    if by is not None and not any(e.parent == by and e.status is not None for e in node.edges):
        return Skipped(node.id, "job.parent_gone")
    return None


def _follows(node: _Node, family: dict[UUID, _Node]) -> bool:
    """Did it end only because of a parent, and does none of them stand in its way now?"""
    by = node.ended_by_parent
    if by is None or not any(e.parent == by and e.status is not None for e in node.edges):
        return False
    moving = next((e.parent for e in node.edges if e.parent in family and family[e.parent].moves), None)
    if moving is None or _blocked(node, family):
        return False
    node.actor = f"{_BY_PARENT}{moving}"
    return True


def _waiting_more(family: dict[UUID, _Node]) -> dict[UUID, int]:
    """Waiting children of parents that moved: such a parent had ended, and been counted off, or it would have ended
    them."""
    more = {
        node.id: sum(e.parent in family and family[e.parent].moves for e in node.edges)
        for node in family.values()
        if node.status is Status.WAITING
    }
    return {id: n for id, n in more.items() if n}


def _move(nodes: list[_Node], actor: str, wait: Mapping[UUID, float]) -> dict[str, Any]:
    return {
        "ids": [n.id for n in nodes],
        "kinds": [(EventKind.REVIVED if n.pending else EventKind.REDRIVEN).value for n in nodes],
        "actors": [n.actor or actor for n in nodes],
        "delays": [wait.get(n.id) for n in nodes],
        "pending": [n.pending for n in nodes],
        "payloads": [Jsonb(n.payload) if n.changed else None for n in nodes],
        "changed": [Jsonb(n.changed) if n.changed else None for n in nodes],
    }
