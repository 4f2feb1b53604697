"""What a webhook job sends, and how each answer ends it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta, timezone
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook

from services.notifier.webhook import build
from services.notifier.webhook.handler import _retry_after
from shared.contracts import NOTIFY_WEBHOOK, WebhookPayload, WebhookResult
from shared.ids import IdKind, encode
from shared.jobs.context import JobInfo
from shared.jobs.errors import JobCancelled, JobError, PermanentError, RetryableError
from shared.webhook_secret import organisation_secret
from tests.notifier import receiver as rc
from tests.notifier import standins as c

Deps = Callable[..., c.Dependencies]


def payload(url: str, **changes: Any) -> WebhookPayload:
    fields = {"event": "job.completed", "subject_id": c.SUBJECT, "occurred_at": c.NOON, **changes}
    return WebhookPayload(url=url, **fields)


def deliver(deps: c.Dependencies, script: rc.Script, ctx: c.Context | None = None, **changes: Any) -> rc.Receiver:
    with rc.Receiver(script) as there:
        result = build(deps).run(ctx or c.Context(), payload(f"http://127.0.0.1:{there.port}/hook", **changes))
    assert isinstance(result, WebhookResult)
    return there


def failure(deps: c.Dependencies, script: rc.Script) -> JobError:
    with rc.Receiver(script) as there, pytest.raises((PermanentError, RetryableError)) as caught:
        build(deps).run(c.Context(), payload(f"http://127.0.0.1:{there.port}/hook"))
    assert there.connections == 1
    return caught.value


def test_the_handler_is_the_declared_type(make_deps: Deps) -> None:
    assert build(make_deps()).job_type is NOTIFY_WEBHOOK


def test_a_finished_job_is_delivered_signed(make_deps: Deps, rows: c.Rows) -> None:
    ctx = c.Context()
    there = deliver(make_deps(), rc.answer(200, b"a secret answer"), ctx)
    (seen,) = there.seen
    secret = organisation_secret(b"k" * 40, c.ORG)
    body = Webhook(secret).verify(seen.body, seen.headers)
    job_id = encode(IdKind.JOB, c.SUBJECT)
    assert body == {
        "type": "job.completed",
        "timestamp": "2026-11-22T12:00:00Z",
        "data": {
            "id": job_id,
            "type": "ocr.document",
            "queue": "ocr",
            "status": "completed",
            "attempt": 2,
            "batch_id": encode(IdKind.BATCH, c.BATCH),
            "metadata": {"class": "3b"},
            "created_at": "2026-11-22T12:00:00Z",
            "started_at": "2026-11-22T12:00:00Z",
            "finished_at": "2026-11-22T12:00:00Z",
            "result": {"document_id": "doc_1", "confidence": 0.9},
            "error": None,
            "links": {
                "self": f"https://grades.example/api/v1/jobs/{job_id}",
                "result": f"https://grades.example/api/v1/jobs/{job_id}/result",
            },
        },
    }
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["user-agent"].startswith("Gradeline")
    assert seen.headers["webhook-id"] == "msg_" + encode(IdKind.JOB, c.NOTIFY_JOB).removeprefix("job_")
    assert abs(int(seen.headers["webhook-timestamp"]) - time.time()) < 10
    assert rows.asked == [(c.ORG, "job.completed", c.SUBJECT)]
    assert "secret answer" not in repr(ctx.logged)
    assert str(there.port) not in repr(ctx.logged)


def test_the_id_stays_over_attempts_and_differs_between_deliveries(make_deps: Deps, rows: c.Rows) -> None:
    ids = []
    for notify_job, attempt in ((c.NOTIFY_JOB, 1), (c.NOTIFY_JOB, 2), (UUID(int=9), 1)):
        ctx = c.Context(JobInfo(notify_job, c.ORG, "notify.webhook", attempt, 0, None, c.NOON, None))
        ids.append(deliver(make_deps(), rc.answer(200), ctx).seen[0].headers["webhook-id"])
    assert ids[0] == ids[1] != ids[2]


def test_after_a_rotation_both_secrets_verify(make_deps: Deps, rows: c.Rows) -> None:
    rows.version = 3
    (seen,) = deliver(make_deps(), rc.answer(200)).seen
    for version in (3, 2):
        Webhook(organisation_secret(b"k" * 40, c.ORG, version)).verify(seen.body, seen.headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(organisation_secret(b"k" * 40, c.ORG, 1)).verify(seen.body, seen.headers)


def test_times_in_other_zones_go_out_in_utc(make_deps: Deps, rows: c.Rows) -> None:
    berlin = timezone(timedelta(hours=1))
    rows.subject = c.job(finished_at=c.NOON.astimezone(berlin), started_at=None, batch_id=None, metadata=None)
    (seen,) = deliver(make_deps(), rc.answer(200), occurred_at=c.NOON.astimezone(berlin)).seen
    body = json.loads(seen.body)
    assert body["timestamp"] == body["data"]["finished_at"] == "2026-11-22T12:00:00Z"
    assert (body["data"]["started_at"], body["data"]["batch_id"], body["data"]["metadata"]) == (None, None, {})


def test_a_failed_job_carries_its_error(make_deps: Deps, rows: c.Rows) -> None:
    rows.subject = c.job(status="failed", result=None, error={"code": "document.encrypted", "message": "Locked."})
    (seen,) = deliver(make_deps(), rc.answer(200), event="job.failed").seen
    body = json.loads(seen.body)
    assert body["type"] == "job.failed"
    assert body["data"]["error"] == {"code": "document.encrypted", "message": "Locked."}
    assert body["data"]["result"] is None


def test_of_a_surprise_our_frames_stay_here(make_deps: Deps, rows: c.Rows) -> None:
    rows.subject = c.job(
        status="failed",
        result=None,
        error={"code": "document.encrypted", "message": "Locked.", "details": {"traceback": ["handler.py:9 run"]}},
    )
    (seen,) = deliver(make_deps(), rc.answer(200), event="job.failed").seen
    body = json.loads(seen.body)
    assert body["type"] == "job.failed"
    assert body["data"]["error"] == {"code": "document.encrypted", "message": "Locked."}
    assert body["data"]["result"] is None


def test_a_finished_batch_is_delivered(make_deps: Deps, rows: c.Rows) -> None:
    rows.subject = c.batch()
    (seen,) = deliver(make_deps(), rc.answer(202), event="batch.completed", subject_id=c.BATCH).seen
    data = json.loads(seen.body)["data"]
    assert (data["id"], data["total"], data["failed"]) == (encode(IdKind.BATCH, c.BATCH), 12, 2)


@pytest.mark.parametrize(
    ("script", "code", "kind"),
    [
        (rc.answer(410), "webhook.gone", PermanentError),
        (rc.answer(301, Location="http://169.254.169.254/"), "webhook.redirect", RetryableError),
        (rc.answer(307, Location="/again"), "webhook.redirect", RetryableError),
        (rc.answer(304), "webhook.redirect", RetryableError),
        (rc.answer(400), "webhook.status", RetryableError),
        (rc.answer(404), "webhook.status", RetryableError),
        (rc.answer(500), "webhook.status", RetryableError),
        (rc.hang_up, "webhook.protocol", RetryableError),
        (rc.silent, "webhook.timeout", RetryableError),
        (rc.drip(b"HTTP/1.1 200 OK\r\nX: "), "webhook.timeout", RetryableError),
    ],
)
def test_each_answer_ends_the_job_its_way(
    make_deps: Deps, rows: c.Rows, script: rc.Script, code: str, kind: type[Exception]
) -> None:
    error = failure(make_deps(webhook_timeout=0.5), script)
    assert isinstance(error, kind)
    assert error.code == code
    assert error.message.endswith(".")
    assert "127.0.0.1" not in str(error)


@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [
        (503, "120", 120.0), (429, "7", 7.0), (429, "0", 1.0), (503, "999999", 3600.0), (503, "9" * 400, 3600.0),
        (503, "soon", None), (503, "-5", None), (503, "", None), (500, "120", None), (404, "60", None),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_within_bounds(
    make_deps: Deps, rows: c.Rows, status: int, value: str, expected: float | None
) -> None:
    error = failure(make_deps(), rc.answer(status, Retry_After=value))
    assert isinstance(error, RetryableError)
    assert error.retry_after == expected


def test_retry_after_may_be_a_date() -> None:
    now = c.NOON.timestamp()
    assert _retry_after(format_datetime(c.NOON + timedelta(minutes=5), usegmt=True), now) == 300
    assert _retry_after(format_datetime(c.NOON - timedelta(days=5), usegmt=True), now) == 1
    assert _retry_after("Fri, 31 Dec 9999 23:59:59 GMT", now) == 3600
    assert _retry_after("Mon, 99 Foo 2026 99:99:99", now) is None
    assert _retry_after(None, now) is None


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://127.0.0.1/", "webhook.address_not_allowed"),
        ("https://localhost/", "webhook.address_not_allowed"),
        ("http://169.254.169.254/", "webhook.address_not_allowed"),
        ("http://8.8.8.8/", "webhook.url_not_allowed"),
        ("https://8.8.8.8:25/", "webhook.url_not_allowed"),
        ("ftp://example.org/", "webhook.url_not_allowed"),
        ("https://user:pw@example.org/", "webhook.url_not_allowed"),
    ],
)
def test_addresses_out_of_bounds_fail_for_good(make_deps: Deps, rows: c.Rows, url: str, code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        build(make_deps(webhook_allow_networks="")).run(c.Context(), payload(url))
    assert caught.value.code == code


def test_a_name_that_does_not_resolve_is_tried_again(make_deps: Deps, rows: c.Rows) -> None:
    with pytest.raises(RetryableError) as caught:
        build(make_deps()).run(c.Context(), payload("https://no-such-host.invalid/"))
    assert caught.value.code == "webhook.name_not_resolved"


def test_a_deleted_subject_fails_for_good(make_deps: Deps, rows: c.Rows) -> None:
    rows.subject = None
    with pytest.raises(PermanentError) as caught:
        build(make_deps()).run(c.Context(), payload("http://127.0.0.1:1/"))
    assert caught.value.code == "webhook.subject_gone"


def test_a_cancel_breaks_the_delivery_off(make_deps: Deps, rows: c.Rows) -> None:
    ctx = c.Context()
    with rc.Receiver(rc.silent) as there:
        rc.when(there.arrived, lambda: ctx.interrupt(JobCancelled()))
        began = time.monotonic()
        with pytest.raises(JobCancelled):
            build(make_deps()).run(ctx, payload(f"http://127.0.0.1:{there.port}/"))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("settings", [{"secret_key": ""}, {"webhook_allow_networks": "10.0.0.0/99"}])
def test_unusable_settings_stop_the_start(make_deps: Deps, settings: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        build(make_deps(**settings))
