"""What a job type is: a permanent name, its queue, its payload and result models, and its policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Contract", "JobType", "Policy", "Registry", "UnknownJobType"]


class Contract(BaseModel):
    """Base of every model that crosses a process boundary: closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a job type is retried, timed and leased. Seconds throughout.

    The wait before retry *n* (1-based) is ``backoff_base * backoff_factor ** (n - 1)``, capped at
    ``backoff_max`` and spread by ``jitter`` (a fraction of the wait, both ways).
    """

    max_retries: int = 2  # three attempts in all, as the seeds ask
    backoff_base: float = 5.0
    backoff_factor: float = 2.0
    backoff_max: float = 900.0
    jitter: float = 0.2
    time_limit: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < self.time_limit <= 3600:
            raise ValueError("time_limit must be in (0, 3600] seconds")
        if self.max_retries < 0:
            raise ValueError("max_retries must not be negative")

    def backoff(self, retry: int, spread: float) -> float:
        """Seconds before retry number ``retry`` (1-based); ``spread`` in [-1, 1] places the jitter."""
        wait = min(self.backoff_max, self.backoff_base * self.backoff_factor ** (retry - 1))
        return float(wait * (1 + self.jitter * spread))


@dataclass(frozen=True, slots=True)
class JobType(Generic[P, R]):
    """A declared job type. ``name`` is permanent: rename through ``aliases``."""

    name: str
    queue: str
    payload: type[P]
    result: type[R]
    title: str  # what a person calls it, e.g. "Reading"
    policy: Policy = field(default_factory=Policy)
    aliases: tuple[str, ...] = ()
    # May a client start it by POST /jobs? Internal types (outbox mails) may not.
    public: bool = True


class UnknownJobType(KeyError):
    """No job type of that name or alias is declared."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no job type is called {self.name!r}"


class Registry:
    """All declared job types by name and alias; refuses two owners of one name."""

    def __init__(self) -> None:
        self._by_name: dict[str, JobType[BaseModel, BaseModel]] = {}

    def declare(self, job_type: JobType[P, R]) -> JobType[P, R]:
        for name in (job_type.name, *job_type.aliases):
            if name in self._by_name:
                raise ValueError(f"job type {name!r} is declared twice")
            self._by_name[name] = job_type  # type: ignore[assignment]
        return job_type

    def get(self, name: str) -> JobType[BaseModel, BaseModel]:
        """Raises UnknownJobType."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownJobType(name) from None

    def all(self) -> list[JobType[BaseModel, BaseModel]]:
        """Each type once, by name."""
        return sorted({t.name: t for t in self._by_name.values()}.values(), key=lambda t: t.name)

    def queues(self) -> list[str]:
        return sorted({t.queue for t in self._by_name.values()})
