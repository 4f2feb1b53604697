"""Gradings: from typed answers and from submissions in every state."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from shared.db import SyncPool
from shared.ids import IdKind
from shared.jobs import Outcome
from tests.api.gateway import V1, Person, School, a_standard, accepted, claim, problem, settle, upload, uuid_of


@pytest.fixture
def standard(teacher: Person) -> str:
    return str(teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"])


def grade(who: Person, **body: Any) -> Any:
    return who.http.post(f"{V1}/gradings", json=body)


def submission_of(who: Person) -> tuple[str, str]:
    """A new submission and its reading job."""
    job = accepted(upload(who, student_name="Maya"))["jobs"][0]
    return job["refs"]["submission_id"], job["id"]


def end_reading(db: SyncPool, job_id: str, *, failed: bool) -> None:
    """As a worker does."""
    job = claim(db, job_id)
    if failed:
        settle(db, Outcome.failed(job, {"code": "document.encrypted", "message": "Locked."}))
    else:
        with db.connection() as conn:
            conn.execute("update submissions set status = 'read' where job_id = %s", (job.id,))
        settle(db, Outcome.completed(job, {}))


def test_typed_answers_are_queued_for_grading(teacher: Person, standard: str, db: SyncPool) -> None:
    answer = grade(
        teacher, standard_id=standard, answers={"1": "A", "2": "9,81 m/s²"}, student_name="Maya", student_id="17",
        priority="low", metadata={"class": "8b", "n": 3, "x": None}, notify_email="t@school.example",
    )  # fmt: skip
    job = accepted(answer)
    assert answer.headers["location"] == job["links"]["self"]
    assert answer.headers["retry-after"]
    assert (job["type"], job["status"], job["priority"], job["depends_on"]) == ("grading.quiz", "queued", "low", [])
    assert job["metadata"] == {"class": "8b", "n": 3, "x": None}
    shown = teacher.http.get(f"{V1}/gradings/{job['refs']['grading_id']}").json()
    assert (shown["status"], shown["job_id"], shown["submission_id"]) == ("pending", job["id"], None)
    assert (shown["student_name"], shown["points"], shown["marks"], shown["error"]) == ("Maya", None, None, None)
    with db.connection() as conn:
        [row] = conn.execute(
            "select answers from gradings where id = %s", (uuid_of(IdKind.GRADING, shown["id"]),)
        ).fetchall()
    assert [(a["question_id"], a["text"]) for a in row["answers"]] == [("1", "A"), ("2", "9,81 m/s²")]


def test_the_same_request_again_gets_the_first_job(teacher: Person, standard: str) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    body = {"standard_id": standard, "answers": {"1": "A"}}
    first = teacher.http.post(f"{V1}/gradings", json=body, headers=key)
    again = teacher.http.post(f"{V1}/gradings", json=body, headers=key)
    assert accepted(again) == accepted(first)
    assert again.headers["idempotent-replayed"] == "true"
    other = teacher.http.post(f"{V1}/gradings", json=body | {"answers": {"1": "B"}}, headers=key)
    problem(other, 422, "idempotency.key_reused", "Idempotency-Key")


def test_a_submission_still_being_read_is_waited_for(teacher: Person, standard: str, db: SyncPool) -> None:
    submission, reading = submission_of(teacher)
    job = accepted(grade(teacher, standard_id=standard, submission_id=submission))
    assert (job["status"], job["depends_on"]) == ("waiting", [reading])
    assert teacher.http.get(f"{V1}/gradings/{job['refs']['grading_id']}").json()["student_name"] == "Maya"
    end_reading(db, reading, failed=False)
    assert teacher.http.get(job["links"]["self"]).json()["status"] == "queued"


def test_one_that_was_read_is_graded_at_once(teacher: Person, standard: str, db: SyncPool) -> None:
    submission, reading = submission_of(teacher)
    end_reading(db, reading, failed=False)
    assert accepted(grade(teacher, standard_id=standard, submission_id=submission))["status"] == "queued"


def test_one_that_could_not_be_read_is_refused(teacher: Person, standard: str, db: SyncPool) -> None:
    submission, reading = submission_of(teacher)
    waiting = accepted(grade(teacher, standard_id=standard, submission_id=submission))
    end_reading(db, reading, failed=True)
    problem(grade(teacher, standard_id=standard, submission_id=submission), 422, "submission.not_read", "submission_id")
    # What waited for it has failed with it, and says why.
    shown = teacher.http.get(f"{V1}/gradings/{waiting['refs']['grading_id']}").json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "job.parent_failed")
    seen = teacher.http.get(f"{V1}/submissions/{submission}").json()
    assert (seen["status"], seen["error"]) == ("failed", {"code": "document.encrypted", "message": "Locked."})
    error = teacher.http.get(waiting["links"]["self"]).json()["error"]
    assert error["details"]["parent_id"] == reading


def test_one_whose_reading_was_cancelled_is_refused(teacher: Person, standard: str) -> None:
    submission, reading = submission_of(teacher)
    teacher.http.post(f"{V1}/jobs/{reading}/cancel")
    problem(grade(teacher, standard_id=standard, submission_id=submission), 422, "submission.not_read", "submission_id")
    assert teacher.http.get(f"{V1}/submissions/{submission}").json()["status"] == "cancelled"


def test_exactly_one_source_must_be_given(teacher: Person, standard: str) -> None:
    submission, _ = submission_of(teacher)
    for body in ({}, {"answers": {}, "submission_id": submission}, {"answers": None, "submission_id": None}):
        answer = problem(grade(teacher, standard_id=standard, **body), 422, "request.invalid")
        assert answer["detail"] == "Give either submission_id or answers."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"standard_id": "nonsense"}, "standard_id"),
        ({"answers": {"1": 5}}, "answers.1"),
        ({"answers": {"1": "x" * 20_001}}, "answers.1"),
        ({"answers": {"x" * 17: "A"}}, f"answers.{'x' * 17}"),
        ({"answers": {str(n): "A" for n in range(301)}}, "answers"),
        ({"answers": ["A", "B"]}, "answers"),
        ({"submission_id": "std_00000000000000000000000000", "answers": None}, "submission_id"),
        ({"priority": "urgent"}, "priority"),
        ({"student_name": ""}, "student_name"),
        ({"student_name": "\u202e\u202c"}, "student_name"),
        ({"student_name": "a\nb"}, "student_name"),
        ({"metadata": {"x" * 65: 1}}, f"metadata.{'x' * 65}"),
        ({"metadata": {str(n): n for n in range(51)}}, "metadata"),
        ({"grade": "A"}, "grade"),
    ],
)
def test_a_wrong_field_is_named(teacher: Person, standard: str, body: dict[str, Any], param: str) -> None:
    answer = grade(teacher, **{"standard_id": standard, "answers": {"1": "A"}, **body})
    problem(answer, 422, "request.invalid", param)


def test_what_belongs_to_others_does_not_exist(
    teacher: Person, standard: str, stranger: Person, other_school: School
) -> None:
    theirs = stranger.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    their_submission, _ = submission_of(stranger)
    problem(grade(teacher, standard_id=theirs, answers={}), 422, "standard.unknown", "standard_id")
    problem(
        grade(teacher, standard_id=standard, submission_id=their_submission),
        422, "submission.unknown", "submission_id",
    )  # fmt: skip
    # A super admin sees both, but a grading stays inside one organisation.
    root = other_school.person("super_admin")
    assert root.http.get(f"{V1}/standards/{standard}").status_code == 200
    problem(grade(root, standard_id=standard, answers={}), 422, "standard.unknown", "standard_id")
    problem(upload(root, standard_id=standard), 422, "standard.unknown", "standard_id")


def test_a_finished_grading_shows_its_marks(teacher: Person, standard: str, db: SyncPool) -> None:
    job = accepted(grade(teacher, standard_id=standard, answers={"1": "A"}))
    grading = uuid_of(IdKind.GRADING, job["refs"]["grading_id"])
    with db.connection() as conn:
        conn.execute(
            """update gradings set status = 'graded', points = 2, max_points = 3, percentage = 66.7,
                      needs_review = true, graded_at = now(),
                      result = '{"marks": [{"question_id": "1", "points": 2}]}' where id = %s""",
            (grading,),
        )
    shown = teacher.http.get(f"{V1}/gradings/{job['refs']['grading_id']}").json()
    assert (shown["status"], shown["points"], shown["max_points"], shown["percentage"]) == ("graded", 2, 3, 66.7)
    assert shown["needs_review"] is True
    assert shown["marks"] == [{"question_id": "1", "points": 2}]


def test_an_answer_to_no_question_is_refused_by_its_id(teacher: Person, standard: str) -> None:
    answer = grade(teacher, standard_id=standard, answers={"1": "A", "99": "lost?"})
    problem(answer, 422, "grading.unknown_question", "answers.99")
