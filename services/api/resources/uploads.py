"""``POST /uploads``: files in, one batch of reading jobs out, with a grading behind each where a standard is named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import falcon
import falcon.asgi
import psycopg
from pydantic import ValidationError

from shared import ids
from shared.contracts import GRADING_QUIZ, OCR_DOCUMENT, GradingPayload, OcrPayload, OcrProvider
from shared.ids import IdKind, decode
from shared.jobs import Accepted, NewBatch, NewJob, ParentEdge, Priority, insert_batch_async, submit_async
from shared.jobs.queries import Viewer
from shared.media import EXTENSIONS
from shared.telemetry import metrics

from ..auth import Caller, requires
from ..body import EmailAddress, Name, PriorityName, RequestBody, RunAt, StandardId, StudentId, WebhookUrl
from ..deps import Deps
from ..errors import Problem, not_found
from ..idempotency import IdempotencyKey, Replay
from ..multipart import Form, UploadedFile, receive
from .batches import load_batch
from .gradings import INSERT_GRADING
from .standards import current_version

__all__ = ["Uploads"]


class UploadFields(RequestBody):
    """The form fields beside ``files``."""

    ocr_provider: OcrProvider = "local"
    priority: PriorityName = "normal"
    purpose: Literal["submission"] = "submission"
    webhook_url: WebhookUrl | None = None
    notify_email: EmailAddress | None = None
    run_at: RunAt | None = None
    standard_id: StandardId | None = None
    student_name: Name | None = None
    student_id: StudentId | None = None


_INSERT_DOCUMENT = """
insert into documents (id, org_id, created_by, name, media_type, size, sha256, storage_key)
values (%(id)s, %(org_id)s, %(created_by)s, %(name)s, %(media_type)s, %(size)s, %(sha256)s, %(storage_key)s)
"""
_INSERT_SUBMISSION = """
insert into submissions (id, org_id, created_by, document_id, job_id, student_name, student_id)
values (%(id)s, %(org_id)s, %(created_by)s, %(document_id)s, %(job_id)s, %(student_name)s, %(student_id)s)
"""


class Uploads:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    @requires("uploads:write")
    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        caller: Caller = req.context.caller
        viewer = caller.viewer
        key = IdempotencyKey(req, viewer)
        async with _counted(), receive(req, self._deps.settings) as form:
            fields = _fields(form)
            key.seal([fields.model_dump_json().encode(), *(p for f in form.files for p in (f.name.encode(), f.sha256))])
            version = await self._before(viewer, key, fields)
            if isinstance(version, Replay):
                batch_id = version.resource_id
                resp.set_header("Idempotent-Replayed", "true")
            else:
                batch_id = await _to_the_end(self._store_and_accept(viewer, key, form, fields, version, resp))
        async with self._deps.pool.connection() as conn:
            batch = await load_batch(conn, viewer, batch_id)
        if batch is None:
            raise not_found("batch")
        resp.media = batch
        resp.status = falcon.HTTP_202
        resp.location = batch["links"]["self"]
        resp.set_header("Retry-After", "1")

    async def _before(self, viewer: Viewer, key: IdempotencyKey, fields: UploadFields) -> int | Replay | None:
        """What must be known before files are stored: the standard's version, or that all this was done before."""
        async with self._deps.pool.connection() as conn:
            try:
                await key.check(conn)
            except Replay as replay:
                return replay
            if fields.standard_id is None:
                return None
            version = await current_version(conn, viewer, decode(IdKind.STANDARD, fields.standard_id))
        if version is None:
            raise Problem(422, "standard.unknown", "There is no such standard.", param="standard_id")
        return version

    async def _store_and_accept(
        self,
        viewer: Viewer,
        key: IdempotencyKey,
        form: Form,
        fields: UploadFields,
        version: int | None,
        resp: falcon.asgi.Response,
    ) -> UUID:
        """Files first, then one transaction. A crash in between leaves files that no row names, never the reverse.

        Files of a refused request are deleted, unless the connection broke during the commit: then nobody knows
        whether rows name them, and they stay.
        """
        documents = [_document(viewer, f) for f in form.files]
        storage = self._deps.storage
        stored: list[str] = []

        def put() -> None:
            for document, file in zip(documents, form.files, strict=True):
                storage.put_file(document["storage_key"], file.path, document["media_type"], consume=True)
                stored.append(document["storage_key"])

        batch_id = ids.new_uuid()
        committing = False
        try:
            await asyncio.to_thread(put)
            async with self._deps.pool.connection() as conn, conn.transaction():
                accepted = await self._accept(conn, viewer, batch_id, documents, fields, version)
                await key.keep(conn, batch_id)
                committing = True
        except Replay as replay:  # a twin of this request was faster
            resp.set_header("Idempotent-Replayed", "true")
            return replay.resource_id
        finally:
            if stored and not committing:
                await asyncio.to_thread(storage.delete, stored)
        self._deps.publisher.wake(accepted.wakes)
        metrics.UPLOADS_BYTES.inc(sum(f.size for f in form.files))
        metrics.UPLOADS_FILES.labels("accepted").inc(len(form.files))
        for row in accepted.rows:
            metrics.JOBS_ACCEPTED.labels(row["queue"], row["type"]).inc()
        return batch_id

    async def _accept(
        self,
        conn: psycopg.AsyncConnection[dict[str, Any]],
        viewer: Viewer,
        batch_id: UUID,
        documents: list[dict[str, Any]],
        fields: UploadFields,
        version: int | None,
    ) -> Accepted:
        owner = {"org_id": viewer.org_id, "created_by": viewer.member_id}
        student = {"student_name": fields.student_name, "student_id": fields.student_id}
        jobs: list[NewJob] = []
        submissions: list[dict[str, Any]] = []
        gradings: list[dict[str, Any]] = []
        for document in documents:
            submission_id = ids.new_uuid()
            read = _job(
                viewer,
                fields,
                batch_id,
                OCR_DOCUMENT.name,
                OcrPayload(document_id=document["id"], submission_id=submission_id, provider=fields.ocr_provider),
                run_at=fields.run_at,
                # One mail a file: about the marks where it is graded, else about the reading.
                notify_email=fields.notify_email if version is None else None,
            )
            jobs.append(read)
            submissions.append(
                {"id": submission_id, "document_id": document["id"], "job_id": read.id, **owner, **student}
            )
            if version is None or fields.standard_id is None:
                continue
            standard_id = decode(IdKind.STANDARD, fields.standard_id)
            grading = GradingPayload(
                grading_id=ids.new_uuid(),
                submission_id=submission_id,
                standard_id=standard_id,
                standard_version=version,
            )
            grade = _job(
                viewer,
                fields,
                batch_id,
                GRADING_QUIZ.name,
                grading,
                parents=(ParentEdge(read.id),),
                notify_email=fields.notify_email,
            )
            jobs.append(grade)
            gradings.append(
                {
                    "id": grading.grading_id,
                    "submission_id": submission_id,
                    "standard_id": standard_id,
                    "standard_version": version,
                    "job_id": grade.id,
                    "answers": None,
                    **owner,
                    **student,
                }
            )
        await insert_batch_async(
            conn,
            NewBatch(batch_id, viewer.org_id, viewer.member_id, "upload", len(jobs), webhook_url=fields.webhook_url),
        )
        cursor = conn.cursor()
        await cursor.executemany(_INSERT_DOCUMENT, documents)
        await cursor.executemany(_INSERT_SUBMISSION, submissions)
        if gradings:
            await cursor.executemany(INSERT_GRADING, gradings)
        return await submit_async(conn, jobs)


@contextlib.asynccontextmanager
async def _counted() -> AsyncIterator[None]:
    try:
        yield
    except (Problem, ValidationError):
        metrics.UPLOADS_FILES.labels("refused").inc()
        raise


async def _to_the_end(work: Coroutine[Any, Any, UUID]) -> UUID:
    """``work``, finished even when the client hangs up and the server cancels us: half of it is worth nothing."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _fields(form: Form) -> UploadFields:
    # The Pydantic error is answered with the field's name; an empty form field means "not given".
    fields = UploadFields.model_validate({k: v for k, v in form.fields.items() if v != ""})
    if not form.files:
        raise Problem(422, "upload.no_files", "Send at least one file in a field named files.", param="files")
    return fields


def _document(viewer: Viewer, file: UploadedFile) -> dict[str, Any]:
    document_id = ids.new_uuid()
    return {
        "id": document_id,
        "org_id": viewer.org_id,
        "created_by": viewer.member_id,
        "name": file.name,
        "media_type": str(file.media_type),
        "size": file.size,
        "sha256": file.sha256,
        # A random key: nothing of the client's naming reaches the store.
        "storage_key": f"documents/{viewer.org_id}/{document_id}.{EXTENSIONS[file.media_type][0]}",
    }


def _job(
    viewer: Viewer,
    fields: UploadFields,
    batch_id: UUID,
    type_: str,
    payload: OcrPayload | GradingPayload,
    *,
    run_at: datetime | None = None,
    parents: tuple[ParentEdge, ...] = (),
    notify_email: str | None,
) -> NewJob:
    return NewJob(
        id=ids.new_uuid(),
        type=type_,
        payload=payload.model_dump(mode="json"),
        org_id=viewer.org_id,
        created_by=viewer.member_id,
        priority=Priority.of(fields.priority),
        run_at=run_at,
        batch_id=batch_id,
        webhook_url=fields.webhook_url,
        notify_email=notify_email,
        parents=parents,
    )
