"""What a job must be like to be accepted, as far as it alone can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from shared.contracts import JOB_TYPES, Registry, UnknownJobType
from shared.db.pools import dumps

from .errors import InvalidSubmit
from .models import NewBatch, NewJob, Unique
from .states import Priority

__all__ = ["validate", "validate_batch"]

MAX_TIME_LIMIT = 3600.0
MAX_RETRIES = 25
MAX_KEY = 200  # characters
MAX_AHEAD = timedelta(days=366)
MAX_TOTAL = 2**31 - 1

_PRIORITIES = frozenset(Priority)
_ON_FAILURE = frozenset({"fail", "cancel", "run"})
_ON_CONFLICT = frozenset({"reject", "return"})
# What Postgres' text and jsonb cannot hold: NUL, and halves of surrogate pairs.
_UNFIT = re.compile("[\0\ud800-\udfff]")
_UNFIT_SAID = "has characters that cannot be stored: NUL, or half of a surrogate pair"
_NOT_JSON = "is not JSON that can be stored"


def validate(job: NewJob, registry: Registry = JOB_TYPES) -> NewJob:
    """The job with its type's own name and defaults filled in. Raises InvalidSubmit naming the field."""
    try:
        job_type = registry.get(job.type)
    except UnknownJobType:
        known = ", ".join(t.name for t in registry.all() if t.public)
        raise InvalidSubmit("job.unknown_type", "type", f"no job type {job.type!r}; there are: {known}") from None
    payload = _payload(job_type.payload, job.payload)
    if job.priority not in _PRIORITIES:
        raise InvalidSubmit("job.invalid", "priority", "must be high, normal or low")
    max_retries = job_type.policy.max_retries if job.max_retries is None else job.max_retries
    if not 0 <= max_retries <= MAX_RETRIES:
        raise InvalidSubmit("job.invalid", "max_retries", f"must be between 0 and {MAX_RETRIES}")
    time_limit = job_type.policy.time_limit if job.time_limit is None else job.time_limit
    if not 0 < time_limit <= MAX_TIME_LIMIT:
        raise InvalidSubmit("job.invalid", "time_limit", f"must be above 0 and at most {MAX_TIME_LIMIT:.0f} seconds")
    if job.run_at is not None:
        _check_time(job.run_at)
    if job.metadata:
        _check_metadata(job.metadata)
    if job.webhook_url is not None:
        _check_text("webhook_url", job.webhook_url)
    if job.notify_email is not None:
        _check_text("notify_email", job.notify_email)
    if job.concurrency_key is not None:
        _check_key("concurrency_key", job.concurrency_key)
    if not 1 <= job.concurrency_limit <= 10_000:
        raise InvalidSubmit("job.invalid", "concurrency_limit", "must be between 1 and 10000")
    if job.unique is not None:
        _check_unique(job, job.unique)
    if job.parents:
        _check_parents(job)
    if job.after_batch is not None and job.after_batch == job.batch_id:
        raise InvalidSubmit("job.dependency_cycle", "after_batch", "a job cannot wait for the batch that it is in")
    return NewJob(
        id=job.id,
        type=job_type.name,
        payload=payload,
        org_id=job.org_id,
        created_by=job.created_by,
        priority=job.priority,
        run_at=job.run_at,
        max_retries=max_retries,
        time_limit=time_limit,
        batch_id=job.batch_id,
        metadata=job.metadata,
        webhook_url=job.webhook_url,
        notify_email=job.notify_email,
        parents=job.parents,
        concurrency_key=job.concurrency_key,
        concurrency_limit=job.concurrency_limit,
        unique=job.unique,
        after_batch=job.after_batch,
    )


def validate_batch(batch: NewBatch) -> None:
    """Raises InvalidSubmit naming the field. A batch of no jobs is none: nothing would ever finish it."""
    if not 1 <= batch.total <= MAX_TOTAL:
        raise InvalidSubmit("job.invalid", "total", "a batch must have a job at least")
    _check_text("kind", batch.kind)
    if batch.metadata:
        _check_metadata(batch.metadata)
    if batch.webhook_url is not None:
        _check_text("webhook_url", batch.webhook_url)


def _payload(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        payload = model.model_validate(given).model_dump(mode="json")
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in ("payload", *first["loc"]))
        raise InvalidSubmit("job.invalid_payload", where, str(first["msg"])) from None
    except (PydanticSerializationError, UnicodeError):
        raise InvalidSubmit("job.invalid_payload", "payload", _NOT_JSON) from None
    try:
        stored = dumps(payload)
    except TypeError:  # of surrogates, of numbers beyond 64 bits
        place = _unfit_place(payload, "payload")
        said = _NOT_JSON if place is None else _UNFIT_SAID
        raise InvalidSubmit("job.invalid_payload", place or "payload", said) from None
    # NUL is written so; a backslash of the text's own before "u0000" is only taken for it until it is looked at.
    if b"\\u0000" in stored and (place := _unfit_place(payload, "payload")) is not None:
        raise InvalidSubmit("job.invalid_payload", place, _UNFIT_SAID)
    return payload


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    """Its keys are the caller's own, so the field is all that is named."""
    try:
        stored = dumps(dict(metadata))
    except (TypeError, ValueError):
        raise InvalidSubmit("job.invalid", "metadata", _NOT_JSON) from None
    if b"\\u0000" in stored and _unfit_place(metadata, "metadata") is not None:
        raise InvalidSubmit("job.invalid", "metadata", _UNFIT_SAID)


def _unfit_place(value: Any, path: str) -> str | None:
    """The dotted path of a text inside ``value`` that cannot be stored; of the object, where a key is one."""
    todo = [(value, path)]
    while todo:
        found, where = todo.pop()
        if isinstance(found, str):
            if _UNFIT.search(found):
                return where
        elif isinstance(found, Mapping):
            if any(isinstance(key, str) and _UNFIT.search(key) for key in found):
                return where
            todo += [(inner, f"{where}.{key}") for key, inner in found.items()]
        elif isinstance(found, list | tuple):
            todo += [(inner, f"{where}.{n}") for n, inner in enumerate(found)]
    return None


def _check_text(param: str, text: str) -> None:
    if _UNFIT.search(text):
        raise InvalidSubmit("job.invalid", param, _UNFIT_SAID)


def _check_time(run_at: datetime) -> None:
    if run_at.tzinfo is None:
        raise InvalidSubmit("job.invalid", "run_at", "must carry a time zone, for example 2026-01-31T08:00:00Z")
    if run_at > datetime.now(UTC) + MAX_AHEAD:
        raise InvalidSubmit("job.invalid", "run_at", f"must be within {MAX_AHEAD.days} days from now")


def _check_key(param: str, key: str) -> None:
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidSubmit("job.invalid", param, f"must have 1 to {MAX_KEY} characters")
    _check_text(param, key)


def _check_unique(job: NewJob, unique: Unique) -> None:
    _check_key("unique_key", unique.key)
    if not unique.statuses:
        raise InvalidSubmit("job.invalid", "unique_states", "must name a status at least")
    if unique.period is not None and not 0 < unique.period <= MAX_AHEAD.total_seconds():
        raise InvalidSubmit("job.invalid", "unique_period", f"must be above 0 and at most {MAX_AHEAD.days} days")
    if unique.on_conflict not in _ON_CONFLICT:
        raise InvalidSubmit("job.invalid", "unique_conflict", "must be reject or return")
    if unique.on_conflict == "return" and job.batch_id is not None:
        raise InvalidSubmit(
            "job.invalid", "unique_key", "a batch counts its own jobs, so an earlier job cannot stand for one of them"
        )


def _check_parents(job: NewJob) -> None:
    parents = [edge.parent_id for edge in job.parents]
    if job.id in parents:
        raise InvalidSubmit("job.dependency_cycle", "depends_on", "a job cannot wait for itself")
    if len(set(parents)) < len(parents):
        raise InvalidSubmit("job.invalid", "depends_on", "names the same job twice")
    if any(edge.on_failure not in _ON_FAILURE for edge in job.parents):
        raise InvalidSubmit("job.invalid", "on_failure", "must be fail, cancel or run")
