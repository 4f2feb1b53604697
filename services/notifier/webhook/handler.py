"""Runs ``notify.webhook``."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from uuid import UUID

from services.notifier.addresses import parse_networks
from services.notifier.deps import Deps
from services.notifier.egress import (
    Aborted,
    AddressNotAllowed,
    Answer,
    DeliveryFailed,
    Egress,
    Exchange,
    FailureKind,
    NameNotResolved,
    UrlNotAllowed,
)
from services.notifier.signing import signed_headers
from services.notifier.subjects import load_secret_version, load_subject
from shared.contracts import NOTIFY_WEBHOOK, WebhookPayload, WebhookResult
from shared.jobs.context import Handler, JobContext
from shared.jobs.errors import PermanentError, RetryableError
from shared.webhook_secret import organisation_secret

from .event import build_body, message_id

__all__ = ["build"]

_USER_AGENT = "Gradeline-Webhooks/1"
# Bounds on what a consumer may ask for by Retry-After, in seconds.
_RETRY_AFTER_MIN, _RETRY_AFTER_MAX = 1.0, 3600.0
_FAILURES: dict[FailureKind, str] = {
    "timeout": "The webhook's receiver did not answer in time.",
    "connect": "The connection to the webhook's receiver failed.",
    "tls": "No trusted TLS connection to the webhook's receiver came about; check its certificate.",
    "protocol": "The webhook's receiver did not answer in HTTP.",
}


def build(deps: Deps, egress: Egress | None = None) -> Handler[WebhookPayload, WebhookResult]:
    """The handler. Raises ValueError at once when SECRET_KEY or WEBHOOK_ALLOW_NETWORKS is unusable."""
    settings = deps.settings
    key = settings.signing_key()
    way_out = egress or Egress(
        allow_networks=parse_networks(settings.webhook_allow_networks), timeout=settings.webhook_timeout
    )

    def run(ctx: JobContext, payload: WebhookPayload, /) -> WebhookResult:
        try:
            exchange = way_out.exchange(payload.url)
        except UrlNotAllowed as e:
            raise PermanentError("webhook.url_not_allowed", str(e)) from None
        with ctx.connection() as conn:
            subject = load_subject(conn, ctx.job.org_id, payload.event, payload.subject_id)
            version = load_secret_version(conn, ctx.job.org_id)
        if subject is None:
            raise PermanentError("webhook.subject_gone", "What the webhook was about has been deleted meanwhile.")
        body = build_body(payload, subject, settings.public_url)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            **signed_headers(_secrets(key, ctx.job.org_id, version), message_id(ctx.job.id), int(time.time()), body),
        }
        answer = _post(ctx, exchange, body, headers)
        duration_ms = round(answer.seconds * 1000)
        ctx.log("webhook answered", status=answer.status, duration_ms=duration_ms, body_bytes=len(body))
        _judge(answer)
        return WebhookResult(status_code=answer.status, duration_ms=duration_ms)

    return Handler(NOTIFY_WEBHOOK, run)


def _secrets(key: bytes, org_id: UUID, version: int) -> list[str]:
    """The organisation's secret and the one before it, so that a consumer can change over at its own time."""
    return [organisation_secret(key, org_id, v) for v in (version, version - 1) if v >= 1]


def _post(ctx: JobContext, exchange: Exchange, body: bytes, headers: dict[str, str]) -> Answer:
    try:
        with ctx.on_interrupt(exchange.abort):
            return exchange.post(body, headers)
    except Aborted:
        ctx.check()  # raises what was the reason
        raise RetryableError("webhook.interrupted", "The delivery was broken off.") from None
    except UrlNotAllowed as e:
        raise PermanentError("webhook.url_not_allowed", str(e)) from None
    except AddressNotAllowed as e:
        raise PermanentError("webhook.address_not_allowed", str(e)) from None
    except NameNotResolved:
        raise RetryableError("webhook.name_not_resolved", "The webhook's host name could not be resolved.") from None
    except DeliveryFailed as e:
        raise RetryableError(f"webhook.{e.kind}", _FAILURES[e.kind]) from None


def _judge(answer: Answer) -> None:
    """Raises unless the receiver took the event (2xx)."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status == 410:
        raise PermanentError("webhook.gone", "The webhook's receiver wants no more events (410).", status=status)
    if 300 <= status < 400:
        raise RetryableError(
            "webhook.redirect",
            f"The webhook's receiver answered {status}; redirects are not followed. Give its final address.",
            status=status,
        )
    retry_after = _retry_after(answer.headers.get("retry-after"), time.time()) if status in (429, 503) else None
    raise RetryableError(
        "webhook.status", f"The webhook's receiver answered {status}.", retry_after=retry_after, status=status
    )


def _retry_after(value: str | None, now: float) -> float | None:
    """Seconds, from a number or an HTTP date, within bounds; None where it is absent or makes no sense."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:12])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    return min(max(seconds, _RETRY_AFTER_MIN), _RETRY_AFTER_MAX)
