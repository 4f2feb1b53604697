"""What a run submits: jobs of several organisations with all the ways a job can go, drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from shared import ids
from shared.jobs import NewJob, OnFailure, ParentEdge, Priority
from tests.chaos import kinds

__all__ = ["Group", "JobPlan", "Workload", "draw"]

_ACTS: Sequence[tuple[kinds.Act, int]] = (
    ("work", 10),
    ("flaky", 3),
    ("retry_after", 1),
    ("snooze", 2),
    ("progress", 3),
    ("permanent", 2),
    ("exhausted", 1),
    ("broken_effect", 2),
)
# What the job itself will come to, when nothing is done to it from outside.
_FAILING: frozenset[kinds.Act] = frozenset({"permanent", "exhausted", "suicide"})
_CHARGED_ONCE: frozenset[kinds.Act] = frozenset({"flaky", "retry_after", "broken_effect", "exhausted"})
_EDGES: Sequence[OnFailure] = ("fail", "cancel", "run")


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job as planned. ``retries`` is the retry_count that it must end with when it runs to its own end."""

    job: NewJob
    act: kinds.Act
    effect: bool
    cancel_after: float | None = None  # seconds after its submit

    @property
    def id(self) -> UUID:
        return self.job.id

    @property
    def own_end(self) -> str:
        return "failed" if self.act in _FAILING else "completed"

    @property
    def retries(self) -> int:
        return int(self.act in _CHARGED_ONCE)


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs of one submit, in one transaction; of one batch when ``batch_id`` is set."""

    at: float  # seconds after the run's start
    jobs: tuple[JobPlan, ...]
    org_id: UUID
    batch_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    groups: tuple[Group, ...]
    gradings: tuple[float, ...] = ()  # when the gateway is asked for one
    plans: dict[UUID, JobPlan] = field(default_factory=dict)


def draw(
    rng: Random, *, jobs: int, gradings: int, seconds: float, poison: bool = False, plain: bool = False
) -> Workload:
    """A workload of about ``jobs`` jobs and ``gradings`` gradings, submitted over ``seconds``; of good ones if plain.

    Of good ones there are ``jobs`` exactly.
    """
    orgs = [ids.new_uuid() for _ in range(4)]
    groups: list[Group] = []
    count = 0
    while count < jobs:
        org = rng.choices(orgs, weights=(6, 2, 1, 1))[0]
        if plain:
            groups.append(Group(rng.uniform(0, seconds), (_plan(rng, org, act="work", may_cancel=False),), org))
            count += 1
            continue
        shape = rng.choices((_singles, _chain, _fan, _batch), weights=(8, 2, 2, 1))[0]
        group = shape(rng, org, rng.uniform(0, seconds))
        groups.append(group)
        count += len(group.jobs)
    if poison:
        plan = _plan(rng, orgs[0], act="suicide")
        groups.append(Group(seconds / 3, (plan,), orgs[0]))
    groups.sort(key=lambda g: g.at)
    asked = tuple(sorted(rng.uniform(0, seconds) for _ in range(gradings)))
    return Workload(tuple(groups), asked, {p.id: p for g in groups for p in g.jobs})


def _plan(
    rng: Random,
    org_id: UUID,
    *,
    parents: tuple[ParentEdge, ...] = (),
    batch_id: UUID | None = None,
    act: kinds.Act | None = None,
    may_cancel: bool = True,
    after_batch: UUID | None = None,
) -> JobPlan:
    act = act or rng.choices([a for a, _ in _ACTS], weights=[w for _, w in _ACTS])[0]
    cancel = may_cancel and act in ("work", "snooze", "progress") and rng.random() < 0.08
    # Long enough to be caught while they run, by a kill or a cancellation; short enough to run three times.
    seconds = rng.uniform(0.2, 0.7) if cancel or rng.random() < 0.35 else rng.uniform(0.0, 0.1)
    effect = act == "broken_effect" or rng.random() < 0.6
    limit = rng.choice((1, 2)) if rng.random() < 0.12 else None
    job = NewJob(
        id=ids.new_uuid(),
        type=kinds.CHAOS.name,
        payload={"act": act, "seconds": seconds, "effect": effect},
        org_id=org_id,
        priority=rng.choice(list(Priority)),
        max_retries=1 if act == "exhausted" else 2,
        batch_id=batch_id,
        parents=parents,
        concurrency_key=f"at most {limit}" if limit else None,
        concurrency_limit=limit or 1,
        after_batch=after_batch,
    )
    return JobPlan(job, act, effect, rng.uniform(0.05, 1.0) if cancel else None)


def _singles(rng: Random, org_id: UUID, at: float) -> Group:
    return Group(at, tuple(_plan(rng, org_id) for _ in range(rng.randint(1, 6))), org_id)


def _chain(rng: Random, org_id: UUID, at: float) -> Group:
    plans = [_plan(rng, org_id)]
    for _ in range(rng.randint(1, 3)):
        plans.append(_plan(rng, org_id, parents=(ParentEdge(plans[-1].id, rng.choice(_EDGES)),)))
    return Group(at, tuple(plans), org_id)


def _fan(rng: Random, org_id: UUID, at: float) -> Group:
    """One job, several behind it, and one behind all of those."""
    first = _plan(rng, org_id)
    middle = [_plan(rng, org_id, parents=(ParentEdge(first.id, rng.choice(_EDGES)),)) for _ in range(rng.randint(2, 5))]
    last = _plan(rng, org_id, parents=tuple(ParentEdge(m.id, rng.choice(_EDGES)) for m in middle))
    return Group(at, (first, *middle, last), org_id)


def _batch(rng: Random, org_id: UUID, at: float) -> Group:
    """A batch, half the time with a job that runs when all of it has ended."""
    batch_id = ids.new_uuid()
    plans = [_plan(rng, org_id, batch_id=batch_id) for _ in range(rng.randint(3, 9))]
    if rng.random() < 0.5:
        plans.append(_plan(rng, org_id, act="work", may_cancel=False, after_batch=batch_id))
    return Group(at, tuple(plans), org_id, batch_id=batch_id)
