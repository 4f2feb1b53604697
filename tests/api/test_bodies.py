"""Request bodies of every other kind than the wanted: refused by name, never a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.api.body import MAX_BODY_BYTES
from tests.api.gateway import V1, Person, a_standard, problem

JSON = {"Content-Type": "application/json"}


def post(who: Person, body: bytes, content_type: str = "application/json", path: str = "/standards") -> Any:
    return who.http.post(V1 + path, content=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize("path", ["/standards", "/gradings"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"name":' * 100_000,
        b'{"key":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xef\xbb\xbf" + b"{}",
        json.dumps(a_standard()).encode("utf-16"),
        json.dumps(a_standard("Prüfung"), ensure_ascii=False).encode("latin-1"),
        b'{"name": "\\ud800"}',
        b'{"name": "a\x00b"}',
        b'{"name": 1' + b"0" * 5000 + b"}",
        b"{'name': 'single quotes'}",
        b'{"name": "x"} trailing',
    ],
)
def test_what_is_not_json(teacher: Person, path: str, body: bytes) -> None:
    body_ = problem(post(teacher, body, path=path), 400, "request.malformed")
    assert "line 1" in body_["detail"]


@pytest.mark.parametrize("body", [b"null", b"[]", b"5", b'"text"', b"true", b"NaN"])
def test_json_that_is_no_object(teacher: Person, body: bytes) -> None:
    answer = problem(post(teacher, body), 422, "request.invalid")
    assert answer["detail"] == "Must be an object with named values."


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type(teacher: Person, content_type: str) -> None:
    answer = post(teacher, json.dumps(a_standard()).encode(), content_type)
    problem(answer, 415, "request.unsupported_type", "Content-Type")


def test_a_charset_and_capitals_are_fine(teacher: Person) -> None:
    body = json.dumps(a_standard()).encode()
    assert post(teacher, body, "Application/JSON; charset=UTF-8").status_code == 201


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body(teacher: Person, chunked: bool) -> None:
    body = b'{"name": "' + b"x" * (10 * MAX_BODY_BYTES) + b'"}'
    content: Any = iter([body[: len(body) // 2], body[len(body) // 2 :]]) if chunked else body
    problem(teacher.http.post(f"{V1}/standards", content=content, headers=JSON), 413, "request.too_large")


def test_the_largest_body_is_read(teacher: Person) -> None:
    padding = " " * (MAX_BODY_BYTES - len(json.dumps(a_standard())))
    assert post(teacher, (json.dumps(a_standard()) + padding).encode()).status_code == 201


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"name": "a", "name": "b", "key": {"questions": []}}', "key.questions"),
        (json.dumps(a_standard()).replace('"name"', '"name": "first", "name"').encode(), "name"),
        (json.dumps(a_standard()).replace('"A": "one"', '"A": "one", "A": "uno"').encode(), "A"),
    ],
)
def test_a_field_given_twice(teacher: Person, body: bytes, param: str) -> None:
    problem(post(teacher, body), 422, "request.invalid", param)


@pytest.mark.parametrize(
    ("place", "param"),
    [
        ('"Quiz"', "name"),
        ('"one"', "key.questions.0.options.A"),
        ('"m/s^2"', "key.questions.1.unit"),
    ],
)
def test_nul_in_text(teacher: Person, place: str, param: str) -> None:
    body = json.dumps(a_standard()).replace(place, '"a\\u0000b"')
    problem(post(teacher, body.encode()), 422, "request.invalid", param)


def test_text_that_only_looks_like_nul_is_kept(teacher: Person) -> None:
    body = json.dumps(a_standard()).replace('"one"', '"a \\\\u0000 b"')
    answer = post(teacher, body.encode())
    assert answer.json()["key"]["questions"][0]["options"]["A"] == "a \\u0000 b"


def test_numbers_at_their_edges(teacher: Person) -> None:
    for number in ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" + "0" * 400):
        body = json.dumps(a_standard()).replace("9.81", number)
        problem(post(teacher, body.encode()), 422, "request.invalid", "key.questions.1.answer")
    body = json.dumps(a_standard()).replace("9.81", "1e-400")
    assert post(teacher, body.encode()).json()["key"]["questions"][1]["answer"] == 0
    standard = teacher.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    for number in ("1" + "0" * 30, "-9223372036854775809", "1e400"):
        body = f'{{"standard_id": "{standard}", "answers": {{}}, "metadata": {{"n": {number}}}}}'
        answer = post(teacher, body.encode(), path="/gradings")
        problem(answer, 422, "request.invalid", "metadata.n")


def test_fields_of_any_length_are_not_echoed_whole(teacher: Person) -> None:
    answer = post(teacher, json.dumps({**a_standard(), "x" * 1_000_000: 1}).encode())
    assert answer.status_code == 422
    assert len(answer.content) < 2000
    answer = post(teacher, json.dumps({**a_standard(), **{f"x{n}": 1 for n in range(10_000)}}).encode())
    assert len(answer.json()["errors"]) == 50
