"""Mails arrive whole at a real SMTP server, say what happened, and cannot be bent by what they carry."""

from __future__ import annotations

import asyncio
import email
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from pydantic import SecretStr

from services.notifier.email import build, render
from services.notifier.email.smtp import LoginRefused, SmtpServer, Unreachable
from services.notifier.subjects import JobSubject
from shared.contracts import NOTIFY_EMAIL, EmailPayload, EmailResult
from shared.ids import IdKind, encode
from shared.jobs.errors import JobCancelled, PermanentError, RetryableError
from tests.notifier import receiver as rc
from tests.notifier import standins as c

Deps = Callable[..., c.Dependencies]
JOB_ID = encode(IdKind.JOB, c.SUBJECT)


class Mailbox:
    """aiosmtpd's handler: keeps mails; ``rcpt`` and ``data`` are answered as told."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.raw: list[bytes] = []
        self.rcpt = self.data = "250 OK"
        self.hang = False
        self.reached = threading.Event()
        self.encrypted: list[bool] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        self.reached.set()
        if self.hang:
            await asyncio.sleep(30)
        if self.rcpt.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.rcpt

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.data.startswith("250"):
            self.encrypted.append(session.ssl is not None)
            self.raw.append(envelope.content)
            message = email.message_from_bytes(envelope.content, policy=default)
            assert isinstance(message, EmailMessage)
            message["X-Rcpt"] = ",".join(envelope.rcpt_tos)
            message["X-From"] = envelope.mail_from
            self.mails.append(message)
        return self.data

    def authenticate(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss word", handled=False)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def smtp(mailbox: Mailbox) -> Iterator[Callable[..., str]]:
    """Starts a server and gives its URL."""
    running: list[Controller] = []

    def start(user: str = "", scheme: str = "smtp", **options: Any) -> str:
        controller = Controller(mailbox, hostname="127.0.0.1", port=0, **options)
        # Port 0 trips the controller's own connection test: take a free one.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            controller.port = probe.getsockname()[1]
        controller.start()
        running.append(controller)
        return f"{scheme}://{user}127.0.0.1:{controller.port}"

    yield start
    for controller in running:
        controller.stop()


def send(deps: c.Dependencies, ctx: c.Context | None = None, trusted: ssl.SSLContext | None = None, **kw: Any) -> Any:
    fields: dict[str, Any] = {
        "to": "teacher@school.example", "event": "job.completed", "subject_id": c.SUBJECT, "occurred_at": c.NOON, **kw,
    }  # fmt: skip
    return build(deps, trusted).run(ctx or c.Context(), EmailPayload(**fields))


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content())


def test_the_handler_is_the_declared_type(make_deps: Deps) -> None:
    assert build(make_deps()).job_type is NOTIFY_EMAIL


def test_a_finished_reading_is_told(make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox) -> None:
    ctx = c.Context()
    result = send(make_deps(smtp_url=smtp()), ctx)
    (mail,) = mailbox.mails
    assert result == EmailResult(message_id=str(mail["Message-ID"]), recipients=1)
    assert mail["Message-ID"] == f"<{encode(IdKind.JOB, c.NOTIFY_JOB)}@gradeline.example>"
    assert mail["Subject"] == "Reading finished: quiz 3b.pdf"
    assert mail["From"] == "Gradeline <no-reply@gradeline.example>"
    assert (mail["To"], mail["X-Rcpt"]) == ("teacher@school.example", "teacher@school.example")
    assert mail["X-From"] == "no-reply@gradeline.example"
    assert mail["Date"].datetime == c.NOON
    assert mail["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = part(mail, kind)
        assert "quiz 3b.pdf" in text
        assert JOB_ID in text
        assert f"https://grades.example/api/v1/jobs/{JOB_ID}" in text
    assert "teacher" not in repr(ctx.logged)


def test_a_retry_carries_the_same_message_id(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox
) -> None:
    deps = make_deps(smtp_url=smtp())
    send(deps)
    send(deps)
    assert mailbox.mails[0]["Message-ID"] == mailbox.mails[1]["Message-ID"]
    assert mailbox.mails[0]["Date"] == mailbox.mails[1]["Date"]


def test_a_failure_says_why(make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox) -> None:
    rows.subject = c.job(status="failed", result=None, error={"code": "x", "message": "The PDF is locked."})
    send(make_deps(smtp_url=smtp()), event="job.failed")
    (mail,) = mailbox.mails
    assert mail["Subject"] == "Reading failed: quiz 3b.pdf"
    assert "Problem: The PDF is locked." in part(mail, "plain")


def test_a_grading_tells_marks_and_what_to_review(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox
) -> None:
    marks = [{"needs_review": True, "given": "Anna"}, {"needs_review": False}, {"needs_review": True}]
    rows.subject = c.job(
        type="grading.quiz",
        result={"points": 7.5, "max_points": 10.0, "percentage": 75.0, "marks": marks, "student_name": "Anna"},
    )
    send(make_deps(smtp_url=smtp()))
    text = part(mailbox.mails[0], "plain")
    assert "Points: 7.5 of 10 (75 %)" in text
    assert "To review: 2 answers need a look" in text
    assert "Anna" not in mailbox.mails[0].as_string()
    assert str(mailbox.mails[0]["Subject"]).startswith("Grading finished")


def test_a_finished_batch_is_told(make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox) -> None:
    rows.subject = c.batch()
    send(make_deps(smtp_url=smtp()), event="batch.completed", subject_id=c.BATCH)
    (mail,) = mailbox.mails
    assert mail["Subject"] == "Batch finished: 10 of 12 completed"
    assert "Failed: 2" in part(mail, "plain")
    assert f"/api/v1/batches/{encode(IdKind.BATCH, c.BATCH)}" in part(mail, "plain")


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nBcc: thief@evil.example\r\n\r\nbody.pdf",
        "a\nSubject: other",
        "<script>alert(1)</script>.pdf",
        '"><img src=x onerror=alert(1)>.pdf',
        "gpj.\u202efdp.exe",
        "x" * 5000 + ".pdf",
        "Übung ÄÖ 数学.pdf",
        "=?utf-8?q?=0d=0aBcc:_thief@evil.example?=",
        "=?utf-8?b?DQpCY2M6IHRoaWVmQGV2aWwuZXhhbXBsZQ==?=",
        "==??utf-8?q?=0aBcc:_thief@evil.example?=",
        "=\u200b?utf-8?q?=0aBcc:_thief@evil.example?=",
        ".\r\n.\r\nMAIL FROM:<thief@evil.example>",
        "\x00\x1b[31m",
        " ",
    ],
)
def test_a_hostile_file_name_stays_a_name(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox, name: str
) -> None:
    rows.file_name = name
    send(make_deps(smtp_url=smtp()))
    (mail,) = mailbox.mails
    assert set(mail.keys()) <= {
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type", "X-Rcpt",
        "X-From", "X-Peer", "X-MailFrom", "X-RcptTo",
    }  # fmt: skip
    assert mail["X-Rcpt"] == "teacher@school.example"
    assert len(mail.get_all("Subject", [])) == 1
    html = part(mail, "html")
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html + part(mail, "plain") + str(mail["Subject"])
    assert len(str(mail["Subject"])) <= 120
    assert all(len(line) < 998 for line in mailbox.raw[0].splitlines())


def test_control_and_direction_characters_of_a_reason_do_not_reach_the_reader() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    error = {"code": "x", "message": "Not\x1b[31m readable\u202e, \ud800\x00 sorry."}
    job = JobSubject(c.SUBJECT, "ocr.document", "ocr", "failed", None, error, None, {}, 1, moment, moment, moment)
    mail = render.compose(
        render.render(job, None, "https://x.example"),
        to="a@b.example",
        sender="c@d.example",
        message_id="<1@x>",
        date=moment,
    )
    assert "Problem: Not [31m readable , sorry." in mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]


def test_other_alphabets_arrive(make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox) -> None:
    rows.file_name = "Übung 数学.pdf"
    send(make_deps(smtp_url=smtp()))
    assert mailbox.mails[0]["Subject"] == "Reading finished: Übung 数学.pdf"
    assert "Übung 数学.pdf" in part(mailbox.mails[0], "html")
    assert mailbox.raw[0].isascii()


def test_a_job_without_a_file_is_told_all_the_same() -> None:
    mail = render.render(c.job(type="not.known"), None, "https://g.example/")
    assert mail.title == "Job finished"
    assert ("File", "") not in mail.facts
    assert mail.link == f"https://g.example/api/v1/jobs/{JOB_ID}"


@pytest.mark.parametrize(
    "to",
    [
        "", "teacher", "@school.example", "a@", "a b@school.example", "a@b@c", "a@school.example, b@school.example",
        "a@school.example\r\nBcc: b@evil.example", "Name <a@school.example>", "a@school.example\n", "ä@school.example",
        "a" * 65 + "@school.example", "a@-bad.example", "a..b@school.example", "a@[127.0.0.1]", "a@school.example>",
    ],
)  # fmt: skip
def test_what_is_no_single_address_fails_for_good(make_deps: Deps, rows: c.Rows, to: str) -> None:
    with pytest.raises(PermanentError) as caught:
        send(make_deps(smtp_url="smtp://127.0.0.1:1"), to=to)
    assert caught.value.code == "email.address_invalid"
    assert len(to) < 8 or to not in str(caught.value)


@pytest.mark.parametrize(
    ("rcpt", "data", "code", "kind"),
    [
        ("550 no such user", "250 OK", "email.refused", PermanentError),
        ("450 greylisted", "250 OK", "email.deferred", RetryableError),
        ("250 OK", "554 spam", "email.refused", PermanentError),
        ("250 OK", "452 full", "email.deferred", RetryableError),
        ("421 going down", "250 OK", "email.deferred", RetryableError),
    ],
)
def test_what_the_server_says_ends_the_job_its_way(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox,
    rcpt: str, data: str, code: str, kind: type[Exception],
) -> None:  # fmt: skip
    mailbox.rcpt, mailbox.data = rcpt, data
    with pytest.raises((PermanentError, RetryableError)) as caught:
        send(make_deps(smtp_url=smtp()))
    assert isinstance(caught.value, kind)
    assert caught.value.code == code
    assert "teacher" not in str(caught.value)
    assert mailbox.mails == []


def test_no_server_is_tried_again(make_deps: Deps, rows: c.Rows) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RetryableError) as caught:
        send(make_deps(smtp_url=f"smtp://127.0.0.1:{port}"))
    assert caught.value.code == "email.unreachable"


def test_a_server_that_hangs_up_or_speaks_no_smtp_is_tried_again(make_deps: Deps, rows: c.Rows) -> None:
    def serve(server: socket.socket) -> None:
        for greeting in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            conn, _ = server.accept()
            with conn:
                conn.sendall(greeting)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        for _ in range(2):
            with pytest.raises(RetryableError):
                send(make_deps(smtp_url=f"smtp://127.0.0.1:{server.getsockname()[1]}"))


def test_a_silent_server_does_not_hold_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        sending = SmtpServer("127.0.0.1", server.getsockname()[1], tls=False, timeout=0.3).sending()
        with pytest.raises(Unreachable):
            sending.send(EmailMessage(), "a@b.example", "c@d.example")
        assert time.monotonic() - began < 3


def test_a_cancel_breaks_the_sending_off(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox
) -> None:
    mailbox.hang = True
    ctx = c.Context()
    rc.when(mailbox.reached, lambda: ctx.interrupt(JobCancelled()))
    began = time.monotonic()
    with pytest.raises(JobCancelled):
        send(make_deps(smtp_url=smtp()), ctx)
    assert time.monotonic() - began < 5


def test_without_a_server_configured_it_fails_for_good(make_deps: Deps, rows: c.Rows) -> None:
    for url in (None, ""):
        with pytest.raises(PermanentError) as caught:
            send(make_deps(smtp_url=url))
        assert caught.value.code == "email.not_configured"


def test_a_deleted_subject_fails_for_good(make_deps: Deps, rows: c.Rows) -> None:
    rows.subject = None
    with pytest.raises(PermanentError) as caught:
        send(make_deps(smtp_url="smtp://127.0.0.1:1"))
    assert caught.value.code == "email.subject_gone"


@pytest.mark.parametrize("url", ["mail.example", "http://mail.example", "smtp://", "smtp://user:secret@:25x"])
def test_a_malformed_server_address_stops_the_start_without_being_repeated(make_deps: Deps, url: str) -> None:
    with pytest.raises(ValueError, match="SMTP_URL") as caught:
        build(make_deps(smtp_url=SecretStr(url)))
    assert "secret" not in str(caught.value)


def test_server_addresses_are_read_with_their_defaults() -> None:
    server = SmtpServer.from_url("smtps://user%40x:p%40ss%20word@mail.example")
    assert (server.host, server.port, server.tls) == ("mail.example", 465, True)
    assert (server.user, server.password) == ("user@x", "p@ss word")
    assert "p@ss" not in repr(server)
    assert SmtpServer.from_url("smtp://mail.example").port == 587


# -- TLS and login ---------------------------------------------------------------------------------------


def test_starttls_is_used_when_offered_and_before_the_login(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox, tmp_path: Path
) -> None:
    server, client = rc.certificate(tmp_path, "127.0.0.1")
    url = smtp("user:p%40ss%20word@", tls_context=server, authenticator=mailbox.authenticate, auth_required=True)
    send(make_deps(smtp_url=url), trusted=client)
    assert mailbox.encrypted == [True]
    assert mailbox.logins == [(b"user", b"p@ss word")]


def test_an_untrusted_starttls_is_not_fallen_back_from(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox, tmp_path: Path
) -> None:
    server, _ = rc.certificate(tmp_path, "127.0.0.1")
    with pytest.raises(RetryableError) as caught:
        send(make_deps(smtp_url=smtp(tls_context=server)))
    assert caught.value.code == "email.unreachable"
    assert mailbox.mails == []


def test_smtps_is_encrypted_from_the_start(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox, tmp_path: Path
) -> None:
    server, client = rc.certificate(tmp_path, "127.0.0.1")
    send(make_deps(smtp_url=smtp(scheme="smtps", ssl_context=server)), trusted=client)
    assert len(mailbox.mails) == 1


def test_a_refused_login_is_for_the_operator_to_mend(
    make_deps: Deps, rows: c.Rows, smtp: Callable[..., str], mailbox: Mailbox, tmp_path: Path
) -> None:
    server, client = rc.certificate(tmp_path, "127.0.0.1")
    options = {"authenticator": mailbox.authenticate, "auth_required": True}
    with pytest.raises(RetryableError) as caught:
        send(make_deps(smtp_url=smtp("user:wrong@", tls_context=server, **options)), trusted=client)
    assert caught.value.code == "email.login_refused"
    # A server that knows no logins at all
    with pytest.raises(RetryableError) as caught:
        send(make_deps(smtp_url=smtp("user:wrong@")))
    assert caught.value.code == "email.login_refused"


def test_credentials_never_travel_in_the_clear(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.notifier.email.smtp._is_this_machine", lambda client: False)
    options: dict[str, Any] = {"authenticator": mailbox.authenticate, "auth_require_tls": False}
    controller = Controller(mailbox, hostname="127.0.0.1", port=0, **options)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        controller.port = probe.getsockname()[1]
    controller.start()
    try:
        sending = SmtpServer.from_url(f"smtp://user:p%40ss%20word@127.0.0.1:{controller.port}").sending()
        message = render.compose(
            render.Mail("t", [], "https://x/"), to="a@b.example", sender="c@d.example", message_id="<1@d.example>",
            date=datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        with pytest.raises(LoginRefused):
            sending.send(message, "c@d.example", "a@b.example")
    finally:
        controller.stop()
    assert mailbox.logins == []
    assert mailbox.mails == []
