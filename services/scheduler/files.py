"""Files that are no longer kept: uploads and page images past their time, and what died attempts left in storage.

Storage first, row second: a crash in between leaves a row that still has its files to lose, so the next round deletes
them again, which is no error. The other way round they would lie there for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final
from uuid import UUID

import psycopg

from shared.jobs import ACTIVE
from shared.jobs.retention import id_before
from shared.settings import Settings
from shared.storage import ObjectStat, Storage

__all__ = ["FilePruner", "PrunedFiles"]

Connection = psycopg.Connection[dict[str, Any]]

_CHUNK: Final = 500  # documents looked at together
_SLICE: Final = 20  # and deleted between two looks at the clock: at most 200 pages each
_KEYS: Final = 500
_NIL: Final = UUID(int=0)
# An object without a row is left alone this long: its upload, or the attempt that wrote it (an hour at most), may not
# have committed yet.
_STRAY_AGE: Final = timedelta(days=1)
_SWEEP_SECONDS: Final = 3600.0  # between two sweeps through all of the storage

# One replica at a time: two would do no harm, and the work twice. Ends with the session.
_LOCK: Final = "select pg_try_advisory_lock(hashtextextended('gradeline.prune_files', 0)) as locked"
_UNLOCK: Final = "select pg_advisory_unlock(hashtextextended('gradeline.prune_files', 0))"

# Documents whose files are past their time. Kept: those that a person has yet to look at, up to a bound; those whose
# reading, or a grading of it, has not ended.
# The id bounds the scan: documents younger than the shortest time that anybody has set are not looked at.
_YOUNGEST: Final = """(now() - make_interval(secs => least(greatest(least(
  %(hours)s::float8, (select min(file_retention_hours) from organisations)), 0), 876000) * 3600))"""
_DUE: Final = f"""
select d.id, d.storage_key, d.read_at,
       array(select p.image_key from document_pages p where p.document_id = d.id and p.image_key is not null) as images
  from documents d left join organisations o on o.id = d.org_id
 where d.files_deleted_at is null and d.id > %(after)s and d.id < (select {id_before(_YOUNGEST)})
   and d.created_at < now() - make_interval(
         secs => least(greatest(coalesce(o.file_retention_hours, %(hours)s::float8), 0), 876000) * 3600)
   and (d.created_at < now() - make_interval(secs => %(review_days)s::float8 * 86400) or not exists (
     select from submissions s where s.document_id = d.id and (s.needs_review or exists (
       select from gradings g where g.submission_id = s.id and g.needs_review)) offset 0))
   and not exists (
     select from submissions s
       left join gradings g on g.submission_id = s.id
       join jobs j on j.id in (s.job_id, g.job_id)
      where s.document_id = d.id and j.status = any(%(active)s) offset 0)
 order by d.id limit %(limit)s
"""  # noqa: S608 - constants of this repository

# Those of the documents that any other living job of their organisation names, itself or by a submission or grading.
_NAMED: Final = """
with name as materialized (
  select d.id, d.id::text as text from documents d where d.id = any(%(ids)s)
  union
  select s.document_id, x.id::text from submissions s left join gradings g on g.submission_id = s.id
   cross join lateral (values (s.id), (g.id)) as x (id) where s.document_id = any(%(ids)s) and x.id is not null
)
select distinct n.id
  from (select distinct org_id from documents where id = any(%(ids)s)) o
  cross join lateral (
    select j.payload from jobs j where j.org_id = o.org_id and j.status = any(%(active)s) offset 0) j
  cross join lateral jsonb_path_query(j.payload, 'strict $.** ? (@.type() == "string")') as v (value)
  join name n on n.text = v.value #>> '{}'
"""

# Not one that was read anew since it was looked at: that one has new page images, and is the next round's.
_GONE: Final = """
with gone as (
  update documents d set files_deleted_at = now()
    from unnest(%(ids)s::uuid[], %(read_at)s::timestamptz[]) as t (id, read_at)
   where d.id = t.id and d.files_deleted_at is null and d.read_at is not distinct from t.read_at
  returning d.id
), pages as (
  update document_pages p set image_key = null from gone where p.document_id = gone.id and p.image_key is not null
)
select id from gone
"""

_KNOWN_PAGES: Final = """
select image_key as key from document_pages where document_id = any(%(ids)s) and image_key = any(%(keys)s)
"""
_KNOWN_UPLOADS: Final = """
select storage_key as key from documents
 where id = any(%(ids)s) and storage_key = any(%(keys)s) and files_deleted_at is null
"""


@dataclass(slots=True)
class PrunedFiles:
    """How many documents lost their files, and how many objects without a row went."""

    documents: int = 0
    strays: int = 0


class FilePruner:
    """One a process. ``prune`` goes on where the round before it stopped."""

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage = storage
        self._settings = settings
        self._sweep: Iterator[list[ObjectStat]] | None = None
        self._swept_at: float | None = None

    def prune(self, conn: Connection, until: float) -> PrunedFiles:
        """Delete what is past its time, until ``until`` (monotonic seconds). Nothing if another process is at it.

        ``conn`` is in no transaction, and is in none while storage is at work. Raises StorageUnavailable.
        """
        pruned = PrunedFiles()
        row = conn.execute(_LOCK).fetchone()
        if row is None or not row["locked"]:
            return pruned
        try:
            self._expire(conn, until, pruned)
            self._sweep_strays(conn, until, pruned)
        finally:
            conn.execute(_UNLOCK)
        return pruned

    def _expire(self, conn: Connection, until: float, pruned: PrunedFiles) -> None:
        after = _NIL
        active = [s.value for s in ACTIVE]
        settings = self._settings
        while time.monotonic() < until:
            rows = conn.execute(
                _DUE,
                {
                    "after": after,
                    "hours": settings.file_retention_hours,
                    "review_days": max(settings.file_review_days, settings.file_retention_hours / 24),
                    "active": active,
                    "limit": _CHUNK,
                },
            ).fetchall()
            if not rows:
                return
            after = rows[-1]["id"]
            named = {r["id"] for r in conn.execute(_NAMED, {"ids": [r["id"] for r in rows], "active": active})}
            free = [r for r in rows if r["id"] not in named]
            for start in range(0, len(free), _SLICE):
                if time.monotonic() >= until:
                    return
                pruned.documents += self._delete(conn, free[start : start + _SLICE])

    def _delete(self, conn: Connection, documents: list[dict[str, Any]]) -> int:
        for d in documents:
            # Beside the reading that stands, those that it replaced and attempts that were killed.
            stored = [found.key for found in self._storage.walk(f"pages/{d['id']}")]
            self._storage.delete({d["storage_key"], *d["images"], *stored})
        parameters = {"ids": [d["id"] for d in documents], "read_at": [d["read_at"] for d in documents]}
        return len(conn.execute(_GONE, parameters).fetchall())

    def _sweep_strays(self, conn: Connection, until: float, pruned: PrunedFiles) -> None:
        """Objects that no row names: of replaced readings, killed attempts, uploads that were never accepted."""
        if self._sweep is None:
            if self._swept_at is not None and time.monotonic() - self._swept_at < _SWEEP_SECONDS:
                return
            self._sweep = self._chunks()
        try:
            while time.monotonic() < until:
                found = next(self._sweep, None)
                if found is None:
                    self._sweep, self._swept_at = None, time.monotonic()
                    return
                pruned.strays += self._delete_strays(conn, found)
        except Exception:
            self._sweep = None  # a generator that raised is spent: from the start again
            raise

    def _chunks(self) -> Iterator[list[ObjectStat]]:
        for folder in ("pages", "documents"):
            objects = self._storage.walk(folder)
            while chunk := list(islice(objects, _KEYS)):
                yield chunk

    def _delete_strays(self, conn: Connection, found: list[ObjectStat]) -> int:
        before = datetime.now(UTC) - _STRAY_AGE
        old = {o.key: id for o in found if o.modified_at < before and (id := _document(o.key)) is not None}
        if not old:
            return 0
        known: set[str] = set()
        for statement in (_KNOWN_PAGES, _KNOWN_UPLOADS):
            rows = conn.execute(statement, {"ids": list(set(old.values())), "keys": list(old)}).fetchall()
            known |= {row["key"] for row in rows}
        strays = old.keys() - known
        self._storage.delete(strays)
        return len(strays)


def _document(key: str) -> UUID | None:
    """The document that a key is made of: ``pages/{id}/…``, ``documents/{organisation}/{id}.…``. None: not ours."""
    parts = key.split("/")
    if parts[0] == "pages" and len(parts) == 5:
        text = parts[1]
    elif parts[0] == "documents" and len(parts) == 3:
        text = parts[2].partition(".")[0]
    else:
        return None
    try:
        return UUID(text)
    except ValueError:
        return None
