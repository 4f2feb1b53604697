"""Drain: jobs a second of worker processes that are up and connected, from the start signal to the last completion.

Workers run a warm-up, are held by SIGSTOP while the jobs are accepted and announced, and are released by SIGCONT: the
same start signal for every system. The end is the last completion as the system recorded it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.engine.ground import Ground
from bench.engine.processes import Cpu, CpuMeter, Workers, running
from bench.engine.report import Finding, progress
from bench.engine.systems.base import Client, System

__all__ = ["Target", "measure"]

_WARM_UP = 200
# Longer than any idle wait between two looks at a queue (Dramatiq's: 1 s), so that none of them is cut out of a round.
_HOLD_SECONDS = 1.1
_POLL_SECONDS = 0.02
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """How many times a peer's jobs a second ours should reach."""

    least: float
    stretch: float


@dataclass(frozen=True, slots=True)
class _Round:
    rate: float  # jobs a second
    cpu: Cpu  # microseconds a job


def measure(
    ground: Ground, ours: Sequence[System], peers: Sequence[tuple[System, int, Target]], *, jobs: int, rounds: int
) -> list[Finding]:
    """Every system in turn, ``rounds`` times, every other round backwards. Peers come with their number of jobs."""
    line_up: list[tuple[System, int]] = [(s, jobs) for s in ours] + [(s, many) for s, many, _ in peers]
    found: dict[str, list[_Round]] = {system.name: [] for system, _ in line_up}
    for number in range(rounds):
        for system, many in line_up if number % 2 == 0 else reversed(line_up):
            one = _round(ground, system, many)
            found[system.name].append(one)
            progress(
                f"{number + 1} {system.name:<18} {one.rate:7.0f} jobs/s   CPU µs a job: worker {one.cpu.workers:5.0f}  "
                f"Postgres {one.cpu.postgres:5.0f}  Redis {one.cpu.redis:4.0f}"
            )
    return _findings(found, line_up, ours, peers)


def _findings(
    found: dict[str, list[_Round]],
    line_up: Sequence[tuple[System, int]],
    ours: Sequence[System],
    peers: Sequence[tuple[System, int, Target]],
) -> list[Finding]:
    findings = []
    for system, many in line_up:
        rounds = found[system.name]
        cpu = [median(getattr(r.cpu, part) for r in rounds) for part in ("workers", "postgres", "redis")]
        detail = f"{many:,} jobs; {system.setting}; CPU µs a job {cpu[0]:.0f}/{cpu[1]:.0f}/{cpu[2]:.0f}"
        findings.append(Finding("drain", system.name, median(r.rate for r in rounds), "jobs/s", detail=detail))
    if ours:
        best = max(ours, key=lambda s: median(r.rate for r in found[s.name])).name
        for peer, _, target in peers:
            pairs = list(zip(found[best], found[peer.name], strict=True))
            what = f"{best} / {peer.name}"
            rate = median(mine.rate / its.rate for mine, its in pairs)
            findings.append(Finding.at_least("drain", what, rate, "×", target.least, target.stretch))
            cpu_ratio = median(mine.cpu.total / its.cpu.total for mine, its in pairs)
            findings.append(Finding("drain", f"{what}, CPU a job, all processes", cpu_ratio, "×"))
    return findings


def _round(ground: Ground, system: System, jobs: int) -> _Round:
    log = ground.folder / f"{system.schema}.log"
    meter = CpuMeter(ground.servers)
    with (
        ground.fresh(system) as place,
        system.client(place) as client,
        running(system.commands(system.processes), place.environment(**system.environment()), log) as workers,
    ):
        for _ in range(2):  # one process may be up early and do all of the first
            client.load(_WARM_UP)
            _finish(client, workers)
            workers.settle()
        workers.hold()
        held_at = time.monotonic()
        client.load(jobs)
        time.sleep(max(0.0, held_at + _HOLD_SECONDS - time.monotonic()))
        before = meter.read(workers.pids)
        began = time.time()
        workers.release()
        _finish(client, workers)
        ended = client.ended_at()
        cpu = meter.read(workers.pids) - before
        client.verify(jobs + 2 * _WARM_UP)
    return _Round(jobs / (ended - began), cpu.each(jobs))


def _finish(client: Client, workers: Workers) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while client.unfinished():
        if time.monotonic() > deadline:
            raise RuntimeError(f"jobs are left after {_LIMIT_SECONDS:.0f} s")
        workers.check()
        time.sleep(_POLL_SECONDS)
