"""Why a job waits, what its attempts did, how many there are and how the queues go, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from shared.db import SyncPool
from shared.jobs import Outcome, sample, store
from tests.api.gateway import V1, Person, School, a_standard, accepted, claim, problem, progress, settle, upload

BROKEN = {
    "code": "job.internal_error",
    "message": "Something went wrong.",
    "details": {"exception": "KeyError", "traceback": ["handler.py:12 run"]},
}


def a_job(who: Person, **fields: str) -> dict[str, Any]:
    job: dict[str, Any] = accepted(upload(who, **fields))["jobs"][0]
    return job


def get(who: Person, path: str, **parameters: Any) -> dict[str, Any]:
    answer = who.http.get(f"{V1}{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_why_answers_with_a_code_and_a_sentence(teacher: Person) -> None:
    job = a_job(teacher)
    body = get(teacher, f"/jobs/{job['id']}/why")
    assert (body["job_id"], body["code"]) == (job["id"], "worker.none")
    assert body["sentence"].startswith("No worker for this kind of job")
    assert body["details"]["queue"] == "ocr"


def test_why_a_grading_waits_names_the_reading(teacher: Person) -> None:
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    reading, grading = accepted(upload(teacher, standard_id=standard))["jobs"]
    body = get(teacher, f"/jobs/{grading['id']}/why")
    assert body["code"] == "waiting.parents"
    assert [p["id"] for p in body["details"]["parents"]] == [reading["id"]]
    assert body["details"]["held_up_by"]["why"] == "worker.none"


def test_attempts_are_paged_and_carry_log_lines(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    path = f"/jobs/{job['id']}/attempts"
    assert get(teacher, path) == {"job_id": job["id"], "items": [], "has_more": False, "next_cursor": None}
    first = claim(db, job["id"])
    progress(db, first, 30, "Reading page 1 of 3")
    with db.connection() as conn:
        store.log(conn, first.id, first.attempt, first.id, {"message": "page read", "page": 1})
    settle(db, Outcome.retry(first, BROKEN, 0))
    with db.connection() as conn:
        store.claim(conn, queue=f"only-{first.id}", worker_id=first.id, lease_seconds=60)
    newest = get(teacher, path, limit=1)
    assert [a["attempt"] for a in newest["items"]] == [2]
    assert (newest["items"][0]["outcome"], newest["has_more"]) == (None, True)
    [older] = get(teacher, path, limit=1, cursor=newest["next_cursor"])["items"]
    assert (older["attempt"], older["outcome"]) == (1, "retrying")
    assert older["progress"] == {"percent": 30, "step": "Reading page 1 of 3"}
    assert [(line["message"], line["fields"]) for line in older["log"]] == [("page read", {"page": 1})]
    assert older["error"] == {"code": BROKEN["code"], "message": BROKEN["message"], "details": {}}


def test_an_administrator_sees_where_our_code_broke(school: School, db: SyncPool) -> None:
    teacher, admin = school.person(), school.person("admin")
    job = a_job(teacher)
    settle(db, Outcome.failed(claim(db, job["id"]), BROKEN))
    assert "handler.py" not in teacher.http.get(f"{V1}/jobs/{job['id']}/attempts").text
    [attempt] = get(admin, f"/jobs/{job['id']}/attempts")["items"]
    assert attempt["error"]["traceback"] == ["handler.py:12 run"]


@pytest.mark.parametrize(("name", "value"), [("limit", "0"), ("limit", "51"), ("limit", "x"), ("cursor", "job_1")])
def test_bad_pages_are_refused(teacher: Person, name: str, value: str) -> None:
    job = a_job(teacher)
    answer = teacher.http.get(f"{V1}/jobs/{job['id']}/attempts", params={name: value})
    problem(answer, 422, "request.invalid", name)


def test_stats_count_the_callers_jobs(school: School, other_school: School, db: SyncPool) -> None:
    teacher, admin = school.person(), school.person("admin")
    a_job(teacher)
    settle(db, Outcome.completed(claim(db, a_job(teacher)["id"]), {}))
    a_job(admin)
    a_job(other_school.person())
    mine = get(teacher, "/jobs/stats")
    assert (mine["total"], mine["exact"], mine["as_of"]) == (2, True, None)
    assert (mine["by_status"]["queued"], mine["by_status"]["completed"]) == (1, 1)
    assert mine["by_type"]["ocr.document"]["completed"] == 1
    assert get(admin, "/jobs/stats")["total"] == 3


def test_queues_are_for_administrators(school: School, db: SyncPool) -> None:
    problem(school.person().http.get(f"{V1}/queues"), 403, "auth.forbidden")
    admin = school.person("admin")
    a_job(admin)
    with db.connection() as conn:
        assert sample(conn)
    items = {q["name"]: q for q in get(admin, "/queues")["items"]}
    assert {"ocr", "grading", "notify"} <= set(items)
    ocr = items["ocr"]
    assert ocr["depth"] >= 1
    assert ocr["as_of"] is not None
    assert (ocr["paused"], ocr["workers"]["alive"], ocr["in_flight"]) == (False, 0, 0)
    assert set(ocr["latency"]) == {"wait_seconds", "run_seconds"}
