"""The table over many runs: printed, and written to var/chaos for docs/chaos.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.run import Outcome
from tests.chaos.scenario import POISON

__all__ = ["progress_line", "summary", "write_summary"]

# In the order in which they are shown, and in the words of the design's invariants.
_PROMISES = (
    ("lost", "lost"),
    ("duplicated", "duplicated"),
    ("doubled", "effects doubled"),
    ("charged", "wrongly charged"),
    ("order", "run before their parents"),
    ("batch", "batches miscounted"),
    ("limit", "concurrency limits exceeded"),
    ("history", "histories torn"),
    ("gateway", "refused by the gateway"),
    ("leak", "left behind"),
    ("harness", "failures of the harness"),
)


def progress_line(place: int, of: int, outcome: Outcome) -> str:
    """One line a run."""
    v = outcome.verdict
    steps = ", ".join([s.name for s in outcome.scenario.steps] + [POISON] * outcome.scenario.poison)
    name = f"seed {outcome.scenario.seed}" if outcome.scenario.name == "combined" else "pure"
    return (
        f"[{place:3}/{of}] {'ok  ' if outcome.passed else 'FAIL'} {name:<9} {outcome.seconds:5.1f} s, recovered in "
        f"{outcome.recovery:4.1f} s, {v.accepted:3} accepted{f', {v.unlucky} unlucky' if v.unlucky else ''}: {steps}"
    )


def summary(outcomes: Sequence[Outcome], crashed: Sequence[str] = ()) -> str:
    """The results as a Markdown table. ``crashed``: runs that could not be played to their end."""
    found = Counter(f.promise for o in outcomes for f in o.verdict.findings)
    seeds = [o for o in outcomes if o.scenario.name == "combined"]
    done = Counter[str]()
    for o in outcomes:
        done.update(o.log.counts())
    rows = [
        ("seeds run", f"{len(seeds)}, and {len(outcomes) - len(seeds)} pure disturbances"),
        ("runs that failed", str(sum(not o.passed for o in outcomes) + len(crashed))),
        ("jobs accepted", str(sum(o.verdict.accepted for o in outcomes))),
        ("answers lost (jobs that exist all the same)", _pair(outcomes)),
        ("effect rows written", str(sum(o.verdict.effects for o in outcomes))),
        *((label, str(found[promise])) for promise, label in _PROMISES),
        ("good jobs set aside after three kills of ours", str(sum(o.verdict.unlucky for o in outcomes))),
        ("retries charged while Postgres was away", str(sum(o.verdict.recharged for o in outcomes))),
        ("recovery, longest", f"{max((o.recovery for o in outcomes), default=0.0):.1f} s"),
        ("seconds a run, mean", f"{sum(o.seconds for o in outcomes) / max(1, len(outcomes)):.1f} s"),
    ]
    table = ["| what | result |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    table += ["", "| done to it | times |", "|---|---|", *(f"| {kind} | {n} |" for kind, n in sorted(done.items()))]
    return "\n".join([*table, *(f"\nNot played to its end: {line}" for line in crashed)])


def write_summary(folder: Path, outcomes: Sequence[Outcome], crashed: Sequence[str] = ()) -> Path:
    """Writes ``summary.md``, and a report a failed run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.md"
    path.write_text(f"`make chaos`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n{summary(outcomes, crashed)}\n")
    for outcome in outcomes:
        if not outcome.passed:
            (folder / f"{outcome.scenario.name}-{outcome.scenario.seed}.txt").write_text(outcome.report() + "\n")
    return path


def _pair(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(o.verdict.doubtful for o in outcomes)} ({sum(o.verdict.appeared for o in outcomes)})"
