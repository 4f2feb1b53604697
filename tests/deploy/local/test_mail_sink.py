"""The mail sink delivers what a real SMTP client sends."""

from __future__ import annotations

import email
import email.policy
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from deploy.local.mailsink import MailSink


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailSink]:
    folder = tmp_path_factory.mktemp("mail")
    sink = MailSink(folder / "sink", folder / "mail", folder / "log")
    sink.open()
    sink.start()
    yield sink
    sink.close()


def mails(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.eml"))


def test_a_mail_becomes_one_file_with_its_envelope(sink: MailSink) -> None:
    message = EmailMessage()
    message["Subject"] = "Grün"
    message["From"] = "a@gradeline.example"
    message["To"] = "b@school.example"
    message.set_content(".\nDein Ergebnis: 7 von 8 Punkten – gut!\n")
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=5) as client:
        client.send_message(message, to_addrs=["b@school.example", "blind@school.example"])
    (path,) = mails(sink.mail_dir)
    received = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert isinstance(received, EmailMessage)
    assert received["Subject"] == "Grün"
    assert received["X-RcptTo"] == "b@school.example, blind@school.example"
    assert received.get_content().splitlines() == [".", "Dein Ergebnis: 7 von 8 Punkten – gut!"]
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_files_sort_by_arrival_and_no_draft_is_left(sink: MailSink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=5) as client:
        for number in range(12):
            client.sendmail("a@x.example", ["b@x.example"], f"Subject: {number}\r\n\r\n.\r\n")
    subjects = [email.message_from_bytes(path.read_bytes())["Subject"] for path in mails(sink.mail_dir)]
    assert subjects == [str(number) for number in range(12)]
    assert [path for path in sink.mail_dir.iterdir() if path.suffix != ".eml"] == []
