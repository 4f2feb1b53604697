"""Reading request bodies: bounded, strict, and with errors that name the field."""

from __future__ import annotations

import asyncio
import json
import math
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import falcon.asgi
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.ids import IdKind, InvalidId, decode
from shared.mail_address import is_mail_address

from .errors import Problem
from .wording import MAX_NAME

__all__ = [
    "EmailAddress",
    "Metadata",
    "Name",
    "PriorityName",
    "RequestBody",
    "RunAt",
    "StandardId",
    "StudentId",
    "SubmissionId",
    "WebhookUrl",
    "read_body",
]

# A standard of 300 questions fits ten times over.
MAX_BODY_BYTES = 2 * 1024 * 1024
# Longer bodies are parsed on a thread: a full one takes tens of milliseconds.
_INLINE_BYTES = 64 * 1024
# A job this far away is a mistake; and beyond the year 9999 PostgreSQL's times no longer fit Python's.
_MAX_AHEAD = timedelta(days=366)

M = TypeVar("M", bound=BaseModel)


class RequestBody(BaseModel):
    """Base of request models: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


async def read_body(req: falcon.asgi.Request, model: type[M]) -> M:
    """The JSON body as ``model``. Raises Problem 400/413/415/422, and pydantic.ValidationError (400 or 422).

    Guaranteed of what is returned: no number is infinite or NaN, no object named a field twice, and no text holds
    NUL, which PostgreSQL cannot store.
    """
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "request.unsupported_type", "Send the body as application/json.", param="Content-Type")
    if req.content_length is not None and req.content_length > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in req.stream:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    if len(body) <= _INLINE_BYTES:
        return _parse(model, bytes(body))
    return await asyncio.to_thread(_parse, model, bytes(body))


def _parse(model: type[M], body: bytes) -> M:
    # Pydantic first: it bounds depth and numbers, which json does not.
    value = model.model_validate_json(body)
    json.loads(body, object_pairs_hook=_each_once, parse_int=len, parse_float=len)
    if b"\\u0000" in body:
        _no_nul(json.loads(body, parse_int=len, parse_float=len), "")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _invalid(twice[:MAX_NAME], "is there twice in one object; which one counts?")
    return fields


def _no_nul(value: Any, where: str) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise _invalid(where, "holds a NUL character (\\u0000). Remove it.")
    elif isinstance(value, dict):
        for name, item in value.items():
            _no_nul(name, where)
            _no_nul(item, f"{where}.{name[:MAX_NAME]}" if where else name[:MAX_NAME])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _no_nul(item, f"{where}.{index}")


def _invalid(param: str, text: str) -> Problem:
    return Problem(422, "request.invalid", f"{param} {text}", param=param)


def _too_large() -> Problem:
    return Problem(
        413, "request.too_large", f"The body may have at most {MAX_BODY_BYTES // 1024**2} MB ({MAX_BODY_BYTES} bytes)."
    )


def _is(kind: IdKind) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            decode(kind, text)
        except InvalidId as e:
            raise ValueError(str(e)) from None
        return text

    return check


# Public ids, checked but kept as text; ``ids.decode`` gives the UUID.
StandardId = Annotated[str, AfterValidator(_is(IdKind.STANDARD))]
SubmissionId = Annotated[str, AfterValidator(_is(IdKind.SUBMISSION))]


def _email(text: str) -> str:
    if not is_mail_address(text):
        raise ValueError("must be one e-mail address, for example teacher@school.example")
    return text


def _webhook(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("must be a URL, for example https://app.example/hooks") from None
    if url.scheme not in ("https", "http") or not url.hostname or any(c <= " " for c in text) or port == 0:
        raise ValueError("must be an http(s) URL, for example https://app.example/hooks")
    if url.username or url.password:
        raise ValueError("must not carry a user name or password; deliveries are signed instead")
    return text


# Marks that change the direction of what follows: pasted along unseen, and of no use in a field of one line.
_DIRECTIONS = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))


def _plain(text: str) -> str:
    text = text.translate(_DIRECTIONS).strip()
    if not text:
        raise ValueError("must not be empty")
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        raise ValueError("must be one line of text without control characters")
    return text


def _soon(at: datetime) -> datetime:
    try:
        utc = at.astimezone(UTC)
    except OverflowError:
        utc = None
    if utc is None or utc > datetime.now(UTC) + _MAX_AHEAD:
        raise ValueError("must be within a year from now")
    return utc


def _value(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            if len(value) > 1000:
                raise ValueError("may have at most 1000 characters")
            return value
        case int() | float():
            # What JSON in PostgreSQL and in browsers can hold; whole numbers beyond it would lose digits.
            if not math.isfinite(value) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
                raise ValueError("must be a number of a sane size")
            return value
        case _:
            raise ValueError("must be text, a number, true, false or null")


# What an address may be reached at is judged at delivery, when its name is resolved.
WebhookUrl = Annotated[str, Field(max_length=2048), AfterValidator(_webhook)]
EmailAddress = Annotated[str, Field(max_length=320), AfterValidator(_email)]
# What a person called something: one line, without space around it.
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_plain)]
StudentId = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(_plain)
]
PriorityName = Literal["high", "normal", "low"]
# In UTC, at most a year ahead; times in the past mean now.
RunAt = Annotated[AwareDatetime, AfterValidator(_soon)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[Any, AfterValidator(_value)]],
    Field(max_length=50),
]
