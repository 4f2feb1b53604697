"""What happens in one run: which disturbances, when, and beside which load. All of it follows from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.chaos.disturbances import DISTURBANCES

__all__ = ["POISON", "Scenario", "Step", "from_seed", "pure"]

# The self-killing job is a part of the load, not a function: it disturbs by being run.
POISON = "poison_job"
# These two leave nothing standing if they come on top of each other: one of them a run.
_EXCLUSIVE = ({"restart_postgres_fast", "restart_postgres_immediate"}, {"stop_redis", "restart_redis_empty"})


@dataclass(frozen=True, slots=True)
class Step:
    """A disturbance, begun ``at`` seconds after the start and going on for about ``seconds``."""

    name: str
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run's plan. ``seed`` and ``name`` give every part of it random numbers of its own."""

    name: str
    seed: int
    steps: tuple[Step, ...]
    jobs: int
    gradings: int
    seconds: float  # over which the load is submitted
    poison: bool = False
    plain: bool = False  # only good jobs: none fails, is cancelled or is tried again

    def random(self, part: str) -> Random:
        return Random(f"{self.name}/{self.seed}/{part}")

    def describe(self) -> str:
        steps = ", ".join(f"{s.name} at {s.at:.1f} s" for s in self.steps)
        poison = f"; one {POISON}" if self.poison else ""
        return f"{self.name} seed {self.seed}: {self.jobs} jobs, {self.gradings} gradings; {steps or 'calm'}{poison}"


def from_seed(seed: int) -> Scenario:
    """Two to four disturbances that overlap, and sometimes the self-killing job."""
    rng = Random(f"scenario/{seed}")
    names = rng.sample(sorted(DISTURBANCES), rng.randint(2, 4))
    for pair in _EXCLUSIVE:
        for surplus in [n for n in names if n in pair][1:]:
            names.remove(surplus)
    steps = tuple(Step(name, round(rng.uniform(0.0, 1.5), 2), round(rng.uniform(1.0, 2.0), 2)) for name in names)
    return Scenario(
        "combined",
        seed,
        tuple(sorted(steps, key=lambda s: s.at)),
        jobs=rng.randint(60, 120),
        gradings=rng.randint(2, 8),
        seconds=2.5,
        poison=rng.random() < 0.15,
    )


def pure(name: str, seed: int = 1) -> Scenario:
    """One disturbance alone. Raises KeyError when there is none of that name."""
    if name == POISON:
        return Scenario(name, seed, (), jobs=50, gradings=0, seconds=0.5, poison=True, plain=True)
    if name not in DISTURBANCES:
        raise KeyError(name)
    # Where processes are replaced in turn, work keeps coming until the last of them is back.
    seconds = 4.0 if name in ("roll_workers", "skew_clocks") else 1.5
    gradings = 10 if name in ("kill_gateway", "restart_postgres_fast") else 2
    return Scenario(name, seed, (Step(name, 0.2, 1.2),), jobs=int(seconds * 40), gradings=gradings, seconds=seconds)
