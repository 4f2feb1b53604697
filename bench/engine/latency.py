"""Latency: one job at a time, from the submit to the moment a second connection sees it completed.

That connection asks by primary key as fast as it can, for every system that keeps its results in Postgres. Dramatiq's
results are waited for in Redis by its own blocking call. Rounds of the systems alternate. Before a backlog it asks
every half millisecond only, since asking without a pause takes a whole core from those who work on the backlog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median

from bench.engine.ground import Ground
from bench.engine.processes import Workers, running
from bench.engine.report import Finding, percentile, progress
from bench.engine.systems.base import System
from bench.engine.systems.ours import Ours
from shared.jobs import Priority

__all__ = ["measure", "measure_backlog"]

_WARM_UP = 30
_ROUNDS = 3
_PAUSE = 0.002  # between jobs, so that the one before is over for its worker, too
_HANDLER_SECONDS = 0.002
_POLL_SECONDS = 0.0005


def measure(ground: Ground, ours: Ours, peers: Sequence[System], *, jobs: int) -> list[Finding]:
    """``jobs`` jobs of each system, in three alternating rounds; all workers are up all the time, idle in between."""
    systems: list[System] = [ours, *peers]
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    with ExitStack() as stack:
        ready: list[tuple[System, Callable[[], None]]] = []
        for number, system in enumerate(systems):
            place = stack.enter_context(ground.fresh(system, redis_database=number))
            client = stack.enter_context(system.client(place))
            log = ground.folder / f"{system.schema}.log"
            environment = place.environment(**system.environment())
            workers = stack.enter_context(running(system.commands(system.processes), environment, log))
            for _ in range(_WARM_UP):
                client.one()
            workers.settle()
            ready.append((system, client.one))
        for number in range(_ROUNDS):
            for system, one in ready if number % 2 == 0 else reversed(ready):
                times[system.name] += _times(one, jobs // _ROUNDS)
                progress(f"{number + 1} {_summary(system.name, times[system.name])}")
    findings = []
    for system in systems:
        p50, p99 = 1000 * median(times[system.name]), 1000 * percentile(times[system.name], 0.99)
        if system is ours:
            findings.append(Finding.below("latency", f"{system.name}, p50", p50, "ms", 6))
            findings.append(Finding.below("latency", f"{system.name}, p99", p99, "ms", 25))
        else:
            findings.append(Finding("latency", f"{system.name}, p50", p50, "ms", detail=f"p99 {p99:.1f} ms"))
    return findings


def measure_backlog(ground: Ground, ours: Ours, *, jobs: int, backlog: int) -> list[Finding]:
    """High-priority jobs of 2 ms, alone and then before ``backlog`` normal ones of 2 ms in the same queue."""
    log = ground.folder / "ours.log"
    with ground.fresh(ours) as place, ours.client(place) as client:

        def one() -> None:
            client.one(_HANDLER_SECONDS, Priority.HIGH, pause=_POLL_SECONDS)

        def start() -> Workers:
            environment = place.environment(**ours.environment())
            return stack.enter_context(running(ours.commands(ours.processes), environment, log))

        with ExitStack() as stack:
            workers = start()
            for _ in range(_WARM_UP):
                one()
            workers.settle()
            alone = _times(one, jobs)
            progress(_summary("alone", alone))
            workers.stop()
            began = time.monotonic()
            client.load(backlog, _HANDLER_SECONDS)
            progress(f"{backlog:,} jobs queued behind in {time.monotonic() - began:.0f} s")
            workers = start()
            for _ in range(_WARM_UP):
                one()
            behind = _times(one, jobs)
            progress(_summary("with backlog", behind))
            if not client.unfinished():
                raise RuntimeError("the backlog did not last")
            workers.kill()
    p50 = [1000 * median(times) for times in (alone, behind)]
    p99 = [1000 * percentile(times, 0.99) for times in (alone, behind)]
    detail = f"p50 {p50[0]:.1f} → {p50[1]:.1f} ms, p99 {p99[0]:.1f} → {p99[1]:.1f} ms"
    what = f"high-priority p99 with {backlog:,} queued / alone"
    return [Finding.below("latency", what, p99[1] / p99[0], "×", 2, detail)]


def _times(one: Callable[[], None], jobs: int) -> list[float]:
    times = []
    for _ in range(jobs):
        began = time.perf_counter()
        one()
        times.append(time.perf_counter() - began)
        time.sleep(_PAUSE)
    return times


def _summary(name: str, times: Sequence[float]) -> str:
    p50, p99 = 1000 * median(times), 1000 * percentile(times, 0.99)
    return f"{name:<24} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   max {1000 * max(times):6.1f} ms   ({len(times)} jobs)"
