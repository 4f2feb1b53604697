"""One run: the load, the disturbances beside it, peace, and the verdict."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.chaos.disturbances import DISTURBANCES
from tests.chaos.incidents import IncidentLog
from tests.chaos.invariants import Checker, Finding, Verdict
from tests.chaos.ledger import Ledger, Load
from tests.chaos.scenario import Scenario, Step
from tests.chaos.stack import ChaosStack
from tests.chaos.workload import draw

__all__ = ["PEACE_SECONDS", "Outcome", "run"]

# After the last disturbance everything must have ended within this: a lease (2.5 s), a rescue (0.5 s), the start of a
# process (2 s), a lost claim's lease once more, a psycopg pool's reconnection; all on two busy cores.
PEACE_SECONDS = 30.0

_UNDONE = """
select j.id, j.type, j.status, j.attempt, j.retry_count, j.stall_count, j.run_at - now() as due_in,
       j.lease_until - now() as lease_left, j.pending_parents,
       (select string_agg(e.kind || '@' || e.attempt, ' ' order by e.seq) from job_events e
         where e.job_id = j.id and e.kind not in ('progress', 'log')) as story
  from jobs j where j.status in ('waiting', 'queued', 'processing') order by j.id
"""


@dataclass
class Outcome:
    """A run's plan, what was done, and what came of it."""

    scenario: Scenario
    verdict: Verdict
    ledger: Ledger
    log: IncidentLog
    seconds: float
    recovery: float  # from the end of the last disturbance to the end of the last job

    @property
    def passed(self) -> bool:
        return not self.verdict.findings

    def report(self) -> str:
        v = self.verdict
        lines = [self.scenario.describe(), *(f"  {line}" for line in self.log.lines())]
        lines.append(
            f"  {v.accepted} accepted, {v.doubtful} answers lost ({v.appeared} of those exist), {v.effects} effects, "
            f"{v.unlucky} unlucky, {v.recharged} retries by Postgres; recovered in {self.recovery:.1f} s, "
            f"{self.seconds:.1f} s in all"
        )
        lines += [f"  FOUND {finding}" for finding in v.findings[:40]]
        if self.log.incidents or v.findings:
            lines.append(f"  again: make chaos SEED={self.scenario.seed}" if self.scenario.name == "combined" else "")
        return "\n".join(line for line in lines if line)


@dataclass
class _Disturber:
    """Runs the steps of a scenario, each in a thread of its own."""

    stack: ChaosStack
    scenario: Scenario
    failures: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for place, step in enumerate(self.scenario.steps):
            thread = threading.Thread(target=self._act, args=(place, step), name=step.name, daemon=True)
            self.threads.append(thread)
            thread.start()

    def _act(self, place: int, step: Step) -> None:
        time.sleep(step.at)
        try:
            DISTURBANCES[step.name](self.stack, self.scenario.random(f"step {place}"), step.seconds)
        except Exception as e:
            self.failures.append(f"{step.name}: {type(e).__name__}: {e}")

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                self.failures.append(f"{thread.name} did not come to its end")


def run(stack: ChaosStack, scenario: Scenario) -> Outcome:
    """Plays the scenario and checks. Leaves the system up, and its tables empty when all was well."""
    began = time.monotonic()
    stack.forget()
    log = stack.fleet.log = IncidentLog()
    stack.fleet.leftovers.clear()
    workload = draw(
        scenario.random("load"),
        jobs=scenario.jobs,
        gradings=scenario.gradings,
        seconds=scenario.seconds,
        poison=scenario.poison,
        plain=scenario.plain,
    )
    load = Load(stack, workload).start()
    disturber = _Disturber(stack, scenario)
    disturber.start()
    disturber.join()
    ledger = load.join()
    peace = time.monotonic()
    undone = _await_quiet(stack, PEACE_SECONDS)
    recovery = time.monotonic() - peace
    stack.fleet.await_ready()
    verdict = Checker(stack, ledger, log).check()
    verdict.findings += [Finding("harness", None, text) for text in disturber.failures]
    verdict.findings += [Finding("lost", r["id"], f"not ended {PEACE_SECONDS:g} s after: {r}") for r in undone]
    verdict.findings += _unasked_deaths(log, ledger, scenario)
    return Outcome(scenario, verdict, ledger, log, time.monotonic() - began, recovery)


def _await_quiet(stack: ChaosStack, within: float) -> list[dict[str, Any]]:
    """Waits until every job has ended. Those that have not, with all that is known of them."""
    deadline = time.monotonic() + within
    undone: list[dict[str, Any]] = []
    while True:
        try:
            with stack.connect() as conn:
                while undone := conn.execute(_UNDONE).fetchall():
                    if time.monotonic() > deadline:
                        return undone
                    time.sleep(0.05)
                return []
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _unasked_deaths(log: IncidentLog, ledger: Ledger, scenario: Scenario) -> list[Finding]:
    """Only a self-killing job may take a process along that the harness did not kill."""
    deaths: Counter[str] = Counter(i.target for i in log.incidents if i.kind.startswith("died"))
    allowed = 3 if scenario.poison else 0
    if deaths.total() > allowed:
        return [Finding("leak", None, f"processes ended by themselves: {dict(deaths)}; {allowed} at most may")]
    return []
