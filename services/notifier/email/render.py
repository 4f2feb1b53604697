"""The words of a mail. Pure: rows in, message out."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Any

from services.notifier.subjects import BatchSubject, JobSubject, Subject
from shared.contracts import JOB_TYPES, UnknownJobType
from shared.ids import IdKind, encode
from shared.mail_address import is_mail_address

__all__ = ["InvalidAddress", "Mail", "check_address", "clean", "compose", "render", "sender_domain"]

_OUTCOME = {"completed": "finished", "failed": "failed", "cancelled": "was cancelled"}
# RFC 5321 atoms and domain labels, ASCII only: what every server takes, and nothing that could end a header.
_MAX_NAME = 120


class InvalidAddress(ValueError):
    """Not one plain mail address. The text does not repeat it."""


@dataclass(frozen=True, slots=True)
class Mail:
    """``facts`` are label and value, in order."""

    title: str
    facts: Sequence[tuple[str, str]]
    link: str


def check_address(address: str) -> str:
    """One address of at most 254 characters, 64 before the @ (RFC 5321). Raises InvalidAddress."""
    if not is_mail_address(address):
        raise InvalidAddress("not a mail address")
    return address


def render(subject: Subject, file_name: str | None, public_url: str) -> Mail:
    """What happened, to which file, and where to look."""
    base = f"{public_url.rstrip('/')}/api/v1"
    if isinstance(subject, BatchSubject):
        batch_id = encode(IdKind.BATCH, subject.id)
        facts = [("Batch", batch_id), ("Completed", f"{subject.completed} of {subject.total}")]
        if subject.failed:
            facts.append(("Failed", str(subject.failed)))
        if subject.cancelled:
            facts.append(("Cancelled", str(subject.cancelled)))
        title = f"Batch finished: {subject.completed} of {subject.total} completed"
        return Mail(title, facts, f"{base}/batches/{batch_id}")
    return _job_mail(subject, file_name, base)


def _job_mail(job: JobSubject, file_name: str | None, base: str) -> Mail:
    try:
        kind = JOB_TYPES.get(job.type).title
    except UnknownJobType:  # a type of another release
        kind = "Job"
    outcome = _OUTCOME.get(job.status, job.status)
    name = clean(file_name) if file_name else ""
    job_id = encode(IdKind.JOB, job.id)
    facts = [("File", name)] if name else []
    facts += [("Job", job_id), ("Status", job.status)]
    if job.status == "failed":
        facts.append(("Problem", _sentence(job.error)))
    if job.status == "completed" and job.type == "grading.quiz" and job.result is not None:
        facts += _marks(job.result)
    return Mail(f"{kind} {outcome}: {name}" if name else f"{kind} {outcome}", facts, f"{base}/jobs/{job_id}")


def compose(mail: Mail, *, to: str, sender: str, message_id: str, date: datetime) -> EmailMessage:
    """A multipart message, text and HTML. Raises InvalidAddress.

    Nothing of it can break out of its place: the address is checked, headers are cleaned of control characters
    and encoded by EmailMessage, and every word in the HTML is escaped.
    """
    local, _, domain = check_address(to).rpartition("@")
    message = EmailMessage(policy=SMTP)
    message["From"] = _sender(sender)
    message["To"] = Address(username=local, domain=domain)
    message["Subject"] = _header_text(mail.title)
    message["Date"] = format_datetime(date)
    message["Message-ID"] = message_id
    # RFC 3834: out-of-office programs do not answer such a mail.
    message["Auto-Submitted"] = "auto-generated"
    # Quoted-printable, since not every server takes 8-bit text.
    message.set_content(_text(mail), cte="quoted-printable")
    message.add_alternative(_html(mail), subtype="html", cte="quoted-printable")
    return message


def sender_domain(sender: str) -> str:
    """The part after the @ of ``mail_from``. Raises InvalidAddress."""
    return check_address(parseaddr(sender)[1]).rpartition("@")[2]


def clean(text: str) -> str:
    """On one line, without control and direction characters (a name must not show itself reversed), cut at 120."""
    line = _one_line(text)
    return line if len(line) <= _MAX_NAME else line[: _MAX_NAME - 1] + "…"


def _one_line(text: str) -> str:
    kept = "".join(" " if c.isspace() or unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)
    return " ".join(kept.split())


def _sender(sender: str) -> Address:
    name, address = parseaddr(sender)
    local, _, domain = check_address(address).rpartition("@")
    return Address(_header_text(name), local, domain)


def _header_text(text: str) -> str:
    """Cleaned, and without encoded words (RFC 2047): EmailMessage decodes those, line breaks within them
    included, and would then write them out as header lines of their own."""
    return clean(text).replace("=?", "= ?")


def _sentence(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return _one_line(message)[:500] if isinstance(message, str) and message else "The reason was not recorded."


def _marks(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Points, percentage and how many marks a person should look at, out of a ``QuizResult``."""
    points, most, percentage = (result.get(k) for k in ("points", "max_points", "percentage"))
    facts: list[tuple[str, str]] = []
    if isinstance(points, (int, float)) and isinstance(most, (int, float)):
        share = f" ({percentage:.3g} %)" if isinstance(percentage, (int, float)) else ""
        facts.append(("Points", f"{points:g} of {most:g}{share}"))
    marks = result.get("marks")
    review = sum(1 for m in marks if isinstance(m, dict) and m.get("needs_review")) if isinstance(marks, list) else 0
    if review:
        facts.append(("To review", f"{review} {'answer needs' if review == 1 else 'answers need'} a look"))
    return facts


def _text(mail: Mail) -> str:
    facts = "\n".join(f"{label}: {value}" for label, value in mail.facts)
    return f"{mail.title}\n\n{facts}\n\nDetails: {mail.link}\n"


def _html(mail: Mail) -> str:
    rows = "\n".join(
        f'<tr><th align="left">{html.escape(label)}</th><td>{html.escape(value)}</td></tr>'
        for label, value in mail.facts
    )
    title, link = html.escape(mail.title), html.escape(mail.link, quote=True)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f'<body style="font-family: sans-serif">\n<h1 style="font-size: 1.2em">{title}</h1>\n'
        f'<table cellpadding="4">\n{rows}\n</table>\n<p><a href="{link}">Details</a></p>\n</body></html>\n'
    )
