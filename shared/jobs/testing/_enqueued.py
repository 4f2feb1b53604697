"""What was enqueued: found, asserted, and shown when the assertion fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
import psycopg

from shared.db.pools import dumps

from ..states import Status
from ._interface import JobStore
from ._tables import Row, as_stored

__all__ = ["assert_enqueued", "assert_not_enqueued", "enqueued"]

Source = JobStore | psycopg.Connection[dict[str, Any]]
_SHOWN = 20


def enqueued(
    source: Source,
    *,
    type: str | None = None,
    payload_contains: Mapping[str, Any] | None = None,
    org_id: UUID | None = None,
    queue: str | None = None,
    statuses: Sequence[Status] | None = None,
) -> list[Row]:
    """The rows of all jobs ever accepted that are like this, oldest first, whatever has become of them since.

    ``source`` is a store, or a connection that sees uncommitted jobs of its own. ``payload_contains``: at each of
    these fields the payload has this value, or an object that contains it; UUIDs and datetimes may be given as such.
    ``statuses``: only jobs that are now in one of these.
    """
    wanted = None if payload_contains is None else as_stored(dict(payload_contains))
    return [
        row
        for row in _all(source)
        if (type is None or row["type"] == type)
        and (org_id is None or row["org_id"] == org_id)
        and (queue is None or row["queue"] == queue)
        and (statuses is None or row["status"] in statuses)
        and (wanted is None or _contains(row["payload"], wanted))
    ]


def assert_enqueued(
    source: Source,
    *,
    type: str | None = None,
    payload_contains: Mapping[str, Any] | None = None,
    org_id: UUID | None = None,
    queue: str | None = None,
    statuses: Sequence[Status] | None = None,
    count: int | None = None,
) -> list[Row]:
    """The jobs that are like this: at least one, or exactly ``count``. Else AssertionError, with what there is."""
    like = _like(type, payload_contains, org_id, queue, statuses)
    found = enqueued(source, **like)
    if (count is None and not found) or (count is not None and len(found) != count):
        number = "a job" if count is None else f"{count} job{'' if count == 1 else 's'}"
        raise AssertionError(f"expected {number} {_words(like)}, found {len(found)}.\n{_show(source)}")
    return found


def assert_not_enqueued(
    source: Source,
    *,
    type: str | None = None,
    payload_contains: Mapping[str, Any] | None = None,
    org_id: UUID | None = None,
    queue: str | None = None,
    statuses: Sequence[Status] | None = None,
) -> None:
    """No job is like this; of no kind at all, when nothing is said. Raises AssertionError that shows what there is."""
    like = _like(type, payload_contains, org_id, queue, statuses)
    found = enqueued(source, **like)
    if found:
        raise AssertionError(f"expected no job {_words(like)}, found {len(found)}.\n{_show(source)}")


def _like(
    type: str | None,
    payload_contains: Mapping[str, Any] | None,
    org_id: UUID | None,
    queue: str | None,
    statuses: Sequence[Status] | None,
) -> dict[str, Any]:
    return {
        "type": type,
        "payload_contains": payload_contains,
        "org_id": org_id,
        "queue": queue,
        "statuses": statuses,
    }


def _all(source: Source) -> list[Row]:
    if isinstance(source, psycopg.Connection):
        with source.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            rows = cursor.execute("select * from jobs").fetchall()
    else:
        rows = source.jobs()
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]))


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and _contains(value[name], inner) for name, inner in wanted.items()
        )
    return bool(value == wanted)


def _words(like: Mapping[str, Any]) -> str:
    said = {name: value for name, value in like.items() if value is not None}
    return f"with {', '.join(f'{name}={value!r}' for name, value in said.items())}" if said else "of any kind"


def _show(source: Source) -> str:
    """Payloads too: this is a test, whose payloads are made up."""
    rows = _all(source)
    if not rows:
        return "There are no jobs."
    lines = [f"  {row['id']} {row['type']} {row['status']} {_json(row['payload'])}" for row in rows[:_SHOWN]]
    more = [f"  … and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n".join(["There are:", *lines, *more])


def _json(value: Any) -> str:
    return orjson.dumps(orjson.loads(dumps(value)), option=orjson.OPT_SORT_KEYS).decode()
