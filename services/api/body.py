"""Reading request bodies: bounded, strict, and with errors that name the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import falcon.asgi
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.ids import IdKind, InvalidId, decode

from .errors import Problem

__all__ = ["EmailAddress", "Metadata", "RequestBody", "StandardId", "SubmissionId", "WebhookUrl", "read_body"]

# A standard of 300 questions fits ten times over.
MAX_BODY_BYTES = 2 * 1024 * 1024

M = TypeVar("M", bound=BaseModel)


class RequestBody(BaseModel):
    """Base of request models: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


async def read_body(req: falcon.asgi.Request, model: type[M]) -> M:
    """The JSON body as ``model``. Raises Problem 413/415 and pydantic.ValidationError (answered as 400 or 422)."""
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
    return model.model_validate_json(bytes(body))


def _too_large() -> Problem:
    return Problem(413, "request.too_large", f"The body may have at most {MAX_BODY_BYTES} bytes.")


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


_EMAIL = re.compile(r"[^@\s\x00-\x1f<>,;:\"]{1,64}@[^@\s\x00-\x1f<>,;:\"]{1,255}")


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(text):
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


# What an address may be reached at is judged at delivery, when its name is resolved.
WebhookUrl = Annotated[str, Field(max_length=2048), AfterValidator(_webhook)]
EmailAddress = Annotated[str, Field(max_length=320), AfterValidator(_email)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], str | int | float | bool | None], Field(max_length=50)]
