"""Jobs that would wait for each other for ever."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from .errors import InvalidSubmit
from .models import NewJob

__all__ = ["refuse_circles"]


@dataclass(frozen=True, slots=True)
class _Batch:
    """All jobs of a batch, as one node of the graph."""

    id: UUID


Node = UUID | _Batch


def refuse_circles(jobs: Sequence[NewJob], outside: Mapping[UUID, Sequence[UUID]] | None = None) -> None:
    """Raise InvalidSubmit where jobs wait for each other in a circle, through parents or batches.

    ``outside``: the batches that jobs accepted earlier are known to wait for.
    """
    if not outside and not _might_close(jobs):
        return
    graph: dict[Node, list[Node]] = {
        id: [_Batch(batch) for batch in batches] for id, batches in (outside or {}).items()
    }
    for job in jobs:
        waits_for = graph.setdefault(job.id, [])
        waits_for += [edge.parent_id for edge in job.parents]
        if job.after_batch is not None:
            waits_for.append(_Batch(job.after_batch))
        if job.batch_id is not None:
            graph.setdefault(_Batch(job.batch_id), []).append(job.id)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        param = "after_batch" if any(isinstance(node, _Batch) for node in e.args[1]) else "depends_on"
        raise InvalidSubmit("job.dependency_cycle", param, "the jobs wait for each other in a circle") from None


def _might_close(jobs: Sequence[NewJob]) -> bool:
    """Edges to earlier jobs of a submit, or to older ones, cannot close a circle; others, and batches, might."""
    inside = {job.id for job in jobs}
    before: set[UUID] = set()
    for job in jobs:
        if any(edge.parent_id in inside and edge.parent_id not in before for edge in job.parents):
            return True
        before.add(job.id)
    awaited = {job.after_batch for job in jobs if job.after_batch is not None}
    return bool(awaited) and any(job.batch_id in awaited for job in jobs)
