"""Memory of idle worker processes without OCR: this benchmark's, and real services."""

from __future__ import annotations

import sys

import psutil

from bench.engine.ground import Ground
from bench.engine.processes import running
from bench.engine.report import Finding, progress
from bench.engine.systems.ours import Ours
from bench.stack import proportional_set_size, tree

__all__ = ["measure"]

_SERVICES = ("grading_worker", "notifier")
_MEGABYTE = 1e6


def measure(ground: Ground) -> list[Finding]:
    """Resident and proportional size (Linux), of the whole tree of each process, before its first job and after 300."""
    findings = []
    system = Ours(3)
    with ground.fresh(system) as place, system.client(place) as client:
        environment = place.environment(**system.environment())
        commands = {f"services.{name}": [sys.executable, "-m", f"services.{name}"] for name in _SERVICES}
        for name, command in {"bench worker": system.commands(1)[0], **commands}.items():
            with running([command], environment, ground.folder / "memory.log") as workers:
                workers.settle()
                findings.append(_finding(name, workers.pids[0]))
                if name == "bench worker":
                    client.load(300)
                    while client.unfinished():
                        workers.settle(1)
                    findings.append(_finding(f"{name} after 300 jobs", workers.pids[0]))
    return findings


def _finding(name: str, pid: int) -> Finding:
    pids = tree(pid)
    resident = sum(psutil.Process(p).memory_info().rss for p in pids) / _MEGABYTE
    proportional = sum(map(proportional_set_size, pids)) / _MEGABYTE
    progress(f"{name:<28} {resident:5.0f} MB resident, {proportional:5.0f} MB proportional")
    return Finding.below("memory", name, resident, "MB", 90, f"{proportional:.0f} MB proportional")
