"""Reads of several statements, written once as generators and run on either kind of connection."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

from .queries import Query

__all__ = ["AsyncConnection", "Connection", "Rows", "Steps", "run", "run_async"]

Connection = psycopg.Connection[dict[str, Any]]
AsyncConnection = psycopg.AsyncConnection[dict[str, Any]]
Rows = list[dict[str, Any]]
T = TypeVar("T")
# Yields queries, is given their rows, and returns.
Steps = Generator[Query, Rows, T]


def run(conn: Connection, steps: Steps[T]) -> T:
    """What ``steps`` return, each query run on ``conn``."""
    try:
        query = next(steps)
        while True:
            query = steps.send(conn.execute(query.sql, query.parameters).fetchall())
    except StopIteration as end:
        value: T = end.value
        return value


async def run_async(conn: AsyncConnection, steps: Steps[T]) -> T:
    """As ``run``, on an event loop."""
    try:
        query = next(steps)
        while True:
            cursor = await conn.execute(query.sql, query.parameters)
            query = steps.send(await cursor.fetchall())
    except StopIteration as end:
        value: T = end.value
        return value
