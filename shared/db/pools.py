"""Connection pools. Connections are in autocommit: a single statement commits itself in one round trip,
and what needs several opens ``conn.transaction()``."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool, ConnectionPool

__all__ = ["AsyncPool", "SyncPool", "connect", "dumps", "is_outage", "open_async_pool", "open_pool"]

SyncPool = ConnectionPool[psycopg.Connection[DictRow]]
AsyncPool = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]


def dumps(value: Any) -> bytes:
    """JSON as it is stored: UUIDs, datetimes and pydantic models included."""
    return orjson.dumps(value, default=_default)


def _default(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)


def _kwargs(application_name: str) -> dict[str, Any]:
    return {
        "autocommit": True,
        "row_factory": dict_row,
        "application_name": application_name,
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # A server that vanishes in the middle of a statement is given up after this, not after the kernel's 15 min.
        "tcp_user_timeout": 15_000,
        # Prepare at the second use: the hot statements are few and large.
        "prepare_threshold": 1,
        # Statements are written so that one plan is right for all parameters. Left to itself Postgres plans the claim
        # anew each time, by estimates that favour that: 1.1 ms of CPU instead of 0.3.
        "options": "-c plan_cache_mode=force_generic_plan -c jit=off -c timezone=UTC",
    }


# SQLSTATEs of a server that stops, has crashed, or starts; and class 08, connection exceptions (PostgreSQL manual,
# appendix A).
_OUTAGES = ("57P01", "57P02", "57P03", "08")


def is_outage(error: BaseException) -> bool:
    """Was Postgres away or lost, rather than asked something wrong? Connection errors of libpq carry no SQLSTATE."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_OUTAGES)


def connect(database_url: str, application_name: str) -> psycopg.Connection[DictRow]:
    """One connection outside any pool, for a thread that must not wait for one (the heartbeat)."""
    _json()
    conn: psycopg.Connection[DictRow] = psycopg.connect(database_url, **_kwargs(application_name))
    return conn


def open_pool(database_url: str, *, size: int, application_name: str, min_size: int = 1) -> SyncPool:
    """A pool for threads. Does not wait for the server: the first use does, up to 10 s."""
    _json()
    pool: SyncPool = ConnectionPool(
        database_url,
        min_size=min(min_size, size),
        max_size=size,
        timeout=10,
        kwargs=_kwargs(application_name),
        check=None,
        open=True,
        reconnect_timeout=60,
    )
    return pool


async def open_async_pool(database_url: str, *, size: int, application_name: str) -> AsyncPool:
    """A pool for one event loop."""
    _json()
    pool: AsyncPool = AsyncConnectionPool(
        database_url,
        min_size=1,
        max_size=size,
        timeout=10,
        kwargs=_kwargs(application_name),
        open=False,
        reconnect_timeout=60,
    )
    await pool.open(wait=False)
    return pool


def _json() -> None:
    set_json_dumps(dumps)
    set_json_loads(orjson.loads)
