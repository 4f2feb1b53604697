"""The main job on real input: from upload to marks, webhook and mail, through every service."""

from __future__ import annotations

import email
import email.policy
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from standardwebhooks import Webhook

from deploy.local.receiver import Receiver
from tests.e2e.client import SAMPLES, Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def grading(client: Client, batch: Any) -> Any:
    job = next(j for j in batch["jobs"] if j["type"] == "grading.quiz")
    return client.get(f"/gradings/{job['refs']['grading_id']}")


def mail_about(stack: dict[str, Any], job_id: str, within: float = 20) -> Any:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for path in Path(stack["mail_dir"]).glob("*.eml"):
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            if job_id in message.get_body(("plain",)).get_content():
                return message
        time.sleep(0.05)
    raise AssertionError("no mail")


@pytest.mark.parametrize(("sample", "file"), [("quiz", "quiz_scan.pdf"), ("typed", "homework.pdf")])
def test_a_quiz_becomes_marks_a_webhook_and_a_mail(
    client: Client, stack: dict[str, Any], sample: str, file: str
) -> None:
    expected = json.loads((SAMPLES / sample / "expected.json").read_text())
    with Receiver() as receiver:
        batch = client.upload(
            SAMPLES / sample / file,
            standard_id=client.standard(sample),
            webhook_url=receiver.url,
            notify_email="teacher@school.example",
        )
        done = client.finished(batch)
        assert done["counts"]["completed"] == 2
        graded = grading(client, done)
        assert graded["student_name"] == expected["student_name"]
        points = {m["question_id"]: m["points"] for m in graded["marks"]}
        assert points == {q["id"]: q["points"] for q in expected["questions"]}
        assert (graded["points"], graded["max_points"]) == (expected["points"], expected["max_points"])

        delivery = receiver.wait_for(graded["job_id"])
        assert delivery is not None
        # The Standard Webhooks reference implementation is the judge.
        event = Webhook(stack["webhook_secret"]).verify(delivery.body, delivery.headers)
        assert event["type"] == "job.completed"
        assert event["data"]["result"]["points"] == expected["points"]
        assert receiver.wait_for("batch.completed") is not None

    message = mail_about(stack, graded["job_id"])
    assert file in message["Subject"]
    submission = client.get(f"/submissions/{graded['submission_id']}")
    assert (submission["school"], submission["status"]) == (expected["school"], "read")


def test_phone_photos_are_turned_upright_and_read(client: Client) -> None:
    done = client.finished(client.upload(*sorted((SAMPLES / "photos").glob("*.jpg"))))
    assert done["counts"]["completed"] == 3
    text = ""
    for job in done["jobs"]:
        pages = client.get(f"/documents/{job['refs']['document_id']}")["pages"]
        text += pages[0]["text"]
    for words in ("Tobias Mbeki", "45", "wind"):
        assert words in text


def test_progress_is_a_story_in_words_that_only_goes_forward(client: Client) -> None:
    batch = client.upload(SAMPLES / "quiz" / "quiz_scan.pdf")
    events = []
    with client.http.stream("GET", batch["jobs"][0]["links"]["events"].removeprefix("/api/v1")) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert (events[0]["kind"], events[-1]["kind"]) == ("accepted", "completed")
    progress = [e["progress"] for e in events if e["kind"] == "progress"]
    assert [p["percent"] for p in progress] == sorted(p["percent"] for p in progress)
    assert "Processing image 3 of 3" in [p["step"] for p in progress]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("truncated.pdf", "document.not_readable"),
        ("encrypted.pdf", "document.encrypted"),
        ("bomb_9000.png", "document.too_large"),
        ("pages_300.pdf", "document.too_many_pages"),
    ],
)
def test_a_bad_document_fails_with_a_sentence_and_takes_its_grading_along(
    client: Client, stack: dict[str, Any], file: str, code: str
) -> None:
    batch = client.upload(
        SAMPLES / "bad" / file, standard_id=client.standard("quiz"), notify_email="teacher@school.example"
    )
    done = client.finished(batch)
    reading, marking = sorted(done["jobs"], key=lambda j: j["type"], reverse=True)
    assert (reading["status"], reading["error"]["code"]) == ("failed", code)
    assert reading["attempt"] == 1, "trying again would not help"
    assert len(reading["error"]["message"]) > 30
    assert (marking["status"], marking["error"]["code"]) == ("failed", "job.parent_failed")
    assert marking["error"]["message"] == reading["error"]["message"]
    assert file in mail_about(stack, marking["id"])["Subject"]


@pytest.mark.parametrize(
    ("file", "media_type", "status"),
    [
        ("not_an_image.png", "image/png", 415),
        ("empty.pdf", "application/pdf", 422),
        ("mislabelled.pdf", "application/pdf", 415),
    ],
)
def test_what_is_no_document_is_refused_at_the_door(client: Client, file: str, media_type: str, status: int) -> None:
    path = SAMPLES / "bad" / file
    response = client.http.post("/uploads", files=[("files", (file, path.read_bytes(), media_type))])
    assert response.status_code == status
    problem = response.json()
    assert problem["param"] == "files"
    assert file in problem["detail"]


def test_a_missing_answer_key_is_refused(client: Client) -> None:
    response = client.http.post(
        "/gradings", json={"standard_id": "std_01m824jbvce78sk1p3zd481p6s", "answers": {"1": "B"}}
    )
    assert (response.status_code, response.json()["param"]) == (422, "standard_id")


def test_a_running_reading_is_cancelled_within_two_seconds(client: Client, stack: dict[str, Any]) -> None:
    batch = client.upload(SAMPLES / "quiz" / "quiz_scan.pdf")
    job = batch["jobs"][0]["links"]["self"]
    deadline = time.monotonic() + 30
    while "Processing" not in client.get(job)["progress"]["step"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    cancelled = client.http.post(f"{job}/cancel".removeprefix("/api/v1")).json()
    assert (cancelled["status"], cancelled["cancelled_by"] is not None) == ("cancelled", True)
    stats = f"http://127.0.0.1:{stack['services']['ocr_worker']['health_port']}/stats"
    while client.http.get(stats).json()["running"]:
        assert time.monotonic() - began < 2, "the worker is still at it"
        time.sleep(0.05)


def test_a_worker_killed_in_the_middle_costs_seconds_and_nothing_else(client: Client, stack: dict[str, Any]) -> None:
    batch = client.upload(SAMPLES / "quiz" / "quiz_scan.pdf", standard_id=client.standard("quiz"))
    reading = next(j for j in batch["jobs"] if j["type"] == "ocr.document")["links"]["self"]
    deadline = time.monotonic() + 30
    while "Processing" not in client.get(reading)["progress"]["step"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The stack file has the pid of the day; killing the process leaves its lease to run out.
    current = json.loads((stack["data"] / "stack.json").read_text())
    os.kill(current["services"]["ocr_worker"]["pid"], signal.SIGKILL)
    done = client.finished(batch)
    assert done["counts"]["completed"] == 2
    assert client.get(reading)["attempt"] == 2
    assert client.get(reading)["retry_count"] == 0, "a crash is no failed try of the job's own"


def test_a_flushed_redis_loses_nothing(client: Client, stack: dict[str, Any]) -> None:
    standard = client.standard("quiz")
    jobs = []
    for n in range(20):
        answer = client.http.post("/gradings", json={"standard_id": standard, "answers": {"1": "B", "2": str(n)}})
        assert answer.status_code == 202
        jobs.append(answer.json()["links"]["self"])
        if n % 5 == 0:
            with redis.Redis.from_url(stack["redis_url"]) as broker:
                broker.flushall()
    deadline = time.monotonic() + 30
    while not all(client.get(job)["status"] == "completed" for job in jobs):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_students_words_are_in_any_log(client: Client, stack: dict[str, Any]) -> None:
    secret = "Zebediah Quackenbush"
    answer = client.http.post(
        "/gradings",
        json={"standard_id": client.standard("quiz"), "answers": {"11": secret, "6": secret}, "student_name": secret},
    ).json()
    deadline = time.monotonic() + 20
    while client.get(answer["links"]["self"])["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for log in (stack["data"] / "logs").iterdir():
        assert secret.split()[0] not in log.read_text(errors="replace"), log.name
    with psycopg.connect(stack["database_url"]) as conn:
        found = conn.execute("select count(*) from job_events where data::text like %s", (f"%{secret.split()[0]}%",))
        assert found.fetchone() == (0,)
