"""The job engine beside its peers, on the same servers in the same run.

    python -m bench.engine [drain] [accept] [latency] [depth] [memory] [recovery]

Without a part named: all but recovery, which has a target of its own in the Makefile. Everything runs on loopback, on
a PostgreSQL and a Valkey of its own, which are stopped and deleted at the end. Figures of one run may be compared with
each other; those of different machines, or of a busy and a quiet hour, may not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.engine import accept, depth, drain, latency, memory, recovery
from bench.engine.drain import Target
from bench.engine.ground import Ground
from bench.engine.report import Finding, print_table, write_json
from bench.engine.systems.base import System
from bench.engine.systems.celery_peer import CeleryPostgres
from bench.engine.systems.dramatiq_peer import Dramatiq
from bench.engine.systems.ours import Ours
from bench.engine.systems.pgqueuer_peer import PgQueuerSystem
from bench.engine.systems.procrastinate_peer import Procrastinate
from deploy.local.servers import embedded_servers

PARTS = ("drain", "accept", "latency", "depth", "memory", "recovery")
# Peers that drain hundreds of jobs a second get fewer of them.
_SLOW_JOBS = {"procrastinate": 4000, "celery": 2000}


def _peers(names: list[str], jobs: int) -> list[tuple[System, int, Target]]:
    """Each named peer at its settings, with its number of jobs and the multiple of its rate that is wanted."""
    peers: dict[str, list[tuple[System, Target]]] = {
        "dramatiq": [(Dramatiq(), Target(0.7, 0.85))],
        # 10 is its default; at 100 it is fastest; in threads, as all handlers of ours run.
        "pgqueuer": [
            (PgQueuerSystem(10), Target(0.6, 1.0)),
            (PgQueuerSystem(100), Target(0.6, 1.0)),
            (PgQueuerSystem(10, threads=True), Target(0.6, 1.0)),
        ],
        "procrastinate": [(Procrastinate(), Target(4, 8))],
        "celery": [(CeleryPostgres(), Target(12, 25))],
    }
    return [(s, min(jobs, _SLOW_JOBS.get(name, jobs)), t) for name in names for s, t in peers[name]]


def _run(part: str, ground: Ground, options: argparse.Namespace) -> list[Finding]:
    ours = [Ours(threads) for threads in options.threads]
    if part == "drain":
        peers = _peers(options.peers, options.jobs)
        return drain.measure(ground, ours, peers, jobs=options.jobs, rounds=options.rounds)
    if part == "accept":
        return accept.measure(ground, single=2000, bulk=options.jobs, rounds=options.rounds)
    if part == "latency":
        systems: dict[str, System] = {"dramatiq": Dramatiq(results=True), "procrastinate": Procrastinate()}
        others = [systems[name] for name in options.peers if name in systems]
        alone = latency.measure(ground, ours[0], others, jobs=options.samples)
        return alone + latency.measure_backlog(ground, ours[0], jobs=options.samples, backlog=options.backlog)
    if part == "depth":
        return depth.measure(ground, shallow=10_000, deep=options.rows, claims=200)
    if part == "memory":
        return memory.measure(ground)
    return recovery.measure(ground, watched=options.watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but recovery")
    parser.add_argument("--jobs", type=int, default=20_000, help="to drain, and to submit in bulk")
    parser.add_argument("--rounds", type=int, default=3, help="of drain and accept")
    parser.add_argument("--peers", default="dramatiq,pgqueuer,procrastinate,celery", type=lambda t: t.split(","))
    parser.add_argument(
        "--threads", default="3,8", type=lambda t: [int(n) for n in t.split(",")], help="of our workers"
    )
    parser.add_argument("--samples", type=int, default=600, help="jobs whose latency is measured")
    parser.add_argument("--backlog", type=int, default=100_000, help="jobs queued behind the measured ones")
    parser.add_argument("--rows", type=int, default=1_000_000, help="queued rows of the deep queue")
    parser.add_argument("--watched", type=float, default=185, help="seconds that peers have to recover")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is stopped
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="gradeline-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres may run as another user
        with embedded_servers(folder / "servers") as servers:
            ground = Ground(servers, folder)
            for part in options.parts or PARTS[:-1]:
                print(f"{part}:", flush=True)
                began = time.monotonic()
                findings += _run(part, ground, options)
                print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    print_table(findings)
    if options.json:
        write_json(options.json, findings)


if __name__ == "__main__":
    main()
