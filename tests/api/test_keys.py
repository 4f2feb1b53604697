"""API keys: their form, and who may see what with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.api.keys import digest, key_id, new_key
from shared import ids
from shared.db import SyncPool
from shared.ids import IdKind
from tests.api.gateway import V1, Person, School, a_standard, accepted, problem, upload


def test_a_key_names_its_row_and_carries_its_own_checksum() -> None:
    id = ids.new_uuid()
    key = new_key(id)
    prefix, row, secret, checksum = key.text.split("_")
    assert prefix == "gl"
    assert ids.decode(IdKind.API_KEY, f"key_{row}") == id == key_id(key.text)
    assert len(secret) == 32  # of base32: 160 bits
    assert len(checksum) == 8
    assert key.hash == digest(key.text)
    assert len({new_key(id).text for _ in range(100)}) == 100


def test_any_slip_of_the_pen_is_noticed_without_the_database() -> None:
    text = new_key(uuid4()).text
    for at, c in enumerate(text):
        assert key_id(text[:at] + ("x" if c != "x" else "y") + text[at + 1 :]) is None
        assert key_id(text[:at] + text[at + 1 :]) is None
    for other in ("", "_", "gl", "gl_a_b_c", text + "0", text.upper(), f"sk{text[2:]}", "gl_€_€_€", f" {text}"):
        assert key_id(other) is None


def test_without_a_key(school: School) -> None:
    answer = school.client(None).get(f"{V1}/jobs")
    problem(answer, 401, "auth.required")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "gl_1_2_3"])
def test_with_no_bearer_in_the_header(school: School, header: str) -> None:
    problem(school.client(None).get(f"{V1}/jobs", headers={"Authorization": header}), 401, "auth.required")


def test_what_is_no_key_of_ours(school: School, teacher: Person) -> None:
    for key in ("nonsense", teacher.key[:-1], teacher.key + "x", "\u00e4\u00f6", new_key(uuid4()).text):
        header = {"Authorization": f"Bearer {key}".encode("latin-1")}
        problem(school.client(None).get(f"{V1}/jobs", headers=header), 401, "auth.invalid_key")
    # The right row with another secret.
    row = key_id(teacher.key)
    assert row is not None
    problem(school.client(new_key(row).text).get(f"{V1}/jobs"), 401, "auth.invalid_key")


def test_the_key_may_come_in_its_own_header(school: School, teacher: Person) -> None:
    assert school.client(None).get(f"{V1}/jobs", headers={"X-API-Key": teacher.key}).status_code == 200
    assert school.client(None).get(f"{V1}/jobs", headers={"Authorization": f"bearer {teacher.key}"}).status_code == 200


def test_revoked_and_expired_keys(school: School) -> None:
    now = datetime.now(UTC)
    problem(school.person(revoked_at=now).http.get(f"{V1}/jobs"), 401, "auth.revoked_key")
    problem(school.person(expires_at=now - timedelta(seconds=1)).http.get(f"{V1}/jobs"), 401, "auth.expired_key")
    assert school.person(expires_at=now + timedelta(hours=1)).http.get(f"{V1}/jobs").status_code == 200


def test_a_key_in_use_dies_within_seconds_of_being_revoked(
    teacher: Person, db: SyncPool, eventually: Callable[..., Any]
) -> None:
    assert teacher.http.get(f"{V1}/jobs").status_code == 200
    with db.connection() as conn:
        conn.execute("update api_keys set revoked_at = now() where member_id = %s", (teacher.member_id,))
    began = time.monotonic()
    eventually(lambda: {teacher.http.get(f"{V1}/jobs").status_code for _ in range(8)} == {401}, within=7)
    assert time.monotonic() - began < 7


def test_two_keys_of_a_member_see_the_same(school: School, teacher: Person) -> None:
    batch = accepted(upload(teacher))
    second = school.client(school.key(teacher.member_id))
    assert second.get(batch["links"]["self"]).status_code == 200


def test_use_is_noted(teacher: Person, db: SyncPool) -> None:
    teacher.http.get(f"{V1}/jobs")
    with db.connection() as conn:
        [row] = conn.execute("select last_used_at from api_keys where member_id = %s", (teacher.member_id,)).fetchall()
    assert row["last_used_at"] is not None


def test_members_see_their_own_admins_their_organisation_super_admins_all(
    school: School, teacher: Person, stranger: Person
) -> None:
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()
    batch = accepted(upload(teacher, standard_id=standard["id"]))
    reading = next(j for j in batch["jobs"] if j["type"] == "ocr.document")
    grading = next(j for j in batch["jobs"] if j["type"] == "grading.quiz")
    own = [
        batch["links"]["self"],
        reading["links"]["self"],
        reading["links"]["events"],
        f"{V1}/documents/{reading['refs']['document_id']}",
        f"{V1}/submissions/{reading['refs']['submission_id']}",
        f"{V1}/gradings/{grading['refs']['grading_id']}",
    ]
    teacher.http.post(grading["links"]["cancel"])
    teacher.http.post(reading["links"]["cancel"])  # so that its stream ends

    def statuses(who: Person) -> set[int]:
        return {who.http.get(path).status_code for path in own}

    def listed(who: Person) -> bool:
        jobs = {j["id"] for j in who.http.get(f"{V1}/jobs", params={"limit": 200}).json()["items"]}
        submissions = {s["id"] for s in who.http.get(f"{V1}/submissions", params={"limit": 200}).json()["items"]}
        seen = {reading["id"] in jobs, grading["id"] in jobs, reading["refs"]["submission_id"] in submissions}
        assert len(seen) == 1
        return seen == {True}

    colleague, admin, root = school.person(), school.person("admin"), school.person("super_admin")
    assert (statuses(teacher), listed(teacher)) == ({200}, True)
    assert (statuses(colleague), listed(colleague)) == ({404}, False)
    assert (statuses(admin), listed(admin)) == ({200}, True)
    assert (statuses(root), listed(root)) == ({200}, True)
    assert (statuses(stranger), listed(stranger)) == ({404}, False)
    # Standards are the organisation's.
    seen = [p.http.get(standard["links"]["self"]).status_code for p in (colleague, admin, root, stranger)]
    assert seen == [200, 200, 200, 404]
