"""Metric names are stable, well-formed, and never labelled by an id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from shared.telemetry import metrics

ROOT = Path(__file__).parents[3]
ALL = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]


def test_dashboards_names_are_all_there() -> None:
    families = {f.name for f in text_string_to_metric_families(metrics.render().decode())}
    wanted = """gradeline_jobs_claimed gradeline_jobs_finished gradeline_job_duration_seconds
        gradeline_job_wait_seconds gradeline_wakeups gradeline_lease_lost gradeline_http_requests
        gradeline_http_request_duration_seconds gradeline_heartbeat_age_seconds gradeline_publish_failures
        gradeline_uploads_bytes"""
    assert set(wanted.split()) <= families  # the parser strips _total


def test_every_metric_is_exported_prefixed_and_labelled_from_the_list() -> None:
    assert len(ALL) == len([n for n in metrics.__all__ if n.isupper() and n != "CONTENT_TYPE"])
    allowed = {"queue", "job_type", "outcome", "method", "route", "status", "channel"}
    for metric in ALL:
        assert metric._name.startswith("gradeline_")
        assert set(metric._labelnames) <= allowed, metric._name


def test_counters_count() -> None:
    metrics.JOBS_FINISHED.labels("ocr", "ocr.document", "completed").inc()
    assert b'gradeline_jobs_finished_total{job_type="ocr.document",outcome="completed",queue="ocr"} 1.0' in (
        metrics.render()
    )


def test_several_processes_are_summed(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    code = (
        "from shared.telemetry import metrics as m; m.WAKEUPS.labels('ocr', 'claimed').inc(2)\n"
        "m.HEARTBEAT_AGE.set(1.5); print(m.render().decode())"
    )
    for _ in range(2):
        out = subprocess.run(
            [sys.executable, "-c", code], check=True, env=env, cwd=ROOT, timeout=60, capture_output=True, text=True
        )
    assert 'gradeline_wakeups_total{outcome="claimed",queue="ocr"} 4.0' in out.stdout
