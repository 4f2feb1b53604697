"""The scheduler: maintenance on a beat, by APScheduler. Stateless; run as many replicas as you like."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from services.scheduler.exporter import QueueFigures
from services.scheduler.maintenance import rescue, rewake
from services.scheduler.pruner import Pruner
from shared.broker import Publisher, WakeBroker, make_redis
from shared.db import open_pool
from shared.settings import Settings
from shared.shutdown import StopSignals
from shared.storage import from_settings
from shared.telemetry import health, logging, sentry

_log = structlog.get_logger(__name__)
# A beat that has not come round for this long, beyond its interval, means a dead scheduler thread.
_STALE_SECONDS = 30.0


class Scheduler:
    """Runs each duty at its interval, one run of it at a time; a duty that fails is tried again at its next beat."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = open_pool(settings.database_url.get_secret_value(), size=4, application_name="gradeline-scheduler")
        self._redis = make_redis(settings.redis_url.get_secret_value())
        self._publisher = Publisher(WakeBroker(self._redis))
        self._figures = QueueFigures(self._pool)
        self._pruner = Pruner(self._pool, from_settings(settings), settings)
        self._apscheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(6)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        self._done_at: dict[str, float] = {}  # when each duty last succeeded
        self._beats: dict[str, float] = {}  # when each duty last began
        self._stale: dict[str, float] = {}  # seconds after which either is too long ago
        self._health: health.HealthServer | None = None

    def start(self) -> None:
        self._publisher.start()
        s = self._settings
        self._every("rescue", s.rescue_seconds, lambda: rescue(self._pool, self._publisher))
        self._every("rewake", s.rewake_seconds, lambda: rewake(self._pool, self._publisher, self._redis))
        self._every("figures", 5.0, self._figures.collect)
        self._every("prune", s.prune_seconds, self._pruner.prune)
        self._apscheduler.start()
        if s.health_port is not None:
            self._health = health.HealthServer(
                s.health_host,
                s.health_port,
                {"duties": self._duties_problem},
                live={"beat": self._beat_problem},
                stats=self.stats,
            )
            self._health.start()
        _log.info("scheduler.started")

    def stop(self) -> None:
        # A duty that waits for Postgres is not waited for: closing the pool ends it.
        self._apscheduler.shutdown(wait=False)
        self._publisher.close()
        if self._health is not None:
            self._health.close()
        self._pool.close(timeout=2)
        _log.info("scheduler.stopped")

    def stats(self) -> dict[str, Any]:
        now = time.monotonic()
        return {"service": "scheduler", "duties": {n: round(now - at, 2) for n, at in self._done_at.items()}}

    def _every(self, name: str, seconds: float, duty: Callable[[], Any]) -> None:
        self._done_at[name] = self._beats[name] = time.monotonic()
        self._stale[name] = _STALE_SECONDS + seconds

        def run() -> None:
            self._beats[name] = time.monotonic()
            try:
                duty()
            except Exception as e:
                _log.warning("duty.failed", duty=name, error=type(e).__name__)
            else:
                self._done_at[name] = time.monotonic()

        self._apscheduler.add_job(run, "interval", seconds=seconds, id=name, jitter=min(1.0, seconds / 10))

    def _beat_problem(self) -> str | None:
        """Liveness: do the duties still get their turn, whether or not they succeed?"""
        late = [n for n, at in self._beats.items() if time.monotonic() - at > self._stale[n]]
        return f"no beat: {', '.join(sorted(late))}" if late else None

    def _duties_problem(self) -> str | None:
        late = [n for n, at in self._done_at.items() if time.monotonic() - at > self._stale[n]]
        return f"not done for over {_STALE_SECONDS:.0f} s: {', '.join(sorted(late))}" if late else None


def main() -> None:
    settings = Settings()
    logging.configure(settings, "scheduler")
    sentry.init(settings, "scheduler")
    scheduler = Scheduler(settings)
    signals = StopSignals()
    scheduler.start()
    signals.wait()
    scheduler.stop()
