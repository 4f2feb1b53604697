"""Claiming in memory: who is next, under pauses, limits, start rates and concurrency keys.

Says in plain Python what ``_sql/claim.py`` says in SQL, for a number of jobs that a test has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from .. import store
from ..limits import EVERY
from ..models import ClaimedJob, Wake
from ..states import EventKind, Hold, allowed
from ._tables import Row, Tables

__all__ = ["claim", "reserve", "unhold"]

Key = tuple[str, UUID, str]  # queue, org_id, concurrency_key

_CLAIMED = (
    "id",
    "org_id",
    "created_by",
    "type",
    "queue",
    "priority",
    "attempt",
    "max_retries",
    "retry_count",
    "stall_count",
    "crash_count",
    "time_limit",
    "batch_id",
    "payload",
    "created_at",
    "run_at",
    "started_at",
    "event_seq",
    "concurrency_key",
)


@dataclass(slots=True)
class _Rule:
    """What holds for a queue, an organisation or a key, and how many more of it may start now (None: any number)."""

    room: int | None = None
    start_limit: int | None = None
    start_period: float = 1.0
    tokens: float = math.inf

    @property
    def wait(self) -> float | None:
        """Seconds until the next start."""
        if self.start_limit is None or self.tokens >= 1:
            return None
        return (1 - self.tokens) * self.start_period / self.start_limit


def level(row: Row, now: datetime) -> int:
    """The priority that ``row`` has come to by waiting."""
    waited = (now - row["run_at"]).total_seconds()
    return max(0, int(row["priority"] - math.floor(waited / store.AGE_SECONDS)))


def _order(row: Row, now: datetime) -> tuple[int, datetime, UUID]:
    return level(row, now), row["run_at"], row["id"]


def _due(rows: Iterable[Row], now: datetime, types: Sequence[str] | None) -> list[Row]:
    return [row for row in rows if row["run_at"] <= now and (types is None or row["type"] in types)]


def _apart(tables: Tables, queue: str, types: Sequence[str] | None) -> list[Row]:
    rows = [row for row in tables.queued(queue) if row["hold"] == Hold.ALONE]
    return _due(rows, tables.now(), types)


def _reserved(row: Row, now: datetime) -> bool:
    """Is another process making room for it? (A queued row's lease is such a reservation.)"""
    return row["lease_until"] is not None and row["lease_until"] >= now


def claim(
    tables: Tables,
    *,
    queue: str,
    worker_id: UUID,
    lease_seconds: float,
    limit: int,
    types: Sequence[str] | None,
    alone: bool,
) -> store.Claims:
    now = tables.now()
    ready = [row for row in tables.queued(queue) if row["hold"] == Hold.NONE]
    apart = _apart(tables, queue, types)
    if alone:
        limit, limited, waiting = 1, True, False
        candidates = [row for row in apart if not _reserved(row, now) or row["worker_id"] == worker_id]
        organisations = {row["org_id"] for row in apart}
    else:
        limited = any(key[0] == queue for key in tables.limits) or any(row["concurrency_key"] for row in ready)
        waiting = any(not _reserved(row, now) for row in apart)
        candidates = _due(ready, now, types)
        organisations = {row["org_id"] for row in ready}
    busy = Counter(row["org_id"] for row in tables.running(queue))

    def best_first(row: Row) -> tuple[int, datetime, UUID]:
        if alone and row["worker_id"] == worker_id:
            return -1, row["run_at"], row["id"]
        return _order(row, now)

    whole = _rule(tables, queue, "queue", EVERY, "", busy.total())
    rules = {org: _rule(tables, queue, "organisation", org, "", busy[org]) for org in organisations}
    open_, keyed, held = _sift(tables, sorted(candidates, key=best_first), rules)
    if not alone:
        for row in held:
            tables.change(row, hold=Hold.KEY.value)
    ranked = []
    places: Counter[UUID] = Counter()
    for row in open_:
        places[row["org_id"]] += 1
        place, room = places[row["org_id"]], rules[row["org_id"]].room
        if room is None or place <= room:
            first, *rest = best_first(row)
            ranked.append(((first, busy[row["org_id"]] + place, *rest), row))
    ranked.sort(key=lambda entry: entry[0])
    most = limit if whole.room is None else max(0, min(limit, whole.room))
    claims = store.Claims(alone=waiting, limited=limited)
    for _, row in ranked[:most]:
        claims.append(_start(tables, row, worker_id, lease_seconds))
    claims.wait = _spend(tables, queue, whole, rules, keyed, claims)
    return claims


def _start(tables: Tables, row: Row, worker_id: UUID, lease_seconds: float) -> ClaimedJob:
    now = tables.now()
    tables.change(
        row,
        status=allowed(EventKind.STARTED).target.value,
        attempt=row["attempt"] + 1,
        lease_until=now + timedelta(seconds=lease_seconds),
        worker_id=worker_id,
        started_at=now,
        next_retry_at=None,
        progress=0,
        step=None,
    )
    tables.event(row, EventKind.STARTED, f"worker:{worker_id}")
    followed = ("batch_id", "webhook_url", "notify_email", "concurrency_key")
    return ClaimedJob(
        **{name: row[name] for name in _CLAIMED},
        has_followers=row["has_children"] or any(row[name] is not None for name in followed),
    )


def _sift(
    tables: Tables, candidates: list[Row], rules: dict[UUID, _Rule]
) -> tuple[list[Row], dict[Key, _Rule], list[Row]]:
    """Of the candidates, best first: those whose key has room or that have none; the keys' rules; the others."""
    open_: list[Row] = []
    held: list[Row] = []
    keyed: dict[Key, _Rule] = {}
    places: Counter[Key] = Counter()
    for row in candidates:
        if row["concurrency_key"] is None:
            open_.append(row)
            continue
        room = rules[row["org_id"]].room
        if room is not None and room <= 0:
            continue
        key = (row["queue"], row["org_id"], row["concurrency_key"])
        rule = keyed[key] = _key_rule(tables, key, row["concurrency_limit"])
        places[key] += 1
        (open_ if places[key] <= (rule.room or 0) else held).append(row)
    return open_, keyed, held


def _spend(
    tables: Tables,
    queue: str,
    whole: _Rule,
    rules: dict[UUID, _Rule],
    keyed: dict[Key, _Rule],
    claims: Sequence[ClaimedJob],
) -> float | None:
    """Take the started jobs out of the buckets. Seconds until a queue's or organisation's next start, if one waits."""
    by_org = Counter(job.org_id for job in claims)
    by_key = Counter(job.concurrency_key for job in claims)
    waits = []
    _fill(tables, (queue, "queue", EVERY, ""), whole, len(claims))
    waits.append(whole.wait)
    for org_id, rule in rules.items():
        _fill(tables, (queue, "organisation", org_id, ""), rule, by_org[org_id])
        waits.append(rule.wait)
    for (_, org_id, name), rule in keyed.items():
        started = sum(1 for job in claims if (job.org_id, job.concurrency_key) == (org_id, name))
        if by_key[name] and started:
            _fill(tables, (queue, "key", org_id, name), rule, started)
    return min((wait for wait in waits if wait is not None), default=None)


def _fill(tables: Tables, key: tuple[str, str, UUID, str], rule: _Rule, started: int) -> None:
    if rule.start_limit is None:
        return
    rule.tokens -= started
    tables.add(tables.buckets, key, {"tokens": rule.tokens, "filled_at": tables.now()})


def _rule(tables: Tables, queue: str, scope: str, org_id: UUID, key: str, running: int) -> _Rule:
    """An organisation's own numbers go before those for every one; a pause of either holds."""
    found = [tables.limits.get((queue, scope, org, key)) for org in dict.fromkeys((org_id, EVERY))]
    rows = [row for row in found if row is not None]
    numbers: Row = {"paused_at": None, "max_running": None, "start_limit": None, "start_period": None}
    for name in numbers:
        numbers[name] = next((row[name] for row in rows if row[name] is not None), None)
    return _limited(tables, numbers, (queue, scope, org_id, key), running)


def _key_rule(tables: Tables, key: Key, concurrency_limit: int) -> _Rule:
    """The numbers that hold for a key are those of the most particular rule; without, the jobs' own limit stands.
    A pause of any of them holds."""
    queue, org_id, name = key
    found = [tables.limits.get((queue, "key", org, its)) for org in (org_id, EVERY) for its in (name, "")]
    rows = [row for row in found if row is not None]
    row: Row = dict(rows[0]) if rows else {}
    row["paused_at"] = next((row["paused_at"] for row in rows if row["paused_at"] is not None), None)
    running = sum(1 for other in tables.running(queue) if (other["org_id"], other["concurrency_key"]) == (org_id, name))
    if row.get("max_running") is None:
        row["max_running"] = concurrency_limit
    return _limited(tables, row, (queue, "key", org_id, name), running)


def _limited(tables: Tables, numbers: Row, bucket: tuple[str, str, UUID, str], running: int) -> _Rule:
    rule = _Rule()
    rooms: list[int] = []
    if numbers.get("paused_at") is not None:
        rooms.append(0)
    if numbers.get("max_running") is not None:
        rooms.append(numbers["max_running"] - running)
    if numbers.get("start_limit") is not None:
        rule.start_limit, rule.start_period = numbers["start_limit"], numbers["start_period"]
        kept = tables.buckets.get(bucket)
        rule.tokens = float(rule.start_limit or 0)
        if kept is not None:
            passed = max(0.0, (tables.now() - kept["filled_at"]).total_seconds())
            rule.tokens = min(rule.tokens, kept["tokens"] + passed * rule.tokens / rule.start_period)
        rooms.append(math.floor(rule.tokens))
    rule.room = min(rooms, default=None)
    return rule


def reserve(tables: Tables, *, queue: str, worker_id: UUID, types: Sequence[str] | None) -> bool:
    now = tables.now()
    free = [row for row in _apart(tables, queue, types) if not _reserved(row, now)]
    if not free:
        return False
    best = min(free, key=lambda row: (row["priority"], row["run_at"]))
    tables.change(best, worker_id=worker_id, lease_until=now + timedelta(seconds=store.RESERVE_SECONDS))
    return True


def unhold(tables: Tables, keys: Iterable[Any] | None = None) -> tuple[Wake, ...]:
    """Let the best held jobs of ``keys`` (None: of all keys) back in line, as many as their keys have room for."""
    now = tables.now()
    held = [row for row in tables.queued() if row["hold"] == Hold.KEY]
    held.sort(key=lambda row: _order(row, now))
    by_key: dict[Key, list[Row]] = {}
    for row in held:
        by_key.setdefault((row["queue"], row["org_id"], row["concurrency_key"]), []).append(row)
    wakes = []
    for key in by_key if keys is None else set(keys) & set(by_key):
        room = _key_rule(tables, key, by_key[key][0]["concurrency_limit"]).room or 0
        # Those of the key that are in line may be better, or worse; one that is not due yet takes nobody's place.
        line = [
            row
            for row in _due(tables.queued(key[0]), now, None)
            if row["hold"] != Hold.ALONE and (row["org_id"], row["concurrency_key"]) == key[1:]
        ]
        line.sort(key=lambda row: _order(row, now))
        for row in line[: max(0, room)]:
            if row["hold"] == Hold.KEY:
                tables.change(row, hold=Hold.NONE.value)
                wakes.append(Wake(row["queue"], row["id"], row["priority"]))
    return tuple(wakes)
