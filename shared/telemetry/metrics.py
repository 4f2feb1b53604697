"""Every metric name of Gradeline, and the exposition. Seconds and bytes; labels never hold an id.

Labels: ``queue``, ``job_type``, ``outcome`` and, of the gateway, ``method``, ``route`` (the template, never the
path) and ``status``. Import costs what prometheus_client costs (about 60 ms) and starts nothing.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = [
    "CONTENT_TYPE",
    "HEARTBEAT_AGE",
    "HTTP_REQUESTS",
    "HTTP_REQUEST_DURATION",
    "CLAIMS",
    "JOBS_ACCEPTED",
    "JOBS_CLAIMED",
    "JOBS_FINISHED",
    "JOBS_RESCUED",
    "JOB_DURATION",
    "JOB_WAIT",
    "LEASE_LOST",
    "NOTIFICATIONS",
    "PUBLISH_FAILURES",
    "QUEUE_DEPTH",
    "QUEUE_OLDEST",
    "UPLOADS_BYTES",
    "UPLOADS_FILES",
    "WAKEUPS",
    "render",
]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# From a no-op job to the hour a reading may take.
_JOB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# -- the gateway
HTTP_REQUESTS = Counter("gradeline_http_requests_total", "Requests answered.", ("method", "route", "status"))
HTTP_REQUEST_DURATION = Histogram(
    "gradeline_http_request_duration_seconds",
    "From the request's head to the answer's end, streams excepted.",
    ("method", "route"),
    buckets=_HTTP_SECONDS,
)
UPLOADS_BYTES = Counter("gradeline_uploads_bytes_total", "Bytes of files accepted.")
UPLOADS_FILES = Counter("gradeline_uploads_files_total", "Files of uploads.", ("outcome",))  # accepted, refused
JOBS_ACCEPTED = Counter("gradeline_jobs_accepted_total", "Jobs committed.", ("queue", "job_type"))
PUBLISH_FAILURES = Counter(
    "gradeline_publish_failures_total", "Wake-ups that Redis did not take; the re-waker sends them later.", ("queue",)
)

# -- workers
WAKEUPS = Counter(
    "gradeline_wakeups_total",
    "Wake-ups: received, undecodable, unknown (actor or queue), lost (acknowledgement); and those a worker made by "
    "itself: polled (Redis away), idle (none for long).",
    ("queue", "outcome"),
)
CLAIMS = Counter("gradeline_claims_total", "Claims by what they gave: claimed, empty, failed.", ("queue", "outcome"))
JOBS_CLAIMED = Counter("gradeline_jobs_claimed_total", "Attempts begun.", ("queue", "job_type"))
JOBS_FINISHED = Counter(
    "gradeline_jobs_finished_total",
    "Attempts ended, by how: completed, failed, retrying, snoozed, released, cancelled, lost.",
    ("queue", "job_type", "outcome"),
)
JOB_DURATION = Histogram(
    "gradeline_job_duration_seconds", "Claim to end of an attempt.", ("queue", "job_type"), buckets=_JOB_SECONDS
)
JOB_WAIT = Histogram("gradeline_job_wait_seconds", "Due to claimed.", ("queue", "job_type"), buckets=_JOB_SECONDS)
LEASE_LOST = Counter("gradeline_lease_lost_total", "Attempts whose lease ran out under them.", ("queue", "job_type"))
HEARTBEAT_AGE = Gauge(
    "gradeline_heartbeat_age_seconds", "Since the last heartbeat that reached Postgres.", multiprocess_mode="livemax"
)
NOTIFICATIONS = Counter(
    "gradeline_notifications_total", "Deliveries tried, by channel and outcome.", ("channel", "outcome")
)

# -- the scheduler (one exporter; take max by (queue) over replicas)
JOBS_RESCUED = Counter(
    "gradeline_jobs_rescued_total", "Jobs whose lease ran out, by outcome: requeued, dead.", ("queue", "outcome")
)
QUEUE_DEPTH = Gauge("gradeline_queue_depth", "Jobs by state: due, later, processing.", ("queue", "outcome"))
QUEUE_OLDEST = Gauge("gradeline_queue_oldest_seconds", "How long the oldest due job has waited.", ("queue",))


def render() -> bytes:
    """All metrics in the Prometheus text format (``CONTENT_TYPE``).

    Where PROMETHEUS_MULTIPROC_DIR is set (several processes behind one port), the sum over its processes.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(REGISTRY)
