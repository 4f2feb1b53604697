"""Submissions and their documents, to read."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import falcon.asgi

from shared.ids import IdKind, decode, encode
from shared.jobs import Status
from shared.jobs.queries import Viewer
from shared.jobs.views import API_PREFIX

from ..auth import requires
from ..deps import Deps
from ..errors import Problem, not_found
from ..pages import page, page_request

__all__ = ["Document", "Submission", "Submissions"]

_SELECT = """
select s.*, d.name as file_name, d.media_type, d.page_count, j.status as job_status, j.error as job_error,
       (select coalesce(jsonb_agg(jsonb_build_object('id', g.id, 'standard_id', g.standard_id, 'status', g.status,
          'points', g.points, 'max_points', g.max_points, 'percentage', g.percentage, 'needs_review', g.needs_review)
          order by g.id), '[]'::jsonb) from gradings g where g.submission_id = s.id) as gradings
  from submissions s join documents d on d.id = s.document_id left join jobs j on j.id = s.job_id
"""


def submission_json(row: dict[str, Any]) -> dict[str, Any]:
    submission_id = encode(IdKind.SUBMISSION, row["id"])
    status = row["status"]
    if status == "reading" and row["job_status"] in (None, Status.FAILED, Status.CANCELLED):
        status = row["job_status"] or Status.FAILED.value  # a job that retention has removed did not read it
    error = row["job_error"]
    return {
        "id": submission_id,
        "status": status,
        "file_name": row["file_name"],
        "document_id": encode(IdKind.DOCUMENT, row["document_id"]),
        "job_id": encode(IdKind.JOB, row["job_id"]),
        "pages": row["page_count"],
        "student_name": row["student_name"],
        "student_id": row["student_id"],
        "school": row["school"],
        "grade_level": row["grade_level"],
        "fields": row["fields"],
        "needs_review": row["needs_review"],
        "error": {"code": error.get("code"), "message": error.get("message")} if error and status == "failed" else None,
        "gradings": [
            {
                **g,
                "id": _encode_text(IdKind.GRADING, g["id"]),
                "standard_id": _encode_text(IdKind.STANDARD, g["standard_id"]),
            }
            for g in row["gradings"]
        ],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "links": {
            "self": f"{API_PREFIX}/submissions/{submission_id}",
            "document": f"{API_PREFIX}/documents/{encode(IdKind.DOCUMENT, row['document_id'])}",
            "job": f"{API_PREFIX}/jobs/{encode(IdKind.JOB, row['job_id'])}",
        },
    }


def _encode_text(kind: IdKind, uuid_text: str) -> str:
    """The public id of a UUID that came out of JSON."""
    return encode(kind, UUID(uuid_text))


def _flag(req: falcon.asgi.Request, name: str) -> bool | None:
    text = req.get_param(name)
    if text is None:
        return None
    if text not in ("true", "false"):
        raise Problem(422, "request.invalid", f"{name} must be true or false.", param=name)
    return bool(text == "true")


class Submissions:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("submissions:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        viewer: Viewer = req.context.caller.viewer
        before, limit = page_request(req, IdKind.SUBMISSION)
        review = _flag(req, "needs_review")
        where = [viewer.condition("s")]
        if before is not None:
            where.append("s.id < %(before)s")
        if review is not None:
            where.append("s.needs_review = %(review)s")
        sql = f"{_SELECT} where {' and '.join(where)} order by s.id desc limit %(limit)s"
        parameters = {"before": before, "review": review, "limit": limit + 1, **viewer.parameters}
        async with self._deps.pool.connection() as conn:
            rows = await (await conn.execute(sql, parameters)).fetchall()
        resp.media = page([submission_json(r) for r in rows], limit)


class Submission:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("submissions:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, submission_id: str) -> None:
        viewer: Viewer = req.context.caller.viewer
        parameters = {"id": decode(IdKind.SUBMISSION, submission_id), **viewer.parameters}
        async with self._deps.pool.connection() as conn:
            cursor = await conn.execute(f"{_SELECT} where s.id = %(id)s and {viewer.condition('s')}", parameters)
            row = await cursor.fetchone()
        if row is None:
            raise not_found("submission")
        resp.media = submission_json(row)


class Document:
    """A document with all that was read from it: pages, lines with boxes and confidence."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("submissions:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, document_id: str) -> None:
        viewer: Viewer = req.context.caller.viewer
        parameters = {"id": decode(IdKind.DOCUMENT, document_id), **viewer.parameters}
        async with self._deps.pool.connection() as conn:
            row = await (
                await conn.execute(f"select * from documents where id = %(id)s and {viewer.condition()}", parameters)
            ).fetchone()
            if row is None:
                raise not_found("document")
            pages = await (
                await conn.execute(
                    """select number, width, height, rotation, source, confidence, lines from document_pages
                        where document_id = %(id)s order by number""",
                    {"id": row["id"]},
                )
            ).fetchall()
        resp.media = {
            "id": encode(IdKind.DOCUMENT, row["id"]),
            "file_name": row["name"],
            "media_type": row["media_type"],
            "size": row["size"],
            "sha256": bytes(row["sha256"]).hex(),
            "page_count": row["page_count"],
            "created_at": row["created_at"],
            "read_at": row["read_at"],
            "files_deleted_at": row["files_deleted_at"],
            "pages": [{**p, "text": "\n".join(line["text"] for line in p["lines"])} for p in pages],
        }
