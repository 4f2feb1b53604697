"""Standards: answer keys, versioned. A whole organisation shares them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import falcon
import falcon.asgi
import psycopg
from psycopg.types.json import Jsonb
from pydantic import model_validator

from shared import ids
from shared.contracts import AnswerKey
from shared.ids import IdKind, decode, encode
from shared.jobs.queries import Viewer
from shared.jobs.views import API_PREFIX

from ..auth import requires
from ..body import Name, RequestBody, read_body
from ..deps import Deps
from ..errors import not_found
from ..idempotency import IdempotencyKey, Replay
from ..pages import page, page_request

__all__ = ["Standard", "Standards", "current_version"]


class NewStandard(RequestBody):
    name: Name
    key: AnswerKey


class StandardPatch(RequestBody):
    name: Name | None = None
    key: AnswerKey | None = None

    @model_validator(mode="after")
    def _something(self) -> StandardPatch:
        if self.name is None and self.key is None:
            raise ValueError("give a new name, a new key, or both")
        return self


_INSERT = """
with s as (
  insert into standards (id, org_id, created_by, name) values (%(id)s, %(org_id)s, %(created_by)s, %(name)s)
  returning id, org_id, version, created_by
)
insert into standard_versions (standard_id, version, org_id, key, max_points, created_by)
select id, version, org_id, %(key)s, %(max_points)s, created_by from s
"""
_NEW_VERSION = """
with s as (
  update standards set version = version + 1, updated_at = now() where id = %(id)s and deleted_at is null
  returning id, org_id, version
)
insert into standard_versions (standard_id, version, org_id, key, max_points, created_by)
select id, version, org_id, %(key)s, %(max_points)s, %(created_by)s from s
"""
_RENAME = "update standards set name = %(name)s, updated_at = now() where id = %(id)s and deleted_at is null"
_DELETE = "update standards set deleted_at = now() where id = %(id)s and deleted_at is null returning id"


def _get(viewer: Viewer, standard_id: UUID) -> tuple[str, dict[str, Any]]:
    return (
        f"""select s.*, v.key, v.max_points from standards s
              join standard_versions v on v.standard_id = s.id and v.version = s.version
             where s.id = %(id)s and s.deleted_at is null and {viewer.organisation("s")}""",
        {"id": standard_id, **viewer.parameters},
    )


async def current_version(
    conn: psycopg.AsyncConnection[dict[str, Any]], viewer: Viewer, standard_id: UUID
) -> int | None:
    """The version that new gradings use; None for a standard that is not of the viewer's own organisation.

    Super admins see all standards, but a grading belongs to one organisation and so must its key.
    """
    row = await (await conn.execute(*_get(viewer, standard_id))).fetchone()
    return row["version"] if row and row["org_id"] == viewer.org_id else None


def standard_json(row: dict[str, Any], *, with_key: bool = True) -> dict[str, Any]:
    standard_id = encode(IdKind.STANDARD, row["id"])
    body = {
        "id": standard_id,
        "name": row["name"],
        "version": row["version"],
        "questions": len(row["key"]["questions"]),
        "max_points": row["max_points"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "links": {"self": f"{API_PREFIX}/standards/{standard_id}"},
    }
    if with_key:
        body["key"] = row["key"]
    return body


class Standards:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("standards:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        viewer: Viewer = req.context.caller.viewer
        before, limit = page_request(req, IdKind.STANDARD)
        sql = f"""select s.*, v.key, v.max_points from standards s
                    join standard_versions v on v.standard_id = s.id and v.version = s.version
                   where s.deleted_at is null and {viewer.organisation("s")}
                     and (%(before)s::uuid is null or s.id < %(before)s) order by s.id desc limit %(limit)s"""
        async with self._deps.pool.connection() as conn:
            cursor = await conn.execute(sql, {"before": before, "limit": limit + 1, **viewer.parameters})
            rows = await cursor.fetchall()
        resp.media = page([standard_json(r, with_key=False) for r in rows], limit)

    @requires("standards:write")
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        viewer: Viewer = req.context.caller.viewer
        body = await read_body(req, NewStandard)
        key = IdempotencyKey(req, viewer)
        key.seal([body.model_dump_json().encode()])
        standard_id = ids.new_uuid()
        async with self._deps.pool.connection() as conn:
            try:
                async with conn.transaction():
                    await key.check(conn)
                    await conn.execute(
                        _INSERT,
                        {
                            "id": standard_id,
                            "org_id": viewer.org_id,
                            "created_by": viewer.member_id,
                            "name": body.name,
                            "key": Jsonb(body.key.model_dump(mode="json")),
                            "max_points": body.key.max_points,
                        },
                    )
                    await key.keep(conn, standard_id)
            except Replay as replay:
                standard_id = replay.resource_id
                resp.set_header("Idempotent-Replayed", "true")
            row = await (await conn.execute(*_get(viewer, standard_id))).fetchone()
        if row is None:
            raise not_found("standard")
        resp.media = standard_json(row)
        resp.status = falcon.HTTP_201
        resp.location = resp.media["links"]["self"]


class Standard:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("standards:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, standard_id: str) -> None:
        async with self._deps.pool.connection() as conn:
            resp.media = standard_json(await self._find(conn, req, standard_id))

    @requires("standards:write")
    async def on_patch(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, standard_id: str) -> None:
        """A new key is a new version; gradings keep the version they were made with."""
        body = await read_body(req, StandardPatch)
        async with self._deps.pool.connection() as conn:
            async with conn.transaction():
                row = await self._find(conn, req, standard_id)
                if body.name is not None:
                    await conn.execute(_RENAME, {"id": row["id"], "name": body.name})
                if body.key is not None:
                    await conn.execute(
                        _NEW_VERSION,
                        {
                            "id": row["id"],
                            "key": Jsonb(body.key.model_dump(mode="json")),
                            "max_points": body.key.max_points,
                            "created_by": req.context.caller.viewer.member_id,
                        },
                    )
            resp.media = standard_json(await self._find(conn, req, standard_id))

    @requires("standards:write")
    async def on_delete(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, standard_id: str) -> None:
        """Gone from lists and for new gradings; what was graded with it stays."""
        async with self._deps.pool.connection() as conn, conn.transaction():
            row = await self._find(conn, req, standard_id)
            await conn.execute(_DELETE, {"id": row["id"]})
        resp.status = falcon.HTTP_204

    async def _find(
        self, conn: psycopg.AsyncConnection[dict[str, Any]], req: falcon.asgi.Request, standard_id: str
    ) -> dict[str, Any]:
        sql, parameters = _get(req.context.caller.viewer, decode(IdKind.STANDARD, standard_id))
        row = await (await conn.execute(sql, parameters)).fetchone()
        if row is None:
            raise not_found("standard")
        return row
