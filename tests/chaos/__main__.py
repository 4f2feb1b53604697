"""The long form: ``python -m tests.chaos [--seeds N] [--from SEED] [--seed SEED] [--pure NAME]``."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import structlog

from deploy.local.services import REPOSITORY
from tests.chaos.disturbances import DISTURBANCES
from tests.chaos.run import Outcome, run
from tests.chaos.scenario import POISON, Scenario, from_seed, pure
from tests.chaos.stack import chaos_stack
from tests.chaos.summary import progress_line, summary, write_summary

# A fresh system now and then, so that what a process leaks over its life shows at its end, and logs stay small.
_RUNS_A_STACK = 25


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run kept every promise."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seeds", type=int, default=200, help="how many combined runs")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first of their seeds")
    parser.add_argument("--seed", type=int, help="this one only, told at length")
    parser.add_argument("--pure", choices=[*DISTURBANCES, POISON], help="this disturbance alone, told at length")
    given = parser.parse_args(argv)
    if given.seed is not None:
        scenarios = [from_seed(given.seed)]
    elif given.pure:
        scenarios = [pure(given.pure)]
    else:
        scenarios = [pure(name) for name in (*DISTURBANCES, POISON)]
        scenarios += [from_seed(seed) for seed in range(given.first, given.first + given.seeds)]
    # Of the submitter inside this process: that Redis is away now and then is the point.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    outcomes, crashed = play(scenarios, REPOSITORY / "var" / "chaos", told_at_length=len(scenarios) == 1)
    print(f"\n{summary(outcomes, crashed)}")
    if len(scenarios) > 1:
        print(f"\nwritten to {write_summary(REPOSITORY / 'var' / 'chaos', outcomes, crashed)}")
    return int(bool(crashed) or not all(o.passed for o in outcomes))


def play(scenarios: Sequence[Scenario], folder: Path, *, told_at_length: bool) -> tuple[list[Outcome], list[str]]:
    """All of them, on as few systems as may be; after a failure on a fresh one. Ctrl-C ends it with what there is."""
    outcomes: list[Outcome] = []
    crashed: list[str] = []
    left = list(scenarios)
    try:
        while left:
            work = folder / f"stack-{os.getpid()}-{len(outcomes) + len(crashed)}"
            _play_some(left, len(scenarios), work, outcomes, crashed, told_at_length)
    except KeyboardInterrupt:
        print("interrupted")
    return outcomes, crashed


def _play_some(
    left: list[Scenario], of: int, work: Path, outcomes: list[Outcome], crashed: list[str], told_at_length: bool
) -> None:
    clean = False
    try:
        with chaos_stack(work) as stack:
            for _ in range(_RUNS_A_STACK):
                if not left:
                    break
                scenario = left.pop(0)
                outcome = run(stack, scenario)
                outcomes.append(outcome)
                stack.fleet.leftovers.clear()  # they are among the findings; what comes now is of the stop
                print(progress_line(len(outcomes) + len(crashed), of, outcome), flush=True)
                if told_at_length or not outcome.passed:
                    print(outcome.report(), flush=True)
                if not outcome.passed:
                    break
            else:
                scenario = outcomes[-1].scenario
            clean = bool(outcomes) and outcomes[-1].passed
        if stack.fleet.leftovers:
            clean = False
            crashed.append(f"the stop after {scenario.describe()}: {'; '.join(stack.fleet.leftovers)}")
    except Exception:
        scenario_text = scenario.describe() if "scenario" in locals() else "the start of the stack"
        crashed.append(f"{scenario_text}: {traceback.format_exc(limit=-3)}")
        print(crashed[-1], flush=True)
    if clean:
        shutil.rmtree(work, ignore_errors=True)
    else:
        print(f"logs: {work / 'logs'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
