"""Error reports to Sentry, reduced to what cannot hold student data.

An event is rebuilt from a list of allowed fields instead of being searched for bad ones: exception types, frames
(file, function, line; never locals), our ids as tags. Its texts, arguments, request, user, extra and breadcrumb
data stay behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from shared.settings import Settings

from .redaction import safe_message

if TYPE_CHECKING:
    from sentry_sdk.types import Breadcrumb, BreadcrumbHint, Event, Hint

__all__ = ["capture", "init"]

_TAGS = ("job_id", "org_id", "job_type", "queue", "attempt", "request_id")
_KEPT = ("event_id", "timestamp", "level", "platform", "release", "environment", "sdk", "type", "breadcrumbs")
_FRAME = ("filename", "abs_path", "function", "module", "lineno", "in_app", "platform")


def init(settings: Settings, service: str) -> bool:
    """Start reporting; False, and nothing at all, unless SENTRY_DSN is set. Call before the broker is made.

    Uncaught exceptions of the process and its threads are reported by themselves; failures of jobs and
    requests by ``capture``.
    """
    if settings.sentry_dsn is None or not settings.sentry_dsn.get_secret_value():
        return False
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration
    from sentry_sdk.integrations.threading import ThreadingIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        environment=settings.environment,
        # None of the automatic ones: the dramatiq and falcon integrations attach messages and requests, the
        # logging one every record's text.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            AtexitIntegration(callback=lambda _pending, _timeout: None),  # the stock one prints to stderr
            DedupeIntegration(),
            ExcepthookIntegration(),
            ThreadingIntegration(propagate_scope=False),
        ],
        send_default_pii=False,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        max_breadcrumbs=20,
        auto_session_tracking=False,
        before_send=scrub,
        before_send_transaction=_never,
        before_breadcrumb=scrub_breadcrumb,
        shutdown_timeout=2,
        server_name="",
    )
    sentry_sdk.get_global_scope().set_tag("service", service)  # every thread's events, not this one's alone
    return True


def capture(error: BaseException, **ids: str | int | UUID | None) -> None:
    """Report ``error``; a no-op without ``init``. ``ids`` join the bound log context as tags (see ``_TAGS``)."""
    import sentry_sdk

    if not sentry_sdk.is_initialized():
        return
    with sentry_sdk.new_scope() as scope:
        for key in _TAGS:
            value = ids.get(key)
            if value is not None:
                scope.set_tag(key, str(value))
        scope.capture_exception(error)


def scrub(event: Event, hint: Hint) -> Event | None:
    """What is left of ``event`` to send."""
    hint.pop("attachments", None)
    whole: dict[str, Any] = dict(event)
    kept: dict[str, Any] = {k: whole[k] for k in _KEPT if k in whole}
    bound = structlog.contextvars.get_contextvars()
    tags = {k: bound[k] for k in _TAGS if k in bound} | dict(whole.get("tags") or {})
    kept["tags"] = {k: str(v)[:64] for k, v in tags.items() if k in (*_TAGS, "service")}
    runtime = (whole.get("contexts") or {}).get("runtime")
    if runtime:
        kept["contexts"] = {"runtime": runtime}
    texts = _texts(hint)
    values = (whole.get("exception") or {}).get("values") or []
    kept["exception"] = {
        "values": [
            {
                "type": v.get("type"),
                "module": v.get("module"),
                "value": texts.get(str(v.get("type")), ""),
                "mechanism": {k: m for k, m in (v.get("mechanism") or {}).items() if k in _MECHANISM},
                "stacktrace": {"frames": [_frame(f) for f in (v.get("stacktrace") or {}).get("frames") or []]},
            }
            for v in values
        ]
    }
    crumbs = kept.pop("breadcrumbs", None)
    if isinstance(crumbs, dict):
        kept["breadcrumbs"] = {"values": [_crumb(c) for c in crumbs.get("values") or []]}
    if not values:  # capture_message and the like: nothing of ours does it, and its text cannot be judged
        return None
    return kept  # type: ignore[return-value]


def scrub_breadcrumb(crumb: Breadcrumb, hint: BreadcrumbHint) -> Breadcrumb | None:
    """That something happened, and when; neither its text nor its data."""
    return _crumb(crumb)


_MECHANISM = ("type", "handled", "source", "exception_id", "parent_id", "is_exception_group")


def _crumb(crumb: dict[str, Any]) -> dict[str, Any]:
    return {k: crumb[k] for k in ("type", "category", "level", "timestamp") if k in crumb}


def _frame(frame: dict[str, Any]) -> dict[str, Any]:
    return {k: frame[k] for k in _FRAME if k in frame}


def _never(event: Event, hint: Hint) -> Event | None:
    return None


def _texts(hint: Hint) -> dict[str, str]:
    """Type name → sendable text, for the job errors among the exception and its causes."""
    info = hint.get("exc_info")
    current = info[1] if info else None
    texts: dict[str, str] = {}
    for _ in range(20):
        if current is None:
            break
        name = type(current).__name__
        text = safe_message(current)
        if text != name:
            texts.setdefault(name, text.removeprefix(f"{name}: "))
        current = current.__cause__ or current.__context__
    return texts
