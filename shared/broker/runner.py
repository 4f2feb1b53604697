"""The one runner of every worker: a service is its handlers and a ``main`` that calls ``run_worker``."""

from __future__ import annotations

import importlib
import logging as stdlib_logging
import os
import pkgutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import dramatiq
import structlog
from dramatiq.worker import Worker

from shared import ids
from shared.db import open_pool
from shared.db.pools import connect
from shared.jobs import ClaimedJob, Handler, Priority, WorkerStopping
from shared.jobs.store import WorkerIdentity
from shared.settings import Settings
from shared.shutdown import StopSignals
from shared.storage import Storage, from_settings
from shared.telemetry import health, logging, metrics, sentry

from .claimer import Claimer
from .factory import WakeBroker, actor_name, make_redis, run_actor_name
from .heartbeat import Heartbeat
from .middleware import Claim, Retries, TimeLimit
from .middleware.retries import judge
from .publisher import Publisher
from .run import Run, RunRegistry, current_run
from .settlement import Settlement

__all__ = ["WorkerDeps", "WorkerProcess", "discover", "run_worker"]

_log = structlog.get_logger(__name__)
# How often an idle thread looks up from its rest: the most that stopping waits for one.
_IDLE_MILLISECONDS = 1000
# After the grace period, for handlers to stop and their jobs to be handed back.
_RELEASE_SECONDS = 5.0


@dataclass(slots=True)
class WorkerDeps:
    """What a job type's ``build(deps)`` may use. ``on_close`` functions run when the process stops."""

    settings: Settings
    storage: Storage
    closers: list[Callable[[], None]] = field(default_factory=list)

    def on_close(self, close: Callable[[], None]) -> None:
        self.closers.append(close)


def discover(package: ModuleType, deps: WorkerDeps) -> dict[str, Handler[Any, Any]]:
    """The handlers of a service: every sub-package that has ``build(deps) -> Handler``, by job type name and alias."""
    handlers: dict[str, Handler[Any, Any]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.ispkg:
            continue
        build = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "build", None)
        if build is not None:
            handler: Handler[Any, Any] = build(deps)
            for name in (handler.job_type.name, *handler.job_type.aliases):
                handlers[name] = handler
    return handlers


class WorkerProcess:
    """One worker process: Dramatiq threads for the queues of its handlers, heartbeat, health port, and drain."""

    def __init__(
        self,
        service: str,
        handlers: Mapping[str, Handler[Any, Any]],
        deps: WorkerDeps,
        *,
        concurrency: int | None = None,
    ) -> None:
        settings = deps.settings
        queues = sorted({h.job_type.queue for h in handlers.values()})
        if len(queues) != 1:
            raise ValueError(f"{service} must serve exactly one queue, not {queues}")
        self.queue = queues[0]
        self.service = service
        self._settings = settings
        self._deps = deps
        self._handlers = handlers
        self._concurrency = concurrency or settings.worker_concurrency
        self.runs = RunRegistry()
        self.identity = WorkerIdentity(
            ids.new_uuid(), self.queue, socket.gethostname(), os.getpid(), self._concurrency, tuple(sorted(handlers))
        )
        url = settings.database_url.get_secret_value()
        self._pool = open_pool(url, size=self._concurrency + 1, application_name=f"gradeline-{service}")
        client = make_redis(settings.redis_url.get_secret_value())
        self.broker = WakeBroker(client)
        self.publisher = Publisher(self.broker)
        self._time_limit = TimeLimit()
        self.claimer = Claimer(
            worker=self.identity,
            pool=self._pool,
            runs=self.runs,
            lease_seconds=settings.lease_seconds,
            start_rate=settings.worker_start_rate,
            make_run=self._make_run,
            give_back=lambda runs: self._claim.end_unbegun(runs, WorkerStopping()),
        )
        self.broker.claimer = self.claimer
        settlement = Settlement(
            self._pool, self.identity.id, self.publisher, self.runs, judge, lambda: self.claimer.limited
        )
        self._claim = Claim(runs=self.runs, settlement=settlement, replace_thread=self._replace_thread)
        for middleware in (self._claim, self._time_limit, Retries()):
            self.broker.add_middleware(middleware)
        dramatiq.set_broker(self.broker)
        # Wake-ups name the first; what the worker threads are handed is one of the others.
        dramatiq.actor(actor_name=actor_name(self.queue), queue_name=self.queue, broker=self.broker)(_run_current)
        for priority in Priority:
            dramatiq.actor(
                actor_name=run_actor_name(self.queue, priority),
                queue_name=self.queue,
                priority=int(priority),
                broker=self.broker,
            )(_run_current)
        self.heartbeat = Heartbeat(
            lambda: connect(url, f"gradeline-{service}-heartbeat"),
            self.identity,
            self.runs,
            self.publisher,
            every=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
        )
        self._worker = Worker(self.broker, worker_timeout=_IDLE_MILLISECONDS, worker_threads=self._concurrency)
        # Dramatiq warns of what was withdrawn when the process began to drain.
        stdlib_logging.getLogger("dramatiq.worker.WorkerThread").setLevel(stdlib_logging.ERROR)
        self._health: health.HealthServer | None = None
        self._started_at = time.monotonic()

    def start(self) -> None:
        self.publisher.start()
        self.heartbeat.start()
        self._worker.start()
        if self._settings.health_port is not None:
            self._health = health.HealthServer(
                self._settings.health_host,
                self._settings.health_port,
                {"postgres": self._postgres_problem, "redis": self._redis_problem},
                live={"heartbeat": self._heartbeat_problem, "threads": self._thread_problem},
                stats=self.stats,
            )
            self._health.start()
        _log.info("worker.started", service=self.service, queue=self.queue, concurrency=self._concurrency)

    def stop(self, grace: float | None = None) -> None:
        """Drain: claim nothing more, give running jobs ``grace`` seconds, then hand the rest back."""
        grace = self._settings.shutdown_grace_seconds if grace is None else grace
        self.runs.drain()
        self.broker.draining.set()
        _log.info("worker.draining", service=self.service, running=len(self.runs.all()))
        self.runs.freed.set()
        self._claim.withdraw_all()
        if not self._wait_idle(grace):
            # Those that do not stop are given up after STUCK_SECONDS, and released all the same.
            deadline = time.monotonic() + _RELEASE_SECONDS
            while not self.runs.wait_idle(0.1) and time.monotonic() < deadline:
                self._claim.withdraw_all()  # a claim that was under way may have brought more
                for run in self.runs.all():
                    run.interrupt(WorkerStopping())
        for consumer in self._worker.consumers.values():
            consumer.stop()  # at the same time as the worker threads, not after them
        self._worker.stop(timeout=2000)
        self.heartbeat.stop()
        self.publisher.close()
        for close in self._deps.closers:
            try:
                close()
            except Exception as e:
                _log.warning("worker.close_failed", error=type(e).__name__)
        if self._health is not None:
            self._health.close()
        self._pool.close(timeout=2)
        _log.info("worker.stopped", service=self.service)

    def _wait_idle(self, seconds: float) -> bool:
        """As RunRegistry.wait_idle; what a claim that was under way still brings is given back at once."""
        deadline = time.monotonic() + seconds
        while not self.runs.wait_idle(min(0.2, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                return False
            self._claim.withdraw_all()
        return True

    def serve(self) -> None:
        """Start, run until SIGTERM or SIGINT, drain. A second signal ends the grace period."""
        signals = StopSignals()
        self.start()
        signals.wait()
        threading.Thread(target=self._hurry, args=(signals,), name="hurry", daemon=True).start()
        self.stop()

    def _hurry(self, signals: StopSignals) -> None:
        signals.wait()
        for run in self.runs.all():
            run.interrupt(WorkerStopping())

    def _make_run(self, job: ClaimedJob, asked_at: float) -> Run:
        metrics.JOBS_CLAIMED.labels(job.queue, job.type).inc()
        metrics.JOB_WAIT.labels(job.queue, job.type).observe(max(0.0, (job.started_at - job.run_at).total_seconds()))
        self.publisher.look([job.id])
        return Run(
            job,
            self._handlers.get(job.type),
            worker_id=self.identity.id,
            pool=self._pool,
            publisher=self.publisher,
            lease_seconds=self._settings.lease_seconds,
            asked_at=asked_at,
            on_stuck=self._claim.give_up,
            on_withdrawn=lambda run, reason: self._claim.end_unbegun([run], reason),
        )

    def _replace_thread(self) -> None:
        """A worker thread is stuck in a handler that does not stop: another takes its place."""
        if not self.runs.draining:
            # The stuck one may hold a session, and for as long: its successor shall not be short of one.
            self._pool.resize(self._pool.min_size, self._concurrency + 1 + max(0, self.runs.stuck))
            self._worker._add_worker()

    # -- health

    def stats(self) -> dict[str, Any]:
        """What the health port shows of this process."""
        return {
            "service": self.service,
            "queue": self.queue,
            "worker_id": str(self.identity.id),
            "pid": self.identity.pid,
            "concurrency": self._concurrency,
            "start_rate": self._settings.worker_start_rate,
            "running": len(self.runs.all()),
            "ended": dict(self.runs.counts),
            "draining": self.runs.draining,
            "stuck": self.runs.stuck,
            "uptime_seconds": round(time.monotonic() - self._started_at, 1),
            "heartbeat_age_seconds": round(self.heartbeat.age, 2),
            "job_types": sorted(self._handlers),
        }

    def _heartbeat_problem(self) -> str | None:
        return None if self.heartbeat.alive else "the heartbeat thread is dead"

    def _thread_problem(self) -> str | None:
        if self.runs.draining:
            return None
        dead = [f"consumer {n}" for n, c in self._worker.consumers.items() if not c.is_alive()]
        # One that was stuck and has been replaced ends with ``running`` false, when it comes round at last.
        dead += [f"worker thread {i}" for i, t in enumerate(self._worker.workers) if t.running and not t.is_alive()]
        if not self.publisher.alive:
            dead.append("publisher")
        if not self._time_limit.alive:
            dead.append("time limit")
        if dead:
            return f"dead: {', '.join(dead)}"
        if self.runs.stuck > self._concurrency:
            return f"{self.runs.stuck} threads are stuck in handlers that do not stop"
        return None

    def _postgres_problem(self) -> str | None:
        # By the heartbeat's own success, so that a probe costs no query.
        late = self.heartbeat.age > max(5.0, 3 * self._settings.heartbeat_seconds)
        return f"no heartbeat reached Postgres for {self.heartbeat.age:.0f} s" if late else None

    def _redis_problem(self) -> str | None:
        try:
            self.broker.client.ping()
        except Exception as e:
            return type(e).__name__
        return None


def run_worker(service: str, package: ModuleType, *, concurrency: int | None = None) -> None:
    """The whole of a worker's ``main``: settings, telemetry, the handlers found in ``package``, and serving them."""
    settings = Settings()
    logging.configure(settings, service)
    sentry.init(settings, service)
    deps = WorkerDeps(settings, from_settings(settings))
    WorkerProcess(service, discover(package, deps), deps, concurrency=concurrency).serve()


def _run_current() -> None:
    """The actor of every queue. What runs is what Claim claimed, whatever the message named."""
    run = current_run()
    if run is not None:  # else Claim did not get as far as a job, and Dramatiq ran us all the same
        run.execute()
