"""Problems (RFC 9457): the one place that turns errors into answers. Codes are stable and listed in docs/errors.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon
import falcon.asgi
import orjson
import psycopg
import structlog
from psycopg_pool import PoolTimeout
from pydantic import ValidationError

from shared.ids import InvalidId
from shared.jobs import InvalidSubmit
from shared.storage import StorageUnavailable
from shared.telemetry import sentry

from .wording import field_errors, sentence

__all__ = ["Problem", "install", "not_found", "problem_body"]

_log = structlog.get_logger(__name__)


class Problem(falcon.HTTPError):
    """An answer that is a problem document. ``param`` names the field at fault, ``errors`` each of several."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            falcon.code_to_http_status(status), title=_TITLES.get(status), description=detail, headers=headers
        )
        self.problem = {
            "type": "about:blank",
            "title": _TITLES.get(status) or falcon.code_to_http_status(status)[4:],
            "status": status,
            "code": code,
            "detail": detail,
        }
        if param is not None:
            self.problem["param"] = param
        if errors:
            self.problem["errors"] = errors


_TITLES = {
    400: "The request cannot be read",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Cannot be answered in that form",
    408: "Too slow",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported type",
    422: "The request cannot be accepted",
    429: "Too many requests",
    500: "Something went wrong on our side",
    503: "Try again shortly",
}

# Codes for errors that Falcon raises by itself.
_FALCON_CODES = {
    400: "request.malformed",
    401: "auth.required",
    403: "auth.forbidden",
    404: "not_found",
    405: "request.method_not_allowed",
    406: "request.not_acceptable",
    408: "request.timeout",
    411: "request.length_required",
    413: "request.too_large",
    414: "request.uri_too_long",
    415: "request.unsupported_type",
    416: "request.range_not_satisfiable",
    422: "request.invalid",
    429: "rate_limit.exceeded",
    431: "request.headers_too_large",
}

# What Falcon's own errors say to people.
_FALCON_DETAILS = {
    404: "There is nothing at this address. The API is under /api/v1.",
    405: "This address does not take that method; the Allow header lists those it takes.",
}


def not_found(what: str, param: str | None = None) -> Problem:
    """The same for an object of another tenant as for one that never was."""
    return Problem(404, "not_found", f"There is no {what} with that id that you may see.", param=param)


def validation_problem(e: ValidationError) -> Problem:
    """A pydantic error as a problem that names every field; never the values, which may be student work."""
    errors = field_errors(e)
    first = errors[0]
    if first["code"] == "json_invalid":
        # Its text is a place in the body ("… at line 1 column 5") and holds none of it.
        return Problem(400, "request.malformed", f"The body is not valid JSON in UTF-8 ({first['detail']}).")
    return Problem(
        422, "request.invalid", sentence(first["param"], first["detail"]), param=first["param"] or None, errors=errors
    )


def problem_body(problem: dict[str, Any], request_id: str | None) -> bytes:
    """The body of a problem answer (media type application/problem+json)."""
    return orjson.dumps({**problem, "request_id": request_id})


async def _serialize(req: falcon.asgi.Request, resp: falcon.asgi.Response, problem: dict[str, Any]) -> None:
    resp.status = falcon.code_to_http_status(problem["status"])
    resp.content_type = "application/problem+json"
    resp.data = problem_body(problem, getattr(req.context, "request_id", None))


async def _on_http_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any], **_: Any
) -> None:
    if isinstance(error, Problem):
        problem = dict(error.problem)
    else:
        status = error.status_code
        problem = Problem(
            status,
            _FALCON_CODES.get(status, "request.invalid"),
            _FALCON_DETAILS.get(status) or error.description or error.title or "The request failed.",
        ).problem
    if error.headers is not None:
        resp.set_headers(error.headers)
    await _serialize(req, resp, problem)


async def _on_validation(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: ValidationError, params: dict[str, Any], **_: Any
) -> None:
    await _serialize(req, resp, validation_problem(error).problem)


async def _on_submit(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: InvalidSubmit, params: dict[str, Any], **_: Any
) -> None:
    await _serialize(req, resp, Problem(422, error.code, f"{error.param}: {error.message}", param=error.param).problem)


async def _on_id(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: InvalidId, params: dict[str, Any], **_: Any
) -> None:
    await _serialize(req, resp, Problem(404, "not_found", f"There is nothing with that id: {error}.").problem)


async def _on_down(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: BaseException, params: dict[str, Any], **_: Any
) -> None:
    _log.warning("request.backend_down", error=type(error).__name__)
    resp.set_header("Retry-After", "2")
    await _serialize(
        req,
        resp,
        Problem(503, "service.unavailable", "A part of the service is restarting. Try again in a moment.").problem,
    )


async def _on_surprise(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any], **_: Any
) -> None:
    _log.error("request.failed", exc_info=error)
    sentry.capture(error, request_id=getattr(req.context, "request_id", None))
    await _serialize(
        req,
        resp,
        Problem(500, "internal", "Something went wrong on our side. Quote the request id to support.").problem,
    )


def install(app: falcon.asgi.App[Any, Any], database_down: Callable[[], None]) -> None:
    """Register every handler. ``database_down`` is called where PostgreSQL could not be asked."""

    async def on_database_down(
        req: falcon.asgi.Request, resp: falcon.asgi.Response, error: BaseException, params: dict[str, Any], **_: Any
    ) -> None:
        database_down()
        await _on_down(req, resp, error, params)

    # Later ones win in Falcon, so the most general come first.
    app.add_error_handler(Exception, _on_surprise)
    app.add_error_handler(StorageUnavailable, _on_down)
    for down in (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout):
        app.add_error_handler(down, on_database_down)
    app.add_error_handler(InvalidId, _on_id)
    app.add_error_handler(InvalidSubmit, _on_submit)
    app.add_error_handler(ValidationError, _on_validation)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
