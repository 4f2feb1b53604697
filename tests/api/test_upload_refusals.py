"""Uploads that must be refused: each with a code, the field, and a sentence; nothing of them stays."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared.db import SyncPool
from tests.api.gateway import PDF, SAMPLES, V1, Gateway, Person, a_standard, problem, upload

ENVIRONMENT = {"MAX_FILE_BYTES": "300000", "MAX_FILES": "5"}
BAD = SAMPLES / "bad"
B = "b0undary"
FORM = {"Content-Type": f"multipart/form-data; boundary={B}"}
FILE = b'Content-Disposition: form-data; name="files"; filename="a.pdf"\r\nContent-Type: application/pdf\r\n\r\n' + PDF


@pytest.fixture(autouse=True)
def _nothing_stays(gateway: Gateway, db: SyncPool, request: Any) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 2
    while list(gateway.storage.rglob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(gateway.storage.rglob("*")) == []
    with db.connection() as conn:
        for table in ("jobs", "batches", "documents", "submissions", "idempotency_keys"):
            assert conn.execute(f"select * from {table}").fetchall() == []


def post(who: Person, body: bytes, headers: dict[str, str] | None = None) -> Any:
    return who.http.post(f"{V1}/uploads", content=body, headers=FORM if headers is None else headers)


def form(*parts: bytes) -> bytes:
    return b"".join(b"--" + B.encode() + b"\r\n" + p + b"\r\n" for p in parts) + b"--" + B.encode() + b"--\r\n"


def field(name: str, value: bytes) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


@pytest.mark.parametrize(
    ("file", "status", "code"),
    [
        (("empty.pdf", (BAD / "empty.pdf").read_bytes(), "application/pdf"), 422, "upload.empty_file"),
        (("scan.png", (BAD / "not_an_image.png").read_bytes(), "image/png"), 415, "upload.unsupported_file"),
        (("scan.png", (BAD / "not_an_image.png").read_bytes(), "text/plain"), 415, "upload.unsupported_file"),
        (("page.pdf", (BAD / "mislabelled.pdf").read_bytes(), "application/pdf"), 415, "upload.type_mismatch"),
        (("page.html", PDF, "text/html"), 415, "upload.type_mismatch"),
        (("page.pdf", PDF, "application/pdf\xe4"), 415, "upload.type_mismatch"),
        (("old.doc", b"\xd0\xcf\x11\xe0" * 50, "application/msword"), 415, "upload.unsupported_file"),
        (("big.pdf", PDF + bytes(300_000), "application/pdf"), 413, "upload.file_too_large"),
    ],
)
def test_a_file_that_cannot_be_read(teacher: Person, file: tuple[str, bytes, str], status: int, code: str) -> None:
    name, content, declared = file
    part = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: '.encode()
    answer = post(teacher, form(FILE, part + declared.encode() + b"\r\n\r\n" + content))
    body = problem(answer, status, code, "files")
    # Which of several files it was.
    assert name in body["detail"]


def test_the_size_limit_is_named(teacher: Person) -> None:
    assert "293 kB" in upload(teacher, ("big.pdf", PDF + bytes(300_000), "application/pdf")).json()["detail"]


def test_a_file_of_just_the_limit_is_not_too_large(teacher: Person) -> None:
    # Refused for its last byte only.
    answer = upload(teacher, ("a.png", b"x" * 300_000, "image/png"))
    problem(answer, 415, "upload.unsupported_file", "files")


@pytest.mark.parametrize("parts", [[], [field("student_name", b"Ann")]])
def test_no_file(teacher: Person, parts: list[bytes]) -> None:
    problem(post(teacher, form(*parts)), 422, "upload.no_files", "files")


def test_a_file_input_left_empty_in_a_browser_is_no_file(teacher: Person) -> None:
    part = (
        b'Content-Disposition: form-data; name="files"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    problem(post(teacher, form(part)), 422, "upload.no_files", "files")


def test_too_many_files(teacher: Person) -> None:
    body = problem(post(teacher, form(*[FILE] * 6)), 413, "upload.too_many_files", "files")
    assert "5 files" in body["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_the_refusal_of_a_huge_body_arrives(teacher: Person, chunked: bool) -> None:
    """A client that writes all before it reads must get the answer, not a reset connection."""
    content = PDF + bytes(40 * 1024 * 1024)
    body = form(FILE.replace(PDF, content))

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    answer = teacher.http.post(f"{V1}/uploads", content=pieces() if chunked else body, headers=FORM)
    problem(answer, 413, "upload.file_too_large" if chunked else "upload.too_large", "files")


@pytest.mark.parametrize("chunked", [False, True])
def test_so_does_that_of_a_body_without_a_key(gateway: Gateway, teacher: Person, chunked: bool) -> None:
    body = bytes(20 * 1024 * 1024)
    headers = {**FORM, "Authorization": "Bearer nonsense"}
    answer = teacher.http.post(f"{V1}/uploads", content=iter([body]) if chunked else body, headers=headers)
    problem(answer, 401, "auth.invalid_key")


@pytest.mark.parametrize(
    ("content_type", "status", "code", "param"),
    [
        ("application/json", 415, "request.unsupported_type", "Content-Type"),
        ("multipart/mixed; boundary=x", 415, "request.unsupported_type", "Content-Type"),
        ("", 415, "request.unsupported_type", "Content-Type"),
        ("multipart/form-data", 400, "upload.malformed", "Content-Type"),
        ("multipart/form-data; boundary=", 400, "upload.malformed", "Content-Type"),
        (f"multipart/form-data; boundary={'x' * 71}", 400, "upload.malformed", "Content-Type"),
        ("multipart/form-data; boundary=\xfc", 400, "upload.malformed", "Content-Type"),
        ("multipart/form-data; boundary=other", 400, "upload.malformed", None),
    ],
)
def test_a_wrong_content_type(teacher: Person, content_type: str, status: int, code: str, param: str | None) -> None:
    answer = post(teacher, form(FILE), {"Content-Type": content_type.encode("latin-1")})  # type: ignore[dict-item]
    problem(answer, status, code, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        form(FILE)[: len(form(FILE)) // 2],
        form(FILE)[:-6],
        form(FILE).removesuffix(f"\r\n--{B}--\r\n".encode()),
        f"--{B}\r\n".encode(),
        f"--{B}\r\nContent-Disposition: form-data; name=files\r\n".encode(),
        f"--{B}--trailing\r\n".encode()[:8],
        form(b'Content-Disposition: form-data; filename="a.pdf"\r\n\r\n' + PDF),
        form(b"\r\n\r\nno headers at all"),
        form(b'Content-Disposition: form-data; name="fi\xe4les"\r\n\r\n' + PDF),
        form(b'Content-Disposition: form-data; name="files"; filename="Pr\xfcfung.pdf"\r\n\r\n' + PDF),
        form(b"Content-Disposition: form-data; name=\"files\"; filename*=nonsense''%ff.pdf\r\n\r\n" + PDF),
        form(b"Content-Disposition: form-data; name=\"files\"; filename*=utf-8''%ff.pdf\r\n\r\n" + PDF),
        form(b'Content-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name="files"\r\n\r\nQUJD'),
        form(b'Content-Disposition: form-data; name="files"; filename="' + b"x" * 9000 + b'"\r\n\r\n' + PDF),
        form(*[field(f"f{n}", b"x") for n in range(100)]),
    ],
)
def test_a_broken_form(teacher: Person, body: bytes) -> None:
    problem(post(teacher, body), 400, "upload.malformed")


def test_no_form_of_noise_is_a_fault_of_ours(teacher: Person) -> None:
    noise = random.Random(7)
    whole = form(FILE, field("student_name", "Zoë".encode()))
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(noise.randint(1, 6)):
            at = noise.randrange(len(body))
            if noise.random() < 0.5:
                body[at] = noise.choice(b"\x00\xff\"\\;=*\r\n-' ")
            else:
                del body[at : at + noise.randint(1, 40)]
        body = bytearray(bytes(body).replace(b'name="files"', b'name="fil\x01es"'))
        answer = post(teacher, bytes(body))
        assert 400 <= answer.status_code < 500, (answer.text, bytes(body))
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("colour", b"red", "colour"),
        ("standard_id", b"nonsense", "standard_id"),
        ("standard_id", b"job_00000000000000000000000000", "standard_id"),
        ("priority", b"urgent", "priority"),
        ("ocr_provider", b"magic", "ocr_provider"),
        ("purpose", b"material", "purpose"),
        ("student_name", b"x" * 201, "student_name"),
        ("student_name", b"   ", "student_name"),
        ("student_name", b"A\x00nn", "student_name"),
        ("student_name", b"A\nnn", "student_name"),
        ("student_name", b"\xff\xfe", "student_name"),
        ("student_name", b"x" * 5000, "student_name"),
        ("student_id", b"\xc3\x28", "student_id"),
        ("run_at", b"tomorrow", "run_at"),
        ("run_at", b"2026-01-31T08:00:00", "run_at"),
        ("run_at", b"9999-12-31T23:59:59Z", "run_at"),
        ("run_at", b"9999-12-31T23:59:59-23:59", "run_at"),
        ("notify_email", b"a@b@c", "notify_email"),
        ("notify_email", b"a@b.example,c@d.example", "notify_email"),
        ("notify_email", b"a@b.example\r\nBcc: x@y.example", "notify_email"),
        ("webhook_url", b"ftp://app.example", "webhook_url"),
        ("webhook_url", b"https://user:pw@app.example", "webhook_url"),
        ("webhook_url", b"https://app.example:99999", "webhook_url"),
        ("webhook_url", b"https://[::1", "webhook_url"),
        ("webhook_url", b"https://app.example/" + b"x" * 3000, "webhook_url"),
    ],
)
def test_a_wrong_field(teacher: Person, name: str, value: bytes, param: str) -> None:
    problem(post(teacher, form(field(name, value), FILE)), 422, "request.invalid", param)


def test_several_wrong_fields_are_all_named(teacher: Person) -> None:
    answer = post(teacher, form(field("priority", b"x"), field("run_at", b"x"), field("colour", b"x"), FILE))
    errors = problem(answer, 422, "request.invalid", "priority")["errors"]
    assert [e["param"] for e in errors] == ["priority", "run_at", "colour"]
    assert errors[0]["detail"] == "must be 'high', 'normal' or 'low'"


def test_a_field_that_is_there_twice(teacher: Person) -> None:
    answer = post(teacher, form(field("student_name", b"Ann"), field("student_name", b"Bob"), FILE))
    problem(answer, 422, "request.invalid", "student_name")


def test_a_standard_that_is_not_ours(teacher: Person, stranger: Person, other_school: Any) -> None:
    theirs = stranger.http.post(f"{V1}/standards", json=a_standard()).json()["id"]
    for standard in (theirs, "std_00000000000000000000000000"):
        problem(upload(teacher, standard_id=standard), 422, "standard.unknown", "standard_id")


def test_a_client_that_hangs_up_leaves_nothing(gateway: Gateway, teacher: Person) -> None:
    body = form(FILE)
    head = (
        f"POST {V1}/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {teacher.key}\r\n"
        f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for cut in (0, 10, len(body) // 2, len(body) - 1):
        with socket.create_connection(("127.0.0.1", gateway.port)) as s:
            s.sendall(head.encode() + body[:cut])
            time.sleep(0.05)
