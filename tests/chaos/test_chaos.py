"""The short form of the chaos suite: each disturbance alone, and a handful of seeds. ``make chaos`` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.disturbances import DISTURBANCES
from tests.chaos.run import run
from tests.chaos.scenario import POISON, from_seed, pure
from tests.chaos.stack import ChaosStack, chaos_stack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    """One system for all runs here, on servers of its own. After its stop nothing of it may be left."""
    with chaos_stack(tmp_path_factory.mktemp("chaos")) as stack:
        yield stack
    assert stack.fleet.leftovers == []


@pytest.mark.parametrize("name", DISTURBANCES)
def test_keeps_every_promise_under_each_disturbance_alone(stack: ChaosStack, name: str) -> None:
    outcome = run(stack, pure(name))
    print(outcome.report())
    assert outcome.passed, outcome.report()


@pytest.mark.parametrize("seed", [3, 11, 26, 42])
def test_keeps_every_promise_under_combined_disturbances(stack: ChaosStack, seed: int) -> None:
    outcome = run(stack, from_seed(seed))
    print(outcome.report())
    assert outcome.passed, outcome.report()


def test_a_job_that_kills_its_process_is_set_aside_and_its_neighbours_are_charged_nothing(stack: ChaosStack) -> None:
    scenario = pure(POISON)
    outcome = run(stack, scenario)
    print(outcome.report())
    with stack.connect() as conn:
        rows = conn.execute("select * from jobs").fetchall()
    [poison] = [r for r in rows if r["payload"]["act"] == "suicide"]
    neighbours = [r for r in rows if r is not poison]
    counter = "crash_count" if "crash_count" in poison else "stall_count"
    assert (poison["status"], poison[counter], poison["retry_count"]) == ("failed", 3, 0)
    assert poison["error"]["code"] == ("job.crashed" if counter == "crash_count" else "job.stalled")
    assert outcome.log.counts()["died worker"] == 3, "no process dies of it a fourth time"
    assert len(neighbours) == scenario.jobs
    charged = [r for r in neighbours if (r["status"], r["retry_count"], r["stall_count"]) != ("completed", 0, 0)]
    assert not charged, f"{len(charged)} neighbours were charged: {[(r['id'], r['status']) for r in charged]}"
    assert outcome.passed, outcome.report()
