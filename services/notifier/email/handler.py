"""Runs ``notify.email``."""

from __future__ import annotations

import ssl
from email.utils import parseaddr

from services.notifier.deps import Deps
from services.notifier.subjects import JobSubject, load_file_name, load_subject
from shared.contracts import NOTIFY_EMAIL, EmailPayload, EmailResult
from shared.ids import IdKind, encode
from shared.jobs.context import Handler, JobContext
from shared.jobs.errors import PermanentError, RetryableError

from .render import InvalidAddress, check_address, compose, render, sender_domain
from .smtp import Aborted, LoginRefused, Refused, SmtpServer, Unreachable

__all__ = ["build"]


def build(deps: Deps, ssl_context: ssl.SSLContext | None = None) -> Handler[EmailPayload, EmailResult]:
    """The handler. Without SMTP_URL each mail fails for good; raises ValueError for one that is malformed."""
    settings = deps.settings
    url = settings.smtp_url.get_secret_value() if settings.smtp_url else ""
    server = SmtpServer.from_url(url, ssl_context=ssl_context) if url else None
    domain = sender_domain(settings.mail_from)

    def run(ctx: JobContext, payload: EmailPayload, /) -> EmailResult:
        if server is None:
            raise PermanentError("email.not_configured", "No mail server is set up (SMTP_URL).")
        try:
            recipient = check_address(payload.to)
        except InvalidAddress:
            raise PermanentError("email.address_invalid", "The mail address to notify is not valid.") from None
        with ctx.connection() as conn:
            subject = load_subject(conn, ctx.job.org_id, payload.event, payload.subject_id)
            is_job = isinstance(subject, JobSubject)
            file_name = load_file_name(conn, ctx.job.org_id, payload.subject_id) if is_job else None
        if subject is None:
            raise PermanentError("email.subject_gone", "What the mail was about has been deleted meanwhile.")
        # The same on every attempt: should a mail arrive twice, programs can tell that it is one.
        message_id = f"<{encode(IdKind.JOB, ctx.job.id)}@{domain}>"
        message = compose(
            render(subject, file_name, settings.public_url),
            to=recipient,
            sender=settings.mail_from,
            message_id=message_id,
            date=payload.occurred_at,
        )
        sending = server.sending()
        try:
            with ctx.on_interrupt(sending.abort):
                sending.send(message, parseaddr(settings.mail_from)[1], recipient)
        except Refused as e:
            if e.status >= 500:
                raise PermanentError(
                    "email.refused", f"The mail server refused the mail ({e.status}).", status=e.status
                ) from None
            raise RetryableError(
                "email.deferred", f"The mail server cannot take the mail now ({e.status}).", status=e.status
            ) from None
        except LoginRefused:
            raise RetryableError("email.login_refused", "The mail server did not accept our login.") from None
        except Unreachable:
            raise RetryableError("email.unreachable", "The mail server could not be reached.") from None
        except Aborted:
            ctx.check()  # raises what was the reason
            raise RetryableError("email.interrupted", "Sending the mail was broken off.") from None
        ctx.log("mail handed in")
        return EmailResult(message_id=message_id, recipients=1)

    return Handler(NOTIFY_EMAIL, run)
