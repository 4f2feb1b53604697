"""The loaders against the real schema: right rows, right file names, never another organisation's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from deploy.local.postgres import Postgres
from services.notifier.subjects import BatchSubject, JobSubject, load_file_name, load_secret_version, load_subject
from shared.db.migrate import migrate
from shared.db.pools import connect

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def conn() -> Iterator[Connection]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)  # Postgres runs as an account of its own when we are root
        server = Postgres(Path(folder) / "postgres", Path(folder) / "log", durable=False, say=lambda _: None)
        server.open()
        try:
            server.start()
            migrate(server.url)
            with connect(server.url, "test") as connection:
                yield connection
        finally:
            server.close()
            server.discard()


@pytest.fixture
def org(conn: Connection) -> UUID:
    org_id = uuid4()
    conn.execute("insert into organisations (id, name) values (%s, 'a school')", (org_id,))
    return org_id


def add_job(conn: Connection, org: UUID, payload: dict[str, str], **columns: Any) -> UUID:
    job_id = uuid4()
    values = {
        "id": job_id, "org_id": org, "type": "ocr.document", "queue": "ocr", "status": "completed", "priority": 1,
        "max_retries": 2, "time_limit": 60, "attempt": 1, "payload": Jsonb(payload), **columns,
    }  # fmt: skip
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    conn.execute(f"insert into jobs ({names}) values ({marks})", list(values.values()))
    return job_id


def add_document(conn: Connection, org: UUID, name: str) -> UUID:
    document_id = uuid4()
    conn.execute(
        "insert into documents (id, org_id, name, media_type, size, sha256, storage_key)"
        " values (%s, %s, %s, 'application/pdf', 1, %s, 'k')",
        (document_id, org, name, b"x"),
    )
    return document_id


def test_a_job_is_read_with_its_result_and_error(conn: Connection, org: UUID) -> None:
    job_id = add_job(
        conn, org, {}, result=Jsonb({"n": 1}), error=Jsonb({"code": "c", "message": "m"}), metadata=Jsonb({"a": 1})
    )
    job = load_subject(conn, org, "job.completed", job_id)
    assert isinstance(job, JobSubject)
    assert (job.id, job.status, job.result, job.error) == (job_id, "completed", {"n": 1}, {"code": "c", "message": "m"})
    assert (job.metadata, job.attempt, job.batch_id, job.finished_at) == ({"a": 1}, 1, None, None)
    assert job.created_at.tzinfo is not None


def test_a_batch_is_read_with_its_counts(conn: Connection, org: UUID) -> None:
    batch_id = uuid4()
    conn.execute(
        "insert into batches (id, org_id, kind, total, completed, failed) values (%s, %s, 'upload', 3, 2, 1)",
        (batch_id, org),
    )
    batch = load_subject(conn, org, "batch.completed", batch_id)
    assert isinstance(batch, BatchSubject)
    assert (batch.id, batch.total, batch.completed, batch.failed, batch.cancelled) == (batch_id, 3, 2, 1, 0)
    assert load_subject(conn, uuid4(), "batch.completed", batch_id) is None


def test_another_organisations_job_and_an_absent_one_are_none(conn: Connection, org: UUID) -> None:
    job_id = add_job(conn, org, {})
    assert load_subject(conn, uuid4(), "job.completed", job_id) is None
    assert load_subject(conn, org, "job.completed", uuid4()) is None
    assert load_subject(conn, org, "batch.completed", job_id) is None


def test_the_file_name_of_a_reading_and_of_a_grading(conn: Connection, org: UUID) -> None:
    document_id = add_document(conn, org, "quiz 3b.pdf")
    reading = add_job(conn, org, {"document_id": str(document_id)})
    submission_id = uuid4()
    conn.execute(
        "insert into submissions (id, org_id, document_id, job_id) values (%s, %s, %s, %s)",
        (submission_id, org, document_id, reading),
    )
    grading = add_job(conn, org, {"submission_id": str(submission_id)}, type="grading.quiz", queue="grading")
    typed_in = add_job(conn, org, {"grading_id": str(uuid4())}, type="grading.quiz", queue="grading")
    both = add_job(conn, org, {"document_id": str(document_id), "submission_id": str(submission_id)})
    assert load_file_name(conn, org, reading) == "quiz 3b.pdf"
    assert load_file_name(conn, org, grading) == "quiz 3b.pdf"
    assert load_file_name(conn, org, both) == "quiz 3b.pdf"
    assert load_file_name(conn, org, typed_in) is None
    assert load_file_name(conn, uuid4(), reading) is None


def test_a_document_of_another_organisation_gives_no_name(conn: Connection, org: UUID) -> None:
    other = uuid4()
    conn.execute("insert into organisations (id, name) values (%s, 'another')", (other,))
    foreign = add_document(conn, other, "theirs.pdf")
    assert load_file_name(conn, org, add_job(conn, org, {"document_id": str(foreign)})) is None


def test_the_secret_version_follows_the_organisation(conn: Connection, org: UUID) -> None:
    assert load_secret_version(conn, org) == 1
    conn.execute("update organisations set webhook_secret_version = 4 where id = %s", (org,))
    assert load_secret_version(conn, org) == 4
    assert load_secret_version(conn, uuid4()) == 1
