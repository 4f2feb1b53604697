"""Uploads: what is accepted, stored and answered."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from shared.db import SyncPool
from shared.ids import IdKind
from tests.api.gateway import JPEG, PDF, SAMPLES, V1, Gateway, Person, School, a_standard, accepted, problem, upload
from tests.api.gateway import uuid_of as uuid


def rows(db: SyncPool, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    with db.connection() as conn:
        return conn.execute(sql, parameters).fetchall()


def test_one_file_becomes_a_batch_with_one_reading_job(gateway: Gateway, db: SyncPool, teacher: Person) -> None:
    answer = upload(teacher)
    batch = accepted(answer)
    assert answer.headers["location"] == batch["links"]["self"] == f"{V1}/batches/{batch['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert batch["total"] == 1
    assert batch["counts"]["queued"] == 1
    assert not batch["done"]
    [job] = batch["jobs"]
    assert (job["type"], job["queue"], job["status"], job["priority"]) == ("ocr.document", "ocr", "queued", "normal")
    assert teacher.http.get(job["links"]["self"]).json() == job
    assert set(job["refs"]) == {"document_id", "submission_id"}

    document = teacher.http.get(f"{V1}/documents/{job['refs']['document_id']}").json()
    assert document["file_name"] == "work.pdf"
    assert document["media_type"] == "application/pdf"
    assert document["sha256"] == hashlib.sha256(PDF).hexdigest()
    assert document["size"] == len(PDF)
    [row] = rows(db, "select storage_key from documents where id = %s", uuid(IdKind.DOCUMENT, document["id"]))
    stored = gateway.storage / row["storage_key"]
    assert stored.read_bytes() == PDF
    assert stored.stat().st_mode & 0o777 == 0o600
    assert gateway.storage.stat().st_mode & 0o777 == 0o700


def test_a_large_file_arrives_byte_for_byte(gateway: Gateway, db: SyncPool, teacher: Person) -> None:
    content = PDF + b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(100_000)) + b"--\r\n--"
    job = accepted(upload(teacher, ("big.pdf", content, "application/pdf")))["jobs"][0]
    [row] = rows(db, "select * from documents where id = %s", uuid(IdKind.DOCUMENT, job["refs"]["document_id"]))
    assert bytes(row["sha256"]) == hashlib.sha256(content).digest()
    assert (gateway.storage / row["storage_key"]).read_bytes() == content


def test_many_files_become_one_batch_in_their_order(teacher: Person) -> None:
    names = [f"page {n}.jpg" for n in range(7)]
    batch = accepted(upload(teacher, *((n, JPEG + n.encode(), "image/jpeg") for n in names)))
    assert batch["total"] == len(batch["jobs"]) == 7
    documents = [teacher.http.get(f"{V1}/documents/{j['refs']['document_id']}").json() for j in batch["jobs"]]
    assert [d["file_name"] for d in documents] == names


def test_real_samples_are_accepted(teacher: Person) -> None:
    files = [(p.name, p.read_bytes(), "application/octet-stream") for p in sorted(SAMPLES.glob("*/*.[pj][dp][fg]"))]
    files = [f for f in files if f[0] != "empty.pdf"]
    assert len(files) >= 8
    assert accepted(upload(teacher, *files))["total"] == len(files)


def test_with_a_standard_a_grading_waits_for_each_reading(db: SyncPool, teacher: Person) -> None:
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()
    batch = accepted(
        upload(
            teacher,
            ("a.pdf", PDF, "application/pdf"),
            ("b.jpg", JPEG, "image/jpeg"),
            standard_id=standard["id"],
            student_name="  Zoë Achterberg ",
            student_id="8b-17",
            priority="high",
            notify_email="teacher@school.example",
            webhook_url="https://app.example/hooks",
        )
    )
    assert batch["counts"] == {
        "waiting": 2, "queued": 2, "processing": 0, "completed": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    by_type: dict[str, list[dict[str, Any]]] = {}
    for job in batch["jobs"]:
        by_type.setdefault(job["type"], []).append(job)
    for reading, grading in zip(by_type["ocr.document"], by_type["grading.quiz"], strict=True):
        assert grading["status"] == "waiting"
        assert grading["depends_on"] == [reading["id"]]
        assert grading["refs"]["submission_id"] == reading["refs"]["submission_id"]
        assert reading["priority"] == grading["priority"] == "high"
        shown = teacher.http.get(f"{V1}/gradings/{grading['refs']['grading_id']}").json()
        assert shown["standard"] == {"id": standard["id"], "name": "Quiz", "version": 1}
        assert (shown["status"], shown["student_name"], shown["student_id"]) == ("pending", "Zoë Achterberg", "8b-17")
        submission = teacher.http.get(f"{V1}/submissions/{reading['refs']['submission_id']}").json()
        assert submission["student_name"] == "Zoë Achterberg"
        assert [g["id"] for g in submission["gradings"]] == [shown["id"]]
        # One mail a file: about the marks.
        emails = rows(
            db,
            "select type, notify_email, webhook_url from jobs where id = any(%s) order by type desc",
            [uuid(IdKind.JOB, j["id"]) for j in (reading, grading)],
        )
        assert [(r["type"], r["notify_email"]) for r in emails] == [
            ("ocr.document", None), ("grading.quiz", "teacher@school.example"),
        ]  # fmt: skip
        assert {r["webhook_url"] for r in emails} == {"https://app.example/hooks"}


def test_work_can_be_put_off(teacher: Person) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=5)
    # Said in another zone, kept in UTC.
    local = at.astimezone(tz=datetime.strptime("+0930", "%z").tzinfo).isoformat()
    job = accepted(upload(teacher, run_at=local))["jobs"][0]
    assert job["run_at"] == at.isoformat().replace("+00:00", "Z")
    assert job["status"] == "queued"
    past = accepted(upload(teacher, run_at="2001-01-01T00:00:00Z"))["jobs"][0]
    assert past["run_at"] >= past["created_at"]


def test_an_empty_form_field_means_not_given(teacher: Person) -> None:
    job = accepted(upload(teacher, student_name="", run_at="", priority="", notify_email=""))["jobs"][0]
    assert job["priority"] == "normal"


@pytest.mark.parametrize("field", ["files", "files[]", "file"])
def test_the_usual_names_of_a_file_field_are_known(teacher: Person, field: str) -> None:
    answer = teacher.http.post(f"{V1}/uploads", files=[(field, ("a.pdf", PDF, "application/pdf"))])
    assert accepted(answer)["total"] == 1


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd.pdf", "passwd.pdf"),
        ("C:\\Users\\Ann\\quiz.pdf", "quiz.pdf"),
        ("harmless\u202efdp.exe", "harmlessfdp.exe"),
        ("x" * 5000 + ".pdf", "x" * 200),
        ("tab\tand\x07bell.pdf", "tabandbell.pdf"),
        ("Prüfung Größe 数学.pdf", "Prüfung Größe 数学.pdf"),
        ("..", ".."),
        ("\u200b", "unnamed file"),
        ("<script>alert(1)</script>", "script>"),
    ],
)
def test_names_are_for_display_only(gateway: Gateway, teacher: Person, sent: str, shown: str) -> None:
    boundary = "b0undary"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{sent}"\r\n'
        "Content-Type: application/pdf\r\n\r\n"
    ).encode() + PDF + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
    answer = teacher.http.post(
        f"{V1}/uploads", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    job = accepted(answer)["jobs"][0]
    document = teacher.http.get(f"{V1}/documents/{job['refs']['document_id']}").json()
    assert document["file_name"] == shown
    for path in gateway.files():
        assert path.is_relative_to(gateway.storage / "documents")
        assert path.suffix in (".pdf", ".jpg", ".png")


# --- Idempotency-Key ---------------------------------------------------------------------------


def test_the_same_request_again_gets_the_first_answer(gateway: Gateway, teacher: Person) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = upload(teacher, headers=key, student_name="Ann")
    files = gateway.files()
    again = upload(teacher, headers=key, student_name="Ann")
    assert accepted(again)["id"] == accepted(first)["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert gateway.files() == files


def test_a_key_used_for_another_request_is_refused(gateway: Gateway, teacher: Person, school: School) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    accepted(upload(teacher, headers=key, student_name="Ann"))
    files = gateway.files()
    for other in (
        upload(teacher, headers=key, student_name="Bob"),
        upload(teacher, ("work.pdf", PDF + b" ", "application/pdf"), headers=key, student_name="Ann"),
        upload(teacher, ("other.pdf", PDF, "application/pdf"), headers=key, student_name="Ann"),
        teacher.http.post(f"{V1}/standards", json=a_standard(), headers=key),
    ):
        problem(other, 422, "idempotency.key_reused", "Idempotency-Key")
    assert gateway.files() == files
    # Keys are each member's own.
    assert "idempotent-replayed" not in upload(school.person(), headers=key, student_name="Ann").headers


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
def test_a_key_must_be_sane(teacher: Person, key: str) -> None:
    problem(upload(teacher, headers={"Idempotency-Key": key}), 400, "idempotency.invalid_key", "Idempotency-Key")


def test_twins_at_the_same_moment_make_one_batch(gateway: Gateway, db: SyncPool, teacher: Person) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    before = len(gateway.files())
    start = threading.Barrier(6)
    answers: list[Any] = []

    def post() -> None:
        start.wait()
        answers.append(upload(teacher, headers=key))

    threads = [threading.Thread(target=post) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({accepted(a)["id"] for a in answers}) == 1
    assert sum("idempotent-replayed" not in a.headers for a in answers) == 1
    assert rows(db, "select count(*) as n from batches where created_by = %s", teacher.member_id) == [{"n": 1}]
    # What the slower ones had stored is gone.
    assert len(gateway.files()) == before + 1
