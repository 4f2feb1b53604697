"""Clients that are slow, silent or broken: cut off in time, while the others go on."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

import pytest

from services.api.multipart import sweep
from shared.settings import Settings
from tests.api.gateway import PDF, V1, Gateway, Person, accepted, upload

ENVIRONMENT = {"UPLOAD_SECONDS": "1.5", "REQUEST_SECONDS": "0.7"}
FORM = "multipart/form-data; boundary=B"
BODY = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.pdf"\r\n\r\n' + PDF + b"\r\n--B--\r\n"


def head(who: Person, path: str, content_type: str, length: int, *extra: str) -> bytes:
    lines = [
        f"POST {V1}{path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {who.key}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        *extra,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def receive_all(s: socket.socket) -> tuple[bytes, float]:
    """All until the gateway closes, and how long that took."""
    began = time.monotonic()
    received = b""
    while chunk := s.recv(65536):
        received += chunk
    return received, time.monotonic() - began


def is_408(received: bytes) -> dict[str, Any]:
    top, _, body = received.partition(b"\r\n\r\n")
    assert b"408" in top.splitlines()[0], received
    assert b"application/problem+json" in top
    assert b"connection: close" in top.lower()
    assert b"x-request-id" in top.lower()
    problem: dict[str, Any] = json.loads(body)
    assert (problem["status"], problem["code"]) == (408, "request.timeout")
    assert problem["request_id"]
    return problem


@pytest.mark.parametrize("sent", [0, 1, 70, len(BODY) - 5])
def test_half_an_upload_is_cut_at_the_deadline(gateway: Gateway, teacher: Person, sent: int) -> None:
    with gateway.connect() as s:
        s.sendall(head(teacher, "/uploads", FORM, len(BODY)) + BODY[:sent])
        received, seconds = receive_all(s)
    assert "1.5 seconds" in is_408(received)["detail"]
    assert 1.0 < seconds < 3.0
    assert not list(gateway.storage.glob(".upload-*"))


def test_a_byte_now_and_then_does_not_keep_an_upload_open(gateway: Gateway, teacher: Person) -> None:
    with gateway.connect() as s:
        s.sendall(head(teacher, "/uploads", FORM, len(BODY)))
        began = time.monotonic()
        try:
            for n in range(60):
                s.sendall(BODY[n : n + 1])
                time.sleep(0.05)
        except OSError:
            pass
        cut = time.monotonic() - began
    assert 1.0 < cut < 3.2


def test_others_go_on_meanwhile(gateway: Gateway, teacher: Person) -> None:
    slow = []
    for _ in range(60):
        s = gateway.connect()
        s.sendall(head(teacher, "/uploads", FORM, len(BODY)) + BODY[:80])
        slow.append(s)
    took = []
    for _ in range(10):
        began = time.monotonic()
        accepted(upload(teacher))
        took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.2
    for s in slow:
        received, _ = receive_all(s)
        is_408(received)
        s.close()


def test_a_json_body_has_a_shorter_deadline(gateway: Gateway, teacher: Person) -> None:
    with gateway.connect() as s:
        s.sendall(head(teacher, "/standards", "application/json", 100) + b'{"name":')
        received, seconds = receive_all(s)
    assert "0.7 seconds" in is_408(received)["detail"]
    assert seconds < 1.5


def test_so_has_a_request_that_needs_no_body_or_no_key(gateway: Gateway, teacher: Person) -> None:
    with gateway.connect() as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        received, seconds = receive_all(s)
    assert seconds < 1.5
    is_408(received)


def test_a_whole_request_is_not_cut_by_its_deadline(gateway: Gateway, teacher: Person) -> None:
    """The deadline is the body's, not the answer's: a stream goes on."""
    job = accepted(upload(teacher))["jobs"][0]
    with teacher.http.stream("GET", job["links"]["events"], timeout=10) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("event:"))
        time.sleep(1.0)
        threading.Timer(0.2, lambda: teacher.http.post(job["links"]["cancel"])).start()
        second = next(line for line in lines if line.startswith("event:"))
    assert (first, second) == ("event: accepted", "event: cancelled")


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(gateway: Gateway, teacher: Person) -> None:
    with gateway.connect() as s:
        s.sendall(head(teacher, "/uploads", FORM, len(BODY), "Expect: 100-continue"))
        assert s.recv(1000).startswith(b"HTTP/1.1 100")
        s.sendall(BODY)
        assert s.recv(65536).startswith(b"HTTP/1.1 202")


def test_what_a_killed_process_had_half_received_is_swept(tmp_path: Any) -> None:
    old, new, kept = tmp_path / ".upload-old", tmp_path / ".upload-new", tmp_path / "documents"
    for folder in (old, new, kept):
        folder.mkdir()
        (folder / "0").write_bytes(b"x")
    os.utime(old, (0, 0))
    sweep(Settings(storage_dir=tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".upload-new", "documents"]
