"""Accepting jobs in memory: the statements of ``shared.jobs.submit``, one function each.

So the real ``submit`` does the work, checks and all, and effects that submit jobs run as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg

from .. import _sql
from ..states import TERMINAL, EventKind, Status
from ..submit import _COMPLETION, _INSERT_BATCH
from ._misuse import TestingKitMisuse
from ._tables import BATCH_DEFAULTS, JOB_DEFAULTS, Row, Tables, as_stored

__all__ = ["MemoryConnection"]

Parameters = Mapping[str, Any]


class _Cursor:
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        self.rowcount = len(rows)

    def fetchall(self) -> list[Row]:
        return self._rows

    def fetchone(self) -> Row | None:
        return self._rows[0] if self._rows else None


class MemoryConnection:
    """Stands for a psycopg connection where jobs are submitted (``submit``, ``insert_batch``), and nowhere else.

    Anything else is refused by TestingKitMisuse: what a handler keeps in tables of its own is tested on Postgres.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._statements: dict[str, Callable[[Parameters], list[Row]]] = {
            _sql.LOCK_UNIQUE: lambda _: [],  # the tables' lock does it
            _sql.UNIQUE: self._unique,
            _sql.ADOPT: self._adopt,
            _sql.LOCK_CIRCLES: lambda _: [],
            _sql.BEHIND_BATCHES: self._behind_batches,
            _sql.SUBMIT: self._submit,
            _sql.SUBMIT_IN_BATCH: self._submit_in_batch,
            _COMPLETION: self._await_batch,
            _INSERT_BATCH: self._insert_batch,
        }

    def execute(self, sql: str, parameters: Parameters | Sequence[Any] | None = None, **_: Any) -> _Cursor:
        statement = self._statements.get(sql)
        # One job alone has a statement for each choice of columns that it leaves to their defaults.
        if statement is None and isinstance(parameters, Mapping) and parameters.keys() == _sql.COLUMNS.keys():
            statement = self._submit_one
        if statement is None or not isinstance(parameters, Mapping):
            raise TestingKitMisuse(
                "The in-memory store runs no SQL: only submit() and insert_batch() work on its connection. "
                "Give run_inline or drain a Postgres connection for what the handler reads and writes itself."
            )
        with self._tables.transaction():
            return _Cursor(statement(parameters))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self._tables.transaction():
            yield

    def _unique(self, wanted: Parameters) -> list[Row]:
        now = self._tables.now()
        found = [
            row
            for row in self._tables.jobs.values()
            if (row["org_id"], row["unique_key"]) == (wanted["org_id"], wanted["key"])
            and row["status"] in wanted["statuses"]
            and (wanted["period"] is None or (now - row["created_at"]).total_seconds() < wanted["period"])
        ]
        found.sort(key=lambda row: (row["status"] not in TERMINAL, row["id"]), reverse=True)
        return [_accepted(row) for row in found[:1]]

    def _adopt(self, wanted: Parameters) -> list[Row]:
        rows = [self._tables.jobs[id] for id in wanted["ids"] if id in self._tables.jobs]
        rows = [row for row in rows if row["org_id"] in wanted["org_ids"]]
        for row in rows:
            self._tables.change(row, has_children=True)
        return [{name: row[name] for name in ("id", "org_id", "status")} for row in rows]

    def _behind_batches(self, wanted: Parameters) -> list[Row]:
        found: dict[tuple[UUID, UUID], None] = {}
        todo = [(id, job) for id in wanted["batch_ids"] for job in self._completion_job(id)]
        while todo:
            batch, id = todo.pop()
            if (batch, id) in found:
                continue
            found[batch, id] = None
            row = self._tables.jobs.get(id)
            if row is not None and row["status"] == Status.WAITING:
                behind = [*self._tables.children.get(id, ()), *self._completion_job(row["batch_id"])]
                todo += [(batch, job) for job in behind]
        return [{"batch_id": batch, "id": id} for batch, id in found if id in wanted["ids"]]

    def _completion_job(self, batch_id: UUID | None) -> list[UUID]:
        """What waits for this batch to finish."""
        batch = None if batch_id is None else self._tables.batches.get(batch_id)
        if batch is None or batch["finished_at"] is not None or batch["completion_job_id"] is None:
            return []
        return [batch["completion_job_id"]]

    def _owns(self, org_id: UUID, batch_id: UUID) -> bool:
        batch = self._tables.batches.get(batch_id)
        return batch is not None and batch["org_id"] == org_id

    def _submit_in_batch(self, columns: Parameters) -> list[Row]:
        owned = all(map(self._owns, columns["own_orgs"], columns["own_batches"]))
        return self._submit(columns) if owned else []

    def _submit_one(self, values: Parameters) -> list[Row]:
        if values["batch_id"] is not None and not self._owns(values["org_id"], values["batch_id"]):
            return []
        return [self._insert({name: values[name] for name in _sql.COLUMNS})]

    def _submit(self, columns: Parameters) -> list[Row]:
        rows = zip(*(columns[name] for name in _sql.COLUMNS), strict=True)
        accepted = [self._insert(dict(zip(_sql.COLUMNS, row, strict=True))) for row in rows]
        for child, parent, on_failure in zip(
            columns["child_ids"], columns["parent_ids"], columns["on_failure"], strict=True
        ):
            if (child, parent) in self._tables.edges:
                raise psycopg.errors.UniqueViolation("job_dependencies_pkey")
            self._tables.add_edge(child, parent, on_failure)
        return accepted

    def _insert(self, values: Row) -> Row:
        tables = self._tables
        now = tables.now()
        if values["id"] in tables.jobs:
            raise psycopg.errors.UniqueViolation("jobs_pkey")
        row = {
            **JOB_DEFAULTS,
            **values,
            "payload": as_stored(values["payload"].obj),
            "metadata": as_stored(values["metadata"].obj),
            "time_limit": float(values["time_limit"]),
            "run_at": max(values["run_at"] or now, now),
            "created_at": now,
            "status": (Status.WAITING if values["pending_parents"] > 0 else Status.QUEUED).value,
        }
        tables.add(tables.jobs, row["id"], row)
        actor = "system" if row["created_by"] is None else f"member:{row['created_by']}"
        tables.event(row, EventKind.ACCEPTED, actor)
        return _accepted(row)

    def _await_batch(self, wanted: Parameters) -> list[Row]:
        batch = self._tables.batches.get(wanted["id"])
        if batch is None or batch["org_id"] != wanted["org_id"] or batch["completion_job_id"] is not None:
            return []
        self._tables.change(batch, completion_job_id=wanted["job_id"])
        return [{"finished": batch["finished_at"] is not None}]

    def _insert_batch(self, values: Parameters) -> list[Row]:
        tables = self._tables
        if values["id"] in tables.batches:
            raise psycopg.errors.UniqueViolation("batches_pkey")
        row = {
            **BATCH_DEFAULTS,
            **values,
            "metadata": as_stored(values["metadata"].obj),
            "created_at": tables.now(),
        }
        tables.add(tables.batches, row["id"], row)
        return [dict(row)]


def _accepted(row: Row) -> Row:
    return {name: row[name] for name in ("id", "type", "queue", "status", "priority", "run_at", "created_at")}
