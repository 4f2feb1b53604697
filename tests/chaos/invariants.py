"""What must hold once the system has been left in peace. Each check names what it found; none stops at the first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.jobs import TERMINAL
from tests.chaos.history import Attempt, History
from tests.chaos.incidents import IncidentLog
from tests.chaos.ledger import Ledger
from tests.chaos.stack import ChaosStack, Connection
from tests.chaos.workload import JobPlan

__all__ = ["Checker", "Finding", "Verdict"]

_TERMINAL = {s.value for s in TERMINAL}
# A job that the harness's own kills hit three times by bad luck ends with one of these.
_SET_ASIDE = ("job.crashed", "job.stalled")
_CLOCK_SLACK = 0.1  # seconds between a statement's now() and its snapshot, on a busy machine
# A claim under limits takes its time stamp before it waits for its turn, so attempts may seem to begin this early.
_LOCK_SLACK = 0.2
_OPEN_TRANSACTIONS = """
select application_name, state, state_change from pg_stat_activity
 where application_name like 'gradeline%' and state like 'idle in transaction%'
   and state_change < now() - interval '1 second'
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise: lost, duplicated, doubled, charged, order, batch, limit, history, gateway, leak, harness."""

    promise: str
    job_id: UUID | None
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.job_id or '-'}: {self.text}"


@dataclass
class Verdict:
    findings: list[Finding] = field(default_factory=list)
    accepted: int = 0
    doubtful: int = 0  # answers lost; how many of those jobs there are is in ``appeared``
    appeared: int = 0
    effects: int = 0
    unlucky: int = 0  # good jobs set aside after three process deaths of the harness's making
    recharged: int = 0  # retries charged although the handler raised nothing of its own: Postgres was away

    def count(self, promise: str) -> int:
        return sum(f.promise == promise for f in self.findings)


class Checker:
    """Compares the database with the ledger of one run."""

    def __init__(self, stack: ChaosStack, ledger: Ledger, log: IncidentLog) -> None:
        self._stack = stack
        self._ledger = ledger
        self._log = log
        self._rows: dict[UUID, dict[str, Any]] = {}
        self._histories: dict[UUID, History] = {}
        self._parents: dict[UUID, list[tuple[UUID, str]]] = defaultdict(list)
        self._effects: Counter[UUID] = Counter()
        self._pids: dict[str, int | None] = {}
        self.verdict = Verdict()

    def check(self) -> Verdict:
        with self._stack.connect() as conn:
            self._read(conn)
            self._find(self._batches(conn))
            self._find(self._gradings(conn))
            self._find(self._sessions(conn))
        plans = self._ledger.plans
        for id in self._ledger.accepted:
            if id not in self._rows:
                self._say("lost", id, "accepted, and not in the database")
        for id, row in self._rows.items():
            self._find(self._story(id, row))
            if (plan := plans.get(id)) is not None:
                self._find(self._ending(plan, row))
                self._find(self._effect(plan, row))
            self._find(self._order(id))
        self._find(self._keys())
        self._find(self._workers())
        for text in self._ledger.refused:
            self._say("gateway", None, text)
        v = self.verdict
        v.accepted = len(self._ledger.accepted) + len(self._ledger.gradings)
        v.doubtful = len(self._ledger.doubtful)
        v.appeared = sum(id in self._rows for id in self._ledger.doubtful)
        v.effects = sum(self._effects.values())
        return v

    def _say(self, promise: str, id: UUID | None, text: str) -> None:
        if id in self._histories:
            text += f" [{self._histories[id].summary()}]"
        self.verdict.findings.append(Finding(promise, id, text))

    def _find(self, findings: Iterator[tuple[str, UUID | None, str]]) -> None:
        for promise, id, text in findings:
            self._say(promise, id, text)

    def _read(self, conn: Connection) -> None:
        """All jobs there are: the database holds one run's."""
        self._rows = {r["id"]: r for r in conn.execute("select * from jobs").fetchall()}
        events: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
        for event in conn.execute("select * from job_events").fetchall():
            events[event["job_id"]].append(event)
        self._histories = {id: History(events[id]) for id in self._rows}
        for id in set(events) - set(self._rows):
            self._say("history", id, "events of a job that does not exist")
        for edge in conn.execute("select * from job_dependencies").fetchall():
            self._parents[edge["child_id"]].append((edge["parent_id"], edge["on_failure"]))
        for effect in conn.execute("select job_id, count(*) as n from chaos_effects group by 1").fetchall():
            self._effects[effect["job_id"]] = effect["n"]

    # -- each job: ended once, and as it should

    def _story(self, id: UUID, row: dict[str, Any]) -> Iterator[tuple[str, UUID, str]]:
        history = self._histories[id]
        if row["status"] not in _TERMINAL:
            yield "lost", id, f"still {row['status']}"
        ends = len(history.terminal)
        if ends != 1:
            yield "duplicated" if ends > 1 else "lost", id, f"{ends} terminal events"
        for fault in history.faults(row):
            yield "history", id, fault
        if row["retry_count"] > row["max_retries"]:
            yield "charged", id, f"retry_count {row['retry_count']} of {row['max_retries']}"
        charges = [a for a in history.attempts() if a.charged_by_rescue]
        counted = row["stall_count"] + row.get("crash_count", 0)
        if counted != len(charges):
            yield "charged", id, f"stall_count + crash_count = {counted}, but {len(charges)} attempts ended that way"
        for attempt in charges:
            if not self._explained(attempt):
                yield "charged", id, f"attempt {attempt.number} was charged, but nothing had been done to its worker"

    def _explained(self, attempt: Attempt) -> bool:
        assert attempt.end is not None
        return self._log.hit(self._pid(attempt.worker_id), attempt.began, attempt.end["at"].timestamp())

    def _pid(self, worker_id: str) -> int | None:
        if worker_id not in self._pids:
            self._pids[worker_id] = self._stack.pid_of(worker_id)
        return self._pids[worker_id]

    def _ending(self, plan: JobPlan, row: dict[str, Any]) -> Iterator[tuple[str, UUID, str]]:
        status, code = row["status"], (row["error"] or {}).get("code")
        if plan.id in self._ledger.cancelled and status != "cancelled":
            yield "lost", plan.id, f"cancelled by an answer that said so, and now {status}"
        if status == "cancelled" and plan.id in self._ledger.maybe_cancelled:
            return
        blocked = self._blocked_ends(plan.id)
        if blocked:
            if status not in blocked:
                yield "order", plan.id, f"a parent did not complete: it should be {blocked}, not {status}"
            return
        if plan.act == "suicide":
            if status != "failed" or code not in _SET_ASIDE:
                yield "charged", plan.id, f"a job that kills its process should fail as such, not be {status} ({code})"
            return
        if status == "failed" and code in _SET_ASIDE:
            self.verdict.unlucky += 1
            deaths = [a for a in self._histories[plan.id].attempts() if a.charged_by_rescue]
            if len(deaths) < 3:
                yield "charged", plan.id, f"set aside ({code}) after {len(deaths)} deaths"
            return
        if status != plan.own_end:
            yield "lost", plan.id, f"{plan.act} should have {plan.own_end}, and has {status} ({code})"
        if row["retry_count"] != plan.retries:
            yield from self._odd_retries(plan, row)

    def _odd_retries(self, plan: JobPlan, row: dict[str, Any]) -> Iterator[tuple[str, UUID, str]]:
        """A handler that meets Postgres away in ctx.progress fails by that, and is tried again like any other."""
        history = self._histories[plan.id]
        retried = [a for a in history.attempts() if a.end is not None and a.end["kind"] == "retrying"]
        strange = [a for a in retried if a.end and a.end["data"].get("error", {}).get("code") == "job.internal_error"]
        away = all(self._log.postgres_away(a.began, a.end["at"].timestamp() if a.end else a.began) for a in strange)
        if strange and away and row["retry_count"] == plan.retries + len(strange):
            self.verdict.recharged += len(strange)
        else:
            yield "charged", plan.id, f"{plan.act}: retry_count {row['retry_count']}, not {plan.retries}"

    def _effect(self, plan: JobPlan, row: dict[str, Any]) -> Iterator[tuple[str, UUID, str]]:
        wanted = int(plan.effect and row["status"] == "completed")
        written = self._effects[plan.id]
        if written != wanted:
            promise = "doubled" if written > wanted else "lost"
            yield promise, plan.id, f"{written} effect rows of a job that has {row['status']}, not {wanted}"

    # -- dependencies

    def _blocked_ends(self, id: UUID) -> set[str]:
        """How a child may end whose parents did not all come out as its edges demand. Empty: it runs."""
        ends = set()
        for parent_id, on_failure in self._parents.get(id, ()):
            parent = self._rows[parent_id]["status"] if parent_id in self._rows else "missing"
            if on_failure != "run" and parent in ("failed", "cancelled"):
                ends.add("cancelled" if parent == "cancelled" or on_failure == "cancel" else "failed")
        return ends

    def _order(self, id: UUID) -> Iterator[tuple[str, UUID, str]]:
        history = self._histories[id]
        plan = self._ledger.plans.get(id)
        batch = plan.job.after_batch if plan is not None else None
        before = [p for p, _ in self._parents.get(id, ())] + list(self._ledger.batches.get(batch, ()) if batch else ())
        if not history.started or not before:
            return
        if self._blocked_ends(id):
            yield "order", id, "it ran, although a parent had not come out as its edge demands"
        began = history.started[0]["at"].timestamp()
        for parent_id in before:
            ends = self._histories[parent_id].terminal if parent_id in self._histories else []
            if not ends or ends[0]["at"].timestamp() > began + _CLOCK_SLACK:
                yield "order", id, f"it began before {parent_id}, which it waits for, had ended"

    def _keys(self) -> Iterator[tuple[str, UUID | None, str]]:
        """No more attempts at once of one organisation's concurrency key than it allows."""
        changes: dict[tuple[UUID, str], list[tuple[float, int]]] = defaultdict(list)
        limits: dict[tuple[UUID, str], int] = {}
        for id, row in self._rows.items():
            if (key := row.get("concurrency_key")) is None:
                continue
            limits[row["org_id"], key] = row["concurrency_limit"]
            for attempt in self._histories[id].attempts():
                if attempt.end is not None and (ended := attempt.end["at"].timestamp()) > attempt.began + _LOCK_SLACK:
                    changes[row["org_id"], key] += [(attempt.began + _LOCK_SLACK, 1), (ended, -1)]
        for name, steps in changes.items():
            running = most = 0
            for _, step in sorted(steps):
                running += step
                most = max(most, running)
            if most > limits[name]:
                yield "limit", None, f"{most} jobs of organisation {name[0]}, key {name[1]!r}, ran at once"

    # -- batches, gradings

    def _batches(self, conn: Connection) -> Iterator[tuple[str, UUID | None, str]]:
        rows = {r["id"]: r for r in conn.execute("select * from batches").fetchall()}
        for batch_id, job_ids in self._ledger.batches.items():
            batch = rows.get(batch_id)
            if batch is None:
                if not set(job_ids) <= set(self._ledger.doubtful):
                    yield "lost", None, f"batch {batch_id} was accepted, and is not in the database"
                continue
            truth = Counter(self._rows[id]["status"] for id in job_ids if id in self._rows)
            counted = {s: batch[s] for s in ("completed", "failed", "cancelled")}
            if counted != {s: truth[s] for s in counted} or sum(counted.values()) != batch["total"]:
                yield "batch", None, f"batch {batch_id} counts {counted} of {batch['total']}; its jobs: {dict(truth)}"
            if batch["finished_at"] is None:
                yield "batch", None, f"batch {batch_id} has no finished_at"

    def _gradings(self, conn: Connection) -> Iterator[tuple[str, UUID | None, str]]:
        rows = conn.execute("select job_id, student_id, status from gradings").fetchall()
        by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_key[row["student_id"]].append(row)
        for key, job_id in self._ledger.gradings.items():
            mine = by_key[key[:32]]
            if len(mine) != 1:
                yield "duplicated" if mine else "lost", job_id, f"{len(mine)} gradings of one Idempotency-Key"
            elif mine[0]["job_id"] != job_id:
                yield "gateway", job_id, "the gateway's answer named another job than the grading has"
            job = self._rows.get(job_id)
            if job is None:
                yield "lost", job_id, "answered 202, and not in the database"
                continue
            code = (job["error"] or {}).get("code")
            if job["status"] == "failed" and code in _SET_ASIDE:
                self.verdict.unlucky += 1
            elif job["status"] != "completed":
                yield "lost", job_id, f"the grading should have completed, and has {job['status']} ({code})"
            elif mine and mine[0]["status"] != "graded":
                yield "lost", job_id, "completed, and its grading is not marked"

    # -- nothing left behind

    def _sessions(self, conn: Connection) -> Iterator[tuple[str, UUID | None, str]]:
        for row in conn.execute(_OPEN_TRANSACTIONS).fetchall():
            yield "leak", None, f"a session of {row['application_name']} is {row['state']} since {row['state_change']}"
        limit = self._stack.most_sessions_a_worker * len(self._stack.fleet.of("worker"))
        row = conn.execute(
            "select count(*) as n from pg_stat_activity where application_name like 'gradeline-chaos%'"
        ).fetchone()
        if row is not None and row["n"] > limit:
            yield "leak", None, f"{row['n']} sessions of the workers; {limit} at most are theirs"

    def _workers(self) -> Iterator[tuple[str, UUID | None, str]]:
        for text in self._stack.fleet.leftovers:
            yield "leak", None, text
        for member in self._stack.fleet.of("worker", "grading"):
            try:
                stats = member.stats()
            except OSError as e:
                yield "leak", None, f"{member.name} does not answer on its health port: {type(e).__name__}"
                continue
            if stats["running"] or stats["stuck"]:
                yield "leak", None, f"{member.name} holds {stats['running']} runs and {stats['stuck']} stuck threads"
