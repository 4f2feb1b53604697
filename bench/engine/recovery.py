"""Recovery: a worker is killed by SIGKILL in the middle of a job. How long until another worker runs that job again?

A second worker is up and idle all the while. All systems are watched at the same time, as they mostly sleep; each for a
bounded time. Ours runs with a real scheduler process, at the local stack's lease settings and at the defaults.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import redis

from bench.engine.ground import Ground, Place
from bench.engine.processes import running
from bench.engine.report import Finding, progress
from bench.engine.systems.base import System
from bench.engine.systems.celery_peer import CeleryPostgres
from bench.engine.systems.dramatiq_peer import Dramatiq
from bench.engine.systems.ours import Ours
from deploy.local.configuration import Configuration

__all__ = ["measure"]

_MARK = "bench:started"
_START_SECONDS = 30.0
_TARGET_SECONDS = {"local": 10.0, "defaults": 30.0}
# The settings that decide when a lost job is found. What the local stack does not set, it takes from the defaults.
_LEASE_FIELDS = ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "RESCUE_SECONDS", "REWAKE_SECONDS")


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    system: System
    redis_database: int
    watched: float  # seconds, at most
    scheduler: bool = False
    environment: Mapping[str, str] | None = None
    target: float | None = None


def measure(ground: Ground, *, watched: float) -> list[Finding]:
    """Seconds from the kill to the second start; peers are given up after ``watched`` seconds, ours after 60."""
    local = _local_settings()
    cases = [
        _Case("ours, local stack's settings", Ours(3), 0, 60, True, local, _TARGET_SECONDS["local"]),
        _Case("ours, default settings", Ours(3), 1, 60, True, None, _TARGET_SECONDS["defaults"]),
        _Case("Dramatiq, defaults", Dramatiq(), 2, watched),
        _Case("Celery, defaults", CeleryPostgres(1), 3, watched),
    ]
    with ExitStack() as stack:
        # One after the other: making a schema's template is not for two at once.
        places = [stack.enter_context(ground.fresh(c.system, redis_database=c.redis_database)) for c in cases]
        with ThreadPoolExecutor(len(cases)) as pool:
            pending = [pool.submit(_watch, ground, case, place) for case, place in zip(cases, places, strict=True)]
            found = [each.result() for each in pending]
    findings = []
    for case, seconds in zip(cases, found, strict=True):
        if case.target is not None and seconds is not None:
            findings.append(Finding.below("recovery", case.name, seconds, "s", case.target))
        else:
            detail = f"watched for {case.watched:.0f} s"
            met = None if case.target is None else False
            target = "" if case.target is None else f"< {case.target:g}"
            findings.append(Finding("recovery", case.name, seconds, "s", target, met, detail))
    return findings


def _watch(ground: Ground, case: _Case, place: Place) -> float | None:
    system = case.system
    environment = place.environment(**system.environment(), **(case.environment or {}))
    log = ground.folder / f"recovery-{case.redis_database}.log"
    with ExitStack() as stack:
        marks = stack.enter_context(redis.Redis.from_url(place.redis_url))
        if case.scheduler:
            command = [sys.executable, "-m", "services.scheduler"]
            stack.enter_context(running([command], environment, log))
        first = stack.enter_context(running(system.commands(1)[:1], environment, log))
        client = stack.enter_context(system.client(place))
        client.hold(_MARK)
        if _started(marks, 1, _START_SECONDS) is None:
            raise RuntimeError(f"{case.name}: the job did not start:\n{log.read_text(errors='replace')[-2000:]}")
        second = stack.enter_context(running(system.commands(1)[-1:], environment, log))
        second.settle()
        killed_at = time.time()
        first.kill()
        again = _started(marks, 2, case.watched)
        second.kill()  # its job would hold up an orderly stop
    seconds = None if again is None else again - killed_at
    progress(f"{case.name:<30} {'never' if seconds is None else f'{seconds:.1f} s'}")
    return seconds


def _started(marks: redis.Redis, count: int, within: float) -> float | None:
    """When the job started for the ``count``-th time, or None if it does not within ``within`` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if marks.llen(_MARK) >= count:
            return float(marks.lindex(_MARK, count - 1))
        time.sleep(0.05)
    return None


def _local_settings() -> dict[str, str]:
    configuration = Configuration.read({"SECRET_KEY": "not used"})
    environment = configuration.for_services(database_url="", redis_url="", smtp_url="")
    return {name: value for name, value in environment.items() if name in _LEASE_FIELDS}
