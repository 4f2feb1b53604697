"""Standards: made, listed, changed by versions, deleted; every rule of the contract named by its field."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from shared.db import SyncPool
from tests.api.gateway import V1, Person, School, a_standard, problem, sample_standard, upload


def make(who: Person, name: str = "Quiz") -> dict[str, Any]:
    answer = who.http.post(f"{V1}/standards", json=a_standard(name))
    assert answer.status_code == 201, answer.text
    standard: dict[str, Any] = answer.json()
    assert answer.headers["location"] == standard["links"]["self"]
    return standard


def test_a_standard_is_shown_as_it_was_given(teacher: Person) -> None:
    standard = make(teacher, "  Unit 3  ")
    assert standard["name"] == "Unit 3"
    assert (standard["version"], standard["questions"], standard["max_points"]) == (1, 2, 3.0)
    assert standard["key"]["questions"][0] == a_standard()["key"]["questions"][0] | {"prompt": ""}
    assert teacher.http.get(standard["links"]["self"]).json() == standard


def test_the_sample_standard_is_accepted(teacher: Person) -> None:
    answer = teacher.http.post(f"{V1}/standards", json=sample_standard())
    assert answer.status_code == 201, answer.text
    assert answer.json()["max_points"] == 20


def test_the_same_request_again_makes_nothing_new(teacher: Person) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = teacher.http.post(f"{V1}/standards", json=a_standard(), headers=key)
    again = teacher.http.post(f"{V1}/standards", json=a_standard(), headers=key)
    assert again.json() == first.json()
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    problem(
        teacher.http.post(f"{V1}/standards", json=a_standard("x"), headers=key),
        422, "idempotency.key_reused", "Idempotency-Key",
    )  # fmt: skip


def test_the_list_is_the_organisations_newest_first(teacher: Person, school: School, stranger: Person) -> None:
    made = [make(teacher, f"Quiz {n}")["id"] for n in range(5)]
    make(stranger)
    colleague = school.person()
    first = colleague.http.get(f"{V1}/standards", params={"limit": 3}).json()
    assert [s["id"] for s in first["items"]] == made[:1:-1]
    assert "key" not in first["items"][0]
    rest = colleague.http.get(f"{V1}/standards", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [s["id"] for s in rest["items"]] == made[1::-1]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)


def test_a_new_key_is_a_new_version_and_old_gradings_keep_theirs(teacher: Person, db: SyncPool) -> None:
    standard = make(teacher)
    url = standard["links"]["self"]
    batch = upload(teacher, standard_id=standard["id"]).json()
    grading = next(j["refs"]["grading_id"] for j in batch["jobs"] if j["type"] == "grading.quiz")

    renamed = teacher.http.patch(url, json={"name": "Renamed"}).json()
    assert (renamed["name"], renamed["version"]) == ("Renamed", 1)
    changed = a_standard()["key"]
    changed["questions"][0]["points"] = 5
    patched = teacher.http.patch(url, json={"key": changed}).json()
    assert (patched["name"], patched["version"], patched["max_points"]) == ("Renamed", 2, 6.0)
    assert patched["updated_at"] > standard["updated_at"]
    assert teacher.http.get(url).json() == patched
    assert teacher.http.get(f"{V1}/gradings/{grading}").json()["standard"]["version"] == 1
    with db.connection() as conn:
        [old] = conn.execute("select max_points from standard_versions where version = 1 and standard_id = "
                             "(select standard_id from standard_versions where version = 2)").fetchall()  # fmt: skip
    assert old["max_points"] == 3


def test_a_change_that_changes_nothing_or_breaks_the_key_is_refused(teacher: Person) -> None:
    url = make(teacher)["links"]["self"]
    problem(teacher.http.patch(url, json={}), 422, "request.invalid")
    problem(teacher.http.patch(url, json={"key": {"questions": []}}), 422, "request.invalid", "key.questions")
    problem(teacher.http.patch(url, json={"version": 7}), 422, "request.invalid", "version")
    assert teacher.http.get(url).json()["version"] == 1


def test_a_deleted_standard_is_gone_but_what_it_graded_stays(teacher: Person) -> None:
    standard = make(teacher)
    batch = upload(teacher, standard_id=standard["id"]).json()
    grading = next(j["refs"]["grading_id"] for j in batch["jobs"] if j["type"] == "grading.quiz")
    url = standard["links"]["self"]
    answer = teacher.http.delete(url)
    assert (answer.status_code, answer.content) == (204, b"")
    for again in (teacher.http.get(url), teacher.http.delete(url), teacher.http.patch(url, json={"name": "x"})):
        problem(again, 404, "not_found")
    assert standard["id"] not in [s["id"] for s in teacher.http.get(f"{V1}/standards").json()["items"]]
    problem(upload(teacher, standard_id=standard["id"]), 422, "standard.unknown", "standard_id")
    assert teacher.http.get(f"{V1}/gradings/{grading}").json()["standard"]["name"] == "Quiz"


def _with(question: dict[str, Any]) -> dict[str, Any]:
    return {"name": "Quiz", "key": {"questions": [{"id": "1", "kind": "true_false", "answer": True}, question]}}


CHOICE = {"id": "2", "kind": "single_choice", "options": {"A": "one", "B": "two"}, "answer": "A"}
SEVERAL = {"id": "2", "kind": "multiple_choice", "options": {"A": "one", "B": "two"}, "answers": ["A"]}
NUMBER = {"id": "2", "kind": "numeric", "answer": 1}
TEXT = {"id": "2", "kind": "short_text", "answers": ["osmosis"]}
LIST = {"id": "2", "kind": "list", "items": [["salt"], ["sugar"]]}
Q = "key.questions.1"


@pytest.mark.parametrize(
    ("body", "param", "detail"),
    [
        ({}, "name", "name is required."),
        ({"name": "x"}, "key", "key is required."),
        (a_standard() | {"name": ""}, "name", "name must not be empty."),
        (a_standard() | {"name": "x" * 201}, "name", "name may have at most 200 characters."),
        (a_standard() | {"name": 5}, "name", "name must be text."),
        (a_standard() | {"title": 5}, "title", "title is not a field that this request has."),
        ({"name": "x", "key": {"questions": []}}, "key.questions", "key.questions must not be empty."),
        ({"name": "x", "key": {"questions": {}}}, "key.questions", "key.questions must be a list."),
        ({"name": "x", "key": a_standard()["key"] | {"locale": "xx"}}, "key.locale",
         "key.locale must be 'en', 'de', 'fr' or 'es'."),
        (_with({"id": "2"}), f"{Q}.kind", f"{Q}.kind is required."),
        (_with({"id": "2", "kind": "essay"}), f"{Q}.kind", None),
        (_with(5), Q, f"{Q} must be an object with named values."),  # type: ignore[arg-type]
        (_with(CHOICE | {"id": "1"}), "key", "key: question id '1' is used twice."),
        (_with(CHOICE | {"id": ""}), f"{Q}.id", f"{Q}.id must not be empty."),
        (_with(CHOICE | {"id": "no spaces"}), f"{Q}.id", None),
        (_with(CHOICE | {"points": 0}), f"{Q}.points", f"{Q}.points must be more than 0."),
        (_with(CHOICE | {"points": 1001}), f"{Q}.points", f"{Q}.points must be at most 1000."),
        (_with(CHOICE | {"points": "many"}), f"{Q}.points", f"{Q}.points must be a number."),
        (_with(CHOICE | {"answer": "C"}), Q, f"{Q}: answer 'C' is not one of the options A, B."),
        (_with(CHOICE | {"options": {"A": "one"}}), f"{Q}.options", f"{Q}.options must have at least 2 entries."),
        (_with(CHOICE | {"options": {"A": "", "B": "x"}}), f"{Q}.options.A", f"{Q}.options.A must not be empty."),
        (_with(SEVERAL | {"answers": []}), f"{Q}.answers", f"{Q}.answers must not be empty."),
        (_with(SEVERAL | {"answers": ["C"]}), Q, None),
        (_with(SEVERAL | {"answers": ["A", "A"]}), Q, f"{Q}: answers must not repeat."),
        (_with(SEVERAL | {"scoring": "x"}), f"{Q}.scoring", f"{Q}.scoring must be 'partial' or 'all_or_nothing'."),
        (_with({"id": "2", "kind": "true_false", "answer": "maybe"}), f"{Q}.answer",
         f"{Q}.answer must be true or false."),
        (_with({"id": "2", "kind": "numeric"}), f"{Q}.answer", f"{Q}.answer is required."),
        (_with(NUMBER | {"tolerance": {"absolute": -1}}), f"{Q}.tolerance.absolute",
         f"{Q}.tolerance.absolute must be at least 0."),
        (_with(NUMBER | {"tolerance": {"relative": 2}}), f"{Q}.tolerance.relative",
         f"{Q}.tolerance.relative must be at most 1."),
        (_with(NUMBER | {"unit_credit": 2}), f"{Q}.unit_credit", None),
        (_with(NUMBER | {"rubric": "x"}), f"{Q}.rubric", f"{Q}.rubric is not a field that this request has."),
        (_with(TEXT | {"answers": [""]}), f"{Q}.answers.0", f"{Q}.answers.0 must not be empty."),
        (_with(TEXT | {"answers": ["x"] * 51}), f"{Q}.answers", f"{Q}.answers may have at most 50 entries."),
        (_with(TEXT | {"spelling": "loose"}), f"{Q}.spelling", None),
        (_with(LIST | {"items": [[]]}), f"{Q}.items.0", f"{Q}.items.0 must not be empty."),
        (_with(LIST | {"required": 3}), Q, None),
        (_with(LIST | {"required": 0}), f"{Q}.required", f"{Q}.required must be at least 1."),
    ],
)  # fmt: skip
def test_each_rule_is_named_by_its_field(teacher: Person, body: Any, param: str, detail: str | None) -> None:
    answer = problem(teacher.http.post(f"{V1}/standards", json=body), 422, "request.invalid", param)
    if detail is not None:
        assert answer["detail"] == detail


def test_every_wrong_field_is_reported_once(teacher: Person) -> None:
    body = _with(CHOICE | {"points": 0, "prompt": 7}) | {"name": ""}
    answer = problem(teacher.http.post(f"{V1}/standards", json=body), 422, "request.invalid", "name")
    assert [(e["param"], e["detail"]) for e in answer["errors"]] == [
        ("name", "must not be empty"), (f"{Q}.prompt", "must be text"), (f"{Q}.points", "must be more than 0"),
    ]  # fmt: skip
