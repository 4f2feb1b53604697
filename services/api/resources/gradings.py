"""Gradings: start one from a submission or from typed answers; read it with its marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import falcon
import falcon.asgi
import psycopg
from psycopg.types.json import Jsonb
from pydantic import Field, model_validator

from shared import ids
from shared.contracts import GRADING_QUIZ, GivenAnswer, GradingPayload
from shared.ids import IdKind, decode, encode
from shared.jobs import InvalidSubmit, NewJob, ParentEdge, Priority, Status, queries, submit_async
from shared.jobs.queries import Viewer
from shared.jobs.views import API_PREFIX, job_json
from shared.telemetry import metrics

from ..auth import Caller, requires
from ..body import (
    EmailAddress,
    Metadata,
    Name,
    PriorityName,
    RequestBody,
    StandardId,
    StudentId,
    SubmissionId,
    WebhookUrl,
    read_body,
)
from ..deps import Deps
from ..errors import Problem, not_found
from ..idempotency import IdempotencyKey, Replay
from .standards import current_version

__all__ = ["Grading", "Gradings", "INSERT_GRADING"]

_Answer = Annotated[str, Field(max_length=20_000)]

INSERT_GRADING = """
insert into gradings (id, org_id, created_by, submission_id, standard_id, standard_version, job_id, student_name,
                      student_id, answers)
values (%(id)s, %(org_id)s, %(created_by)s, %(submission_id)s, %(standard_id)s, %(standard_version)s, %(job_id)s,
        %(student_name)s, %(student_id)s, %(answers)s)
"""


class NewGrading(RequestBody):
    """Exactly one of ``submission_id`` and ``answers`` (question id → answer as typed)."""

    standard_id: StandardId
    submission_id: SubmissionId | None = None
    answers: Annotated[dict[Annotated[str, Field(max_length=16)], _Answer], Field(max_length=300)] | None = None
    student_name: Name | None = None
    student_id: StudentId | None = None
    priority: PriorityName = "normal"
    webhook_url: WebhookUrl | None = None
    notify_email: EmailAddress | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> NewGrading:
        if (self.submission_id is None) == (self.answers is None):
            raise ValueError("give either submission_id or answers")
        return self


class Gradings:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("gradings:write")
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        caller: Caller = req.context.caller
        viewer = caller.viewer
        body = await read_body(req, NewGrading)
        key = IdempotencyKey(req, viewer)
        key.seal([body.model_dump_json().encode()])
        job_id = ids.new_uuid()
        async with self._deps.pool.connection() as conn:
            try:
                async with conn.transaction():
                    await key.check(conn)
                    accepted = await self._accept(conn, viewer, body, job_id)
                    await key.keep(conn, job_id)
                self._deps.publisher.wake(accepted.wakes)
                metrics.JOBS_ACCEPTED.labels(GRADING_QUIZ.queue, GRADING_QUIZ.name).inc()
            except Replay as replay:
                job_id = replay.resource_id
                resp.set_header("Idempotent-Replayed", "true")
            query = queries.get_job(viewer, job_id)
            row = await (await conn.execute(query.sql, query.parameters)).fetchone()
        if row is None:
            raise not_found("job")
        resp.media = job_json(row)
        resp.status = falcon.HTTP_202
        resp.location = resp.media["links"]["self"]
        resp.set_header("Retry-After", "1")

    async def _accept(
        self, conn: psycopg.AsyncConnection[dict[str, Any]], viewer: Viewer, body: NewGrading, job_id: UUID
    ) -> Any:
        standard_id = decode(IdKind.STANDARD, body.standard_id)
        version = await current_version(conn, viewer, standard_id)
        if version is None:
            raise Problem(422, "standard.unknown", "There is no such standard.", param="standard_id")
        submission = await self._submission(conn, viewer, body)
        grading_id = ids.new_uuid()
        answers = None
        if body.answers is not None:
            await _known_questions(conn, standard_id, version, body.answers)
            answers = Jsonb(
                [GivenAnswer(question_id=q, text=t).model_dump(mode="json") for q, t in body.answers.items()]
            )
        await conn.execute(
            INSERT_GRADING,
            {
                "id": grading_id,
                "org_id": viewer.org_id,
                "created_by": viewer.member_id,
                "submission_id": submission["id"] if submission else None,
                "standard_id": standard_id,
                "standard_version": version,
                "job_id": job_id,
                "student_name": body.student_name or (submission["student_name"] if submission else None),
                "student_id": body.student_id or (submission["student_id"] if submission else None),
                "answers": answers,
            },
        )
        payload = GradingPayload(
            grading_id=grading_id,
            submission_id=submission["id"] if submission else None,
            standard_id=standard_id,
            standard_version=version,
        )
        # Wait for the reading while it is under way; one that has ended needs no waiting.
        reading = submission is not None and submission["status"] == "reading"
        job = NewJob(
            id=job_id,
            type=GRADING_QUIZ.name,
            payload=payload.model_dump(mode="json"),
            org_id=viewer.org_id,
            created_by=viewer.member_id,
            priority=Priority.of(body.priority),
            metadata=body.metadata,
            webhook_url=body.webhook_url,
            notify_email=body.notify_email,
            parents=(ParentEdge(submission["job_id"]),) if submission is not None and reading else (),
        )
        try:
            return await submit_async(conn, [job])
        except InvalidSubmit as e:
            if e.param != "depends_on":
                raise
            raise _not_read() from None  # the reading ended, or its job was deleted, since we looked

    async def _submission(
        self, conn: psycopg.AsyncConnection[dict[str, Any]], viewer: Viewer, body: NewGrading
    ) -> dict[str, Any] | None:
        if body.submission_id is None:
            return None
        cursor = await conn.execute(
            f"""select s.id, s.job_id, s.status, s.student_name, s.student_id, s.org_id, j.status as job_status
                  from submissions s left join jobs j on j.id = s.job_id
                 where s.id = %(id)s and {viewer.condition("s")}""",
            {"id": decode(IdKind.SUBMISSION, body.submission_id), **viewer.parameters},
        )
        row = await cursor.fetchone()
        if row is None or row["org_id"] != viewer.org_id:
            raise Problem(422, "submission.unknown", "There is no such submission.", param="submission_id")
        if row["status"] == "reading" and row["job_status"] in (None, Status.FAILED, Status.CANCELLED):
            raise _not_read()
        return row


def _not_read() -> Problem:
    return Problem(
        422,
        "submission.not_read",
        "The submission could not be read, or its reading was cancelled. Upload the file again.",
        param="submission_id",
    )


async def _known_questions(
    conn: psycopg.AsyncConnection[dict[str, Any]], standard_id: UUID, version: int, answers: Mapping[str, str]
) -> None:
    """An answer to a question that the key does not have would be lost without a word. Raises Problem naming it."""
    cursor = await conn.execute(
        """select q ->> 'id' as id from standard_versions v, jsonb_array_elements(v.key -> 'questions') q
            where v.standard_id = %(id)s and v.version = %(version)s""",
        {"id": standard_id, "version": version},
    )
    known = {row["id"].casefold() for row in await cursor.fetchall()}
    for question in answers:
        if question.casefold() not in known:
            raise Problem(
                422,
                "grading.unknown_question",
                f"The standard has no question {question!r}. Its questions are listed at GET /standards/{{id}}.",
                param=f"answers.{question}",
            )


class Grading:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("gradings:read")
    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, grading_id: str) -> None:
        viewer: Viewer = req.context.caller.viewer
        sql = f"""select g.*, j.status as job_status, j.error as job_error, st.name as standard_name
                    from gradings g left join jobs j on j.id = g.job_id join standards st on st.id = g.standard_id
                   where g.id = %(id)s and {viewer.condition("g")}"""
        async with self._deps.pool.connection() as conn:
            row = await (
                await conn.execute(sql, {"id": decode(IdKind.GRADING, grading_id), **viewer.parameters})
            ).fetchone()
        if row is None:
            raise not_found("grading")
        resp.media = grading_json(row)


def grading_json(row: dict[str, Any]) -> dict[str, Any]:
    grading_id = encode(IdKind.GRADING, row["id"])
    status = row["status"]
    if status == "pending" and row["job_status"] in (None, Status.FAILED, Status.CANCELLED):
        status = row["job_status"] or Status.FAILED.value  # a job that retention has removed did not grade it
    error = row["job_error"]
    job = encode(IdKind.JOB, row["job_id"])
    return {
        "id": grading_id,
        "status": status,
        "job_id": job,
        "submission_id": encode(IdKind.SUBMISSION, row["submission_id"]) if row["submission_id"] else None,
        "standard": {
            "id": encode(IdKind.STANDARD, row["standard_id"]),
            "name": row["standard_name"],
            "version": row["standard_version"],
        },
        "student_name": row["student_name"],
        "student_id": row["student_id"],
        "points": row["points"],
        "max_points": row["max_points"],
        "percentage": row["percentage"],
        "needs_review": row["needs_review"],
        "marks": row["result"]["marks"] if row["result"] else None,
        "error": {"code": error.get("code"), "message": error.get("message")} if error and status == "failed" else None,
        "created_at": row["created_at"],
        "graded_at": row["graded_at"],
        "links": {"self": f"{API_PREFIX}/gradings/{grading_id}", "job": f"{API_PREFIX}/jobs/{job}"},
    }
