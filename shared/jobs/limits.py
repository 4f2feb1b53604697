"""Pauses, start limits and concurrency limits: of a queue, of organisations in it, of concurrency keys in it.

A limit holds from the next claim on; what runs goes on. Limits are looked at by the claim (``_sql/claim.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg

__all__ = [
    "EVERY",
    "Limit",
    "LimitTarget",
    "limits",
    "limits_async",
    "pause",
    "pause_async",
    "resume",
    "resume_async",
    "set_limit",
    "set_limit_async",
]

Connection = psycopg.Connection[dict[str, Any]]
AsyncConnection = psycopg.AsyncConnection[dict[str, Any]]

# As an organisation: each one for itself, unless it has a limit of its own.
EVERY = UUID(int=0)


@dataclass(frozen=True, slots=True)
class LimitTarget:
    """What a limit is about: a queue; an organisation in it; a concurrency key of an organisation in it.

    ``org_id`` EVERY is each organisation for itself; ``concurrency_key`` "" is each key. A key's limit takes the place
    of the ``concurrency_limit`` that its jobs carry.
    """

    queue: str
    org_id: UUID | None = None
    concurrency_key: str | None = None

    @property
    def scope(self) -> Literal["queue", "organisation", "key"]:
        if self.concurrency_key is not None:
            return "key"
        return "queue" if self.org_id is None else "organisation"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "queue": self.queue,
            "scope": self.scope,
            "org_id": self.org_id or EVERY,
            "concurrency_key": self.concurrency_key or "",
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """``max_running`` at once; ``start_limit`` starts in ``start_period`` seconds, which is the burst too.

    None leaves that open.
    """

    target: LimitTarget
    max_running: int | None = None
    start_limit: int | None = None
    start_period: float | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None


_KEY = "queue, scope, org_id, concurrency_key"
_VALUES = "%(queue)s, %(scope)s, %(org_id)s, %(concurrency_key)s"
_WHERE = f"({_KEY}) = ({_VALUES})"
# A row that says nothing is removed, so that the queue's claims need not look at limits.
_TIDY = f"delete from queue_limits where {_WHERE} and paused_at is null and max_running is null and start_limit is null"

_SET = f"""
insert into queue_limits ({_KEY}, max_running, start_limit, start_period)
values ({_VALUES}, %(max_running)s, %(start_limit)s, %(start_period)s)
on conflict ({_KEY}) do update
   set max_running = excluded.max_running, start_limit = excluded.start_limit,
       start_period = excluded.start_period, updated_at = now()
"""
_PAUSE = f"""
insert into queue_limits ({_KEY}, paused_at, paused_by, pause_reason)
values ({_VALUES}, now(), %(actor)s, %(reason)s)
on conflict ({_KEY}) do update
   set paused_at = coalesce(queue_limits.paused_at, now()), paused_by = excluded.paused_by,
       pause_reason = excluded.pause_reason, updated_at = now()
"""
_RESUME = f"""
update queue_limits set paused_at = null, paused_by = null, pause_reason = null, updated_at = now()
 where {_WHERE} and paused_at is not null
"""
_LIST = f"""
select {_KEY}, max_running, start_limit, start_period, paused_at, paused_by, pause_reason from queue_limits
 where %(queue)s::text is null or queue = %(queue)s order by {_KEY}
"""


def _set(limit: Limit) -> dict[str, Any]:
    """Raises ValueError for numbers that are no limit."""
    if limit.max_running is not None and limit.max_running < 0:
        raise ValueError("max_running must not be negative")
    if (limit.start_limit is None) != (limit.start_period is None):
        raise ValueError("start_limit and start_period go together")
    if limit.start_limit is not None and limit.start_limit < 1:
        raise ValueError("start_limit must be at least 1")
    if limit.start_period is not None and not 0 < limit.start_period <= 86_400:
        raise ValueError("start_period must be above 0 and at most 86400 seconds")
    return {
        **limit.target.parameters,
        "max_running": limit.max_running,
        "start_limit": limit.start_limit,
        "start_period": limit.start_period,
    }


def _limit(row: dict[str, Any]) -> Limit:
    scope = row["scope"]
    target = LimitTarget(
        row["queue"],
        None if scope == "queue" else row["org_id"],
        row["concurrency_key"] if scope == "key" else None,
    )
    return Limit(
        target,
        row["max_running"],
        row["start_limit"],
        row["start_period"],
        row["paused_at"],
        row["paused_by"],
        row["pause_reason"],
    )


def set_limit(conn: Connection, limit: Limit) -> None:
    """Replace the numbers of a limit; a pause stays as it is. Raises ValueError."""
    parameters = _set(limit)
    with conn.transaction():
        conn.execute(_SET, parameters)
        conn.execute(_TIDY, parameters)


async def set_limit_async(conn: AsyncConnection, limit: Limit) -> None:
    """As ``set_limit``, on an event loop."""
    parameters = _set(limit)
    async with conn.transaction():
        await conn.execute(_SET, parameters)
        await conn.execute(_TIDY, parameters)


def pause(conn: Connection, target: LimitTarget, *, actor: str, reason: str | None = None) -> None:
    """Start nothing more of ``target``. Pausing what is paused changes who and why, not since when."""
    conn.execute(_PAUSE, {**target.parameters, "actor": actor, "reason": reason})


async def pause_async(conn: AsyncConnection, target: LimitTarget, *, actor: str, reason: str | None = None) -> None:
    """As ``pause``, on an event loop."""
    await conn.execute(_PAUSE, {**target.parameters, "actor": actor, "reason": reason})


def resume(conn: Connection, target: LimitTarget) -> bool:
    """Start again. False when it was not paused. The re-waker rings for what waits."""
    with conn.transaction():
        resumed = conn.execute(_RESUME, target.parameters).rowcount > 0
        conn.execute(_TIDY, target.parameters)
    return resumed


async def resume_async(conn: AsyncConnection, target: LimitTarget) -> bool:
    """As ``resume``, on an event loop."""
    async with conn.transaction():
        resumed = (await conn.execute(_RESUME, target.parameters)).rowcount > 0
        await conn.execute(_TIDY, target.parameters)
    return resumed


def limits(conn: Connection, queue: str | None = None) -> list[Limit]:
    """The limits and pauses there are, of one queue or of all."""
    return [_limit(row) for row in conn.execute(_LIST, {"queue": queue}).fetchall()]


async def limits_async(conn: AsyncConnection, queue: str | None = None) -> list[Limit]:
    """As ``limits``, on an event loop."""
    cursor = await conn.execute(_LIST, {"queue": queue})
    return [_limit(row) for row in await cursor.fetchall()]
