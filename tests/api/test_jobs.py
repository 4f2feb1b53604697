"""Jobs and batches: get, list, filter, page, result, cancel, counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from shared.db import SyncPool
from shared.jobs import Outcome
from tests.api.gateway import (
    JPEG,
    V1,
    Person,
    School,
    a_standard,
    accepted,
    claim,
    problem,
    progress,
    settle,
    upload,
)


def a_job(who: Person, **fields: str) -> dict[str, Any]:
    job: dict[str, Any] = accepted(upload(who, **fields))["jobs"][0]
    return job


def get(who: Person, **parameters: Any) -> Any:
    return who.http.get(f"{V1}/jobs", params=parameters)


def listed(who: Person, **parameters: Any) -> list[str]:
    answer = get(who, **parameters)
    assert answer.status_code == 200, answer.text
    return [j["id"] for j in answer.json()["items"]]


def test_a_job_is_shown_as_the_outline_says(teacher: Person) -> None:
    job = a_job(teacher)
    assert job["progress"] == {"percent": 0, "step": "Waiting for its turn", "seq": 1}
    assert (job["done"], job["attempt"], job["retry_count"]) == (False, 0, 0)
    for name in ("started_at", "finished_at", "cancelled_at", "cancelled_by", "next_retry_at", "error"):
        assert job[name] is None
    for name in ("created_at", "run_at"):
        assert datetime.fromisoformat(job[name]).tzinfo == UTC
        assert job[name].endswith("Z")
    assert set(job["links"]) == {"self", "result", "events", "cancel", "attempts", "why"}


def test_an_unchanged_job_is_304(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    url = job["links"]["self"]
    first = teacher.http.get(url)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    assert first.headers["retry-after"] == "1"
    for given in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = teacher.http.get(url, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    progress(db, claim(db, job["id"]), 40, "Reading page 1 of 2")
    changed = teacher.http.get(url, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert changed.json()["progress"] == {"percent": 40, "step": "Reading page 1 of 2", "seq": 3}


def test_the_result_is_there_once_the_job_has_completed(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    url = job["links"]["result"]
    answer = teacher.http.get(url)
    problem(answer, 409, "job.not_done")
    assert answer.headers["retry-after"] == "1"
    claimed = claim(db, job["id"])
    problem(teacher.http.get(url), 409, "job.not_done")
    settle(db, Outcome.completed(claimed, {"pages": 2}))
    body = teacher.http.get(url).json()
    assert (body["job_id"], body["type"], body["result"]) == (job["id"], "ocr.document", {"pages": 2})
    done = teacher.http.get(job["links"]["self"])
    assert "retry-after" not in done.headers
    assert (done.json()["done"], done.json()["progress"]["percent"]) == (True, 100)


def test_a_failed_job_has_no_result_but_a_reason(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    settle(db, Outcome.failed(claim(db, job["id"]), {"code": "document.encrypted", "message": "It is locked."}))
    assert "It is locked." in problem(teacher.http.get(job["links"]["result"]), 409, "job.no_result")["detail"]
    assert teacher.http.get(job["links"]["self"]).json()["error"]["code"] == "document.encrypted"


@pytest.mark.parametrize("by", ["POST", "DELETE"])
def test_a_job_is_cancelled_once_and_stays_so(teacher: Person, by: str) -> None:
    job = a_job(teacher)
    method, url = ("POST", job["links"]["cancel"]) if by == "POST" else ("DELETE", job["links"]["self"])
    first = teacher.http.request(method, url, params={"reason": "wrong file, sorry\n"})
    assert first.status_code == 200
    body = first.json()
    assert (body["status"], body["done"]) == ("cancelled", True)
    assert body["cancelled_at"] == body["finished_at"] is not None
    assert body["cancelled_by"].startswith("mem_")
    assert teacher.http.request(method, url).json() == body
    problem(teacher.http.get(job["links"]["result"]), 409, "job.no_result")
    events = teacher.http.get(job["links"]["events"]).text
    assert '"reason":"wrong file, sorry"' in events


def test_a_running_job_is_cancelled_and_its_worker_can_write_no_more(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    claimed = claim(db, job["id"])
    assert teacher.http.post(job["links"]["cancel"]).json()["status"] == "cancelled"
    with pytest.raises(AssertionError):
        settle(db, Outcome.completed(claimed, {}))


def test_cancelling_takes_what_waits_for_it_along(teacher: Person) -> None:
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    batch = accepted(upload(teacher, standard_id=standard))
    reading = next(j for j in batch["jobs"] if j["type"] == "ocr.document")
    teacher.http.post(reading["links"]["cancel"])
    after = teacher.http.get(batch["links"]["self"])
    assert (after.json()["counts"]["cancelled"], after.json()["done"]) == (2, True)
    assert "retry-after" not in after.headers


def test_a_completed_job_cannot_be_cancelled(teacher: Person, db: SyncPool) -> None:
    job = a_job(teacher)
    settle(db, Outcome.completed(claim(db, job["id"]), {}))
    for answer in (teacher.http.post(job["links"]["cancel"]), teacher.http.delete(job["links"]["self"])):
        problem(answer, 409, "job.already_done")
    assert teacher.http.get(job["links"]["self"]).json()["status"] == "completed"


def test_each_filter_of_the_list(teacher: Person, db: SyncPool) -> None:
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    batch = accepted(upload(teacher, standard_id=standard, priority="high", notify_email="t@school.example"))
    reading, grading = (
        next(j["id"] for j in batch["jobs"] if j["type"] == t) for t in ("ocr.document", "grading.quiz")
    )
    low = a_job(teacher, priority="low")
    done = a_job(teacher, notify_email="t@school.example")
    settle(db, Outcome.completed(claim(db, done["id"]), {}))
    everything = [done["id"], low["id"], grading, reading]
    assert listed(teacher) == everything
    assert listed(teacher, status="waiting") == [grading]
    assert listed(teacher, status="waiting,completed") == [done["id"], grading]
    assert get(teacher, status=["waiting", "completed"]).json() == get(teacher, status="waiting,completed").json()
    assert listed(teacher, type="grading.quiz") == [grading]
    assert listed(teacher, batch_id=batch["id"]) == [grading, reading]
    assert listed(teacher, priority="low") == [low["id"]]
    assert listed(teacher, priority="high", type="ocr.document", status="queued") == [reading]
    assert listed(teacher, batch_id="bat_00000000000000000000000000") == []
    at = datetime.fromisoformat(low["created_at"])
    assert listed(teacher, created_after=low["created_at"]) == [done["id"], low["id"]]
    assert listed(teacher, created_before=low["created_at"]) == [grading, reading]
    # In another zone, its plus sign escaped or not; far away; beyond what PostgreSQL takes for a zone.
    local = at.astimezone(datetime.strptime("+0530", "%z").tzinfo).isoformat()
    assert listed(teacher, created_after=local) == [done["id"], low["id"]]
    raw = teacher.http.get(f"{V1}/jobs?created_after={local}")
    assert [j["id"] for j in raw.json()["items"]] == [done["id"], low["id"]]
    assert listed(teacher, created_after="2000-01-01T00:00:00+23:59") == everything
    assert listed(teacher, created_after=(at + timedelta(hours=1)).isoformat()) == []
    # The mail it owes is a job too, and is shown to whom asks for it.
    assert len(listed(teacher, type="notify.email")) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "done"),
        ("status", "queued,"),
        ("status", ""),
        ("type", "ocr"),
        ("type", ""),
        ("priority", "1"),
        ("priority", "__class__"),
        ("batch_id", "x"),
        ("batch_id", "job_00000000000000000000000000"),
        ("created_after", "yesterday"),
        ("created_after", "2026-01-31"),
        ("created_after", "2026-01-31T08:00:00"),
        ("created_before", "0001-01-01T00:00:00+14:00"),
        ("created_before", ""),
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "9" * 3000),
        ("cursor", "x"),
        ("cursor", ""),
        ("cursor", "bat_00000000000000000000000000"),
    ],
)
def test_a_wrong_filter_is_named(teacher: Person, name: str, value: str) -> None:
    problem(get(teacher, **{name: value}), 422, "request.invalid", name)


def test_pages_stay_the_same_while_new_jobs_arrive(teacher: Person) -> None:
    made = [j["id"] for j in accepted(upload(teacher, *[("a.jpg", JPEG, "image/jpeg")] * 9))["jobs"]]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = get(teacher, limit=2, **cursor).json()
        seen += [j["id"] for j in page["items"]]
        a_job(teacher)
        if not page["has_more"]:
            assert page["next_cursor"] is None
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == made[::-1]


def test_a_full_last_page_says_so(teacher: Person) -> None:
    accepted(upload(teacher, *[("a.jpg", JPEG, "image/jpeg")] * 4))
    page = get(teacher, limit=4).json()
    assert (len(page["items"]), page["has_more"], page["next_cursor"]) == (4, False, None)


def test_a_batch_counts_its_jobs_and_their_progress(teacher: Person, db: SyncPool) -> None:
    batch = accepted(upload(teacher, *[("a.jpg", JPEG, "image/jpeg")] * 4))
    url = batch["links"]["self"]
    assert (batch["progress"]["percent"], batch["progress"]["step"]) == (0, "0 of 4 steps done")
    first, second, third, fourth = batch["jobs"]
    settle(db, Outcome.completed(claim(db, first["id"]), {}))
    settle(db, Outcome.failed(claim(db, second["id"]), {"code": "document.empty", "message": "No pages."}))
    progress(db, claim(db, third["id"]), 50, "Reading")
    answer = teacher.http.get(url)
    shown = answer.json()
    assert answer.headers["retry-after"]
    assert shown["counts"] == {
        "waiting": 0, "queued": 1, "processing": 1, "completed": 1, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert shown["by_type"] == {"ocr.document": {"total": 4, "completed": 1, "failed": 1, "cancelled": 0}}
    assert shown["progress"] == {"percent": 62, "step": "2 of 4 steps done"}
    assert (shown["done"], shown["finished_at"]) == (False, None)
    for job in (third, fourth):
        teacher.http.post(job["links"]["cancel"])
    done = teacher.http.get(url).json()
    assert (done["done"], done["progress"]["percent"], done["counts"]["cancelled"]) == (True, 100, 2)
    assert done["finished_at"] is not None
    assert [j["id"] for j in done["jobs"]] == [j["id"] for j in batch["jobs"]]
    jobs = teacher.http.get(done["links"]["jobs"]).json()["items"]
    assert {j["id"] for j in jobs} == {j["id"] for j in done["jobs"]}


# --- submissions and documents -----------------------------------------------------------------


def test_submissions_page_and_filter(teacher: Person, db: SyncPool) -> None:
    batch = accepted(upload(teacher, *[(f"{n}.jpg", JPEG, "image/jpeg") for n in range(5)], student_name="Ann"))
    made = [j["refs"]["submission_id"] for j in batch["jobs"]]
    url = f"{V1}/submissions"
    first = teacher.http.get(url, params={"limit": 3}).json()
    assert [s["id"] for s in first["items"]] == made[:1:-1]
    rest = teacher.http.get(url, params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [s["id"] for s in rest["items"]] == made[1::-1]
    shown = rest["items"][0]
    assert (shown["status"], shown["file_name"], shown["student_name"]) == ("reading", "1.jpg", "Ann")
    assert teacher.http.get(shown["links"]["self"]).json() == shown
    assert teacher.http.get(shown["links"]["job"]).json()["refs"]["submission_id"] == shown["id"]
    with db.connection() as conn:
        conn.execute(
            """update submissions s set needs_review = true from documents d
                where d.id = s.document_id and d.name = '2.jpg' and s.created_by = %s""",
            (teacher.member_id,),
        )
    assert [s["file_name"] for s in teacher.http.get(url, params={"needs_review": "true"}).json()["items"]] == ["2.jpg"]
    assert len(teacher.http.get(url, params={"needs_review": "false"}).json()["items"]) == 4
    for value in ("", "yes", "1", "True"):
        problem(teacher.http.get(url, params={"needs_review": value}), 422, "request.invalid", "needs_review")
    problem(teacher.http.get(url, params={"limit": "x"}), 422, "request.invalid", "limit")


def test_a_document_shows_all_that_was_read(teacher: Person, school: School, db: SyncPool) -> None:
    job = a_job(teacher)
    url = f"{V1}/documents/{job['refs']['document_id']}"
    assert teacher.http.get(url).json()["pages"] == []
    with db.connection() as conn:
        for number, words in ((2, "second"), (1, "first")):
            conn.execute(
                """insert into document_pages (document_id, number, org_id, width, height, source, confidence, lines)
                   select id, %s, org_id, 100, 200, 'ocr', 0.9, %s::jsonb from documents where created_by = %s""",
                (number, f'[{{"text": "{words}", "confidence": 0.9, "box": [0, 0, 10, 10]}}, {{"text": "line"}}]',
                 teacher.member_id),
            )  # fmt: skip
    pages = teacher.http.get(url).json()["pages"]
    assert [(p["number"], p["text"]) for p in pages] == [(1, "first\nline"), (2, "second\nline")]
    assert pages[0]["lines"][0]["box"] == [0, 0, 10, 10]
    assert "storage_key" not in teacher.http.get(url).text


def test_addresses_may_be_escaped(teacher: Person) -> None:
    job = a_job(teacher)
    assert teacher.http.get(f"{V1}/jobs/{quote(job['id'])}").json() == job
