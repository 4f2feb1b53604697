"""Dead letters, which are the failed jobs: what there is, running them again by the hundred, and throwing them away.

Every function asks as somebody (``queries.Viewer``): what they may not see is not there. Those that change things
work in chunks, each a transaction of its own, so that neither claims nor ends of other jobs wait for them; they take
a connection that is in no transaction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ValidationError

from shared.contracts import JOB_TYPES, Registry, UnknownJobType

from ._steps import AsyncConnection, Connection, Steps, run, run_async
from .errors import InvalidSubmit
from .models import Moved, Wake
from .queries import _JOB, Query, Viewer
from .redrive import (
    InvalidPayload,
    Redriven,
    Rework,
    Skipped,
    changed_fields,
    redriving,
)
from .retention import deleting
from .states import Status

__all__ = [
    "DeadLetterCount",
    "DeadLetterFilter",
    "Purged",
    "RedriveReport",
    "count_dead_letters",
    "count_dead_letters_async",
    "list_dead_letters",
    "merge_patch",
    "purge_dead_letters",
    "purge_dead_letters_async",
    "redrive_matching",
    "redrive_matching_async",
]

T = TypeVar("T")
CHUNK = 500  # jobs a transaction
MAX_LIMIT = 10_000  # jobs a call
MIN_RATE = 0.01  # jobs a second: the last of MAX_LIMIT then runs after eleven days
_SHOWN = 20  # reasons that an answer carries
_MAX_PATCH_DEPTH = 16
# What a payload is about. Nobody but an administrator points a job at something else: whether they may see that was
# asked when the job was accepted.
_REFERENCES = frozenset({"document_id", "submission_id", "grading_id", "standard_id", "subject_id"})


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which failed jobs. Empty sequences and None leave a field open; times are those of the failure."""

    ids: Sequence[UUID] = ()
    types: Sequence[str] = ()
    queues: Sequence[str] = ()
    error_codes: Sequence[str] = ()
    org_id: UUID | None = None  # for super admins, who see them all
    member_id: UUID | None = None
    batch_id: UUID | None = None
    failed_after: datetime | None = None
    failed_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterCount:
    """What a redrive would find. ``refused``: how many the payload patch would not fit, of the first ``MAX_LIMIT``."""

    total: int
    by_type: dict[str, int]
    by_error: dict[str, int]
    refused: int = 0
    reasons: tuple[Skipped, ...] = ()  # the first few


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive did. ``refused``: jobs that the payload patch did not fit; ``skipped``: others that could not
    be redriven. ``more``: the limit was reached, and further ones match."""

    redriven: int
    refused: int
    skipped: dict[str, int]  # by code
    reasons: tuple[Skipped, ...]  # the first few, of both
    more: bool
    moved: Moved  # to be published


@dataclass(frozen=True, slots=True)
class Purged:
    """``kept``: jobs that others depend on or whose batch has not finished, or that were redriven meanwhile."""

    deleted: int
    kept: int
    more: bool


@dataclass(slots=True)
class _Tally:
    redriven: int = 0
    refused: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    reasons: list[Skipped] = field(default_factory=list)
    jobs: list[tuple[UUID, Status]] = field(default_factory=list)
    wakes: list[Wake] = field(default_factory=list)

    def add(self, part: Redriven) -> None:
        self.redriven += len(part.redriven)
        for skip in part.skipped:
            if skip.code == "job.invalid_payload":
                self.refused += 1
            else:
                self.skipped[skip.code] += 1
        self.reasons += part.skipped[: _SHOWN - len(self.reasons)]
        self.jobs += part.jobs
        self.wakes += part.wakes


# --- which ---------------------------------------------------------------------------------------

# Organisations that have failed jobs, one probe of jobs_org_idx for each organisation.
_ORGS = """with recursive orgs as (
  (select org_id from jobs order by org_id limit 1)
  union all
  select (select j.org_id from jobs j where j.org_id > o.org_id order by j.org_id limit 1)
    from orgs o where o.org_id is not null
)"""


def _where(viewer: Viewer, wanted: DeadLetterFilter) -> tuple[str, dict[str, Any]]:
    where = [f"jobs.status = '{Status.FAILED.value}'", viewer.condition("jobs")]
    parameters: dict[str, Any] = dict(viewer.parameters)
    for name, condition, value in (
        ("ids", "jobs.id = any(%(ids)s)", list(wanted.ids) or None),
        ("types", "jobs.type = any(%(types)s)", list(wanted.types) or None),
        ("queues", "jobs.queue = any(%(queues)s)", list(wanted.queues) or None),
        ("codes", "jobs.error ->> 'code' = any(%(codes)s)", list(wanted.error_codes) or None),
        ("org_id", "jobs.org_id = %(org_id)s", wanted.org_id),
        ("member_id", "jobs.created_by = %(member_id)s", wanted.member_id),
        ("batch_id", "jobs.batch_id = %(batch_id)s", wanted.batch_id),
        ("failed_after", "jobs.finished_at >= %(failed_after)s", wanted.failed_after),
        ("failed_before", "jobs.finished_at < %(failed_before)s", wanted.failed_before),
    ):
        if value is not None:
            where.append(condition)
            parameters[name] = value
    return " and ".join(where), parameters


def _each_organisation(viewer: Viewer, wanted: DeadLetterFilter) -> bool:
    """Must the search go through the organisations one by one, for want of anything narrower that an index has?"""
    narrow = wanted.org_id or wanted.member_id or wanted.batch_id or wanted.ids
    return viewer.role == "super_admin" and not narrow


def _select(
    viewer: Viewer, wanted: DeadLetterFilter, columns: str, *, after: UUID | None, newest_first: bool, limit: int
) -> Query:
    where, parameters = _where(viewer, wanted)
    parameters["limit"] = limit
    if after is not None:
        where += f" and jobs.id {'<' if newest_first else '>'} %(after)s"
        parameters["after"] = after
    direction = "desc" if newest_first else "asc"
    order = f"order by id {direction} limit %(limit)s"
    if not _each_organisation(viewer, wanted):
        return Query(f"select {columns} from jobs where {where} {order}", parameters)
    return Query(
        f"""{_ORGS} select f.* from orgs o cross join lateral (
          select {columns} from jobs where jobs.org_id = o.org_id and {where} {order}
        ) f where o.org_id is not null {order}""",
        parameters,
    )


def list_dead_letters(viewer: Viewer, wanted: DeadLetterFilter, *, before: UUID | None, limit: int) -> Query:
    """Newest first, as ``views.job_json`` takes them. ``before`` is the last id of the page before."""
    return _select(viewer, wanted, _JOB, after=before, newest_first=True, limit=limit)


def _count(viewer: Viewer, wanted: DeadLetterFilter) -> Query:
    where, parameters = _where(viewer, wanted)
    group = "select jobs.type, jobs.error ->> 'code' as code, count(*)::int as jobs from jobs where"
    if not _each_organisation(viewer, wanted):
        return Query(f"{group} {where} group by 1, 2", parameters)
    return Query(
        f"""{_ORGS} select f.type, f.code, sum(f.jobs)::int as jobs from orgs o cross join lateral (
          {group} jobs.org_id = o.org_id and {where} group by 1, 2
        ) f where o.org_id is not null group by 1, 2""",
        parameters,
    )


# --- payloads ------------------------------------------------------------------------------------


def merge_patch(target: Any, patch: Any) -> Any:
    """``target`` with a JSON merge patch applied (RFC 7396, section 2). Neither is changed."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _patching(viewer: Viewer, patch: Mapping[str, Any] | None, registry: Registry) -> Rework | None:
    """The check and change of one payload. Raises InvalidSubmit when no payload could be patched so."""
    if patch is None:
        return None
    if not isinstance(patch, Mapping):
        raise InvalidSubmit("job.invalid_payload", "payload_patch", "must be an object")
    if _depth(patch) > _MAX_PATCH_DEPTH:
        raise InvalidSubmit("job.invalid_payload", "payload_patch", f"is nested deeper than {_MAX_PATCH_DEPTH} levels")

    def rework(_id: UUID, type_name: str, payload: Any) -> tuple[dict[str, Any], list[str]]:
        try:
            job_type = registry.get(type_name)
        except UnknownJobType:
            raise InvalidPayload("type") from None
        if not job_type.public:
            raise InvalidPayload("type")  # made by the engine itself: its payload is nobody's to write
        try:
            model = job_type.payload.model_validate(merge_patch(payload, patch))
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False, include_context=False)[0]
            raise InvalidPayload(".".join(str(p)[:64] for p in ("payload", *first["loc"][:8]))) from None
        new = model.model_dump(mode="json")
        changed = changed_fields(payload, new)
        if viewer.role == "member" and (foreign := sorted(_REFERENCES.intersection(changed))):
            raise InvalidPayload(f"payload.{foreign[0]}")
        return new, changed

    return rework


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level and deepest <= _MAX_PATCH_DEPTH:
        deepest += 1
        level = [v for x in level if isinstance(x, Mapping) for v in x.values() if isinstance(v, Mapping)]
    return deepest


# --- doing it: generators of transactions, each a generator of statements --------------------------

Transactions = Generator[Steps[Any], Any, T]


def _run(conn: Connection, transactions: Transactions[T]) -> T:
    try:
        part = next(transactions)
        while True:
            with conn.transaction():
                answer = run(conn, part)
            part = transactions.send(answer)
    except StopIteration as end:
        value: T = end.value
        return value


async def _run_async(conn: AsyncConnection, transactions: Transactions[T]) -> T:
    try:
        part = next(transactions)
        while True:
            async with conn.transaction():
                answer = await run_async(conn, part)
            part = transactions.send(answer)
    except StopIteration as end:
        value: T = end.value
        return value


def _one(query: Query) -> Steps[list[dict[str, Any]]]:
    return (yield query)


def _bounded(limit: int) -> int:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidSubmit("job.invalid", "limit", f"must be between 1 and {MAX_LIMIT}")
    return limit


def _pace(rate: float | None) -> float:
    """Seconds between two jobs."""
    if rate is None:
        return 0.0
    if not (math.isfinite(rate) and rate >= MIN_RATE):
        raise InvalidSubmit("job.invalid", "rate", f"must be a number of jobs a second, {MIN_RATE} at least")
    return 1.0 / rate


def _counting(viewer: Viewer, wanted: DeadLetterFilter, rework: Rework | None) -> Transactions[DeadLetterCount]:
    rows = yield _one(_count(viewer, wanted))
    by_type: Counter[str] = Counter()
    by_error: Counter[str] = Counter()
    for row in rows:
        by_type[row["type"]] += row["jobs"]
        by_error[row["code"] or "unknown"] += row["jobs"]
    refused, reasons = 0, list[Skipped]()
    after: UUID | None = None
    seen = 0
    while rework is not None and seen < MAX_LIMIT:
        page = yield _one(_select(viewer, wanted, "id, type, payload", after=after, newest_first=False, limit=CHUNK))
        for row in page:
            try:
                rework(row["id"], row["type"], row["payload"])
            except InvalidPayload as e:
                refused += 1
                if len(reasons) < _SHOWN:
                    reasons.append(Skipped(row["id"], "job.invalid_payload", e.field))
        seen += len(page)
        if len(page) < CHUNK:
            break
        after = page[-1]["id"]
    return DeadLetterCount(by_type.total(), dict(by_type), dict(by_error), refused, tuple(reasons))


def _redriving(
    viewer: Viewer, wanted: DeadLetterFilter, actor: str, gap: float, rework: Rework | None, limit: int
) -> Transactions[RedriveReport]:
    """Oldest first, by id: what fails again meanwhile is not met a second time."""
    tally = _Tally()
    after: UUID | None = None
    seen = 0

    def chunk(size: int) -> Steps[list[UUID]]:
        query = _select(viewer, wanted, "id", after=after, newest_first=False, limit=size)
        ids = [row["id"] for row in (yield query)]
        first = tally.redriven
        part = yield from redriving(
            ids, actor=actor, pace=lambda n: (first + n) * gap, rework=rework, movable=frozenset({Status.FAILED})
        )
        tally.add(part)
        return ids

    while seen < limit:
        size = min(CHUNK, limit - seen)
        ids = yield chunk(size)
        seen += len(ids)
        if len(ids) < size:
            break
        after = ids[-1]
    more = seen >= limit and bool((yield _one(_select(viewer, wanted, "id", after=after, newest_first=False, limit=1))))
    return RedriveReport(
        tally.redriven,
        tally.refused,
        dict(tally.skipped),
        tuple(tally.reasons),
        more,
        Moved(tuple(tally.jobs), tuple(tally.wakes)),
    )


def _purging(viewer: Viewer, wanted: DeadLetterFilter, limit: int) -> Transactions[Purged]:
    deleted = seen = 0
    after: UUID | None = None

    def chunk(size: int) -> Steps[list[UUID]]:
        nonlocal deleted
        query = _select(viewer, wanted, "id", after=after, newest_first=False, limit=size)
        ids = [row["id"] for row in (yield query)]
        deleted += yield from deleting(ids, [Status.FAILED])
        return ids

    while seen < limit:
        size = min(CHUNK, limit - seen)
        ids = yield chunk(size)
        seen += len(ids)
        if len(ids) < size:
            break
        after = ids[-1]
    more = seen >= limit and bool((yield _one(_select(viewer, wanted, "id", after=after, newest_first=False, limit=1))))
    return Purged(deleted, seen - deleted, more)


# --- the public functions --------------------------------------------------------------------------


def count_dead_letters(
    conn: Connection,
    viewer: Viewer,
    wanted: DeadLetterFilter,
    *,
    payload_patch: Mapping[str, Any] | None = None,
    registry: Registry = JOB_TYPES,
) -> DeadLetterCount:
    """The dry run of ``redrive_matching``: how many there are, and how many the patch does not fit. Changes nothing.

    Raises InvalidSubmit for a patch that fits nothing.
    """
    return _run(conn, _counting(viewer, wanted, _patching(viewer, payload_patch, registry)))


async def count_dead_letters_async(
    conn: AsyncConnection,
    viewer: Viewer,
    wanted: DeadLetterFilter,
    *,
    payload_patch: Mapping[str, Any] | None = None,
    registry: Registry = JOB_TYPES,
) -> DeadLetterCount:
    """As ``count_dead_letters``, on an event loop."""
    return await _run_async(conn, _counting(viewer, wanted, _patching(viewer, payload_patch, registry)))


def redrive_matching(
    conn: Connection,
    viewer: Viewer,
    wanted: DeadLetterFilter,
    *,
    actor: str,
    rate: float | None = None,
    payload_patch: Mapping[str, Any] | None = None,
    limit: int = MAX_LIMIT,
    registry: Registry = JOB_TYPES,
) -> RedriveReport:
    """Run failed jobs once more, oldest first, at most ``limit``, ``rate`` of them a second (None: all at once).

    The rate is kept by each job's ``run_at``: nothing has to stay up for it. ``payload_patch`` is an RFC 7396 merge
    patch; jobs whose payload would not fit their type then stay dead. Chunks that were committed stay so if a later
    one fails. Raises InvalidSubmit naming ``rate``, ``limit`` or ``payload_patch`` before anything is changed.
    """
    rework = _patching(viewer, payload_patch, registry)
    return _run(conn, _redriving(viewer, wanted, actor, _pace(rate), rework, _bounded(limit)))


async def redrive_matching_async(
    conn: AsyncConnection,
    viewer: Viewer,
    wanted: DeadLetterFilter,
    *,
    actor: str,
    rate: float | None = None,
    payload_patch: Mapping[str, Any] | None = None,
    limit: int = MAX_LIMIT,
    registry: Registry = JOB_TYPES,
) -> RedriveReport:
    """As ``redrive_matching``, on an event loop."""
    rework = _patching(viewer, payload_patch, registry)
    return await _run_async(conn, _redriving(viewer, wanted, actor, _pace(rate), rework, _bounded(limit)))


def purge_dead_letters(conn: Connection, viewer: Viewer, wanted: DeadLetterFilter, *, limit: int = MAX_LIMIT) -> Purged:
    """Delete failed jobs with their events and edges, at most ``limit``. Files go by retention.

    Kept are those that a child which has not ended names (it ran 'run' all the same), and those whose batch has not
    finished. Raises InvalidSubmit naming ``limit``.
    """
    return _run(conn, _purging(viewer, wanted, _bounded(limit)))


async def purge_dead_letters_async(
    conn: AsyncConnection, viewer: Viewer, wanted: DeadLetterFilter, *, limit: int = MAX_LIMIT
) -> Purged:
    """As ``purge_dead_letters``, on an event loop."""
    return await _run_async(conn, _purging(viewer, wanted, _bounded(limit)))
