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
from .deps import Deps
from .resources.batches import Batch
from .resources.gradings import Grading, Gradings
from .resources.health import Healthz, Readyz
from .resources.job_events import JobEvents
from .resources.jobs import Job, JobCancel, JobResult, Jobs
from .resources.standards import Standard, Standards
from .resources.submissions import Document, Submission, Submissions
from .resources.uploads import Uploads

__all__ = ["ROUTES", "create_app"]

# Every route of the gateway. A resource takes Deps, save those that need nothing.
ROUTES: tuple[tuple[str, Any], ...] = (
    ("/healthz", Healthz),
    ("/readyz", Readyz),
    ("/api/v1/uploads", Uploads),
    ("/api/v1/documents/{document_id}", Document),
    ("/api/v1/submissions", Submissions),
    ("/api/v1/submissions/{submission_id}", Submission),
    ("/api/v1/standards", Standards),
    ("/api/v1/standards/{standard_id}", Standard),
    ("/api/v1/gradings", Gradings),
    ("/api/v1/gradings/{grading_id}", Grading),
    ("/api/v1/jobs", Jobs),
    ("/api/v1/jobs/{job_id}", Job),
    ("/api/v1/jobs/{job_id}/result", JobResult),
    ("/api/v1/jobs/{job_id}/events", JobEvents),
    ("/api/v1/jobs/{job_id}/cancel", JobCancel),
    ("/api/v1/batches/{batch_id}", Batch),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}")
_log = structlog.get_logger(__name__)


class RequestScope:
    """A request id on every answer and log line, and the request's figures."""

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        given = req.get_header("X-Request-Id")
        req.context.request_id = given if given and _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        req.context.began = time.perf_counter()
        resp.set_header("X-Request-Id", req.context.request_id)
        resp.set_header("X-Content-Type-Options", "nosniff")

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: Any, req_succeeded: bool
    ) -> None:
        began = getattr(req.context, "began", None)
        if began is None:
            return
        seconds = time.perf_counter() - began
        route = req.uri_template or "none"
        metrics.HTTP_REQUESTS.labels(req.method, route, str(resp.status_code)).inc()
        if resp.sse is None:
            metrics.HTTP_REQUEST_DURATION.labels(req.method, route).observe(seconds)
        if route not in ("/healthz", "/readyz"):
            _log.info(
                "request.done",
                request_id=req.context.request_id,
                method=req.method,
                route=route,
                status=resp.status_code,
                seconds=round(seconds, 4),
            )


def create_app(settings: Settings, deps: Deps | None = None) -> falcon.asgi.App[Any, Any]:
    """The ASGI application. Opens nothing until the server's lifespan starts.

    Raises ValueError when a route's responder declares no scope: such a route must not exist.
    """
    deps = deps or Deps.of(settings)
    middleware: Any = [RequestScope(), deps, Authenticator(lambda: deps.pool)]
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App(middleware=middleware)
    app.req_options.strip_url_path_trailing_slash = True
    # A comma in a query value is part of the value, save where a list is asked for.
    app.req_options.auto_parse_qs_csv = True
    multipart = falcon.media.MultipartFormHandler()
    multipart.parse_options.max_body_part_count = settings.max_files + 32
    app.req_options.media_handlers[falcon.MEDIA_MULTIPART] = multipart
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = falcon.media.JSONHandler(
        dumps=partial(orjson.dumps, option=orjson.OPT_UTC_Z), loads=orjson.loads
    )
    errors.install(app)
    for path, resource_class in ROUTES:
        resource = resource_class() if resource_class is Healthz else resource_class(deps)
        for method in falcon.HTTP_METHODS:
            responder = getattr(resource, f"on_{method.lower()}", None)
            if responder is not None and not hasattr(responder, "required_scope"):
                raise ValueError(f"{method} {path} declares no scope; mark it with @requires")
        app.add_route(path, resource)
    return app
