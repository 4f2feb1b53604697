"""The checker of the chaos suite can fail: each promise, broken on purpose after a calm run, is found by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.invariants import Checker
from tests.chaos.run import Outcome, run
from tests.chaos.scenario import Scenario
from tests.chaos.stack import ChaosStack, chaos_stack

pytestmark = pytest.mark.slow

_TABLES = ("jobs", "job_events", "job_dependencies", "batches", "chaos_effects", "gradings")
# A job that completed with its effect, and one that was tried again.
_EFFECT = "(select job_id from chaos_effects order by job_id limit 1)"
_DONE = "(select id from jobs where status = 'completed' and attempt = 1 order by id limit 1)"
_CHILD = """(select d.child_id from job_dependencies d join jobs c on c.id = d.child_id
              where c.attempt > 0 order by d.child_id limit 1)"""
_NIL = "00000000-0000-0000-0000-000000000000"
_END = "kind in ('completed', 'failed', 'cancelled')"

SABOTAGE = {
    "an effect written twice": (
        "doubled",
        f"insert into chaos_effects select * from chaos_effects where job_id = {_EFFECT}",
    ),
    "an effect not written": ("lost", f"delete from chaos_effects where job_id = {_EFFECT}"),
    "an effect of a failed job": (
        "doubled",
        "insert into chaos_effects select id, 1, 0 from jobs where status = 'failed' order by id limit 1",
    ),
    "an accepted job gone": ("lost", f"delete from jobs where id = {_DONE}"),
    "a terminal event skipped": ("lost", f"delete from job_events where job_id = {_DONE} and {_END}"),
    "a job that ended twice": (
        "duplicated",
        f"""with again as (update jobs set event_seq = event_seq + 1 where id = {_DONE} returning id, event_seq)
            insert into job_events (job_id, seq, org_id, kind, attempt, actor, data)
            select e.job_id, a.event_seq, e.org_id, e.kind, e.attempt, e.actor, e.data
              from job_events e join again a on a.id = e.job_id where {_END}""",
    ),
    "a job still running": ("lost", f"update jobs set status = 'processing' where id = {_DONE}"),
    "a status without an event": ("history", f"update jobs set status = 'cancelled' where id = {_DONE}"),
    "a gap in the events": ("history", f"update job_events set seq = seq + 1 where job_id = {_DONE} and {_END}"),
    "a claim without an event": ("history", f"update jobs set attempt = attempt + 1 where id = {_DONE}"),
    "a retry that nobody asked for": ("charged", f"update jobs set retry_count = retry_count + 1 where id = {_DONE}"),
    "a stall that did not happen": ("charged", f"update jobs set stall_count = stall_count + 1 where id = {_DONE}"),
    "a stall without a cause": (
        "charged",
        f"""update job_events set seq = seq + 2, attempt = 2 where job_id = {_DONE} and {_END};
            insert into job_events (job_id, seq, org_id, kind, attempt, actor, at)
            select e.job_id, e.seq - x.back, e.org_id, x.kind, x.attempt, coalesce(x.actor, e.actor), e.at
              from job_events e
              cross join (values (2, 'stalled', 1, 'scheduler'), (1, 'started', 2, null)) x (back, kind, attempt, actor)
             where e.job_id = {_DONE} and e.{_END};
            update jobs set stall_count = 1, attempt = 2, event_seq = event_seq + 2 where id = {_DONE}""",
    ),
    "a child before its parent": (
        "order",
        f"update job_events set at = at - interval '1 hour' where job_id = {_CHILD} and kind = 'started'",
    ),
    "two of a kind at once": (
        "limit",
        f"""update jobs set concurrency_key = 'one', concurrency_limit = 1, org_id = '{_NIL}'
             where id in (select job_id from job_events where kind = 'started' order by at limit 40);
            update job_events e set at = now() + case e.kind when 'started' then interval '0' else interval '5 s' end
              from jobs j where j.id = e.job_id and j.org_id = '{_NIL}'""",
    ),
    "a batch that counts wrong": ("batch", "update batches set completed = completed + 1"),
    "a batch that never finished": ("batch", "update batches set finished_at = null"),
    "a grading accepted twice": (
        "duplicated",
        """insert into gradings (id, org_id, standard_id, standard_version, job_id, student_id, status)
           select new_id(), org_id, standard_id, standard_version, job_id, student_id, status from gradings limit 1""",
    ),
    "a grading not marked": ("lost", "update gradings set status = 'pending'"),
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ChaosStack, Outcome]]:
    """A small system and a run in which nothing was done to it."""
    with chaos_stack(tmp_path_factory.mktemp("calm"), workers=1, schedulers=1) as stack:
        yield stack, run(stack, Scenario("calm", 1, (), jobs=70, gradings=2, seconds=0.5))


def test_finds_nothing_where_nothing_is_wrong(calm: tuple[ChaosStack, Outcome]) -> None:
    stack, outcome = calm
    assert outcome.passed, outcome.report()
    assert not Checker(stack, outcome.ledger, outcome.log).check().findings
    assert outcome.verdict.accepted >= 72
    assert outcome.verdict.effects > 10


@pytest.mark.parametrize("name", SABOTAGE)
def test_finds_a_broken_promise(calm: tuple[ChaosStack, Outcome], name: str) -> None:
    stack, outcome = calm
    promise, statement = SABOTAGE[name]
    with _undone_afterwards(stack):
        with stack.connect() as conn:
            assert conn.execute(statement).rowcount > 0, "the sabotage changed nothing"
        verdict = Checker(stack, outcome.ledger, outcome.log).check()
    assert promise in {f.promise for f in verdict.findings}, [str(f) for f in verdict.findings]


def test_finds_a_process_that_ended_badly(calm: tuple[ChaosStack, Outcome]) -> None:
    stack, outcome = calm
    stack.fleet.leftovers.append("worker1 ended with status 3")
    verdict = Checker(stack, outcome.ledger, outcome.log).check()
    stack.fleet.leftovers.clear()
    assert verdict.count("leak") == 1


@contextmanager
def _undone_afterwards(stack: ChaosStack) -> Iterator[None]:
    with stack.connect() as conn:
        for table in _TABLES:
            conn.execute(f"create table kept_{table} as select * from {table}")
        try:
            yield
        finally:
            for table in _TABLES:
                conn.execute(f"truncate {table}")
                conn.execute(f"insert into {table} select * from kept_{table}")
                conn.execute(f"drop table kept_{table}")
