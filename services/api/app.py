"""The gateway's application: one table of routes, and the middleware around them."""

from __future__ import annotations

import re
import time
import uuid
from functools import partial
from typing import Any

import falcon
import falcon.asgi
import orjson
import structlog

from shared.settings import Settings
from shared.telemetry import metrics

from . import errors
from .auth import Authenticator
from .deadline import BodyWatch, refuse
from .deps import Deps
from .errors import Problem
from .resources.batches import Batch
from .resources.gradings import Grading, Gradings
from .resources.health import Healthz, Readyz
from .resources.job_events import JobEvents
from .resources.job_insight import JobAttempts, JobStats, JobWhy, Queues
from .resources.jobs import Job, JobCancel, JobResult, Jobs
from .resources.standards import Standard, Standards
from .resources.submissions import Document, Submission, Submissions
from .resources.uploads import Uploads

__all__ = ["ROUTES", "create_app"]

UPLOADS_PATH = "/api/v1/uploads"

# Every route of the gateway. A resource takes Deps, save those that need nothing.
ROUTES: tuple[tuple[str, Any], ...] = (
    ("/healthz", Healthz),
    ("/readyz", Readyz),
    (UPLOADS_PATH, Uploads),
    ("/api/v1/documents/{document_id}", Document),
    ("/api/v1/submissions", Submissions),
    ("/api/v1/submissions/{submission_id}", Submission),
    ("/api/v1/standards", Standards),
    ("/api/v1/standards/{standard_id}", Standard),
    ("/api/v1/gradings", Gradings),
    ("/api/v1/gradings/{grading_id}", Grading),
    ("/api/v1/jobs", Jobs),
    ("/api/v1/jobs/stats", JobStats),
    ("/api/v1/jobs/{job_id}", Job),
    ("/api/v1/jobs/{job_id}/result", JobResult),
    ("/api/v1/jobs/{job_id}/events", JobEvents),
    ("/api/v1/jobs/{job_id}/cancel", JobCancel),
    ("/api/v1/jobs/{job_id}/why", JobWhy),
    ("/api/v1/jobs/{job_id}/attempts", JobAttempts),
    ("/api/v1/queues", Queues),
    ("/api/v1/batches/{batch_id}", Batch),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}")
_log = structlog.get_logger(__name__)


class RequestScope:
    """A request id on every answer and log line, and the request's figures."""

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        given = req.get_header("X-Request-Id")
        req.context.request_id = given if given and _REQUEST_ID.fullmatch(given) else new_request_id()
        req.context.began = time.perf_counter()
        resp.set_header("X-Request-Id", req.context.request_id)
        resp.set_header("X-Content-Type-Options", "nosniff")
        if "%00" in req.query_string:
            # PostgreSQL has no text with NUL in it, so no parameter can mean anything by one.
            raise Problem(400, "request.malformed", "The address holds a NUL character (%00).")

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: Any, req_succeeded: bool
    ) -> None:
        began = getattr(req.context, "began", None)
        if began is None:
            return
        seconds = time.perf_counter() - began
        route = req.uri_template or "none"
        # Any token can be a method: unknown ones must not each become a time series.
        method = req.method if req.method in falcon.HTTP_METHODS else "other"
        metrics.HTTP_REQUESTS.labels(method, route, str(resp.status_code)).inc()
        if resp.sse is None:
            metrics.HTTP_REQUEST_DURATION.labels(method, route).observe(seconds)
        if route not in ("/healthz", "/readyz"):
            _log.info(
                "request.done",
                request_id=req.context.request_id,
                method=method,
                route=route,
                status=resp.status_code,
                seconds=round(seconds, 4),
            )


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


class Gateway(falcon.asgi.App[Any, Any]):
    """Falcon's application with a deadline on every request's body (``deadline``)."""

    def __init__(self, settings: Settings, middleware: Any) -> None:
        super().__init__(middleware=middleware)
        self._settings = settings

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # type: ignore[override]
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        uploading = scope["path"].rstrip("/") == UPLOADS_PATH
        body = BodyWatch(receive, self._settings.upload_seconds if uploading else self._settings.request_seconds)
        began = False

        async def tell(event: Any) -> None:
            nonlocal began
            began = True
            await send(event)

        try:
            await super().__call__(scope, body.receive, tell)
        except Problem as late:  # raised by ``body`` before Falcon had a request, or under a stream
            if not began:
                await refuse(send, late, new_request_id())
        await body.linger()


def create_app(settings: Settings, deps: Deps | None = None) -> Gateway:
    """The ASGI application. Opens nothing until the server's lifespan starts.

    Every request is answered by JSON, by a stream, or by a problem document, with its X-Request-Id.
    Raises ValueError when a route's responder declares no scope: such a route must not exist.
    """
    deps = deps or Deps.of(settings)
    middleware: Any = [RequestScope(), deps, Authenticator(lambda: deps.pool)]
    app = Gateway(settings, middleware)
    app.req_options.strip_url_path_trailing_slash = True
    # A comma in a query value is part of the value, save where a list is asked for.
    app.req_options.auto_parse_qs_csv = False
    multipart = falcon.media.MultipartFormHandler()
    multipart.parse_options.max_body_part_count = settings.max_files + 32
    app.req_options.media_handlers[falcon.MEDIA_MULTIPART] = multipart
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = falcon.media.JSONHandler(
        dumps=partial(orjson.dumps, option=orjson.OPT_UTC_Z), loads=orjson.loads
    )
    errors.install(app, deps.heal)
    for path, resource_class in ROUTES:
        resource = resource_class() if resource_class is Healthz else resource_class(deps)
        for method in falcon.HTTP_METHODS:
            responder = getattr(resource, f"on_{method.lower()}", None)
            if responder is not None and not hasattr(responder, "required_scope"):
                raise ValueError(f"{method} {path} declares no scope; mark it with @requires")
        app.add_route(path, resource)
    return app
